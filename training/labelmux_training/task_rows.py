"""The labelled files of one run, read and checked together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from labelmux_training.calibration import FEWEST_ANSWERED
from labelmux_training.data import Dataset, read_rows
from labelmux_training.errors import DataFileError, OptionsError
from labelmux_training.kinds import KINDS, Kind
from labelmux_training.labels import check_known, choose_labels, split_dev
from labelmux_training.options import TrainOptions
from labelmux_training.progress import Progress


@dataclass(frozen=True)
class TaskRows:
    """The labelled files, read and checked."""

    labels: tuple[str, ...]
    #: All rows of the train file.
    train_file: Dataset
    #: Rows of ``train_file`` to learn from.
    train_rows: list[int]
    #: Rows of ``train_file`` held out as dev; empty where dev is a file.
    held_out: list[int]
    dev: Dataset
    test: Dataset | None

    @property
    def kind(self) -> Kind:
        return KINDS[self.train_file.kind]

    @property
    def train(self) -> Dataset:
        return self.train_file.subset(self.train_rows)


def read_task(options: TrainOptions, progress: Progress) -> TaskRows:
    rows = read_rows(options.train, options.columns, options.kind)
    labels = choose_labels(rows, options.labels)
    everything = list(range(len(rows.rows)))
    if options.dev is None:
        kept, held_out = split_dev(rows, options.trainer.seed)
        dev = rows.subset(held_out)
        progress.say(
            f"no dev file: {len(held_out)} of {len(everything)} rows of {options.train} are held "
            f"out as dev (by label, seed {options.trainer.seed})"
        )
    else:
        kept, held_out = everything, []
        dev = _read_beside(options.dev, options, rows, labels)
    _check_abstain(options, dev)
    test = None if options.test is None else _read_beside(options.test, options, rows, labels)
    return TaskRows(labels, rows, kept, held_out, dev, test)


def _check_abstain(options: TrainOptions, dev: Dataset) -> None:
    """Before hours of training: whether dev can say from which score on the task is sure."""
    asked = options.abstain_at_accuracy is not None and dev.kind == "single_label"
    if asked and len(dev.rows) < FEWEST_ANSWERED:
        held_out = "" if options.dev else " held out"
        raise OptionsError(
            "abstain_at_accuracy",
            f"dev has {len(dev.rows)} rows{held_out} of {dev.path}, at least {FEWEST_ANSWERED} are "
            "needed to say how often the surest are right",
            "give a dev file of so many rows (--dev), or more rows to hold dev out of",
        )


def _read_beside(
    path: Path, options: TrainOptions, rows: Dataset, labels: tuple[str, ...]
) -> Dataset:
    """A file that goes with the train file."""
    found = read_rows(path, options.columns, rows.kind)
    check_known(found, labels)
    if found.pair != rows.pair:
        counts = ("one text", "two texts")
        raise DataFileError(
            path,
            f"its rows have {counts[found.pair]}, those of {rows.path} {counts[rows.pair]}",
            "name the pair column by option, or give files of one kind",
        )
    return found
