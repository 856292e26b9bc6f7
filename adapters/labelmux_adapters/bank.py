"""The adapters resident on a device, and what a batch needs from them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelmux_adapters import edit_stack, kernels
from labelmux_adapters.edit_stack import EditStack
from labelmux_adapters.edited import POOLER_SIZE
from labelmux_adapters.files import Adapter
from labelmux_adapters.heads import HeadShape, HeadStack, head_constants
from labelmux_adapters.kernel_stack import KernelStack, fits
from labelmux_adapters.manifest import Manifest
from labelmux_adapters.methods import METHODS
from labelmux_adapters.slots import Constants
from labelmux_adapters.stack import Stack
from labelmux_adapters.texts import TextBatch
from labelmux_adapters.ytuning import YTuningSizes, from_tensors, token_from_tensors
from labelmux_adapters.ytuning_constants import StackShape, constants_of
from labelmux_adapters.ytuning_stack import YTuningStack
from labelmux_adapters.ytuning_token_stack import TokenShape, TokenStack, token_constants_of
from labelmux_encoder.edits import Edit, Placed
from labelmux_encoder.frozen import FrozenEncoder

_SMALLEST_LABEL_CAPACITY = 4
_LABEL_STEP = 32


Shape = StackShape | TokenShape | HeadShape
#: Which adapters' edits lie in one stack: those of one method and sizes.
_EditKey = tuple[str, frozenset[tuple[str, int]]]


class EditSlot(NamedTuple):
    """Where an adapter's edits of the pass are."""

    stack: int
    place: int


class Slot(NamedTuple):
    """An adapter's place in the bank."""

    stack: int
    place: int
    #: None: it reads plain features, which all such adapters share.
    edit: EditSlot | None = None


