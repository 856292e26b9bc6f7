"""What a file's labels must be to make a task, and splitting rows without upsetting them."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from labelmux_adapters.iob2 import OUTSIDE
from labelmux_encoder.tokenizer import TextInput
from labelmux_training.data import Dataset
from labelmux_training.errors import LabelsError, RowError, TooFewRowsError

#: As many labels as the adapter format takes.
MAX_LABELS = 1000
#: Share of the rows that become dev where no dev file is given.
DEV_SHARE = 0.1
_SHOWN_LABELS = 8


def choose_labels(train: Dataset, wanted: Sequence[str] | None = None) -> tuple[str, ...]:
    """The task's labels in logit order: as ``wanted``, or those of the rows, sorted.

    Labels that are all whole numbers sort by value. A token task has ``O``, and ``I-x`` wherever it
    has ``B-x``, also without a row.

    Raises:
        LabelsError: one label only, too many, one without a row, or one repeated in ``wanted``.
        RowError: a row's label is not in ``wanted``.
    """
    found = Counter(label for row in train.rows for label in row.labels)
    if wanted is None:
        labels = tuple(sorted(found, key=_tag_key if train.kind == "token" else _sort_key(found)))
        labels = _completed(labels) if train.kind == "token" else labels
    else:
        labels = _as_wanted(train, wanted, found)
    if len(labels) < 2:
        raise LabelsError(
            train.path,
            f"all {len(train.rows)} rows have the label {labels[0]!r}"
            if labels
            else "no row has a label",
            "a task needs at least two labels",
        )
    if len(labels) > MAX_LABELS:
        raise LabelsError(
            train.path,
            f"{len(labels)} labels, an adapter takes at most {MAX_LABELS}",
            "is this the label column?",
        )
    return labels


def _as_wanted(train: Dataset, wanted: Sequence[str], found: Counter[str]) -> tuple[str, ...]:
    repeated = [label for label, times in Counter(wanted).items() if times > 1]
    if repeated:
        raise LabelsError(train.path, f"label {repeated[0]!r} is named twice", "name it once")
    labels, needed = tuple(wanted), tuple(wanted)
    if train.kind == "token":
        labels = _completed(labels)
        insides = {f"I-{label[2:]}" for label in wanted if label.startswith("B-")}
        needed = tuple(label for label in wanted if label not in insides)
    check_known(train, labels)
    empty = [label for label in needed if not found[label]]
    if empty:
        raise LabelsError(
            train.path, f"no row has the label {empty[0]!r}", "add rows of it or leave it out"
        )
    return labels


def _completed(tags: Sequence[str]) -> tuple[str, ...]:
    """With ``O``, and with ``I-x`` behind each ``B-x``: other rows may have longer spans."""
    found = [] if OUTSIDE in tags else [OUTSIDE]
    for tag in tags:
        found.append(tag)
        inside = f"I-{tag[2:]}"
        if tag.startswith("B-") and inside not in tags:
            found.append(inside)
    return tuple(found)


def _tag_key(tag: str) -> tuple[str, str]:
    """``O`` first, then by type, ``B-`` before ``I-``."""
    prefix, _, name = tag.partition("-")
    return (name, prefix)


def _sort_key(found: Counter[str]) -> type[int] | type[str]:
    def canonical(label: str) -> bool:
        return label.isascii() and label.removeprefix("-").isdigit() and str(int(label)) == label

    return int if all(canonical(label) for label in found) else str


def check_known(dataset: Dataset, labels: Sequence[str]) -> None:
    """Raises RowError at the first row with a label that is not among ``labels``."""
    known = set(labels)
    for row in dataset.rows:
        strange = [label for label in row.labels if label not in known]
        if strange:
            names = ", ".join(repr(label) for label in labels[:_SHOWN_LABELS])
            more = f" and {len(labels) - _SHOWN_LABELS} more" if len(labels) > _SHOWN_LABELS else ""
            raise RowError(
                dataset.path,
                row.line,
                f"unknown label {strange[0]!r}",
                f"the task's labels are {names}{more}",
            )


def label_ids(dataset: Dataset, labels: Sequence[str]) -> npt.NDArray[np.int64]:
    """Each row's position in ``labels``, which must know them all; rows have one. [rows]"""
    index = {label: position for position, label in enumerate(labels)}
    return np.array([index[row.label] for row in dataset.rows], dtype=np.int64)


def label_flags(dataset: Dataset, labels: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which of ``labels`` each row has. [rows, K]"""
    index = {label: position for position, label in enumerate(labels)}
    flags = np.zeros((len(dataset.rows), len(labels)), dtype=np.bool_)
    for at, row in enumerate(dataset.rows):
        flags[at, [index[label] for label in row.labels]] = True
    return flags


def split_dev(dataset: Dataset, seed: int, share: float = DEV_SHARE) -> tuple[list[int], list[int]]:
    """Row indices for train and dev, stratified by label, in file order; equal for equal seeds.

    Of a row with several labels the rarest counts. Rows with the same text stay on one side, so dev
    holds nothing that training saw. A label with fewer than three distinct texts stays in train.

    Raises:
        TooFewRowsError: nothing would be left for dev.
    """
    groups: dict[TextInput, list[int]] = defaultdict(list)
    for index, row in enumerate(dataset.rows):
        groups[row.input].append(index)
    counts = Counter(label for row in dataset.rows for label in row.labels)
    by_label: dict[str, list[list[int]]] = defaultdict(list)
    for members in groups.values():
        labels = dataset.rows[members[0]].labels
        by_label[min(labels, key=lambda label: (counts[label], label), default="")].append(members)
    generator = random.Random(seed)
    dev: list[int] = []
    for label in sorted(by_label):
        texts = by_label[label]
        if len(texts) >= 3:
            generator.shuffle(texts)
            for members in texts[: max(1, round(len(texts) * share))]:
                dev += members
    if not dev:
        most = max(len(texts) for texts in by_label.values())
        raise TooFewRowsError(dataset.path, most, 3, "different texts of one label")
    held_out = set(dev)
    train = [index for index in range(len(dataset.rows)) if index not in held_out]
    return train, sorted(dev)
