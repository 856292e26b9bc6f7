"""What each task answers, for so many tasks; the others share one name.

A task's series go with the task, and those of its early versions when later ones come: neither
callers nor swaps make them grow without end.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from labelmux_server.registry import Version
from labelmux_server.tally import SECONDS, Tally

#: The name that tasks beyond the limit share; no task can have it.
OTHERS = "(other)"
#: The code of a call that was told no error.
ANSWERED = "ok"
_VERSIONS_KEPT = 4


@dataclass(slots=True)
class _Series:
    """One version's counts."""

    calls: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    seconds: Tally = field(default_factory=lambda: Tally(SECONDS))


class TaskMetrics(Collector):
    """Counts by task and version."""

    def __init__(self, max_tasks: int) -> None:
        self._max_tasks = max_tasks
        #: By task and version, in the order in which they were first asked for.
        self._series: dict[str, dict[str, _Series]] = {}
        self._others = _Series()
        self._lock = threading.Lock()
        self._is_there: Callable[[str], bool] = lambda _: True

    def watch(self, is_there: Callable[[str], bool]) -> None:
        """How to learn whether a task is still there."""
        self._is_there = is_there

    def record(self, version: Version, code: str, rows: int, seconds: float) -> None:
        """A call named a version. On the event loop.

        Args:
            version: that was named.
            code: of the error that the call was told of it, or ``ANSWERED``.
            rows: how many texts were answered.
            seconds: how long that took.
        """
        versions = self._series.get(version.task)
        series = versions.get(str(version.number)) if versions else None
        series = series or self._open(version.task, str(version.number))
        series.calls[code] += 1
        series.rows += rows
        if code == ANSWERED:
            series.seconds.observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """The counts as they are now; those of deleted tasks go."""
        self._prune()
        names = ("task", "version")
        calls = CounterMetricFamily(
            "labelmux_task_requests",
            "Calls that named a task, by what each was told of it: ok, or an error's code.",
            labels=(*names, "code"),
        )
        rows = CounterMetricFamily("labelmux_task_rows", "Texts answered for a task.", labels=names)
        seconds = HistogramMetricFamily(
            "labelmux_task_duration_seconds",
            "From a call's admission to a task's answer in it.",
            labels=names,
        )
        for labels, series in self._all():
            for code, count in series.calls.copy().items():
                calls.add_metric((*labels, code), count)
            rows.add_metric(labels, series.rows)
            seconds.add_metric(labels, series.seconds.buckets(), series.seconds.total)
        return iter((calls, rows, seconds))

    def _all(self) -> Iterator[tuple[tuple[str, str], _Series]]:
        with self._lock:
            found = [(task, [*versions.items()]) for task, versions in self._series.items()]
        for task, versions in found:
            for version, series in versions:
                yield (task, version), series
        if self._others.calls:
            yield (OTHERS, ""), self._others

    def _open(self, task: str, version: str) -> _Series:
        with self._lock:
            if task not in self._series and len(self._series) >= self._max_tasks:
                return self._others
            versions = self._series.setdefault(task, {})
            if len(versions) == _VERSIONS_KEPT:
                del versions[next(iter(versions))]
            return versions.setdefault(version, _Series())

    def _prune(self) -> None:
        with self._lock:
            for task in [name for name in self._series if not self._is_there(name)]:
                del self._series[task]
