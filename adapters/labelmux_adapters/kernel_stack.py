"""A stack whose readouts run on the CPU kernels: one operator for all of its rows."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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

    @torch.no_grad()
    def readout(self, batch: TextBatch, rows: Index, slots: Index) -> list[NDArray[np.float32]]:
        """Logits of each (text, slot), in their order. Each [K of that slot]"""
        order = np.argsort(slots, kind="stable")
        distinct, firsts = np.unique(slots[order], return_index=True)
        third = "values" if self._shape.absorbs_keys else "keys_values"
        found = torch.ops.labelmux.ytuning_readout(
            batch.features_in(self._dtype),
            batch.statistics,
            batch.starts,
            batch.lengths,
            [self._tensors[name or third] for name in _ORDER],
            distinct.tolist(),
            [*firsts.tolist(), len(rows)],
            self._label_counts[distinct].tolist(),
            rows[order].tolist(),
            self._shape.sizes.heads,
            self._shape.absorbs_keys,
        )
        logits = np.empty(found.shape, np.float32)
        logits[order] = found.numpy()
        counts = self._label_counts[slots].tolist()
        return [row[:count] for row, count in zip(logits, counts, strict=True)]

    def _laid_out(self, name: str, constants: Constants) -> Tensor:
        """In the kernels' order of values, under the shape that it came in."""
        value = constants[name].to(self._dtype_of(name))
        if name == "queries" and self._shape.absorbs_keys:
            return interleave(value.T).reshape(value.shape)
        return interleave(value) if name in _OPERANDS else value

    def _dtype_of(self, name: str) -> torch.dtype:
        return torch.float32 if name == "ffn_in_bias" else super()._dtype_of(name)
