"""How right answers are: the one number of each kind of task, and the counts behind it.

Training keeps the epoch with the best of it, and a server's gate lets no version pass with less.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
#: Which labels each row has. [rows, K]
Flags = NDArray[np.bool_]


def accuracy(gold: Ids, found: Ids) -> float:
    """Share of the rows whose label is right, of a single_label task; rows > 0."""
    return float((gold == found).mean())


def labels_macro_f1(gold: Flags, found: Flags) -> float:
    """Mean F1 over the labels that occur in the rows or in the answers, of a multi_label task."""
    f1 = counts_f1(*label_counts(gold, found))
    return 0.0 if np.isnan(f1).all() else float(np.nanmean(f1))


def span_f1(gold: Sequence[Collection[Hashable]], found: Sequence[Collection[Hashable]]) -> float:
    """F1 of spans, of a token task: each is right if type and both ends are. One set a row"""
    right, said, there = span_counts(gold, found)
    return 2 * right / (said + there) if said + there else 0.0


def label_counts(gold: Flags, found: Flags) -> tuple[Ids, Ids, Ids]:
    """Of each label: rows where it is rightly given, given, and there. Each [K]"""
    return (gold & found).sum(axis=0), found.sum(axis=0), gold.sum(axis=0)


def counts_f1(right: Ids, said: Ids, there: Ids) -> NDArray[np.float64]:
    """F1 from counts; NaN where nothing is said and nothing is there."""
    with np.errstate(invalid="ignore"):
        f1: NDArray[np.float64] = np.asarray(2 * right / (said + there))
    return f1


def span_counts(
    gold: Sequence[Collection[Hashable]], found: Sequence[Collection[Hashable]]
) -> tuple[int, int, int]:
    """How many spans are right, said, and there."""
    pairs = [(set(wanted), set(given)) for wanted, given in zip(gold, found, strict=True)]
    return (
        sum(len(wanted & given) for wanted, given in pairs),
        sum(len(given) for _, given in pairs),
        sum(len(wanted) for wanted, _ in pairs),
    )
