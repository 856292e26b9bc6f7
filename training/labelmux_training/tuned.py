"""The tensors of a method that changes the pass, as training sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from labelmux_adapters.edited import POOLER_SIZE, EditMethod
from labelmux_adapters.heads import head_shapes
from labelmux_adapters.parts import Dims, PrefixKeys
from labelmux_encoder.edits import Edit, SpecialTokenShift

#: Deviation of a head's weights at the start.
_HEAD_DEVIATION = 0.02
#: Where a tensor's name has a dot, which torch keeps for modules.
_SEPARATOR = ":"


class TunedTensors(nn.Module):
    """An adapter in training: its tensors, but for a prefix, which a network gives."""

    def __init__(
        self, method: EditMethod, sizes: Mapping[str, int], labels: int, dropout: float
    ) -> None:
        """``dropout``: of what is added to special tokens."""
        super().__init__()
        self._dims, self._parts = method.read(sizes)
        self._dropout = dropout
        self.prefix: PrefixNetwork | None = None
        self._names: list[str] = []
        for part in self._parts:
            start = part.start(self._dims)
            if isinstance(part, PrefixKeys):
                self.prefix = PrefixNetwork(self._dims, part.length)
                start = {
                    n: t for n, t in start.items() if n not in ("prefix.keys", "prefix.values")
                }
            self._add(start)
        shapes = head_shapes(self._dims.hidden, labels, pooler=POOLER_SIZE in sizes)
        self._add(
            {
                name: torch.zeros(shape)
                if name.endswith("bias")
                else torch.randn(shape) * _HEAD_DEVIATION
                for name, shape in shapes.items()
            }
        )

    @torch.no_grad()
    def start_at(self, logits: Tensor) -> None:
        """Set what the head adds for each label. [K]"""
        self.get_parameter(_registered("head.bias")).copy_(logits)

    def tensors(self) -> dict[str, Tensor]:
        """The adapter's tensors by name, differentiable."""
        found = {name: self.get_parameter(_registered(name)) for name in self._names}
        return found | (self.prefix() if self.prefix is not None else {})

    def edits(self, tensors: Mapping[str, Tensor]) -> Sequence[Edit]:
        """What ``tensors`` make of the pass; in train mode with dropout."""
        edits = [part.place(tensors) for part in self._parts]
        if not self.training:
            return edits
        return [
            replace(edit, dropout=self._dropout) if isinstance(edit, SpecialTokenShift) else edit
            for edit in edits
        ]

    def has_layers(self, name: str) -> bool:
        """Whether the first dimension of a parameter counts layers."""
        return name.split(_SEPARATOR)[0] in {part.name for part in self._parts}

    def _add(self, start: Mapping[str, Tensor]) -> None:
        for name, tensor in start.items():
            self._names.append(name)
            self.register_parameter(_registered(name), nn.Parameter(tensor))


class PrefixNetwork(nn.Module):
    """Keys and values of a prefix through a network (Li and Liang 2021, section 4.3).

    They learn poorly as plain tensors. Only what it gives is stored. Widths and activation are
    those of UniPELT's published code.
    """

    _WIDTH = 512

    def __init__(self, dims: Dims, length: int) -> None:
        super().__init__()
        self._dims = dims
        self.table = nn.Parameter(torch.randn(length, dims.hidden))
        self.inner = nn.Linear(dims.hidden, self._WIDTH)
        self.outer = nn.Linear(self._WIDTH, 2 * dims.layers * dims.hidden)

    def forward(self) -> dict[str, Tensor]:
        """Keys and values by name. Each [L, P, H]"""
        found = self.outer(torch.tanh(self.inner(self.table)))
        keys, values = found.view(len(self.table), 2, self._dims.layers, -1).permute(1, 2, 0, 3)
        return {"prefix.keys": keys, "prefix.values": values}


def _registered(name: str) -> str:
    """A tensor's name as torch takes one."""
    return name.replace(".", _SEPARATOR)
