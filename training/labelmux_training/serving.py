"""Logits by the path that serves requests: the file's tensors, in a bank.

Metrics, calibration and canaries are computed on these, so they hold for what is deployed, rounding
of stored tensors included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from labelmux_adapters.bank import Bank, Slot
from labelmux_adapters.errors import ForeignEncoderError
from labelmux_adapters.files import Adapter
from labelmux_encoder.batch import pack_rows
from labelmux_encoder.tokenizer import TextInput, TokenRow
from labelmux_encoder.weights import LoadedEncoder
from labelmux_training.features import Features, by_length
from labelmux_training.kinds import Logits
from labelmux_training.progress import NoProgress, Progress

#: Padded tokens, and rows, of one readout.
_BATCH_TOKENS = 2048
_BATCH_ROWS = 64


@dataclass(frozen=True, slots=True)
class Served:
    """What serving a list of texts gave."""

    #: One a row. Each [K], or [T, K] of a token task
    logits: list[Logits]
    #: How many texts were cut to the adapter's token limit.
    truncated: int


def serve_features(adapter: Adapter, features: Features) -> list[Logits]:
    """Logits of all rows of cached features, in their order. Each [K] or [T, K]"""
    bank = Bank()
    slot = bank.add(adapter)
    return _serve(bank, slot, features.lengths.numpy(), features.packed, NoProgress())


def serve_tokens(
    adapter: Adapter,
    loaded: LoadedEncoder,
    rows: Sequence[TokenRow],
    progress: Progress | None = None,
) -> list[Logits]:
    """Logits of rows of tokens, in their order; nothing is cached. Each [K] or [T, K]

    Raises:
        ForeignEncoderError: the adapter belongs to another encoder.
    """
    expected, found = adapter.manifest.encoder_fingerprint, loaded.encoder.fingerprint
    if expected != found:
        raise ForeignEncoderError(expected, found)
    bank = Bank.beside(loaded.encoder)
    slot = bank.add(adapter)

    def batch(indices: Sequence[int]) -> Tensor:
        edits = bank.edits([slot.edit] * len(indices))
        return loaded.encoder(pack_rows([rows[index] for index in indices]), edits)

    progress = progress or NoProgress()
    progress.start("classify", total=len(rows), unit="rows")
    lengths = np.array([len(row.token_ids) for row in rows], dtype=np.int64)
    logits = _serve(bank, slot, lengths, batch, progress)
    progress.done()
    return logits


def serve_texts(
    adapter: Adapter,
    loaded: LoadedEncoder,
    texts: Sequence[TextInput],
    progress: Progress | None = None,
) -> Served:
    """Logits of texts, in their order; raises as ``serve_tokens`` does."""
    rows = loaded.tokenizer.encode(texts, adapter.manifest.max_tokens)
    logits = serve_tokens(adapter, loaded, rows, progress)
    return Served(logits, sum(row.truncated for row in rows))


def _serve(
    bank: Bank,
    slot: Slot,
    lengths: npt.NDArray[np.int64],
    batch: Callable[[Sequence[int]], Tensor],
    progress: Progress,
) -> list[Logits]:
    logits: list[Logits] = [np.empty(0, np.float32)] * len(lengths)
    for rows in by_length(lengths, _BATCH_TOKENS, _BATCH_ROWS):
        wanted = [(place, slot) for place in range(len(rows))]
        found = bank.readout(batch(rows), lengths[rows].tolist(), wanted)
        for row, own in zip(rows, found, strict=True):
            logits[row] = own
        progress.advance(len(rows))
    return logits
