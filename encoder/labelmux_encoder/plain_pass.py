"""The pass in plain torch, on any device: what the faster passes are held to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from labelmux_encoder.batch import PackedRows
from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.edits import Edit, Placed, with_tensors
from labelmux_encoder.model import EncoderTensors, run_pass


class PlainPass:
    """``run_pass`` with constants of one device and dtype."""

    def __init__(self, config: EncoderConfig, tensors: EncoderTensors) -> None:
        self._config = config
        self._tensors = tensors

    def lay_out(self, edit: Edit) -> Edit:
        """The edit on the constants' device and in their dtype."""
        words = self._tensors.words
        return with_tensors(edit, lambda _, tensor: tensor.detach().to(words.device, words.dtype))

    def __call__(self, rows: PackedRows, edits: Sequence[Placed] = ()) -> Tensor:
        """Hidden states of every layer, the embedding output first. [L+1, N, H]

        Raises:
            InputTooLongError: a row is longer than the encoder's limit.
        """
        return torch.stack(run_pass(self._config, self._tensors, rows, edits))
