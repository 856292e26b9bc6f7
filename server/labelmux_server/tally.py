"""Histograms that one thread at a time writes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import inf

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384)


class Tally:
    """Values counted by size. One thread at a time observes, any may read.

    The library's histogram locks at every step, at six times the cost; a batch of 64 texts is 200
    values.
    """

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """``bounds``: the upper ends of the buckets, ascending; one without an end follows them."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Each bucket's upper end, and how many values are at most that."""
        found, below = [], 0
        for bound, count in zip((*self._bounds, inf), self._counts.copy(), strict=True):
            below += count
            found.append(("+Inf" if bound == inf else str(float(bound)), float(below)))
        return found
