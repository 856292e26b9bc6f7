"""What `labelmux classify --input` reads, and what it writes: the same rows with their answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelmux_cli.errors import FailedError, UsageError
from labelmux_cli.output import answers_json, to_json
from labelmux_cli.tables import Form, Record, form_of, header_of, opened, records, row_bytes
from labelmux_client import Prediction, TextResult

#: Between the labels of one field, as `labelmux train` reads them.
_BETWEEN_LABELS = "|"
_PER_TASK = ("label", "score", "version")
_ERROR = "error"
_ANSWERS = "predictions"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the input."""

    #: A table's cells, or the JSON object.
    values: list[str] | dict[str, Any]
    text: str
    pair: str | None


class Source:
    """The input's rows; read anew each time."""

    def __init__(
        self, path: Path, text_column: str | None, pair_column: str | None, *, with_pairs: bool
    ) -> None:
        """A column of None is guessed, as for training."""
        self.path = path
        self.form = form_of(path, packed=True)
        first = next(self._records(), None)
        if first is None:
            raise FailedError(f"{path}: no rows")
        table = self.form != "jsonl"
        self.columns = header_of(first, str(path)) if table else list(first.values)
        self._text = self._choose("text", text_column)
        self._pair = self._choose("pair", pair_column or None) if with_pairs else None

    def rows(self) -> Iterator[Row]:
        """Every row, in order.

        Raises:
            FailedError: one cannot be read, or lacks a text.
        """
        found = self._records()
        if self.form != "jsonl":
            next(found)
        for record in found:
            where = f"{self.path}, line {record.line}"
            if isinstance(record.values, list) and len(record.values) != len(self.columns):
                raise FailedError(
                    f"{where}: {len(record.values)} fields, the header has {len(self.columns)}"
                )
            pair = None if self._pair is None else self._cell(record.values, self._pair, where)
            yield Row(record.values, self._cell(record.values, self._text, where), pair)

    def _records(self) -> Iterator[Record]:
        with opened(self.path) as stream:
            yield from records(stream, self.form, str(self.path))

    def _cell(self, values: list[str] | dict[str, Any], column: str, where: str) -> str:
        if isinstance(values, list):
            return values[self.columns.index(column)]
        value = values.get(column)
        if not isinstance(value, str):
            raise FailedError(f"{where}: {column!r} is not text")
        return value

    def _choose(self, role: str, name: str | None) -> str:
        from labelmux_training.columns import GUESSES

        wanted = [name] if name is not None else list(GUESSES[role])
        by_lower = {column.lower(): column for column in reversed(self.columns)}
        for each in wanted:
            if each in self.columns:
                return each
            if name is None and each in by_lower:
                return by_lower[each]
        found = ", ".join(map(repr, self.columns))
        raise UsageError(
            f"{self.path}: no column for the {role}; columns found: {found}; name it with "
            f"--{role}-column"
        )


