"""Every metric of the server, by name; recorded through the methods here alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from labelmux_server.batcher import Batcher
from labelmux_server.feature_cache import FeatureCache
from labelmux_server.registry import Version
from labelmux_server.submission import Batch

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """One app's metrics, in a registry of their own."""

    def __init__(self, task_metrics: int) -> None:
        """``task_metrics``: most versions of tasks with a metric of their own."""
        self._registry = registry = CollectorRegistry()
        self._task_rows = _TaskRows(task_metrics)
        registry.register(self._task_rows)
        self._requests = Counter(
            "labelmux_requests_total", "Requests answered.", ("route", "status"), registry=registry
        )
        self._duration = Histogram(
            "labelmux_request_duration_seconds",
            "From a request's first byte to its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._rows = Counter(
            "labelmux_rows_total", "Rows answered: one text for one task each.", registry=registry
        )
        self._encoder_rows = Counter(
            "labelmux_encoder_rows_total", "Texts that went through the encoder.", registry=registry
        )
        self._edited_rows = Counter(
            "labelmux_edited_rows_total",
            "Of these, texts that went through as an adapter changes the pass.",
            registry=registry,
        )
        self._passes = Counter(
            "labelmux_encoder_passes_total", "Passes of the encoder.", registry=registry
        )
        self._tokens = Counter("labelmux_encoder_tokens_total", "Their tokens.", registry=registry)
        self._batch_rows = Histogram(
            "labelmux_batch_encoder_rows",
            "Texts in a batch.",
            buckets=_COUNTS,
            registry=registry,
        )
        self._batch_adapters = Histogram(
            "labelmux_batch_adapters",
            "Different adapters that read a batch.",
            buckets=_COUNTS,
            registry=registry,
        )
        self._batch_duration = Histogram(
            "labelmux_batch_duration_seconds",
            "Pass and readouts of a batch.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._queue_wait = Histogram(
            "labelmux_queue_wait_seconds",
            "How long a text waited for its batch.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._rejected = Counter(
            "labelmux_rejected_total",
            "Requests refused, by error code.",
            ("code",),
            registry=registry,
        )
        self._changes = Counter(
            "labelmux_task_changes_total", "Changes to tasks.", ("action",), registry=registry
        )
        self._key_use = {
            unit: Counter(
                f"labelmux_key_{unit}_total",
                f"What each key used: {unit}.",
                ("key",),
                registry=registry,
            )
            for unit in ("requests", "tokens")
        }
        self._key_limited = Counter(
            "labelmux_key_limited_total",
            "Requests refused since the key was used too fast, by what was short.",
            ("key", "unit"),
            registry=registry,
        )
        self._load_duration = Histogram(
            "labelmux_adapter_load_seconds",
            "How long an adapter took into the bank; their count is that of loads.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._evictions = Counter(
            "labelmux_adapter_evictions_total",
            "Adapters that left the bank for others.",
            registry=registry,
        )

    def watch(self, batcher: Batcher, cache: FeatureCache[Any], tasks: Callable[[], int]) -> None:
        """Read the queue, the cache and the number of tasks whenever metrics are asked for."""
        self._registry.register(_CacheCounts(cache))
        for name, text, read in (
            ("labelmux_queue_tokens", "Tokens that wait.", lambda: batcher.queued_tokens),
            ("labelmux_queue_rows", "Rows that wait.", lambda: batcher.queued_rows),
            (
                "labelmux_queue_expected_wait_seconds",
                "How long a text that comes now may expect to wait.",
                lambda: batcher.wait_s,
            ),
            ("labelmux_tasks", "Tasks that serve.", tasks),
        ):
            Gauge(name, text, registry=self._registry).set_function(read)

    def watch_requests(self, in_flight: Callable[[], int]) -> None:
        """Read how many requests are in work whenever metrics are asked for."""
        Gauge(
            "labelmux_requests_in_flight", "Requests in work.", registry=self._registry
        ).set_function(in_flight)

    def watch_bank(self, adapters: Callable[[], int], resident_bytes: Callable[[], int]) -> None:
        """Read what is in the bank whenever metrics are asked for."""
        for name, text, read in (
            ("labelmux_resident_adapters", "Adapters in the bank.", adapters),
            ("labelmux_resident_bytes", "Bytes of adapters in the bank.", resident_bytes),
        ):
            Gauge(name, text, registry=self._registry).set_function(read)

    def record_load(self, seconds: float) -> None:
        """An adapter came into the bank."""
        self._load_duration.observe(seconds)

    def record_eviction(self) -> None:
        """One left it for another."""
        self._evictions.inc()

    def record_request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(route, str(status)).inc()
        self._duration.labels(route).observe(seconds)

    def record_batch(self, batch: Batch, started_s: float, seconds: float) -> None:
        """A batch ran, well or not."""
        self._rows.inc(sum(len(row.readers) for row in batch.rows))
        read = [row.tokens for row in batch.rows if not row.cached]
        self._encoder_rows.inc(len(read))
        self._edited_rows.inc(sum(row.edit is not None for row in batch.rows))
        self._passes.inc(bool(read))
        self._tokens.inc(sum(read))
        self._batch_rows.observe(len(batch.rows))
        self._batch_adapters.observe(batch.adapters)
        self._batch_duration.observe(seconds)
        for row in batch.rows:
            self._queue_wait.observe(max(started_s - row.waiting_since_s, 0.0))

    def record_use(self, key: str, unit: str, amount: int) -> None:
        """A key was used."""
        self._key_use[unit].labels(key).inc(amount)

    def record_limited(self, key: str, unit: str) -> None:
        """A key was used too fast."""
        self._key_limited.labels(key, unit).inc()

    def record_answers(self, version: Version, rows: int) -> None:
        """A version answered so many rows of a call. On the event loop, as ``render`` is."""
        self._task_rows.add(version.task, version.number, rows)

    def record_rejected(self, code: str) -> None:
        """A request was answered with an error."""
        self._rejected.labels(code).inc()

    def record_change(self, action: str) -> None:
        """A task changed."""
        self._changes.labels(action).inc()

    def render(self) -> bytes:
        """The text exposition."""
        return generate_latest(self._registry)


class _TaskRows(Collector):
    """Rows by task and version, of those used last: tasks without end shall not fill the page."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rows: dict[tuple[str, int], int] = {}

    def add(self, task: str, version: int, rows: int) -> None:
        """The least recently used goes for one that is over the limit."""
        place = (task, version)
        self._rows[place] = self._rows.pop(place, 0) + rows
        if len(self._rows) > self._limit:
            del self._rows[next(iter(self._rows))]

    def collect(self) -> Iterator[Metric]:
        """The counts as they are now."""
        family = CounterMetricFamily(
            "labelmux_task_rows",
            "Rows answered, by task and version; of those used last.",
            labels=("task", "version"),
        )
        for (task, version), rows in self._rows.items():
            family.add_metric((task, str(version)), rows)
        yield family


class _CacheCounts(Collector):
    """What the feature cache counts by itself."""

    def __init__(self, cache: FeatureCache[Any]) -> None:
        self._cache = cache

    def collect(self) -> Iterator[Metric]:
        """The counts as they are now."""
        for name, text, value in (
            ("hits", "Texts whose features were at hand.", self._cache.hits),
            ("misses", "Texts whose features were not at hand.", self._cache.misses),
            ("evictions", "Texts whose features gave way to others.", self._cache.evictions),
        ):
            yield CounterMetricFamily(f"labelmux_feature_cache_{name}", text, value)
        yield GaugeMetricFamily(
            "labelmux_feature_cache_bytes", "Bytes of features kept.", self._cache.kept_bytes
        )
