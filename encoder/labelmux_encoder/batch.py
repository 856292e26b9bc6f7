"""Token rows to the padded tensors that a pass reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from labelmux_encoder.tokenizer import TokenRow


class PaddedRows(NamedTuple):
    """Rows of one batch, padded on the right to the longest."""

    token_ids: Tensor  # [B, T] int64
    mask: Tensor  # [B, T] bool, True at real tokens
    type_ids: Tensor  # [B, T] int64


def pad_rows(rows: Sequence[TokenRow], pad_token_id: int) -> PaddedRows:
    """Pad ``rows`` to their longest. Never pads further, so padding depends on the batch alone."""
    longest = max(len(row.token_ids) for row in rows)
    token_ids = np.full((len(rows), longest), pad_token_id, dtype=np.int64)
    type_ids = np.zeros((len(rows), longest), dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.bool_)
    for index, row in enumerate(rows):
        length = len(row.token_ids)
        token_ids[index, :length] = row.token_ids
        type_ids[index, :length] = row.type_ids
        mask[index, :length] = True
    return PaddedRows(*(torch.from_numpy(array) for array in (token_ids, mask, type_ids)))
