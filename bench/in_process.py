"""The encoder alone in this process: the yardstick of the server's own cost.

``run_encoder`` is the one place where the benchmark calls an encoder.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import torch
from torch import Tensor

from figures import percentile
from labelmux_encoder.batch import pack_rows
from labelmux_encoder.tokenizer import TokenRow
from labelmux_encoder.weights import LoadedEncoder

MAX_TOKENS = 256
#: Texts from which batches of near-equal length are cut: about what waits in a busy queue.
WINDOW = 256
#: Texts in one pass; the best of them is the encoder's rate.
BATCHES = (32, 128)
#: Texts in one pass of those that run side by side.
SHARE = 16


@torch.inference_mode()
def run_encoder(loaded: LoadedEncoder, rows: Sequence[TokenRow]) -> Tensor:
    """One pass; the last layer's state of each row's first token. [B, H]"""
    batch = pack_rows(rows)
    firsts = [0, *accumulate(batch.lengths[:-1])]
    return loaded.encoder(batch)[-1, firsts]


def in_process_texts_per_s(
    loaded: LoadedEncoder, texts: Sequence[str], seconds: float, batch: int
) -> float:
    """Texts a second through the encoder alone, tokenised before, in batches of like length.

    All texts are read equally often, so the rate is that of their mix of lengths.
    """
    batches = _batches(loaded, texts, batch)
    rounds, started = 0, time.monotonic()
    while time.monotonic() - started < seconds:
        for some in batches:
            run_encoder(loaded, some)
        rounds += 1
    return rounds * sum(map(len, batches)) / (time.monotonic() - started)


def side_by_side_texts_per_s(loaded: LoadedEncoder, texts: Sequence[str], seconds: float) -> float:
    """The same with a pass of ``SHARE`` texts for each thread: the most that the cores give."""
    batches = _batches(loaded, texts, SHARE)
    threads = loaded.encoder.shares.passes
    started = time.monotonic()

    def encode(first: int) -> int:
        loaded.encoder.use_threads(1)
        done = 0
        while time.monotonic() - started < seconds:
            done += len(batches[first % len(batches)])
            run_encoder(loaded, batches[first % len(batches)])
            first += threads
        return done

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(encode, range(threads))) / (time.monotonic() - started)


def _batches(loaded: LoadedEncoder, texts: Sequence[str], batch: int) -> list[list[TokenRow]]:
    """Texts of like length together, tokenised."""
    encoded = loaded.tokenizer.encode(texts, MAX_TOKENS)
    rows = [
        row
        for start in range(0, len(encoded), WINDOW)
        for row in sorted(encoded[start : start + WINDOW], key=lambda row: len(row.token_ids))
    ]
    return [rows[start : start + batch] for start in range(0, len(rows), batch)]


def row_p50_ms(loaded: LoadedEncoder, texts: Sequence[str], seconds: float) -> float:
    """Median time of a pass over one text, tokenised before."""
    rows = loaded.tokenizer.encode(texts, MAX_TOKENS)
    times: list[float] = []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        started = time.monotonic()
        run_encoder(loaded, [rows[len(times) % len(rows)]])
        times.append(1000 * (time.monotonic() - started))
    return percentile(times, 50)
