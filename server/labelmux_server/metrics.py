"""Every metric of the server: those that are recorded here, and those that others count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from labelmux_server.batch_metrics import BatchMetrics
from labelmux_server.tally import SECONDS, Tally
from labelmux_server.task_metrics import TaskMetrics
from labelmux_server.trial import Trials
from labelmux_server.trial_counts import TrialCounts

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Reading(NamedTuple):
    """A number that somebody counts by itself, read whenever metrics are asked for."""

    name: str
    text: str
    read: Callable[[], float]
    #: Whether it only grows.
    counts: bool = False


class Metrics:
    """One app's metrics, in a registry of their own."""

    def __init__(self, max_tasks: int = 100) -> None:
        """``max_tasks``: of so many tasks there are metrics for each."""
        # A series more for each counter and histogram, which nothing here reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        self._max_tasks = max_tasks
        ProcessCollector(registry=registry)
        self.batches = BatchMetrics()
        self.tasks = TaskMetrics(max_tasks)
        registry.register(self.batches)
        registry.register(self.tasks)
        self._requests = _Counts("requests", "Requests answered.", ("route", "status"))
        self._duration = _Tallies(
            "request_duration_seconds", "From a request's first byte to its answer.", ("route",)
        )
        self._tokenise = _Tallies(
            "tokenise_duration_seconds",
            "From a call's texts to their tokens, the wait for a tokeniser included.",
        )
        self._rejected = self._counter("rejected", "Requests refused, by error code.", "code")
        self._changes = self._counter("task_changes", "Changes to tasks.", "action")
        self._key_use = {
            unit: _Counts(f"key_{unit}", f"What each key used: {unit}.", ("key",))
            for unit in ("requests", "tokens")
        }
        for ours in (self._requests, self._duration, self._tokenise, *self._key_use.values()):
            registry.register(ours)
        self._key_limited = self._counter(
            "key_limited",
            "Requests refused since the key was used too fast, by what was short.",
            "key",
            "unit",
        )
        self._load_duration = self._histogram(
            "adapter_load_seconds",
            "How long an adapter took into the bank; their count is that of loads.",
        )
        self._load_failures = self._counter(
            "adapter_load_failures", "Adapters that could not be loaded, by error code.", "code"
        )
        self._evictions = self._counter(
            "adapter_evictions", "Adapters that left the bank for others."
        )

    def watch(self, *readings: Reading) -> None:
        """Read these whenever metrics are asked for."""
        self._registry.register(_Readings(readings))

    def describe(self, **facts: str) -> None:
        """What serves: a metric whose value is 1 and whose labels say it."""
        text = "What serves; always 1."
        info = Gauge("labelmux_info", text, tuple(facts), registry=self._registry)
        info.labels(**facts).set(1)

    def watch_trials(self, trials: Callable[[], Sequence[Trials]]) -> None:
        """Read what shadows and canaries count whenever metrics are asked for."""
        self._registry.register(TrialCounts(trials, self._max_tasks))

    def record_load(self, seconds: float) -> None:
        """An adapter came into the bank."""
        self._load_duration.observe(seconds)

    def record_load_failure(self, code: str) -> None:
        """An adapter did not."""
        self._load_failures.labels(code).inc()

    def record_eviction(self) -> None:
        """One left it for another."""
        self._evictions.inc()

    def record_request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered. On the event loop."""
        self._requests.add((route, str(status)))
        self._duration.observe((route,), seconds)

    def record_tokenise(self, seconds: float) -> None:
        """A call's texts were tokenised. On the event loop."""
        self._tokenise.observe((), seconds)

    def record_use(self, key: str, unit: str, amount: int) -> None:
        """A key was used. On the event loop."""
        self._key_use[unit].add((key,), amount)

    def record_limited(self, key: str, unit: str) -> None:
        """A key was used too fast."""
        self._key_limited.labels(key, unit).inc()

    def record_rejected(self, code: str) -> None:
        """A request was answered with an error."""
        self._rejected.labels(code).inc()

    def record_change(self, action: str) -> None:
        """A task changed."""
        self._changes.labels(action).inc()

    def render(self) -> bytes:
        """The text exposition. Any thread may ask."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"labelmux_{name}_total", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"labelmux_{name}", text, labels, buckets=SECONDS, registry=self._registry)


class _Readings(Collector):
    """What others count."""

    def __init__(self, readings: tuple[Reading, ...]) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        """The numbers as they are now."""
        for reading in self._readings:
            family = CounterMetricFamily if reading.counts else GaugeMetricFamily
            yield family(f"labelmux_{reading.name}", reading.text, float(reading.read()))


class _Counts(Collector):
    """Counts by the values of labels; one thread counts, any may read."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._about = f"labelmux_{name}", text
        self._labels = labels
        self._counts: dict[tuple[str, ...], int] = {}

    def add(self, values: tuple[str, ...], amount: int = 1) -> None:
        """Count so much under these labels."""
        self._counts[values] = self._counts.get(values, 0) + amount

    def collect(self) -> Iterator[Metric]:
        """The counts as they are now."""
        family = CounterMetricFamily(*self._about, labels=self._labels)
        for values, count in self._counts.copy().items():
            family.add_metric(values, count)
        yield family


class _Tallies(Collector):
    """Seconds by the values of labels; one thread observes, any may read."""

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self._about = f"labelmux_{name}", text
        self._labels = labels
        self._tallies: dict[tuple[str, ...], Tally] = {}
        if not labels:
            self._tallies[()] = Tally(SECONDS)

    def observe(self, values: tuple[str, ...], seconds: float) -> None:
        """Something under these labels took so long."""
        tally = self._tallies.get(values)
        if tally is None:
            tally = self._tallies[values] = Tally(SECONDS)
        tally.observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """The tallies as they are now."""
        family = HistogramMetricFamily(*self._about, labels=self._labels)
        for values, tally in self._tallies.copy().items():
            family.add_metric(values, tally.buckets(), tally.total)
        yield family