class Bank:
    """Resident adapters, stacked by shape.

    Any thread may call any method. An adapter must stay until no row names its slot: whoever calls
    ``remove`` sees to that.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        lay_out: Callable[[Edit], Edit] = lambda edit: edit,
    ) -> None:
        """
        Args:
            device: where adapters are resident.
            dtype: of resident weights and of the products with them.
            lay_out: an edit in the form that the encoder's pass reads.
        """
        self._device = torch.device(device)
        self._dtype = dtype
        self._lay_out = lay_out
        self._on_kernels = kernels.serves(self._device, dtype)
        self._stacks: list[Stack] = []
        self._by_shape: dict[Shape, int] = {}
        self._edit_stacks: list[EditStack] = []
        self._by_edit_key: dict[_EditKey, int] = {}
        self._edit_bytes: dict[_EditKey, int] = {}
        self._write_lock = threading.Lock()

    @classmethod
    def beside(cls, encoder: FrozenEncoder) -> Bank:
        """A bank for the features of this encoder."""
        return cls(encoder.device, encoder.dtype, encoder.lay_out)

    @property
    def pads(self) -> bool:
        """Whether a readout pads its texts to the longest, so that near-equal lengths pay."""
        return not self._on_kernels

    def bytes_of(self, manifest: Manifest) -> int:
        """What this adapter takes while it is resident."""
        shape = _shape(manifest)
        if isinstance(shape, HeadShape):
            return shape.values() * torch.float32.itemsize + self._bytes_of_edits(manifest)
        return shape.values() * self._dtype.itemsize

    def add(self, adapter: Adapter) -> Slot:
        """Make an adapter resident. Its cost does not depend on how many are there already."""
        manifest = adapter.manifest
        shape = _shape(manifest)
        constants = _constants(adapter, shape)
        edits = self._laid_out(manifest, adapter.tensors)
        with self._write_lock:
            for stack in (*self._stacks, *self._edit_stacks):
                stack.trim()
            if shape not in self._by_shape:
                self._stacks.append(self._stack_of(shape))
                self._by_shape[shape] = len(self._stacks) - 1
            number = self._by_shape[shape]
            with ExitStack() as undo:
                place = self._stacks[number].add(len(manifest.labels), constants)
                undo.callback(self._stacks[number].remove, place)
                slot = Slot(number, place, self._add_edits(manifest, edits) if edits else None)
                undo.pop_all()
            return slot

    def remove(self, slot: Slot) -> None:
        """Give a slot back."""
        with self._write_lock:
            self._stacks[slot.stack].remove(slot.place)
            if slot.edit is not None:
                self._edit_stacks[slot.edit.stack].remove(slot.edit.place)

    def edits(self, rows: Sequence[EditSlot | None]) -> list[Placed]:
        """The edits of a batch whose rows are read by these adapters."""
        found: list[Placed] = []
        for number in sorted({slot.stack for slot in rows if slot is not None}):
            entries = tuple(
                slot.place if slot is not None and slot.stack == number else -1 for slot in rows
            )
            found += self._edit_stacks[number].placed(entries)
        return found

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
        wanted = np.array([(text, slot.stack, slot.place) for text, slot in rows], np.int64)
        wanted = wanted.reshape(-1, 3)
        logits: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(rows)
        numbers, which = np.unique(wanted[:, 1], return_inverse=True)
        stacks = [self._stacks[number] for number in numbers.tolist()]
        for kind in {type(stack): None for stack in stacks}:
            alike = np.array([type(stack) is kind for stack in stacks])
            places = np.flatnonzero(alike[which])
            texts, _, slots = wanted[places].T
            own = (alike.cumsum() - 1)[which[places]]
            of_kind = [stack for stack in stacks if type(stack) is kind]
            found = kind.read_together(of_kind, batch, texts, own, slots)
            for place, values in zip(places.tolist(), found, strict=True):
                logits[place] = values
        return logits

    def _stack_of(self, shape: Shape) -> Stack:
        if isinstance(shape, HeadShape):
            return HeadStack(shape, self._device, self._dtype)
        if isinstance(shape, TokenShape):
            return TokenStack(shape, self._device, self._dtype)
        kind = KernelStack if self._on_kernels and fits(shape) else YTuningStack
        return kind(shape, self._device, self._dtype)

    def _laid_out(self, manifest: Manifest, tensors: Mapping[str, Tensor]) -> list[Edit]:
        method = METHODS[manifest.method].edited
        if method is None:
            return []
        _, parts = method.read(manifest.sizes)
        return [self._lay_out(part.place(tensors)) for part in parts]

    def _add_edits(self, manifest: Manifest, edits: Sequence[Edit]) -> EditSlot:
        key = _edit_key(manifest)
        if key not in self._by_edit_key:
            self._edit_stacks.append(EditStack(edits))
            self._by_edit_key[key] = len(self._edit_stacks) - 1
        number = self._by_edit_key[key]
        return EditSlot(number, self._edit_stacks[number].add(edits))

    def _bytes_of_edits(self, manifest: Manifest) -> int:
        key, method = _edit_key(manifest), METHODS[manifest.method].edited
        assert method is not None
        if key not in self._edit_bytes:
            dims, parts = method.read(manifest.sizes)
            blank = {
                name: torch.zeros(shape)
                for part in parts
                for name, shape in part.shapes(dims).items()
            }
            self._edit_bytes[key] = edit_stack.bytes_of(self._laid_out(manifest, blank))
        return self._edit_bytes[key]


def _edit_key(manifest: Manifest) -> _EditKey:
    return manifest.method, frozenset(manifest.sizes.items())


def _shape(manifest: Manifest) -> Shape:
    labels = _capacity(len(manifest.labels))
    if METHODS[manifest.method].edited is not None:
        pooler = POOLER_SIZE in manifest.sizes
        return HeadShape(manifest.sizes["hidden"], labels, manifest.pooling, pooler)
    kind = TokenShape if manifest.task_kind == "token" else StackShape
    return kind(YTuningSizes.from_mapping(manifest.sizes), labels)


def _constants(adapter: Adapter, shape: Shape) -> Constants:
    labels = len(adapter.manifest.labels)
    if isinstance(shape, HeadShape):
        return head_constants(adapter.tensors, shape)
    if isinstance(shape, TokenShape):
        return token_constants_of(token_from_tensors(shape.sizes, labels, adapter.tensors), shape)
    return constants_of(from_tensors(shape.sizes, labels, adapter.tensors), shape)


def _capacity(labels: int) -> int:
    """Few labels are padded to powers of two, many to multiples: few stacks, little padding."""
    if labels > _LABEL_STEP:
        return -(-labels // _LABEL_STEP) * _LABEL_STEP
    return max(_SMALLEST_LABEL_CAPACITY, 1 << (labels - 1).bit_length())
