"""Token rows to the tensors that a pass reads: one after another, without padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from labelmux_encoder.tokenizer import TokenRow


class PackedRows(NamedTuple):
    """The tokens of one batch's rows, row after row. N is the sum of ``lengths``."""

    token_ids: Tensor  # [N] int64
    type_ids: Tensor  # [N] int64
    #: Tokens of each row, all above 0.
    lengths: tuple[int, ...]
    #: Places of each row's special tokens in the row; read where an edit shifts them. [B]
    special: tuple[tuple[int, ...], ...] = ()


def pack_rows(rows: Sequence[TokenRow]) -> PackedRows:
    """The batch of ``rows``, in their order."""
    return PackedRows(
        _packed(row.token_ids for row in rows),
        _packed(row.type_ids for row in rows),
        tuple(len(row.token_ids) for row in rows),
        tuple(row.special for row in rows),
    )


def _packed(values: Iterable[Sequence[int]]) -> Tensor:
    # torch.tensor would let go of the interpreter's lock and wait for it.
    return torch.from_numpy(np.fromiter(chain.from_iterable(values), np.int64))


def unpack(packed: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Rows padded with zeros to the longest, and a mask that is True at real tokens.

    [..., N, H] -> [..., B, T, H], [B, T]
    """
    counts = torch.tensor(lengths, device=packed.device)
    mask = torch.arange(max(lengths), device=packed.device) < counts.unsqueeze(1)
    padded = packed.new_zeros(*packed.shape[:-2], *mask.shape, packed.shape[-1])
    padded[..., mask, :] = packed
    return padded, mask
