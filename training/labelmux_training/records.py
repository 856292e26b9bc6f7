"""A labelled file as records: a line and its fields by name, whatever the format.

TSV is read as the plain format it is: a tab ends a field, and quotes have no meaning; CSV fields
may be quoted and span lines. In CoNLL each line is a token and, last, its tag, and blank lines end
a text.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from labelmux_training.errors import DataFileError, RowError

#: A quoted CSV field longer than this is taken for a missing closing quote.
_MAX_FIELD_CHARS = 1_000_000
_SHOWN_CHARS = 80

_FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_FORMATS |= dict.fromkeys((".conll", ".bio", ".iob", ".iob2"), "conll")
#: The name of a document in CoNLL files, where the token stands.
_DOCUMENT = "-DOCSTART-"

#: Where it starts in its file, from 1, and its fields.
Record = tuple[int, Mapping[str, object]]


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file, in its order; its name tells the format.

    Raises:
        DataFileError: the file is absent, damaged, not UTF-8, or of another kind.
        RowError: a line that is none of its format.
    """
    form = _format(path)
    content = _read_text(path)
    if form == "jsonl":
        return _json_records(path, content)
    return _conll(path, content) if form == "conll" else _table(path, content, form)


def shown(value: object) -> str:
    """A value from a file as it may stand in a message."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def _format(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    form = _FORMATS.get(suffixes[-1] if suffixes else "")
    if form is None:
        raise DataFileError(
            path,
            "not a kind of file that can be read",
            "name it .csv, .tsv, .jsonl or .conll (or + .gz)",
        )
    return form


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


def _json_records(path: Path, content: str) -> Iterator[Record]:
    for line, raw in enumerate(content.split("\n"), start=1):
        if not raw.strip():
            continue
        try:
            fields = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise RowError(
                path, line, f"not JSON ({error}): {shown(raw)}", "write one object a line"
            ) from error
        if not isinstance(fields, dict):
            raise RowError(
                path, line, f"not a JSON object: {shown(fields)}", "write one object a line"
            )
        yield line, fields


def _table(path: Path, content: str, kind: str) -> Iterator[Record]:
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
                f"{len(fields)} fields, the header has {len(header)}: {shown(fields)}",
                "quote a field that holds the separator"
                if kind == "csv"
                else "put one tab between fields",
            )
        yield line, dict(zip(header, fields, strict=True))


def _conll(path: Path, content: str) -> Iterator[Record]:
    start, tokens, tags = 0, list[str](), list[str]()
    for line, raw in enumerate((*content.split("\n"), ""), start=1):
        # Blanks alone: a token may hold another space, such as the one that does not break a line.
        parts = [part for part in raw.rstrip("\r").split(" ") if part]
        fields = raw.split("\t") if "\t" in raw else parts
        fields = [] if not raw.strip() or fields[0] == _DOCUMENT else fields
        if not fields and tokens:
            yield start, {"tokens": tokens, "tags": tags}
            tokens, tags = [], []
        elif len(fields) == 1:
            raise RowError(
                path, line, f"no tag: {shown(raw)}", "write a token and, last, its tag on a line"
            )
        elif fields:
            start = start if tokens else line
            tokens.append(fields[0])
            tags.append(fields[-1].strip())


def _header(path: Path, line: int, fields: list[str]) -> list[str]:
    header = [name.strip() for name in fields]
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        raise RowError(
            path, line, f"the header repeats {sorted(repeated)[0]!r}", "name each column once"
        )
    return header
