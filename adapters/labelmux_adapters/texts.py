"""The texts of a batch as readouts see them: normalised once, for all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from labelmux_adapters import kernels
from labelmux_adapters.layout import Index
from labelmux_adapters.ytuning import normalise_states


class TextBatch:
    """The texts of one batch: their features, and what readouts derive of them, once for all."""

    def __init__(self, features: Tensor, lengths: Sequence[int]) -> None:
        """Features one text's tokens after the other's, in any float dtype. [L+1, N, H]"""
        self.features = features
        self.lengths = [int(length) for length in lengths]
        self._cast: dict[torch.dtype, Tensor] = {}

    def features_in(self, dtype: torch.dtype) -> Tensor:
        """The features, contiguous, in this dtype."""
        if dtype == self.features.dtype and self.features.is_contiguous():
            return self.features
        if dtype not in self._cast:
            self._cast[dtype] = self.features.to(dtype).contiguous()
        return self._cast[dtype]

    @cached_property
    def starts(self) -> list[int]:
        """First token of each text."""
        return [0, *accumulate(self.lengths[:-1])]

    @cached_property
    def last(self) -> Tensor:
        """The last layer's states in float32. [N, H]"""
        return self.features[-1].float()

    @cached_property
    def mean(self) -> Tensor:
        """The mean of each text's last states. [B, H]"""
        counts = torch.tensor(self.lengths, device=self.features.device)
        owner = torch.arange(len(self.lengths), device=counts.device).repeat_interleave(counts)
        sums = self.last.new_zeros(len(self.lengths), self.last.shape[1])
        return sums.index_add(0, owner, self.last) / counts[:, None]

    @cached_property
    def first(self) -> Tensor:
        """The last state of each text's first token. [B, H]"""
        return self.last[torch.tensor(self.starts, device=self.features.device)]

    def tokens_of(self, rows: Index) -> tuple[Index, Index, Index]:
        """The tokens of these texts, one text's after the other's.

        Returns:
            Each token's place in the batch, which of ``rows`` it belongs to, and where each row's
            tokens end. [tokens], [tokens], [rows]
        """
        lengths = np.asarray(self.lengths)[rows]
        ends = np.cumsum(lengths)
        owners = np.repeat(np.arange(len(rows)), lengths)
        first = (np.asarray(self.starts)[rows] - ends + lengths)[owners]
        return first + np.arange(ends[-1]), owners, ends

    @cached_property
    def statistics(self) -> Tensor:
        """Mean of each state, and one over its deviation. [L+1, N, 2]"""
        return kernels.state_statistics(self.features_in(self.features.dtype))

    @cached_property
    def normalised(self) -> Tensor:
        """The features in float32, each layer's normalised per token. [L+1, N, H]"""
        return normalise_states(self.features.float())

    @cached_property
    def padded(self) -> Texts:
        """The texts, normalised and padded."""
        return Texts.of(self.features, self.lengths)


class Texts(NamedTuple):
    """Features of B texts in float32, padded with zeros to the longest."""

    states: Tensor  # [L+1, B, T, H]
    #: Over the real tokens of each text.
    means: Tensor  # [L+1, B, H]
    #: To be added to attention logits: 0 at real tokens, -inf at padding. None without padding.
    bias: Tensor | None  # [B, T]

    @classmethod
    def of(cls, features: Tensor, lengths: Sequence[int]) -> Texts:
        """The texts whose packed features these are. [L+1, N, H]"""
        counts = np.asarray(lengths)
        longest = int(counts.max())
        normalised = normalise_states(features.float())
        if (counts == longest).all():
            states = normalised.unflatten(1, (len(counts), longest))
            return cls(states, states.mean(2), None)
        tokens = np.arange(longest)
        real = tokens < counts[:, None]
        # Padding reads one token of zeros behind the real ones.
        source = np.where(real, (np.cumsum(counts) - counts)[:, None] + tokens, counts.sum())
        index = torch.from_numpy(source.ravel()).to(features.device)
        zero = normalised.new_zeros(normalised.shape[0], 1, normalised.shape[2])
        padded = torch.cat([normalised, zero], 1).index_select(1, index)
        states = padded.unflatten(1, (len(counts), longest))
        divisor = torch.from_numpy(counts).to(features.device).unsqueeze(-1)
        bias = torch.from_numpy(np.where(real, np.float32(0), np.float32("-inf")))
        return cls(states, states.sum(2) / divisor, bias.to(features.device))

    def pick(self, index: Index) -> Texts:
        """These texts, in this order. The same tensors where that is all of them as they lie."""
        if len(index) == self.means.shape[1] and (index == np.arange(len(index))).all():
            return self
        places = torch.from_numpy(index).to(self.means.device)
        bias = None if self.bias is None else self.bias.index_select(0, places)
        return Texts(self.states.index_select(1, places), self.means.index_select(1, places), bias)
