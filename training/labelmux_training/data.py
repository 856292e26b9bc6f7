"""Labelled files to rows: CSV, TSV and JSONL, each also gzipped.

Every bad row is named by file and line. TSV is read as the plain format it is: a tab ends a field,
and quotes have no meaning; CSV fields may be quoted and span lines. What the labels must be to make
a task is in ``labels.py``.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from labelmux_encoder.tokenizer import TextInput
from labelmux_training.errors import ColumnsError, DataFileError, RowError, TooFewRowsError

#: The longest label the adapter format takes, in characters.
MAX_LABEL_CHARS = 200
#: A quoted CSV field longer than this is taken for a missing closing quote.
_MAX_FIELD_CHARS = 1_000_000
_SHOWN_CHARS = 80

#: Column names that are understood without an option, the likeliest first; case is ignored.
GUESSES: Mapping[str, tuple[str, ...]] = {
    "text": (
        "text",
        "sentence",
        "content",
        "utterance",
        "question",
        "query",
        "message",
        "review",
        "tweet",
        "document",
        "body",
        "text1",
        "text_a",
        "sentence1",
        "sentence_a",
        "question1",
        "premise",
    ),
    "pair": (
        "pair",
        "text_pair",
        "text2",
        "text_b",
        "sentence2",
        "sentence_b",
        "question2",
        "hypothesis",
    ),
    "label": (
        "label",
        "labels",
        "class",
        "intent",
        "category",
        "target",
        "topic",
        "sentiment",
        "emotion",
        "tag",
        "y",
    ),
}


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column holds what; None is guessed from ``GUESSES``."""

    text: str | None = None
    label: str | None = None
    #: The second text. An empty string means single texts, whatever columns there are.
    pair: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled text, or two texts with one label."""

    text: str
    pair: str | None
    label: str
    #: Where the row starts in its file, from 1.
    line: int

    @property
    def input(self) -> TextInput:
        """What the tokenizer takes."""
        return self.text if self.pair is None else (self.text, self.pair)


@dataclass(frozen=True)
class Dataset:
    """The rows of one file, in file order; at least one."""

    path: Path
    rows: tuple[Row, ...]
    #: Every row has two texts, or none has.
    pair: bool

    @property
    def texts(self) -> list[TextInput]:
        """What the tokenizer takes, in row order."""
        return [row.input for row in self.rows]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over texts and labels in row order; file name and format do not enter."""
        hasher = hashlib.sha256()
        for row in self.rows:
            hasher.update(json.dumps([row.text, row.pair, row.label]).encode() + b"\n")
        return f"sha256:{hasher.hexdigest()}"

    def subset(self, indices: Sequence[int]) -> Dataset:
        """These rows, in the given order."""
        return Dataset(self.path, tuple(self.rows[index] for index in indices), self.pair)


#: A row before its columns are known: its line and its fields by name.
_Record = tuple[int, Mapping[str, object]]


def read_rows(path: Path, columns: Columns = Columns()) -> Dataset:
    """The rows of a labelled file.

    The kind is told by the name: ``.csv``, ``.tsv``, ``.jsonl`` (``.ndjson``), each also with
    ``.gz``. CSV and TSV need a header line. Blank lines are skipped.

    Raises:
        DataFileError: the file is absent, damaged, not UTF-8, or of another kind.
        ColumnsError: a column is absent or cannot be guessed.
        RowError: a bad row.
        TooFewRowsError: no row at all.
    """
    kind = _kind(path)
    content = _read_text(path)
    records = _json_records(path, content) if kind == "jsonl" else _table(path, content, kind)
    rows: list[Row] = []
    chosen: Columns | None = None
    for line, fields in records:
        if chosen is None:
            chosen = _choose(path, columns, list(fields))
        rows.append(_row(path, line, fields, chosen))
    if chosen is None:
        raise TooFewRowsError(path, found=0, needed=1)
    return Dataset(path, tuple(rows), pair=bool(chosen.pair))


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    kind = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}.get(
        suffixes[-1] if suffixes else ""
    )
    if kind is None:
        raise DataFileError(
            path, "not a kind of file that can be read", "name it .csv, .tsv or .jsonl (or + .gz)"
        )
    return kind


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if path.suffix.lower() == ".gz":
            data = gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataFileError(path, f"damaged gzip file ({error})", "make the file again") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataFileError(path, f"cannot be read ({reason})", "check the path") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RowError(
            path,
            line,
            f"not UTF-8 (byte 0x{data[error.start]:02x})",
            "save the file as UTF-8",
        ) from error


