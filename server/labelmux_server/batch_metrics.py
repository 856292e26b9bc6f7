"""What the replica's batches were: counted on its threads, read by any."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from labelmux_server.submission import Batch, Times
from labelmux_server.tally import COUNTS, SECONDS, TOKENS, Tally


class BatchMetrics(Collector):
    """Counts of batches, their rows and their times."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows = self._failures = 0
        self._encoder_rows = self._edited_rows = self._passes = self._tokens = 0
        self._batch_rows, self._batch_adapters = Tally(COUNTS), Tally(COUNTS)
        self._batch_tokens, self._text_tokens = Tally(TOKENS), Tally(TOKENS)
        self._duration, self._queue_wait = Tally(SECONDS), Tally(SECONDS)
        self._encode, self._readout = Tally(SECONDS), Tally(SECONDS)
        self._busy_s = 0.0

    def record(self, batch: Batch, times: Times, threads: int, *, failed: bool) -> None:
        """A batch ran, well or not. On one of so many threads of the replica."""
        with self._lock:
            self._record(batch, times, failed=failed)
            seconds = times.encode_s + times.readout_s
            self._busy_s += seconds / threads if batch.one_thread else seconds

    def _record(self, batch: Batch, times: Times, *, failed: bool) -> None:
        tokens = passed = edited = 0
        for row in batch.rows:
            self._rows += len(row.readers)
            self._text_tokens.observe(row.tokens)
            self._queue_wait.observe(max(times.started_s - row.waiting_since_s, 0.0))
            edited += row.edit is not None
            if not row.cached:
                passed += 1
                tokens += row.tokens
        self._encoder_rows += passed
        self._edited_rows += edited
        self._passes += bool(passed)
        self._tokens += tokens
        self._batch_rows.observe(len(batch.rows))
        self._batch_tokens.observe(batch.tokens)
        self._batch_adapters.observe(batch.adapters)
        self._duration.observe(times.encode_s + times.readout_s)
        if failed:
            self._failures += 1
        else:
            self._encode.observe(times.encode_s)
            self._readout.observe(times.readout_s)

    def collect(self) -> Iterator[Metric]:
        """The counts as they are now."""
        for name, text, value in (
            ("rows", "Rows read out, one text for one task each; shadows too.", self._rows),
            ("encoder_rows", "Texts that went through the encoder.", self._encoder_rows),
            (
                "edited_rows",
                "Of these, texts that went through as an adapter changes the pass.",
                self._edited_rows,
            ),
            ("encoder_passes", "Passes of the encoder.", self._passes),
            ("encoder_tokens", "Tokens that went through the encoder.", self._tokens),
            ("batch_failures", "Batches that failed as a whole.", self._failures),
            (
                "replica_busy_seconds",
                "Time of batches; of one on a thread of its own, that thread's part of it.",
                self._busy_s,
            ),
        ):
            yield CounterMetricFamily(f"labelmux_{name}", text, value)
        for name, text, tally in (
            ("batch_encoder_rows", "Texts in a batch.", self._batch_rows),
            ("batch_tokens", "Tokens in a batch.", self._batch_tokens),
            ("batch_adapters", "Different adapters that read a batch.", self._batch_adapters),
            ("batch_duration_seconds", "Pass and readouts of a batch.", self._duration),
            ("encode_duration_seconds", "The pass of a batch.", self._encode),
            ("readout_duration_seconds", "The readouts of a batch.", self._readout),
            ("queue_wait_seconds", "How long a text waited for its batch.", self._queue_wait),
            ("text_tokens", "Tokens of a text, as it was read.", self._text_tokens),
        ):
            yield HistogramMetricFamily(f"labelmux_{name}", text, tally.buckets(), tally.total)
