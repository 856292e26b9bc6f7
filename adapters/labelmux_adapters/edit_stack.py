"""Edits of adapters of one method and sizes, stacked in the form that the pass reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from labelmux_adapters.slots import Slots
from labelmux_encoder.edits import Edit, Placed, tensors_of, with_tensors


class EditStack(Slots):
    """Resident edits; every set of them has the parts of the first."""

    def __init__(self, edits: Sequence[Edit]) -> None:
        """Room for edits like these, which are as the pass lays them out, each a stack of one."""
        # Without their tensors, which nobody counts among what is resident.
        self._like = [with_tensors(edit, lambda _, tensor: tensor.new_empty(0)) for edit in edits]
        examples = _named(edits)
        self._dtypes = {name: tensor.dtype for name, tensor in examples.items()}
        device = next(iter(examples.values())).device
        super().__init__({name: tuple(t.shape[1:]) for name, t in examples.items()}, device)

    def add(self, edits: Sequence[Edit]) -> int:
        """Make an adapter's edits resident and return their slot."""
        return self.put({name: tensor[0] for name, tensor in _named(edits).items()})

    def placed(self, entries: tuple[int, ...]) -> list[Placed]:
        """The edits on a batch, each row's by its slot; -1: none."""
        tensors = self._tensors
        return [
            Placed(_read(edit, f"{place}.", tensors), entries)
            for place, edit in enumerate(self._like)
        ]

    def _dtype_of(self, name: str) -> torch.dtype:
        return self._dtypes[name]


def bytes_of(edits: Sequence[Edit]) -> int:
    """What edits take while they are resident."""
    return sum(tensor.nbytes for tensor in _named(edits).values())


def _named(edits: Sequence[Edit]) -> dict[str, Tensor]:
    return {
        f"{place}.{name}": tensor
        for place, edit in enumerate(edits)
        for name, tensor in tensors_of(edit).items()
    }


def _read(edit: Edit, prefix: str, tensors: Mapping[str, Tensor]) -> Edit:
    return with_tensors(edit, lambda name, _: tensors[prefix + name])
