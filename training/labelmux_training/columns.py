"""Which column of a labelled file holds what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from labelmux_adapters.kinds import TaskKind
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


def choose_columns(
    path: Path, wanted: Columns, fields: Mapping[str, object], kind: TaskKind | None
) -> tuple[Columns, TaskKind]:
    """``wanted`` with every column named, as one of the first row's; and what kind of task it is.

    ``pair`` is empty where there is none. Where ``kind`` is None, the fields tell it.

    Raises:
        ColumnsError: a column is absent or cannot be guessed.
    """
    found = list(fields)
    if kind is None and wanted.text is None:
        wanted = _tagged(wanted, fields)
    lists = [name for name in found if isinstance(fields[name], list)]

    def choose(role: str, name: str | None) -> str:
        if name is not None and name in found:
            return name
        guess = _guess(role, lists) if kind == "token" else None
        guess = guess or _guess(role, found)
        if name is None and guess is not None:
            return guess
        raise ColumnsError(path, role, name, found)

    text = choose("text", wanted.text)
    label = choose("label", wanted.label)
    kind = kind or _told_kind(fields[text], fields[label])
    pair = wanted.pair
    if pair:
        choose("pair", pair)
    elif pair is None:
        others = [name for name in found if name not in (text, label)]
        pair = "" if kind == "token" else _guess("pair", others) or ""
    return replace(wanted, text=text, label=label, pair=pair), kind


def second_text(fields: Mapping[str, object], columns: Columns) -> str | None:
    """The field of a row that looks like its second text, whatever ``columns`` has of it."""
    used = (columns.text, columns.label)
    return _guess("pair", [name for name in fields if name not in used and fields[name]])


def _tagged(wanted: Columns, fields: Mapping[str, object]) -> Columns:
    """``wanted`` with the columns of a row that has its text as tagged tokens too."""
    label = wanted.label or _guess("label", list(fields))
    tags = fields.get(label) if label else None
    if not tags or not isinstance(tags, list):
        return wanted
    for name, value in fields.items():
        named = name.lower() in ("tokens", "words")
        if named and isinstance(value, list) and len(value) == len(tags):
            return replace(wanted, text=name, label=label)
    return wanted


def _guess(role: str, found: Sequence[str]) -> str | None:
    by_lower = {column.lower(): column for column in reversed(found)}
    return next((by_lower[guess] for guess in GUESSES[role] if guess in by_lower), None)


def _told_kind(text: object, label: object) -> TaskKind:
    if isinstance(text, list):
        return "token"
    return "multi_label" if isinstance(label, list) else "single_label"
