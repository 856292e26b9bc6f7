"""Texts to classify, from arguments, lines or JSONL; read as they come, never all at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from labelmux_cli.errors import FailedError, UsageError

Format = Literal["auto", "lines", "jsonl"]

_SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True)
class Row:
    """One text, or two that are read together."""

    text: str
    #: For errors: its file and line, or which of the arguments it is.
    where: str
    pair: str | None = None
    #: The JSON object that it came in, if it did; goes into the answer's line.
    fields: dict[str, Any] = field(default_factory=dict)


def rows_of_arguments(texts: Sequence[str], *, pair: bool) -> list[Row]:
    """Each argument is a text; with ``pair``, each two are.

    Raises:
        UsageError: with ``pair``, one argument is left over.
    """
    for text in texts:
        _check_encodable(text, "an argument")
    if not pair:
        return [Row(text, f"argument {number}") for number, text in enumerate(texts, start=1)]
    if len(texts) % 2:
        raise UsageError(f"--pair takes texts two by two; {len(texts)} were given")
    pairs = enumerate(zip(texts[::2], texts[1::2], strict=True), start=1)
    return [Row(first, f"pair {number}", second) for number, (first, second) in pairs]


@contextmanager
def open_input(file: Path | None) -> Iterator[BinaryIO]:
    """The file, or stdin where there is none or it is ``-``."""
    if file is None or str(file) == "-":
        yield sys.stdin.buffer
    else:
        with file.open("rb") as stream:
            yield stream


def rows_of_lines(lines: Iterable[bytes], name: str, *, pair: bool, form: Format) -> Iterator[Row]:
    """One row per line that is not blank.

    Lines are texts (with ``pair``, two with a tab between), or JSON: an object with "text" (and
    "pair"), a string, or an array of two strings. ``auto`` goes by the name, and where that says
    nothing, by whether the first line is a JSON object.

    Raises:
        FailedError: a line cannot be read; names it.
    """
    for number, raw in enumerate(lines, start=1):
        where = f"{name}, line {number}"
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise FailedError(f"{where}: not UTF-8; save the file as UTF-8") from error
        if not line.strip():
            continue
        if form == "auto":
            form = "jsonl" if _looks_like_jsonl(name, line) else "lines"
        read = _row_of_json if form == "jsonl" else _row_of_text
        yield read(line, where, pair)


def _looks_like_jsonl(name: str, line: str) -> bool:
    if name.lower().endswith((".jsonl", ".ndjson")):
        return True
    if name.lower().endswith(".txt"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _row_of_text(line: str, where: str, pair: bool) -> Row:
    if not pair:
        return Row(line, where)
    first, tab, second = line.partition("\t")
    if not tab:
        raise FailedError(f"{where}: --pair needs two texts with a tab between them")
    return Row(first, where, second)


def _row_of_json(line: str, where: str, pair: bool) -> Row:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FailedError(f"{where}: not JSON ({error}); write one object a line") from error
    fields: dict[str, Any] = value if isinstance(value, dict) else {}
    texts: list[Any] = value if isinstance(value, list) else [value]
    if isinstance(value, dict):
        texts = [value.get("text"), value.get("pair")] if pair else [value.get("text")]
    if len(texts) != 1 + pair or not all(isinstance(text, str) for text in texts):
        wanted = '{"text": "...", "pair": "..."}' if pair else '{"text": "..."}'
        shown = line if len(line) <= _SHOWN_CHARS else f"{line[:_SHOWN_CHARS]}..."
        raise FailedError(f"{where}: {shown} is not a row; write {wanted}")
    for text in texts:
        _check_encodable(text, where)
    return Row(texts[0], where, texts[1] if pair else None, fields)


def _check_encodable(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FailedError(f"{where}: holds half a character ({error.reason})") from error
