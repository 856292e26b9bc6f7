"""The texts by which an adapter file proves itself: short ones, or parts of those that are long."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from labelmux_adapters.kinds import TaskKind
from labelmux_adapters.manifest import MAX_CANARY_CHARS, MAX_CANARY_LOGITS
from labelmux_encoder.tokenizer import TextInput
from labelmux_encoder.weights import LoadedEncoder
from labelmux_training.errors import TooFewRowsError

#: Canaries in a file: as many as it may have where there are texts enough, at least four.
_MOST, _FEWEST = 8, 4
#: Texts up to this long make canaries, so that checking them is quick and a file stays small.
_SHORT_CHARS = 200
#: So many texts are cut to find a few parts that differ.
_MOST_CUT = 1000

Fits = Callable[[str], bool]


@dataclass(frozen=True)
class CanaryChooser:
    """Chooses canaries for one task; what it gives, a manifest takes."""

    loaded: LoadedEncoder
    kind: TaskKind
    labels: int
    max_tokens: int

    def choose(self, texts: Iterable[TextInput], path: Path) -> list[TextInput]:
        """The first distinct short ones; where they are too few, longer ones or parts of them.

        Args:
            texts: the best source first.
            path: the file they are from.

        Raises:
            TooFewRowsError: there are not four that differ.
        """
        distinct = list(dict.fromkeys(texts))
        whole = self._whole(distinct)
        if whole:
            return whole
        parts = list(self._parts(sorted(distinct, key=_chars)[:_MOST_CUT]))
        if len(parts) < _FEWEST:
            raise TooFewRowsError(path, len(parts), _FEWEST, "different texts")
        return parts

    def _whole(self, distinct: Sequence[TextInput]) -> list[TextInput]:
        """None of them where too few are short enough as they are."""
        short = [text for text in distinct if _chars(text) <= _SHORT_CHARS]
        if len(short) < _FEWEST:
            longer = [text for text in distinct if _chars(text) <= MAX_CANARY_CHARS]
            short = sorted(longer, key=_chars)[:_FEWEST]
        chosen = short[:_MOST] if self.kind != "token" else self._few_tokens(short)
        return chosen if len(chosen) >= _FEWEST else []

    def _few_tokens(self, texts: list[TextInput]) -> list[TextInput]:
        """The first of them, or the shortest where a manifest has no room for all their tokens."""
        logits = self._logits(texts)
        if sum(logits[:_MOST]) <= MAX_CANARY_LOGITS:
            return texts[:_MOST]
        order = sorted(range(len(texts)), key=lambda at: logits[at])[:_MOST]
        while order and sum(logits[at] for at in order) > MAX_CANARY_LOGITS:
            order.pop()
        return [texts[at] for at in order]

    def _parts(self, texts: Sequence[TextInput]) -> Iterator[TextInput]:
        """As few distinct ones as a file needs: the first part of each text, then its second."""
        found: set[TextInput] = set()
        waiting = [_parts_of(text, self._fits) for text in texts]
        while waiting:
            going_on = []
            for parts in waiting:
                part = next(parts, None)
                if part is None:
                    continue
                going_on.append(parts)
                if part not in found:
                    found.add(part)
                    yield part
                if len(found) == _FEWEST:
                    return
            waiting = going_on

    def _fits(self, text: str) -> bool:
        """Whether a manifest has room for four such texts."""
        if len(text) > MAX_CANARY_CHARS:
            return False
        return self.kind != "token" or self._logits([text])[0] <= MAX_CANARY_LOGITS // _FEWEST

    def _logits(self, texts: Sequence[TextInput]) -> list[int]:
        """Of a token task, by text."""
        rows = self.loaded.tokenizer.encode(texts, self.max_tokens)
        return [len(row.token_ids) * self.labels for row in rows]


def _parts_of(text: TextInput, fits: Fits) -> Iterator[TextInput]:
    if isinstance(text, str):
        return _cut(text, fits)
    first, second = text
    return product(_cut(first, fits), _cut(second, fits))


def _cut(text: str, fits: Fits) -> Iterator[str]:
    """The text whole, or one after another the longest parts of it that fit."""
    if fits(text):
        yield text
        return
    left = text.strip()
    while left and (part := _longest_start(left, fits)):
        yield part
        left = left[len(part) :].lstrip()


def _longest_start(text: str, fits: Fits) -> str:
    """Whole words of it; characters where not even the first word fits."""
    words = re.finditer(r"\S+", text[: MAX_CANARY_CHARS + 1])
    for ends in ([word.end() for word in words], range(1, MAX_CANARY_CHARS + 1)):
        fitting = bisect_left(ends, True, key=lambda end: not fits(text[:end]))
        if fitting:
            return text[: ends[fitting - 1]]
    return ""


def _chars(text: TextInput) -> int:
    return len(text) if isinstance(text, str) else max(map(len, text))
