"""The adapters resident on a device, and what a batch needs from them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelmux_adapters import kernels
from labelmux_adapters.files import Adapter
from labelmux_adapters.kernel_stack import KernelStack, fits
from labelmux_adapters.manifest import Manifest
from labelmux_adapters.stack import Constants, Stack
from labelmux_adapters.texts import TextBatch
from labelmux_adapters.ytuning import YTuningSizes, from_tensors, token_from_tensors
from labelmux_adapters.ytuning_constants import StackShape, constants_of
from labelmux_adapters.ytuning_stack import YTuningStack
from labelmux_adapters.ytuning_token_stack import TokenShape, TokenStack, token_constants_of

_SMALLEST_LABEL_CAPACITY = 4
_LABEL_STEP = 32


class Slot(NamedTuple):
    """An adapter's place in the bank."""

    stack: int
    place: int


class Bank:
    """Resident adapters, stacked by shape.

    Any thread may call any method. An adapter must stay until no row names its slot: whoever calls
    ``remove`` sees to that.
    """

    def __init__(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        """``dtype`` is that of resident weights and of the products with them."""
        self._device = torch.device(device)
        self._dtype = dtype
        self._on_kernels = kernels.serves(self._device, dtype)
        self._stacks: list[Stack] = []
        self._by_shape: dict[StackShape | TokenShape, int] = {}
        self._write_lock = threading.Lock()

    @property
    def pads(self) -> bool:
        """Whether a readout pads its texts to the longest, so that near-equal lengths pay."""
        return not self._on_kernels

    def bytes_of(self, manifest: Manifest) -> int:
        """What this adapter takes while it is resident."""
        return _shape(manifest).values() * self._dtype.itemsize

    def add(self, adapter: Adapter) -> Slot:
        """Make an adapter resident. Its cost does not depend on how many are there already."""
        shape = _shape(adapter.manifest)
        constants = _constants(adapter, shape)
        with self._write_lock:
            for stack in self._stacks:
                stack.trim()
            if shape not in self._by_shape:
                self._stacks.append(self._stack_of(shape))
                self._by_shape[shape] = len(self._stacks) - 1
            number = self._by_shape[shape]
            return Slot(number, self._stacks[number].add(len(adapter.manifest.labels), constants))

    def remove(self, slot: Slot) -> None:
        """Give a slot back."""
        with self._write_lock:
            self._stacks[slot.stack].remove(slot.place)

    @torch.no_grad()
    def readout(
        self, features: Tensor, lengths: Sequence[int], rows: Sequence[tuple[int, Slot]]
    ) -> list[NDArray[np.float32]]:
        """Uncalibrated logits, one array per row, in the order of ``rows``.

        Each is [K], or [T, K] of a token task, special tokens included.

        Args:
            features: every layer's hidden states of the distinct texts, one text's tokens after
                the other's, on the bank's device, in any float dtype. [L+1, N, H]
            lengths: tokens of each text; N is their sum.
            rows: index of the text, and the adapter that reads it.
        """
        batch = TextBatch(features, lengths)
        wanted = np.array([(text, *slot) for text, slot in rows], np.int64).reshape(-1, 3)
        logits: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(rows)
        for number in np.unique(wanted[:, 1]):
            places = np.flatnonzero(wanted[:, 1] == number)
            found = self._stacks[number].readout(batch, wanted[places, 0], wanted[places, 2])
            for place, values in zip(places.tolist(), found, strict=True):
                logits[place] = values
        return logits

    def _stack_of(self, shape: StackShape | TokenShape) -> Stack:
        if isinstance(shape, TokenShape):
            return TokenStack(shape, self._device, self._dtype)
        kind = KernelStack if self._on_kernels and fits(shape) else YTuningStack
        return kind(shape, self._device, self._dtype)


def _shape(manifest: Manifest) -> StackShape | TokenShape:
    kind = TokenShape if manifest.task_kind == "token" else StackShape
    return kind(YTuningSizes.from_mapping(manifest.sizes), _capacity(len(manifest.labels)))


def _constants(adapter: Adapter, shape: StackShape | TokenShape) -> Constants:
    labels = len(adapter.manifest.labels)
    if isinstance(shape, TokenShape):
        return token_constants_of(token_from_tensors(shape.sizes, labels, adapter.tensors), shape)
    return constants_of(from_tensors(shape.sizes, labels, adapter.tensors), shape)


def _capacity(labels: int) -> int:
    """Few labels are padded to powers of two, many to multiples: few stacks, little padding."""
    if labels > _LABEL_STEP:
        return -(-labels // _LABEL_STEP) * _LABEL_STEP
    return max(_SMALLEST_LABEL_CAPACITY, 1 << (labels - 1).bit_length())
