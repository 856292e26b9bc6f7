"""Rows of CSV, TSV and JSONL files, read one after the other with where each ends in the file.

CSV fields may be quoted and span lines. TSV is plain: a tab ends a field, and quotes mean nothing.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from labelmux_cli.errors import FailedError, UsageError

Form = Literal["csv", "tsv", "jsonl"]

_FORMS: dict[str, Form] = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
#: A quoted field longer than this is taken for a missing closing quote.
_MAX_FIELD_CHARS = 1_000_000
#: What ends a cell or a row of TSV, so that no cell can hold it. Nothing else does.
_ENDS = re.compile(r"\r\n|[\r\n\t]")


@dataclass(frozen=True, slots=True)
class Record:
    """One row as it stands: cells of a table, or a JSON object."""

    values: list[str] | dict[str, Any]
    #: Where it starts, from 1.
    line: int
    #: The byte after its last one.
    end: int


def form_of(path: Path, *, packed: bool) -> Form:
    """CSV, TSV or JSONL by the name; ``packed`` allows ``.gz`` behind it.

    Raises:
        UsageError: it is none of them.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if packed and suffixes[-1:] == [".gz"]:
        suffixes.pop()
    form = _FORMS.get(suffixes[-1] if suffixes else "")
    if form is None:
        more = " (or + .gz)" if packed else ""
        raise UsageError(f"{path}: name it .csv, .tsv or .jsonl{more}, as what it is")
    return form


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked where it is named ``.gz``.

    Raises:
        FailedError: it is no gzip file, or a damaged one.
    """
    if path.suffix.lower() != ".gz":
        with path.open("rb") as plain:
            yield plain
        return
    try:
        with gzip.open(path) as unpacked:
            yield cast("BinaryIO", unpacked)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FailedError(f"{path}: damaged gzip file ({error}); make it again") from error


def records(stream: BinaryIO, form: Form, name: str, *, cut: bool = False) -> Iterator[Record]:
    """Every row that is not blank, a table's header too.

    Args:
        stream: the file's bytes.
        form: how they are written.
        name: of the file, for errors.
        cut: the file may end inside a row, which is passed over; a whole one ends in a newline.

    Raises:
        FailedError: a row cannot be read.
    """
    lines = _Lines(stream, name, whole_alone=cut)
    start = 1
    for values in _objects(lines) if form == "jsonl" else _cells(lines, form):
        if values:
            yield Record(values, start, lines.end)
        start = lines.number + 1


def header_of(record: Record, name: str) -> list[str]:
    """A table's column names.

    Raises:
        FailedError: one stands twice.
    """
    header = [str(cell).strip() for cell in record.values]
    for column in header:
        if header.count(column) > 1:
            raise FailedError(f"{name}, line {record.line}: the header repeats {column!r}")
    return header


def row_bytes(values: Sequence[str] | dict[str, Any], form: Form) -> bytes:
    """A row as it is written, with its newline."""
    if form == "jsonl":
        return json.dumps(values).encode() + b"\n"
    if form == "tsv":
        return "\t".join(_ENDS.sub(" ", cell) for cell in values).encode() + b"\n"
    text = io.StringIO()
    # With this end of line the writer quotes what holds a carriage return, too.
    csv.writer(text, lineterminator="\r\n").writerow(values)
    return text.getvalue().removesuffix("\r\n").encode() + b"\n"


class _Lines:
    """The lines of a file as text, counted in lines and bytes."""

    def __init__(self, stream: BinaryIO, name: str, *, whole_alone: bool) -> None:
        self._stream = stream
        self._name = name
        self.whole_alone = whole_alone
        self.number = 0
        self.end = 0
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        for raw in self._stream:
            if self.whole_alone and not raw.endswith(b"\n"):
                break
            self.number += 1
            self.end += len(raw)
            try:
                yield raw.decode("utf-8-sig" if self.number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise FailedError(f"{self.where}: not UTF-8; save the file as UTF-8") from error
        self.ended = True

    @property
    def where(self) -> str:
        """The last line read, for errors."""
        return f"{self._name}, line {self.number}"


def _cells(lines: _Lines, form: Form) -> Iterator[list[str]]:
    csv.field_size_limit(_MAX_FIELD_CHARS)
    if form == "tsv":
        for line in lines:
            cells = line.rstrip("\r\n").split("\t")
            yield cells if any(cells) else []
        return
    reader = csv.reader(iter(lines), strict=True)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if lines.whole_alone and lines.ended:
                return
            problem = f"{lines.where}: bad CSV ({error}); check the quotes of this row"
            raise FailedError(problem) from error
        yield cells if any(cells) else []


def _objects(lines: _Lines) -> Iterator[dict[str, Any]]:
    for line in lines:
        if not line.strip():
            yield {}
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FailedError(f"{lines.where}: not JSON ({error})") from error
        if not isinstance(values, dict) or not values:
            raise FailedError(f"{lines.where}: not a JSON object; write one a line")
        yield values
