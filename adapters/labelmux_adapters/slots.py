"""Tensors of adapters of one shape on a device: stacked, a set of them in each slot."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

_FIRST_CAPACITY = 8

Constants = Mapping[str, Tensor]


class Slots(ABC):
    """Room that grows and shrinks.

    ``put`` and ``remove`` must not run at the same time as each other; either may run while another
    thread reads, since a slot is written before any row can name it.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], device: torch.device) -> None:
        """``shapes``: of each tensor of one slot, by name."""
        self._shapes = shapes
        self._device = device
        self._capacity = 0
        self._tensors = self._allocate(0)
        self._used: set[int] = set()
        #: A heap, so that low slots are taken first and high ones can be given up.
        self._free: list[int] = []

    @property
    def slots(self) -> int:
        """Room for how many, used or not."""
        return self._capacity

    def put(self, constants: Constants) -> int:
        """Keep these tensors and return their slot."""
        if not self._free:
            self._resize(max(_FIRST_CAPACITY, 2 * self._capacity))
        slot = heapq.heappop(self._free)
        for name, value in constants.items():
            self._tensors[name][slot] = value
        self._used.add(slot)
        return slot

    def remove(self, slot: int) -> None:
        """Free a slot; no row may name it any more."""
        self._used.remove(slot)
        heapq.heappush(self._free, slot)

    def trim(self) -> None:
        """Give memory back where few slots are used; not at the same time as ``put``."""
        half = self._capacity // 2
        if not self._used:
            self._resize(0)
        elif len(self._used) <= half // 2 and half >= _FIRST_CAPACITY and max(self._used) < half:
            self._resize(half)

    @abstractmethod
    def _dtype_of(self, name: str) -> torch.dtype:
        """What a tensor is kept in."""

    def _allocate(self, slots: int) -> dict[str, Tensor]:
        return {
            name: torch.empty(slots, *shape, dtype=self._dtype_of(name), device=self._device)
            for name, shape in self._shapes.items()
        }

    def _resize(self, slots: int) -> None:
        """Room for that many, in a new place: who reads now keeps the tensors it took."""
        tensors = self._allocate(slots)
        kept = min(slots, self._capacity)
        for name, tensor in tensors.items():
            tensor[:kept] = self._tensors[name][:kept]
        self._tensors, self._capacity = tensors, slots
        self._free = [slot for slot in range(slots) if slot not in self._used]
