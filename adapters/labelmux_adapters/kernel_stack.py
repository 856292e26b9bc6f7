"""A stack whose readouts run on the CPU kernels: one operator for all of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from labelmux_adapters.layout import Index
from labelmux_adapters.slots import Constants
from labelmux_adapters.texts import TextBatch
from labelmux_adapters.ytuning_constants import StackShape
from labelmux_adapters.ytuning_stack import YTuningStack
from labelmux_encoder.kernels import interleave

#: In the order of ``Stack`` in ``kernels.cpp``; the third is named by the form of attention.
_ORDER = (
    *("mix", "queries", "", "out", "labels", "pooled", "ffn_in", "ffn_in_bias", "ffn_out"),
    *("cross_scale", "cross_shift", "final_scale", "final_shift"),
)
#: Right operands of products.
_OPERANDS = frozenset(("values", "keys_values", "out", "pooled", "ffn_in", "ffn_out"))
_MOST_LAYERS = 64


def fits(shape: StackShape) -> bool:
    """Whether the kernels read such adapters: pairs of values need even sizes."""
    sizes = shape.sizes
    even = (sizes.hidden, sizes.width, sizes.ffn, shape.depth)
    return sizes.states <= _MOST_LAYERS and not any(size % 2 for size in even)


class KernelStack(YTuningStack):
    """Resident adapters of one shape, their weights as the kernels read them."""

    def add(self, labels: int, constants: Constants) -> int:
        """Make an adapter resident and return its slot."""
        return super().add(labels, {name: self._laid_out(name, constants) for name in constants})

    @override
    def readout(self, batch: TextBatch, rows: Index, slots: Index) -> list[NDArray[np.float32]]:
        """Logits of each (text, slot), in their order. Each [K of that slot]"""
        return self.read_together([self], batch, rows, np.zeros_like(slots), slots)

    @classmethod
    @override
    @torch.no_grad()
    def read_together(
        cls, stacks: Sequence[Self], batch: TextBatch, rows: Index, which: Index, slots: Index
    ) -> list[NDArray[np.float32]]:
        """Logits of each (text, slot of a stack), in their order, by one operator."""
        labels = np.empty_like(slots)
        for number, stack in enumerate(stacks):
            own = which == number
            labels[own] = stack._label_counts[slots[own]]
        # What takes longest is begun first, so that no thread is left with it at the end.
        order = np.lexsort((slots, which, -labels))
        first = np.ones(len(order), bool)
        first[1:] = (np.diff(which[order]) != 0) | (np.diff(slots[order]) != 0)
        groups = order[first]
        found = torch.ops.labelmux.ytuning_readout(
            batch.features_in(stacks[0]._dtype),
            batch.statistics,
            batch.starts,
            batch.lengths,
            [operand for stack in stacks for operand in stack._operands()],
            [stack._shape.sizes.heads for stack in stacks],
            [stack._shape.absorbs_keys for stack in stacks],
            which[groups].tolist(),
            slots[groups].tolist(),
            labels[groups].tolist(),
            [*np.flatnonzero(first).tolist(), len(order)],
            rows[order].tolist(),
        ).numpy()
        ends = np.empty_like(labels)
        ends[order] = labels[order].cumsum()
        cuts = zip((ends - labels).tolist(), ends.tolist(), strict=True)
        return [found[start:end] for start, end in cuts]

    def _operands(self) -> list[Tensor]:
        third = "values" if self._shape.absorbs_keys else "keys_values"
        tensors = self._tensors
        return [tensors[name or third] for name in _ORDER]

    def _laid_out(self, name: str, constants: Constants) -> Tensor:
        """In the kernels' order of values, under the shape that it came in."""
        value = constants[name].to(self._dtype_of(name))
        if name == "queries" and self._shape.absorbs_keys:
            return interleave(value.T).reshape(value.shape)
        return interleave(value) if name in _OPERANDS else value

    def _dtype_of(self, name: str) -> torch.dtype:
        return torch.float32 if name == "ffn_in_bias" else super()._dtype_of(name)
