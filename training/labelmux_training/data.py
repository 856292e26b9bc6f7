"""A labelled file as a data set: CSV, TSV, JSONL and CoNLL, each also gzipped.

Every bad row is named by file and line. What the labels must be to make a task is in ``labels.py``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from labelmux_adapters.kinds import TaskKind
from labelmux_encoder.tokenizer import TextInput
from labelmux_training.columns import ALL_GUESSED, Columns, choose_columns, second_text
from labelmux_training.errors import RowError, TooFewRowsError
from labelmux_training.records import Record, read_records
from labelmux_training.rows import Row, row_of


@dataclass(frozen=True)
class Dataset:
    """The rows of one file, in file order; at least one."""

    path: Path
    rows: tuple[Row, ...]
    #: Every row has two texts, or none has.
    pair: bool
    kind: TaskKind = "single_label"

    @property
    def texts(self) -> list[TextInput]:
        """What the tokenizer takes, in row order."""
        return [row.input for row in self.rows]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over texts and labels in row order; file name and format do not enter."""
        hasher = hashlib.sha256()
        for row in self.rows:
            said = row.label if self.kind == "single_label" else row.labels
            hasher.update(json.dumps([row.text, row.pair, said]).encode() + b"\n")
        return f"sha256:{hasher.hexdigest()}"

    def subset(self, indices: Sequence[int]) -> Dataset:
        """These rows, in the given order."""
        rows = tuple(self.rows[index] for index in indices)
        return Dataset(self.path, rows, self.pair, self.kind)


def read_rows(path: Path, columns: Columns = ALL_GUESSED, kind: TaskKind | None = None) -> Dataset:
    """The rows of a labelled file.

    The format is told by the name: ``.csv``, ``.tsv``, ``.jsonl`` (``.ndjson``), ``.conll``
    (``.bio``, ``.iob``, ``.iob2``), each also with ``.gz``. CSV and TSV need a header line. Blank
    lines are skipped. Where ``kind`` is None, the first row tells it: JSONL with a list of tokens
    and a list of tags, whether or not it has a text too, and CoNLL, are of a token task; JSONL with
    a list of labels is of a multi_label task.

    Raises:
        DataFileError: the file is absent, damaged, not UTF-8, or of another kind.
        ColumnsError: a column is absent or cannot be guessed.
        RowError: a bad row.
        TooFewRowsError: no row at all.
    """
    rows: list[Row] = []
    chosen: Columns | None = None
    for record in read_records(path):
        if chosen is None or kind is None:
            chosen, kind = choose_columns(path, columns, record[1], kind)
        elif columns.pair is None and kind != "token" and not chosen.pair:
            _check_single(path, record, chosen)
        rows.append(row_of(path, record, chosen, kind))
    if chosen is None or kind is None:
        raise TooFewRowsError(path, found=0, needed=1)
    return Dataset(path, tuple(rows), bool(chosen.pair), kind)


def _check_single(path: Path, record: Record, columns: Columns) -> None:
    """Raises RowError where a row has a second text, which the first row does not have."""
    line, fields = record
    name = second_text(fields, columns)
    if name is not None:
        problem = f"it has a second text, {name!r}, and the first row has none"
        raise RowError(path, line, problem, "give every row one, or remove that field")
