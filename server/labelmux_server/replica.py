"""One encoder and one bank on one device, driven by one thread. The only torch in this room."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from labelmux_adapters.bank import Bank
from labelmux_encoder.batch import pack_rows
from labelmux_encoder.tokenizer import TokenRow
from labelmux_encoder.weights import LoadedEncoder
from labelmux_server.batcher import Batcher
from labelmux_server.errors import DrainingError
from labelmux_server.feature_cache import FeatureCache
from labelmux_server.metrics import Metrics
from labelmux_server.submission import Batch, EncoderRow, Times

#: Longest time that a start spends on passes whose sizes requests will have.
_WARM_UP_S = 3.0

_log = logging.getLogger(__name__)


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
    ) -> None:
        self._loaded = loaded
        self._bank = bank
        self._batcher = batcher
        self._cache = cache
        self._metrics = metrics
        self._loop = loop
        self._stopwatch = _Stopwatch(loaded.encoder.device)
        self._thread = threading.Thread(target=self._run, name="labelmux-replica", daemon=True)

    def start(self) -> None:
        """Warm up, then begin to take batches."""
        self._loaded.encoder.warm_up(_WARM_UP_S)
        self._thread.start()

    async def stop(self) -> None:
        """Finish the running batch; rows that still wait fail. On the event loop."""
        Batch(self._batcher.close()).deliver(DrainingError())
        await asyncio.to_thread(self._thread.join)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while (batch := self._batcher.take()) is not None:
            self._serve(batch)

    def _serve(self, batch: Batch) -> None:
        started = time.monotonic()
        answers: Sequence[Sequence[NDArray[np.float32]]] | BaseException
        encode_s = 0.0
        try:
            answers, encode_s = self._answer(batch) if batch.rows else ([], 0.0)
        except Exception as error:  # noqa: BLE001 - the batch boundary: fails these rows alone
            _log.exception("a batch of %d texts failed", len(batch.rows))
            answers = error
        seconds = time.monotonic() - started
        if batch.rows:
            self._batcher.done(batch, seconds)
            self._metrics.record_batch(batch, started, seconds)
        times = Times(started, encode_s, seconds - encode_s)
        self._loop.call_soon_threadsafe(batch.deliver, answers, times)

    @torch.inference_mode()
    def _answer(self, batch: Batch) -> tuple[list[list[NDArray[np.float32]]], float]:
        """Logits for every reader of every row, and how long their features took."""
        self._stopwatch.start()
        features, order = self._features(batch.rows)
        self._stopwatch.stop()
        places = {index: place for place, index in enumerate(order)}
        wanted = [
            (places[index], submission.rows[place].slot)
            for index, row in enumerate(batch.rows)
            for submission, place in row.readers
        ]
        lengths = [batch.rows[index].tokens for index in order]
        logits = iter(self._bank.readout(features, lengths, wanted))
        answers = [[next(logits) for _ in row.readers] for row in batch.rows]
        return answers, self._stopwatch.seconds()

    def _features(self, rows: Sequence[EncoderRow]) -> tuple[torch.Tensor, list[int]]:
        """Features of all rows, those at hand first, and the rows' indices in that order."""
        parts, hits, misses = list[torch.Tensor](), list[int](), list[int]()
        for index, row in enumerate(rows):
            found = self._cache.find(row.key)
            row.cached = found is not None
            if found is None:
                misses.append(index)
            else:
                parts.append(found)
                hits.append(index)
        if misses:
            parts.append(self._encode([rows[index] for index in misses]))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1), hits + misses

    def _encode(self, rows: Sequence[EncoderRow]) -> torch.Tensor:
        """Features by a pass; the cache keeps a copy of those that it wants."""
        features = self._loaded.encoder(
            pack_rows([TokenRow(row.token_ids, row.type_ids, truncated=False) for row in rows])
        )
        for row, own in zip(rows, features.split([row.tokens for row in rows], 1), strict=True):
            if self._cache.wants(row.key, own.nbytes):
                self._cache.keep(row.key, own.clone())
        return features


class _Stopwatch:
    """How long the features of a batch took.

    On a GPU by events, since a pass returns before it is done: read it once the answers are here.
    """

    def __init__(self, device: torch.device) -> None:
        self._events = (
            [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            if device.type == "cuda"
            else None
        )
        self._started_s = self._stopped_s = 0.0

    def start(self) -> None:
        if self._events:
            self._events[0].record()
        self._started_s = time.monotonic()

    def stop(self) -> None:
        if self._events:
            self._events[1].record()
        self._stopped_s = time.monotonic()

    def seconds(self) -> float:
        if self._events:
            return float(self._events[0].elapsed_time(self._events[1])) / 1000
        return self._stopped_s - self._started_s
