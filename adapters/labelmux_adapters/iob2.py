"""Tags of words, and the spans of text that they mark (IOB2).

``O`` is outside of every span, ``B-x`` begins one of type x, ``I-x`` goes on with it. Tags of a
model need not obey: as in conlleval and seqeval's default, an ``I-x`` that follows ``O`` or another
type begins a span.

A text's words are the runs of letters, digits and underscores in it, and every other character
that is no space, alone. A word's tag is read at the first token that covers any of it. This holds
for raw text and for the tokens of a data set alike, so one rule serves training and answering.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from labelmux_adapters.errors import LabelsError

OUTSIDE = "O"

_WORD = re.compile(r"\w+|[^\w\s]")


class Run(NamedTuple):
    """Neighbouring words that one span covers."""

    label: str
    #: Its first word, and the word after its last.
    first: int
    end: int


def check_tags(labels: Sequence[str]) -> None:
    """Return if the labels are a set of IOB2 tags.

    Raises:
        LabelsError: one is no tag, or one that the others do not go with.
    """
    known = set(labels)
    for index, label in enumerate(labels):
        prefix, dash, name = label.partition("-")
        if label != OUTSIDE and not (prefix in ("B", "I") and dash and name.strip()):
            raise LabelsError(f"labels.{index}", label, "a tag is O, B-name or I-name")
        if prefix == "I" and f"B-{name}" not in known:
            raise LabelsError(f"labels.{index}", label, f"there is no B-{name[:80]} beside it")
    if OUTSIDE not in known:
        raise LabelsError("labels", tuple(labels), "one tag is O, for what is in no span")


def types_of(labels: Sequence[str]) -> tuple[str, ...]:
    """The types of span that these tags mark, in the order of their ``B-``."""
    return tuple(label[2:] for label in labels if label.startswith("B-"))


def words_of(text: str, before: int | None = None) -> list[tuple[int, int]]:
    """Where each word begins and ends, in characters; those that begin ``before`` some place."""
    words = (found.span() for found in _WORD.finditer(text))
    return list(words if before is None else takewhile(lambda word: word[0] < before, words))


def word_tokens(
    words: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]], special: Sequence[int]
) -> NDArray[np.int64]:
    """The token at which each word's tag is read; -1 for a word that no token covers. [words]

    Args:
        words: as ``words_of`` gives them.
        offsets: where each token begins and ends, in characters. [T]
        special: positions of the special tokens, which cover nothing.
    """
    # Plain Python: texts are short, and numpy took five times as long on them.
    content = sorted(set(range(len(offsets))).difference(special))
    found, at = [], 0
    for start, end in words:
        while at < len(content) and offsets[content[at]][1] <= start:
            at += 1
        covers = at < len(content) and offsets[content[at]][0] < end
        found.append(content[at] if covers else -1)
    return np.array(found, np.int64)


def runs_of(tags: Sequence[str]) -> Iterator[Run]:
    """The spans that the tags of a text's words mark, in order."""
    first, label = 0, ""
    for at, tag in enumerate((*tags, OUTSIDE)):
        prefix, _, name = tag.partition("-")
        if label and (prefix != "I" or name != label):
            yield Run(label, first, at)
            label = ""
        if tag != OUTSIDE and not label:
            first, label = at, name


def as_iob2(tags: Sequence[str]) -> list[str]:
    """The same spans in tags that obey: each begins with ``B-``."""
    found = [OUTSIDE] * len(tags)
    for label, first, end in runs_of(tags):
        found[first:end] = [f"B-{label}", *[f"I-{label}"] * (end - first - 1)]
    return found


def spread(tags: Sequence[str], words: Sequence[int]) -> list[str]:
    """Tags of a data set's tokens as those of the words in them.

    A token's first word takes its tag, and the words after it go on with the span.

    Args:
        tags: of the tokens.
        words: how many words each token has.
    """
    found = []
    for tag, count in zip(tags, words, strict=True):
        going_on = f"I-{tag[2:]}" if tag != OUTSIDE else OUTSIDE
        found += [tag, *[going_on] * (count - 1)] if count else []
    return found
