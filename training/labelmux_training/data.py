"""Labelled files to rows: CSV, TSV, JSONL and CoNLL, each also gzipped.

Every bad row is named by file and line. TSV is read as the plain format it is: a tab ends a field,
and quotes have no meaning; CSV fields may be quoted and span lines. In CoNLL each line is a token
and, last, its tag, and blank lines end a text. What the labels must be to make a task is in
``labels.py``.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from labelmux_adapters.iob2 import OUTSIDE, as_iob2, spread, words_of
from labelmux_adapters.kinds import TaskKind
from labelmux_encoder.tokenizer import TextInput
from labelmux_training.errors import ColumnsError, DataFileError, RowError, TooFewRowsError

#: The longest label the adapter format takes, in characters.
MAX_LABEL_CHARS = 200
#: A quoted CSV field longer than this is taken for a missing closing quote.
_MAX_FIELD_CHARS = 1_000_000
_SHOWN_CHARS = 80

_FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_FORMATS |= dict.fromkeys((".conll", ".bio", ".iob", ".iob2"), "conll")
#: The name of a document in CoNLL files, where the token stands.
_DOCUMENT = "-DOCSTART-"

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
        "tokens",
        "words",
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
        "tags",
        "ner_tags",
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
    #: Stands between the labels of one field; for rows with several.
    delimiter: str = "|"


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


#: A row before its columns are known: its line and its fields by name.
_Record = tuple[int, Mapping[str, object]]


def read_rows(path: Path, columns: Columns = Columns(), kind: TaskKind | None = None) -> Dataset:
    """The rows of a labelled file.

    The format is told by the name: ``.csv``, ``.tsv``, ``.jsonl`` (``.ndjson``), ``.conll``
    (``.bio``, ``.iob``, ``.iob2``), each also with ``.gz``. CSV and TSV need a header line. Blank
    lines are skipped. Where ``kind`` is None, the first row tells it: JSONL with a list of tokens
    and a list of tags, and CoNLL, are of a token task; JSONL with a list of labels is of a
    multi_label task.

    Raises:
        DataFileError: the file is absent, damaged, not UTF-8, or of another kind.
        ColumnsError: a column is absent or cannot be guessed.
        RowError: a bad row.
        TooFewRowsError: no row at all.
    """
    rows: list[Row] = []
    chosen: Columns | None = None
    for line, fields in _records(path):
        if chosen is None:
            chosen = _choose(path, columns, list(fields))
            kind = kind or _told_kind(fields, chosen)
        rows.append(_row(path, line, fields, chosen, kind or "single_label"))
    if chosen is None:
        raise TooFewRowsError(path, found=0, needed=1)
    return Dataset(path, tuple(rows), bool(chosen.pair), kind or "single_label")


def _records(path: Path) -> Iterator[_Record]:
    form = _format(path)
    content = _read_text(path)
    if form == "jsonl":
        return _json_records(path, content)
    return _conll(path, content) if form == "conll" else _table(path, content, form)


def _told_kind(fields: Mapping[str, object], columns: Columns) -> TaskKind:
    assert columns.text and columns.label
    if isinstance(fields[columns.text], list):
        return "token"
    return "multi_label" if isinstance(fields[columns.label], list) else "single_label"


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


def _conll(path: Path, content: str) -> Iterator[_Record]:
    start, tokens, tags = 0, list[str](), list[str]()
    for line, raw in enumerate((*content.split("\n"), ""), start=1):
        fields = raw.split("\t") if "\t" in raw else raw.split()
        fields = [] if not raw.strip() or fields[0] == _DOCUMENT else fields
        if not fields and tokens:
            yield start, {"tokens": tokens, "tags": tags}
            tokens, tags = [], []
        elif len(fields) == 1:
            raise RowError(
                path, line, f"no tag: {_shown(raw)}", "write a token and, last, its tag on a line"
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
    return replace(wanted, text=text, label=label, pair=pair)


def _row(
    path: Path, line: int, fields: Mapping[str, object], columns: Columns, kind: TaskKind
) -> Row:
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
            raise RowError(path, line, f"the tag {_shown(tag)}", "a tag is O, B-name or I-name")
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
        raise RowError(path, line, f"{column!r} is no list: {_shown(value)}", "give one of strings")
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
