"""The linear head of methods that change the pass, alone and stacked.

It reads the last layer: the mean of a text's tokens, its first token, or every token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from labelmux_adapters.kinds import Pooling
from labelmux_adapters.layout import Index, lay_out
from labelmux_adapters.stack import Stack
from labelmux_adapters.texts import TextBatch


def head_shapes(hidden: int, labels: int, *, pooler: bool) -> dict[str, tuple[int, ...]]:
    """Name and shape of a head's tensors."""
    shapes: dict[str, tuple[int, ...]] = {"head.weight": (labels, hidden), "head.bias": (labels,)}
    if pooler:
        shapes |= {"pooler.weight": (hidden, hidden), "pooler.bias": (hidden,)}
    return shapes


def head_logits(tensors: Mapping[str, Tensor], pooled: Tensor) -> Tensor:
    """Logits of what a head reads, differentiable. [.., H] -> [.., K]"""
    if "pooler.weight" in tensors:
        pooled = functional.linear(pooled, tensors["pooler.weight"], tensors["pooler.bias"])
        pooled = functional.gelu(pooled)
    return functional.linear(pooled, tensors["head.weight"], tensors["head.bias"])


@dataclass(frozen=True, slots=True)
class HeadShape:
    """What the heads of one stack share."""

    hidden: int
    label_capacity: int
    #: None: every token.
    pooling: Pooling | None
    pooler: bool

    def constants(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of what ``head_constants`` gives."""
        hidden, labels = self.hidden, self.label_capacity
        shapes: dict[str, tuple[int, ...]] = {"weight": (hidden, labels), "bias": (1, labels)}
        if self.pooler:
            shapes |= {"pooler_weight": (hidden, hidden), "pooler_bias": (1, hidden)}
        return shapes

    def factors(self) -> frozenset[str]:
        """Those that may be kept in fewer bits: none, a head is small and last."""
        return frozenset()

    def values(self) -> int:
        """Numbers in the constants of one head."""
        return sum(math.prod(shape) for shape in self.constants().values())


def head_constants(tensors: Mapping[str, Tensor], shape: HeadShape) -> dict[str, Tensor]:
    """The constants, labels padded with zeros to the capacity."""
    missing = shape.label_capacity - len(tensors["head.bias"])
    found = {
        "weight": functional.pad(tensors["head.weight"].float(), (0, 0, 0, missing)).T,
        "bias": functional.pad(tensors["head.bias"].float(), (0, missing)).unsqueeze(0),
    }
    if shape.pooler:
        found |= {
            "pooler_weight": tensors["pooler.weight"].float().T,
            "pooler_bias": tensors["pooler.bias"].float().unsqueeze(0),
        }
    return found


class HeadStack(Stack):
    """Resident heads of one shape."""

    def __init__(self, shape: HeadShape, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(shape, device, dtype)
        self._shape = shape

    @torch.no_grad()
    def readout(self, batch: TextBatch, rows: Index, slots: Index) -> list[NDArray[np.float32]]:
        """Logits of each (text, slot), in their order. Each [K], or [T, K] of a token task"""
        counts = self._label_counts[slots].tolist()
        if self._shape.pooling is not None:
            read = batch.first if self._shape.pooling == "first" else batch.mean
            logits = self._logits(read, rows, slots)
            return [row[:count] for row, count in zip(logits, counts, strict=True)]
        tokens, owners, ends = batch.tokens_of(rows)
        logits = self._logits(batch.last, tokens, slots[owners])
        own = np.split(logits, ends[:-1])
        return [row[:, :count] for row, count in zip(own, counts, strict=True)]

    def _logits(self, read: Tensor, rows: Index, slots: Index) -> NDArray[np.float32]:
        """Of the rows of ``read`` [.., H], each by its slot. [rows, capacity]"""
        layout = lay_out(rows, slots)
        slot = self._take(layout.slots)
        index = torch.from_numpy(layout.texts.ravel()).to(read.device)
        inputs = read[index].view(*layout.texts.shape, -1)  # [G, R, H]
        if self._shape.pooler:
            inputs = torch.baddbmm(slot["pooler_bias"], inputs, slot["pooler_weight"])
            inputs = functional.gelu(inputs)
        logits = torch.baddbmm(slot["bias"], inputs, slot["weight"])
        found: NDArray[np.float32] = logits.flatten(0, 1).cpu().numpy()[layout.places]
        return found
