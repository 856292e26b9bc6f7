"""Adapters of one shape on a device: their constants stacked, each in a slot."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelmux_adapters.layout import Index
from labelmux_adapters.texts import TextBatch

_FIRST_CAPACITY = 8

Constants = Mapping[str, Tensor]


class Shape(Protocol):
    """What adapters of one stack share."""

    def constants(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each constant of one adapter."""
        ...

    def factors(self) -> frozenset[str]:
        """Those that enter large products, and may be kept in fewer bits."""
        ...


class Stack(ABC):
    """Resident adapters of one shape.

    ``add`` and ``remove`` must not run at the same time as each other; either may run while another
    thread is in ``readout``, since a slot is written before any row can name it.
    """

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        self._constants = shape.constants()
        self._factors = shape.factors()
        self._device = device
        self._dtype = dtype
        self._tensors = self._allocate(0)
        self._label_counts = np.zeros(0, np.int64)
        self._used: set[int] = set()
        #: A heap, so that low slots are taken first and high ones can be given up.
        self._free: list[int] = []

    @property
    def slots(self) -> int:
        """Room for how many, used or not."""
        return len(self._label_counts)

    def add(self, labels: int, constants: Constants) -> int:
        """Make an adapter resident and return its slot."""
        if not self._free:
            self._resize(max(_FIRST_CAPACITY, 2 * len(self._label_counts)))
        slot = heapq.heappop(self._free)
        for name, value in constants.items():
            self._tensors[name][slot] = value
        self._label_counts[slot] = labels
        self._used.add(slot)
        return slot

    def remove(self, slot: int) -> None:
        """Free a slot; no row may name it any more."""
        self._used.remove(slot)
        heapq.heappush(self._free, slot)

    def trim(self) -> None:
        """Give memory back where few slots are used; not at the same time as ``add``."""
        half = len(self._label_counts) // 2
        if not self._used:
            self._resize(0)
        elif len(self._used) <= half // 2 and half >= _FIRST_CAPACITY and max(self._used) < half:
            self._resize(half)

    @abstractmethod
    def readout(self, batch: TextBatch, rows: Index, slots: Index) -> list[NDArray[np.float32]]:
        """Logits of each (text, slot), in their order.

        Each [K of that slot], or [T of that text, K of that slot] of a token task.

        Args:
            batch: the texts.
            rows: which text, per row.
            slots: the adapter, per row.
        """

    def _take(self, slots: Index) -> Constants:
        """Constants of these slots, which ascend; views where they are adjacent. Each [G, …]"""
        first, last = int(slots[0]), int(slots[-1]) + 1
        if last - first == len(slots):
            return {name: tensor[first:last] for name, tensor in self._tensors.items()}
        index = torch.from_numpy(slots).to(self._device)
        return {name: tensor.index_select(0, index) for name, tensor in self._tensors.items()}

    def _allocate(self, slots: int) -> dict[str, Tensor]:
        return {
            name: torch.empty(slots, *shape, dtype=self._dtype_of(name), device=self._device)
            for name, shape in self._constants.items()
        }

    def _dtype_of(self, name: str) -> torch.dtype:
        return self._dtype if name in self._factors else torch.float32

    def _resize(self, slots: int) -> None:
        """Room for that many, in a new place: running readouts keep the tensors they took."""
        tensors = self._allocate(slots)
        kept = min(slots, len(self._label_counts))
        for name, tensor in tensors.items():
            tensor[:kept] = self._tensors[name][:kept]
        counts = np.zeros(slots, np.int64)
        counts[:kept] = self._label_counts[:kept]
        self._tensors, self._label_counts = tensors, counts
        self._free = [slot for slot in range(slots) if slot not in self._used]