class Target:
    """The output: the input's rows with their answers."""

    def __init__(self, path: Path, source: Source, names: Sequence[str]) -> None:
        self._path = path
        self._source = source
        self._names = names
        self._form: Form = form_of(path, packed=False)
        added = [f"{name}.{part}" for name in names for part in _PER_TASK] + [_ERROR]
        if self._form == "jsonl":
            added = [_ANSWERS]
        taken = [column for column in added if column in source.columns]
        if taken:
            raise UsageError(f"{source.path} has a column {taken[0]!r} already; rename it")
        self._header = [*source.columns, *added]

    def find_done(self) -> tuple[int, int]:
        """How many rows of the input are in the output, and where the last of them ends.

        Raises:
            FailedError: what is there is not of this input and these tasks.
        """
        if not self._path.exists():
            return 0, 0
        name, done, end = str(self._path), 0, 0
        with self._path.open("rb") as stream:
            found = records(stream, self._form, name, cut=True)
            head = self._head()
            if head:
                first = next(found, None)
                end = 0 if first is None else first.end
                if first is not None and first.values != self._header:
                    raise self._foreign("its columns are not those of this input and these tasks")
            rows = self._source.rows()
            for record in found:
                row = next(rows, None)
                if row is None or not self._is_of(record.values, row):
                    raise self._foreign(f"its line {record.line} is not of this input")
                if isinstance(record.values, dict) and not self._answers(record.values):
                    raise self._foreign(f"its line {record.line} does not answer for these tasks")
                done, end = done + 1, record.end
            expected = head if head and not end else self._begin(next(rows, None))
            stream.seek(end)
            cut = stream.read(len(expected) + 1)
        if cut[: len(expected)] != expected[: len(cut)] or (cut and not expected):
            raise self._foreign("what follows its last whole row is not of this input")
        return done, end

    @contextmanager
    def open(self, end: int) -> Iterator[Callable[[Row, TextResult], None]]:
        """Write rows on behind the byte ``end``; what is there is cut off."""
        with self._path.open("r+b" if self._path.exists() else "wb") as file:
            file.truncate(end)
            file.seek(end)
            if not end:
                file.write(self._head())

            def write(row: Row, result: TextResult) -> None:
                file.write(self._row(row, result))

            yield write

    def _head(self) -> bytes:
        """What a fresh output begins with."""
        return b"" if self._form == "jsonl" else row_bytes(self._header, self._form)

    def _row(self, row: Row, result: TextResult) -> bytes:
        if self._form == "jsonl":
            return row_bytes(self._fields(row) | {_ANSWERS: answers_json(result)}, "jsonl")
        answers = [cell for name in self._names for cell in _as_cells(result, name)]
        return row_bytes([*self._cells(row), *answers, _told(result)], self._form)

    def _foreign(self, why: str) -> FailedError:
        return FailedError(
            f"{self._path} is there, but {why}: the input or the question has changed; remove it, "
            "or name another --output"
        )

    def _is_of(self, values: list[str] | dict[str, Any], row: Row) -> bool:
        if isinstance(values, dict):
            return {key: values[key] for key in values if key != _ANSWERS} == self._fields(row)
        expected = row_bytes(self._cells(row), self._form)
        return row_bytes(values[: len(self._source.columns)], self._form) == expected

    def _answers(self, values: dict[str, Any]) -> bool:
        """Whether a line says something of each task, or of the text as a whole."""
        answers = values.get(_ANSWERS)
        if not isinstance(answers, dict):
            return False
        error = answers.get(_ERROR)
        whole = len(answers) == 1 and isinstance(error, dict) and "code" in error
        return whole or answers.keys() == set(self._names)

    def _begin(self, row: Row | None) -> bytes:
        """What a row's line begins with, before its answers."""
        if row is None:
            return b""
        if self._form == "jsonl":
            return row_bytes(self._fields(row), "jsonl").rstrip(b"}\n")
        return row_bytes(self._cells(row), self._form)[:-1]

    def _fields(self, row: Row) -> dict[str, Any]:
        if isinstance(row.values, dict):
            return row.values
        return dict(zip(self._source.columns, row.values, strict=True))

    def _cells(self, row: Row) -> list[str]:
        if isinstance(row.values, list):
            return row.values
        more = row.values.keys() - set(self._source.columns)
        if more:
            raise FailedError(
                f"{self._source.path}: a row has the field {sorted(more)[0]!r}, the first has not; "
                "name the output .jsonl"
            )
        return [_as_cell(row.values.get(column)) for column in self._source.columns]


def _as_cells(result: TextResult, name: str) -> list[str]:
    prediction = result.predictions.get(name)
    if prediction is None:
        return [""] * len(_PER_TASK)
    return [*_label_and_score(prediction), str(prediction.version)]


def _label_and_score(prediction: Prediction) -> tuple[str, str]:
    if prediction.spans is not None:
        return json.dumps(to_json(prediction.spans)), ""
    if prediction.predicted is not None:
        scores = {item.label: item.score for item in prediction.labels or ()}
        given = [name for name in prediction.predicted if name in scores]
        return (
            _BETWEEN_LABELS.join(prediction.predicted),
            _BETWEEN_LABELS.join(str(scores[name]) for name in given),
        )
    return "" if prediction.abstained else prediction.label, str(prediction.score)


def _told(result: TextResult) -> str:
    """What went wrong, in one cell."""
    if result.error is not None:
        return f"{result.error.code}: {result.error.message}"
    return "; ".join(f"{failure.task}: {failure.code}" for failure in result.failures.values())


def _as_cell(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)
