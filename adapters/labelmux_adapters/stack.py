"""Adapters of one shape on a device, which a batch reads out together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from labelmux_adapters.layout import Index
from labelmux_adapters.slots import Constants, Slots
from labelmux_adapters.texts import TextBatch


class Shape(Protocol):
    """What adapters of one stack share."""

    def constants(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each constant of one adapter."""
        ...

    def factors(self) -> frozenset[str]:
        """Those that enter large products, and may be kept in fewer bits."""
        ...


class Stack(Slots):
    """Resident adapters of one shape, read out together."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        self._factors = shape.factors()
        self._dtype = dtype
        self._label_counts = np.zeros(0, np.int64)
        super().__init__(shape.constants(), device)

    def add(self, labels: int, constants: Constants) -> int:
        """Make an adapter resident and return its slot."""
        slot = self.put(constants)
        self._label_counts[slot] = labels
        return slot

    @abstractmethod
    def readout(self, batch: TextBatch, rows: Index, slots: Index) -> list[NDArray[np.float32]]:
        """Logits of each (text, slot), in their order.

        Each [K of that slot], or [T of that text, K of that slot] of a token task.

        Args:
            batch: the texts.
            rows: which text, per row.
            slots: the adapter, per row.
        """

    @classmethod
    def read_together(
        cls, stacks: Sequence[Self], batch: TextBatch, rows: Index, which: Index, slots: Index
    ) -> list[NDArray[np.float32]]:
        """Logits of each (text, slot of a stack), in their order; otherwise as ``readout``.

        One stack after the other where a kind knows no better.

        Args:
            stacks: of this kind and one dtype.
            batch: the texts.
            rows: which text, per row.
            which: the place in ``stacks`` of the adapter's, per row.
            slots: the adapter, per row.
        """
        if len(stacks) == 1:
            return stacks[0].readout(batch, rows, slots)
        logits: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(rows)
        for number, stack in enumerate(stacks):
            places = np.flatnonzero(which == number)
            found = stack.readout(batch, rows[places], slots[places])
            for place, values in zip(places.tolist(), found, strict=True):
                logits[place] = values
        return logits

    def _take(self, slots: Index) -> Constants:
        """Constants of these slots, in order; views where each is the next one's neighbour.

        A slot may come twice, so that as many as lie between the first and the last need not be
        all of those. Each [G, …]
        """
        first, last = int(slots[0]), int(slots[-1]) + 1
        if np.array_equal(slots, np.arange(first, last)):
            return {name: tensor[first:last] for name, tensor in self._tensors.items()}
        index = torch.from_numpy(slots).to(self._device)
        return {name: tensor.index_select(0, index) for name, tensor in self._tensors.items()}

    def _dtype_of(self, name: str) -> torch.dtype:
        return self._dtype if name in self._factors else torch.float32

    def _resize(self, slots: int) -> None:
        counts = np.zeros(slots, np.int64)
        kept = min(slots, self._capacity)
        counts[:kept] = self._label_counts[:kept]
        super()._resize(slots)
        self._label_counts = counts
