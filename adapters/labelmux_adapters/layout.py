"""Rows of a batch laid out by adapter: an adapter's matrices are read once for all its rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


class Layout(NamedTuple):
    """G groups of R rows, each group of one adapter; a short group repeats a row."""

    slots: Index  # [G]
    texts: Index  # [G, R]
    #: Where each row lies in the flattened [G * R] layout.
    places: Index  # [rows]

    @property
    def is_shared(self) -> bool:
        """Whether every group reads the same texts in the same order."""
        return bool((self.texts == self.texts[0]).all())


def lay_out(texts: Index, slots: Index) -> Layout:
    """Groups of near ``rows / distinct slots`` rows: at most half of the layout is filler.

    Args:
        texts: which text each row reads. [rows]
        slots: which adapter reads it. [rows]
    """
    order = np.argsort(slots, kind="stable")
    distinct, starts, counts = np.unique(slots[order], return_index=True, return_counts=True)
    size = -(-len(slots) // len(distinct))
    per_slot = -(-counts // size)  # groups of each distinct slot
    first_place = (np.cumsum(per_slot) - per_slot) * size
    rank = np.arange(len(slots)) - np.repeat(starts, counts)
    place = np.repeat(first_place, counts) + rank
    rows = np.repeat(order[starts], per_slot * size)
    rows[place] = order
    places = np.empty_like(place)
    places[order] = place
    return Layout(np.repeat(distinct, per_slot), texts[rows].reshape(-1, size), places)
