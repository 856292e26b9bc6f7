"""One encoder and one bank on one device, and the threads that drive them.

The only torch in this room.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from labelmux_adapters.bank import Bank
from labelmux_encoder.batch import pack_rows
from labelmux_encoder.tokenizer import TokenRow
from labelmux_encoder.weights import LoadedEncoder
from labelmux_server.batcher import Batcher
from labelmux_server.errors import (
    BatchFailedError,
    DrainingError,
    NotReadyError,
    OutOfMemoryError,
)
from labelmux_server.feature_cache import FeatureCache
from labelmux_server.metrics import Metrics
from labelmux_server.submission import Batch, EncoderRow, Fault, Times
from labelmux_server.threads import NICENESS, give_way

#: Tokens of one readout that pads. Padding costs more than calls on a CPU: 128 mixed texts
#: took 0.76 ms each at once and 0.21 in parts. A GPU is the other way round.
_CPU_PART_TOKENS = 1024
_GPU_PART_TOKENS = 16_384
#: Longest time that a start spends on passes whose sizes requests will have.
_WARM_UP_S = 3.0
_NO_MEMORY = ("can't allocate memory", "std::bad_alloc", "out of memory")

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Work:
    """What one thread is at."""

    helper: bool
    #: When it took the batch that it runs; infinite between batches.
    since_s: float = math.inf
    #: What it took and has no answer on its way yet.
    unanswered: list[Batch] = field(default_factory=list)
    #: Whether it ended by a fault.
    ended: bool = False


class Replica:
    """Takes batches from the batcher and gives their answers to the event loop."""

    def __init__(
        self,
        loaded: LoadedEncoder,
        bank: Bank,
        batcher: Batcher,
        cache: FeatureCache[torch.Tensor],
        metrics: Metrics,
        loop: asyncio.AbstractEventLoop,
        longest_batch_s: float = math.inf,
    ) -> None:
        """``longest_batch_s``: with a batch that takes longer, the replica counts as failed."""
        self._loaded = loaded
        self._bank = bank
        self._batcher = batcher
        self._cache = cache
        self._metrics = metrics
        self._loop = loop
        self._device = loaded.encoder.device
        self._on_gpu = self._device.type == "cuda"
        padded_tokens = _GPU_PART_TOKENS if self._on_gpu else _CPU_PART_TOKENS
        self._part_tokens = padded_tokens if bank.pads else math.inf
        self._longest_batch_s = longest_batch_s
        self._passes = loaded.encoder.shares.passes
        self._warm = Future[None]()
        self._work = [_Work(helper=number > 0) for number in range(self._passes)]
        self._threads = [
            threading.Thread(
                target=self._run, args=(work,), name=f"labelmux-replica-{number}", daemon=True
            )
            for number, work in enumerate(self._work)
        ]

    def start(self) -> None:
        """Warm up, then begin to take batches. What the warm-up raises is raised here."""
        self._loaded.encoder.share_cores(NICENESS)
        lead, *helpers = self._threads
        lead.start()
        self._warm.result()
        for thread in helpers:
            thread.start()

    async def stop(self) -> None:
        """Finish the running batches; rows that still wait fail. On the event loop."""
        Batch(self._batcher.close()).deliver(DrainingError)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    @property
    def alive(self) -> bool:
        """Whether all threads run and get on."""
        return all(thread.is_alive() for thread in self._threads) and not self.failed

    @property
    def failed(self) -> bool:
        """Whether a thread ended by a fault, or hangs."""
        longest_since_s = time.monotonic() - self._longest_batch_s
        return any(work.ended or work.since_s < longest_since_s for work in self._work)

    def _run(self, work: _Work) -> None:
        give_way(NICENESS)
        try:
            if not work.helper:  # here, since what products compile is kept for each thread
                self._loaded.encoder.warm_up(_WARM_UP_S)
                self._warm.set_result(None)
            while (batch := self._batcher.take(helper=work.helper)) is not None:
                work.since_s = time.monotonic()
                work.unanswered = [batch]
                if self._passes > 1:
                    self._loaded.encoder.use_threads(batch.threads or self._passes)
                self._serve(batch, work)
                work.since_s = math.inf
        except BaseException as error:  # noqa: BLE001 - the thread's end: whoever waits is told
            _log.critical("a thread of the encoder ended", exc_info=True)
            work.ended = True
            if not self._warm.done():
                self._warm.set_exception(error)
            for left in (*work.unanswered, Batch(self._batcher.close())):
                self._loop.call_soon_threadsafe(left.deliver, NotReadyError)

    def _serve(self, batch: Batch, work: _Work, *, may_split: bool = True) -> None:
        """Answer a batch; if there is no memory for it, each half by itself."""
        started = time.monotonic()
        answers: Sequence[Sequence[NDArray[np.float32]]] | Fault
        encode_s = 0.0
        try:
            answers, encode_s = self._answer(batch) if batch.rows else ([], 0.0)
        except Exception as error:  # noqa: BLE001 - the batch boundary: fails these rows alone
            _log.exception("a batch of %d texts failed", len(batch.rows))
            # The exception itself would keep what the failed pass had allocated.
            answers = OutOfMemoryError if is_out_of_memory(error) else BatchFailedError
        if callable(answers):
            self._recover()
            if may_split and len(batch.rows) > 1 and answers is OutOfMemoryError:
                halves = batch.halves()
                work.unanswered = list(halves)
                for half in halves:
                    self._serve(half, work, may_split=False)
                self._batcher.done(batch, time.monotonic() - started)
                return
        seconds = time.monotonic() - started
        times = Times(started, encode_s, seconds - encode_s)
        self._batcher.done(batch, seconds)
        if batch.rows:
            self._metrics.batches.record(batch, times, self._passes, failed=callable(answers))
        work.unanswered.remove(batch)
        self._loop.call_soon_threadsafe(batch.deliver, answers, times)

    def _recover(self) -> None:
        """After a fault, see whether the device still works; if it does not, the thread ends.

        CUDA fails every call after some faults, for as long as the process lives.
        """
        if self._on_gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _answer(self, batch: Batch) -> tuple[list[list[NDArray[np.float32]]], float]:
        """Logits for every reader of every row, and how long their features took."""
        stopwatch = _Stopwatch(self._device)
        features, laid = self._features(sorted(batch.rows, key=lambda row: row.tokens))
        stopwatch.stop()
        answers: dict[EncoderRow, list[NDArray[np.float32]]] = {}
        token = 0
        for rows in parts(laid, self._part_tokens):
            lengths = [row.tokens for row in rows]
            whole = len(rows) == len(laid)
            own = features if whole else features[:, token : token + sum(lengths)]
            token += sum(lengths)
            answers |= zip(rows, self._read(own, lengths, rows), strict=True)
        return [answers[row] for row in batch.rows], stopwatch.seconds()

    def _read(
        self, features: torch.Tensor, lengths: Sequence[int], rows: Sequence[EncoderRow]
    ) -> list[list[NDArray[np.float32]]]:
        """Logits for every reader of rows whose features follow each other."""
        wanted = [
            (index, submission.rows[place].slot)
            for index, row in enumerate(rows)
            for submission, place in row.readers
        ]
        logits = iter(self._bank.readout(features, lengths, wanted))
        return [[next(logits) for _ in row.readers] for row in rows]

    def _features(self, rows: Sequence[EncoderRow]) -> tuple[torch.Tensor, list[EncoderRow]]:
        """Features of all rows, and the rows as they lie in them: those at hand first."""
        found, hits, misses = list[torch.Tensor](), list[EncoderRow](), list[EncoderRow]()
        for row in rows:
            features = None if row.edit else self._cache.find(row.key)
            row.cached = features is not None
            if features is None:
                misses.append(row)
            else:
                found.append(features)
                hits.append(row)
        if misses:
            found.append(self._encode(misses))
        return found[0] if len(found) == 1 else torch.cat(found, 1), hits + misses

    def _encode(self, rows: Sequence[EncoderRow]) -> torch.Tensor:
        """Features by one pass, each row's as its adapter changes it.

        The cache keeps a copy of plain ones that it wants.
        """
        tokens = [
            TokenRow(row.token_ids, row.type_ids, truncated=False, special=row.special)
            for row in rows
        ]
        edits = self._bank.edits([row.edit for row in rows])
        features = self._loaded.encoder(pack_rows(tokens), edits)
        token_bytes, token = features.nbytes // features.shape[1], 0
        for row in rows:
            if row.edit is None and self._cache.wants(row.key, row.tokens * token_bytes):
                self._cache.keep(row.key, features[:, token : token + row.tokens].clone())
            token += row.tokens
        return features


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on whatever device; torch has no kind of its own for CPUs."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _NO_MEMORY)


def parts(rows: Sequence[EncoderRow], part_tokens: float) -> Iterator[Sequence[EncoderRow]]:
    """``rows`` cut where rows padded to the longest would have more tokens; one row always goes."""
    first, longest = 0, 0
    for at, row in enumerate(rows):
        longest = max(longest, row.tokens)
        if at > first and longest * (at + 1 - first) > part_tokens:
            yield rows[first:at]
            first, longest = at, row.tokens
    yield rows[first:]


class _Stopwatch:
    """How long the features of a batch took, from when it is made.

    On a GPU by events, since a pass returns before it is done: read it once the answers are here.
    """

    def __init__(self, device: torch.device) -> None:
        self._events = (
            [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            if device.type == "cuda"
            else None
        )
        if self._events:
            self._events[0].record()
        self._started_s = self._stopped_s = time.monotonic()

    def stop(self) -> None:
        if self._events:
            self._events[1].record()
        self._stopped_s = time.monotonic()

    def seconds(self) -> float:
        if self._events:
            return float(self._events[0].elapsed_time(self._events[1])) / 1000
        return self._stopped_s - self._started_s