def _json_records(path: Path, content: str) -> Iterator[_Record]:
    for line, raw in enumerate(content.split("\n"), start=1):
        if not raw.strip():
            continue
        try:
            fields = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise RowError(
                path, line, f"not JSON ({error}): {_shown(raw)}", "write one object a line"
            ) from error
        if not isinstance(fields, dict):
            raise RowError(
                path, line, f"not a JSON object: {_shown(fields)}", "write one object a line"
            )
        yield line, fields


def _table(path: Path, content: str, kind: str) -> Iterator[_Record]:
    csv.field_size_limit(_MAX_FIELD_CHARS)
    lines = io.StringIO(content, newline="")
    reader = (
        csv.reader(lines, strict=True)
        if kind == "csv"
        else csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    )
    header: list[str] | None = None
    start = 1
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise RowError(
                path, start, f"bad {kind.upper()} ({error})", "check the quotes of this row"
            ) from error
        if fields is None:
            return
        line, start = start, reader.line_num + 1
        if not any(fields):
            continue
        if header is None:
            header = _header(path, line, fields)
            continue
        if len(fields) != len(header):
            raise RowError(
                path,
                line,
                f"{len(fields)} fields, the header has {len(header)}: {_shown(fields)}",
                "quote a field that holds the separator"
                if kind == "csv"
                else "put one tab between fields",
            )
        yield line, dict(zip(header, fields, strict=True))


def _header(path: Path, line: int, fields: list[str]) -> list[str]:
    header = [name.strip() for name in fields]
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        raise RowError(
            path, line, f"the header repeats {sorted(repeated)[0]!r}", "name each column once"
        )
    return header


def _choose(path: Path, wanted: Columns, found: Sequence[str]) -> Columns:
    def choose(role: str, name: str | None) -> str:
        if name is not None and name in found:
            return name
        if name is None:
            by_lower = {column.lower(): column for column in reversed(found)}
            for guess in GUESSES[role]:
                if guess in by_lower:
                    return by_lower[guess]
        raise ColumnsError(path, role, name, found)

    text = choose("text", wanted.text)
    label = choose("label", wanted.label)
    pair = wanted.pair
    if pair:
        choose("pair", pair)
    elif pair is None:
        by_lower = {column.lower(): column for column in found if column not in (text, label)}
        pair = next((by_lower[guess] for guess in GUESSES["pair"] if guess in by_lower), "")
    return Columns(text, label, pair)


def _row(path: Path, line: int, fields: Mapping[str, object], columns: Columns) -> Row:
    assert columns.text and columns.label
    return Row(
        text=_text(path, line, fields, columns.text),
        pair=_text(path, line, fields, columns.pair) if columns.pair else None,
        label=_label(path, line, fields, columns.label),
        line=line,
    )


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
        raise RowError(path, line, f"{column!r} is not text: {_shown(value)}", "make it a string")
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
            f"{column!r} is not one label: {_shown(value)}",
            "a label is a string or a whole number",
        )
    label = value.strip()
    if not label:
        raise RowError(path, line, f"{column!r} is empty", "label the row or remove it")
    if len(label) > MAX_LABEL_CHARS:
        raise RowError(
            path,
            line,
            f"{column!r} has {len(label)} characters: {_shown(label)}",
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


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
