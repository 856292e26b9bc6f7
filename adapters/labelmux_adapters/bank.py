"""The adapters resident on a device, and what a batch needs from them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelmux_adapters.files import Adapter
from labelmux_adapters.ytuning import YTuningSizes, normalise_states
from labelmux_adapters.ytuning_stack import YTuningStack
from labelmux_encoder.batch import unpack

_SMALLEST_LABEL_CAPACITY = 4


class StackKey(NamedTuple):
    """What adapters of one stack share."""

    sizes: YTuningSizes
    label_capacity: int


@dataclass(frozen=True, slots=True)
class Slot:
    """An adapter's place in the bank."""

    stack: StackKey
    index: int


class Bank:
    """Resident adapters, stacked by shape.

    Any thread may call any method. An adapter must stay until no row names its slot: whoever calls
    ``remove`` sees to that.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._stacks: dict[StackKey, YTuningStack] = {}
        self._write_lock = threading.Lock()

    def add(self, adapter: Adapter) -> Slot:
        """Make an adapter resident. Its cost does not depend on how many are there already."""
        labels = len(adapter.manifest.labels)
        key = StackKey(YTuningSizes.from_mapping(adapter.manifest.sizes), _capacity(labels))
        with self._write_lock:
            if key not in self._stacks:
                self._stacks[key] = YTuningStack(*key, self._device)
            return Slot(key, self._stacks[key].add(labels, adapter.tensors))

    def remove(self, slot: Slot) -> None:
        """Give a slot back."""
        with self._write_lock:
            self._stacks[slot.stack].remove(slot.index)

    @torch.no_grad()
    def readout(
        self, features: Tensor, lengths: Sequence[int], rows: Sequence[tuple[int, Slot]]
    ) -> list[NDArray[np.float32]]:
        """Uncalibrated logits, one array [K] per row, in the order of ``rows``.

        Args:
            features: every layer's hidden states of the distinct texts, one text's tokens after
                the other's, on the bank's device. [L+1, N, H]
            lengths: tokens of each text; N is their sum.
            rows: index of the text, and the adapter that reads it.
        """
        normalised, mask = unpack(normalise_states(features), lengths)
        by_stack: dict[StackKey, list[int]] = {}
        for place, (_, slot) in enumerate(rows):
            by_stack.setdefault(slot.stack, []).append(place)
        logits: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(rows)
        for key, places in by_stack.items():
            texts = [rows[place][0] for place in places]
            slots = [rows[place][1].index for place in places]
            found = self._stacks[key].readout(normalised, mask, texts, slots)
            for place, values in zip(places, found, strict=True):
                logits[place] = values.numpy()
        return logits


def _capacity(labels: int) -> int:
    """Label counts are padded to powers of two: few stacks, and at most half of a row unused."""
    return max(_SMALLEST_LABEL_CAPACITY, 1 << (labels - 1).bit_length())
