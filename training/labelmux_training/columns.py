"""Which column of a labelled file holds what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from labelmux_training.errors import ColumnsError

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


#: Each column is found by its name.
ALL_GUESSED = Columns()


def choose_columns(path: Path, wanted: Columns, found: Sequence[str]) -> Columns:
    """``wanted`` with every column named, as one of ``found``; ``pair`` is empty where none is.

    Raises:
        ColumnsError: a column is absent or cannot be guessed.
    """

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
