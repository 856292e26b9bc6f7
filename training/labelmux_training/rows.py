"""One labelled row, and what a record must be to become one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from labelmux_adapters.iob2 import OUTSIDE, as_iob2, spread, words_of
from labelmux_adapters.kinds import TaskKind
from labelmux_encoder.tokenizer import TextInput
from labelmux_training.columns import Columns
from labelmux_training.errors import RowError
from labelmux_training.records import Record, shown

#: The longest label the adapter format takes, in characters.
MAX_LABEL_CHARS = 200


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled text, or two texts that are labelled together."""

    text: str
    pair: str | None
    #: One; any number of a multi_label task; of a token task a tag for each word of the text.
    labels: tuple[str, ...]
    #: Where the row starts in its file, from 1.
    line: int
    #: Of a token task: the first word of each token that the file has. Metrics count those.
    firsts: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """The label of a row that has one."""
        (label,) = self.labels
        return label

    @property
    def input(self) -> TextInput:
        """What the tokenizer takes."""
        return self.text if self.pair is None else (self.text, self.pair)


def row_of(path: Path, record: Record, columns: Columns, kind: TaskKind) -> Row:
    """The row that a record of a file is, for a task of this kind.

    Raises:
        RowError: it is none.
    """
    line, fields = record
    assert columns.text and columns.label
    if kind == "token":
        return _tagged(path, line, fields, columns.text, columns.label)
    return Row(
        text=_text(path, line, fields, columns.text),
        pair=_text(path, line, fields, columns.pair) if columns.pair else None,
        labels=_labels(path, line, fields, columns)
        if kind == "multi_label"
        else (_label(path, line, fields, columns.label),),
        line=line,
    )


def _tagged(
    path: Path, line: int, fields: Mapping[str, object], tokens_in: str, tags_in: str
) -> Row:
    """A row of a token task: the tokens with a space between are its text."""
    tokens = [
        _text(path, line, {tokens_in: item}, tokens_in)
        for item in _list(path, line, fields, tokens_in)
    ]
    tags = [
        _label(path, line, {tags_in: item}, tags_in) for item in _list(path, line, fields, tags_in)
    ]
    if len(tokens) != len(tags) or not tokens:
        problem = f"{len(tokens)} tokens and {len(tags)} tags"
        raise RowError(path, line, problem, "give each token one tag")
    for tag in tags:
        if tag != OUTSIDE and not (tag[:2] in ("B-", "I-") and tag[2:].strip()):
            raise RowError(path, line, f"the tag {shown(tag)}", "a tag is O, B-name or I-name")
    counts = [len(words_of(token)) for token in tokens]
    ends = accumulate(counts)
    return Row(
        text=" ".join(tokens),
        pair=None,
        labels=tuple(spread(as_iob2(tags), counts)),
        line=line,
        firsts=tuple(end - count for end, count in zip(ends, counts, strict=True) if count),
    )


def _labels(
    path: Path, line: int, fields: Mapping[str, object], columns: Columns
) -> tuple[str, ...]:
    """The labels of a multi_label row: a list, or one field with a delimiter; there may be none."""
    assert columns.label
    value = _field(path, line, fields, columns.label)
    if isinstance(value, str):
        value = [part for part in value.split(columns.delimiter) if part.strip()]
    elif not isinstance(value, list):
        value = [value]
    found = [_label(path, line, {columns.label: item}, columns.label) for item in value]
    return tuple(dict.fromkeys(found))


def _list(path: Path, line: int, fields: Mapping[str, object], column: str) -> list[object]:
    value = _field(path, line, fields, column)
    if not isinstance(value, list):
        raise RowError(path, line, f"{column!r} is no list: {shown(value)}", "give one of strings")
    return value


def _field(path: Path, line: int, fields: Mapping[str, object], column: str) -> object:
    if column not in fields:
        names = ", ".join(repr(name) for name in fields) or "none"
        raise RowError(
            path, line, f"no field {column!r} (fields: {names})", "add it or remove the row"
        )
    return fields[column]


def _text(path: Path, line: int, fields: Mapping[str, object], column: str) -> str:
    value = _field(path, line, fields, column)
    if not isinstance(value, str):
        raise RowError(path, line, f"{column!r} is not text: {shown(value)}", "make it a string")
    if not value.strip():
        raise RowError(path, line, f"{column!r} is empty", "fill it in or remove the row")
    return _encodable(path, line, column, value)


def _label(path: Path, line: int, fields: Mapping[str, object], column: str) -> str:
    value = _field(path, line, fields, column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise RowError(
            path,
            line,
            f"{column!r} is not one label: {shown(value)}",
            "a label is a string or a whole number",
        )
    label = value.strip()
    if not label:
        raise RowError(path, line, f"{column!r} is empty", "label the row or remove it")
    if len(label) > MAX_LABEL_CHARS:
        raise RowError(
            path,
            line,
            f"{column!r} has {len(label)} characters: {shown(label)}",
            f"a label has at most {MAX_LABEL_CHARS}; is this the label column?",
        )
    return _encodable(path, line, column, label)


def _encodable(path: Path, line: int, column: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, which JSON escapes can spell
        raise RowError(
            path, line, f"{column!r} holds half a character ({error.reason})", "repair the text"
        ) from error
    return value
