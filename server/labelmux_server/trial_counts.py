"""Shadows and canaries in the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from labelmux_server.trial import Trials


class TrialCounts(Collector):
    """What shadows and canaries count by themselves. Their series end with them."""

    def __init__(self, trials: Callable[[], Sequence[Trials]], max_tasks: int) -> None:
        """``max_tasks``: so many tasks at most have series."""
        self._trials = trials
        self._max_tasks = max_tasks

    def collect(self) -> Iterator[Metric]:
        """The counts as they are now."""
        names = ("task", "version")
        compared, agreed, difference, answered, fell_back = (
            CounterMetricFamily(f"labelmux_{name}", text, labels=names)
            for name, text in (
                ("shadow_texts", "Texts that a shadow and the active version read."),
                ("shadow_agreed_texts", "Of these, texts with the same verdict."),
                ("shadow_score_difference", "Sum of these texts' mean differences of scores."),
                ("canary_texts", "Texts that a canary answered."),
                ("canary_fallback_texts", "Texts that it could not answer."),
            )
        )
        skipped = CounterMetricFamily(
            "labelmux_shadow_skipped_texts",
            "Texts that a shadow did not read, by reason.",
            labels=(*names, "reason"),
        )
        for trials in self._trials()[: self._max_tasks]:
            if shadow := trials.shadow:
                place = [shadow.version.task, str(shadow.version.number)]
                compared.add_metric(place, shadow.compared)
                agreed.add_metric(place, shadow.agreed)
                difference.add_metric(place, shadow.score_difference)
                skipped.add_metric([*place, "load"], shadow.dropped)
                skipped.add_metric([*place, "not_resident"], shadow.unloaded)
            if canary := trials.canary:
                place = [canary.version.task, str(canary.version.number)]
                answered.add_metric(place, canary.answered)
                fell_back.add_metric(place, canary.fell_back)
        yield from (compared, agreed, difference, skipped, answered, fell_back)
