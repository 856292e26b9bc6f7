"""The public labelled sets that the quality benchmarks read, and the scores that they ask for.

A set is a folder with ``train.jsonl.gz``, ``dev.jsonl.gz``, ``test.jsonl.gz`` and ``meta.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from labelmux_training.data import Dataset, read_rows
from labelmux_training.metrics import Ids, confusion, f1_by_label


@dataclass(frozen=True)
class LabelledSet:
    """A set's labels and where its splits lie; a split is read when it is first asked for."""

    name: str
    labels: tuple[str, ...]
    #: As ``meta.json`` names it: a key of ``SCORES``, or what the kind of task is scored by.
    metric: str
    folder: Path

    @classmethod
    def open(cls, folder: Path) -> LabelledSet:
        meta = json.loads((folder / "meta.json").read_text())
        return cls(folder.name, tuple(meta["labels"]), meta.get("metric", "accuracy"), folder)

    @cached_property
    def train(self) -> Dataset:
        return self._read("train")

    @cached_property
    def dev(self) -> Dataset:
        return self._read("dev")

    @cached_property
    def test(self) -> Dataset:
        return self._read("test")

    def _read(self, split: str) -> Dataset:
        return read_rows(self.folder / f"{split}.jsonl.gz")


def sample(split: Dataset, rows: int, seed: int) -> Dataset:
    """So many of the rows, with a row of each label at least; all where there are no more."""
    everything = list(range(len(split.rows)))
    if rows >= len(everything):
        return split
    shuffled: list[int] = np.random.default_rng(seed).permutation(everything).tolist()
    by_label = {label: at for at in reversed(shuffled) for label in split.rows[at].labels}
    first = sorted(set(by_label.values()))
    rest = [index for index in shuffled if index not in set(first)]
    return split.subset(sorted(first + rest[: max(0, rows - len(first))]))


def accuracy(gold: Ids, predicted: Ids) -> float:
    return float((gold == predicted).mean())


def f1_of_the_second_label(gold: Ids, predicted: Ids) -> float:
    """F1 of label 1 of two: spam, equivalent."""
    return float(np.nan_to_num(f1_by_label(confusion(gold, predicted, 2))[1]))


def matthews(gold: Ids, predicted: Ids) -> float:
    """Matthews' correlation of two labels, from -1 to 1; 0 where one label alone is said."""
    found = confusion(gold, predicted, 2).astype(np.float64)
    spread = np.prod([*found.sum(0), *found.sum(1)])
    return float((found[0, 0] * found[1, 1] - found[0, 1] * found[1, 0]) / max(1, spread**0.5))


#: Of single labels, by the names that ``meta.json`` uses.
SCORES: Mapping[str, Callable[[Ids, Ids], float]] = {
    "accuracy": accuracy,
    "f1": f1_of_the_second_label,
    "matthews": matthews,
}
