"""Bytes as they come to numbered lines, and lines to the texts that one call asks about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from labelmux_encoder.tokenizer import TextInput
from labelmux_server.bodies import parse_json
from labelmux_server.errors import InvalidRequestError, ServerError, TextTooLongError
from labelmux_server.schemas import StreamLine


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not blank."""

    #: From 1; blank lines count.
    number: int
    #: None: longer than a line may be; what it held is gone.
    data: bytes | None


class Splitter:
    """Cuts what it is fed into lines. Holds one line at most, and none that is too long."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._number = 0
        self._held: list[bytes] = []
        self._held_bytes = 0

    def feed(self, data: bytes) -> Iterator[Line]:
        """The lines that end in ``data``."""
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._hold(piece)
            yield from self.end()
        self._hold(rest)

    def end(self) -> Iterator[Line]:
        """The line that is held, as if a newline came; none if it is blank."""
        self._number += 1
        too_long, data = self._held_bytes > self._limit_bytes, b"".join(self._held)
        self._held, self._held_bytes = [], 0
        if too_long:
            yield Line(self._number, None)
        elif data.strip():
            yield Line(self._number, data)

    def _hold(self, piece: bytes) -> None:
        self._held_bytes += len(piece)
        if self._held_bytes > self._limit_bytes:
            self._held = []
        elif piece:
            self._held.append(piece)


@dataclass(slots=True)
class Part:
    """Consecutive lines that one call asks about, or one that is wrong."""

    pairs: bool = False
    numbers: list[int] = field(default_factory=list)
    texts: list[TextInput] = field(default_factory=list)
    size_bytes: int = 0
    error: ServerError | None = None


def parts_of(lines: Iterable[Line], limits: PartLimits) -> Iterator[Part]:
    """The lines in order, as few parts as may be."""
    part = Part()
    for line in lines:
        try:
            text = _text_of(line, limits)
        except ServerError as error:
            if part.texts:
                yield part
            yield Part(numbers=[line.number], error=error)
            part = Part()
            continue
        pairs, size_bytes = isinstance(text, tuple), len(line.data or b"")
        if part.texts and (part.pairs != pairs or not limits.holds(part, size_bytes)):
            yield part
            part = Part()
        part.pairs = pairs
        part.numbers.append(line.number)
        part.texts.append(text)
        part.size_bytes += size_bytes
    if part.texts:
        yield part


@dataclass(frozen=True, slots=True)
class PartLimits:
    """What bounds a line and a part."""

    line_bytes: int
    text_chars: int
    part_lines: int
    part_bytes: int

    def holds(self, part: Part, more_bytes: int) -> bool:
        """Whether one more line of so many bytes has room in the part."""
        return len(part.texts) < self.part_lines and part.size_bytes + more_bytes <= self.part_bytes


def _text_of(line: Line, limits: PartLimits) -> TextInput:
    if line.data is None:
        problem = f"over {limits.line_bytes} bytes; shorten its text"
        raise InvalidRequestError(f"line {line.number}", problem)
    found = parse_json(line.data, StreamLine)
    chars = len(found.text) + len(found.pair or "")
    if chars > limits.text_chars:
        raise TextTooLongError(line.number, chars, limits.text_chars)
    return found.text if found.pair is None else (found.text, found.pair)
