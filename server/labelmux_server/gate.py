"""The gate of a task: a labelled set on which a version must be at least as good as the active one.

Both versions read the set through the engine as anybody's texts, a few at a time, so they share the
encoder's rows and traffic goes on between them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from pydantic import Field, ValidationError, model_validator

from labelmux_adapters.iob2 import types_of
from labelmux_adapters.kinds import TaskKind
from labelmux_adapters.quality import accuracy, labels_macro_f1, span_f1
from labelmux_encoder.tokenizer import TextInput
from labelmux_server.caller import Caller
from labelmux_server.engine import Engine
from labelmux_server.errors import InvalidRequestError, OverloadedError, TextTooLongError
from labelmux_server.halves import find_half
from labelmux_server.outcomes import Column
from labelmux_server.readings import Verdict, readings
from labelmux_server.registry import Version
from labelmux_server.release_errors import GateFailedError, GateMisfitError, GateNotFoundError
from labelmux_server.schema_bases import StrictRequest
from labelmux_server.store import Store

#: Texts of a call: little enough that nobody else waits long behind one.
_TEXTS_PER_CALL = 16

MEASURES: dict[TaskKind, str] = {
    "single_label": "accuracy",
    "multi_label": "macro_f1",
    "token": "span_f1",
}


class _Span(StrictRequest):
    label: str
    start: int = Field(ge=0)
    end: int


class _Row(StrictRequest):
    """One line of a labelled set."""

    text: str = Field(min_length=1)
    pair: str | None = None
    label: str | None = None
    labels: list[str] | None = Field(None, fail_fast=True)
    spans: list[_Span] | None = Field(None, fail_fast=True)

    @model_validator(mode="after")
    def _one_truth(self) -> _Row:
        if sum(truth is not None for truth in (self.label, self.labels, self.spans)) != 1:
            raise ValueError('give exactly one of "label", "labels" and "spans"')
        for span in self.spans or ():
            if not span.start < span.end <= len(self.text):
                raise ValueError(
                    f"span {span.label[:80]!r} is from {span.start} to {span.end}, the text has "
                    f"{len(self.text)} characters"
                )
        return self

    @property
    def kind(self) -> TaskKind:
        """The kind of task that such a row is for."""
        if self.spans is not None:
            return "token"
        return "single_label" if self.labels is None else "multi_label"

    @property
    def names(self) -> set[str]:
        """The labels that the row names."""
        if self.spans is not None:
            return {span.label for span in self.spans}
        return set(self.labels or ()) if self.label is None else {self.label}

    @property
    def truth(self) -> Verdict:
        """What a version should say."""
        if self.spans is not None:
            return frozenset((span.label, span.start, span.end) for span in self.spans)
        return frozenset(self.labels) if self.label is None else self.label  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """Rows of one kind; at least one."""

    kind: TaskKind
    pair: bool
    texts: Sequence[TextInput]
    truths: Sequence[Verdict]
    #: Every label that a row names.
    labels: frozenset[str]

    def check(self, version: Version) -> None:
        """Return if a version answers such rows.

        Raises:
            GateMisfitError
        """
        kind = version.manifest.task_kind
        if kind != self.kind:
            problem = f"its rows are those of a {self.kind} task, the version's are {kind}"
            raise GateMisfitError(version.task, version.number, problem)
        if version.pair != self.pair:
            reads = "two texts" if version.pair else "one text"
            raise GateMisfitError(version.task, version.number, f"the version reads {reads}")

    def check_labels(self, version: Version, active: Version) -> None:
        """Return if one of the two may say each label: else both would be wrong, and so equal.

        Raises:
            GateMisfitError
        """
        unknown = sorted(self.labels - _labels(version) - _labels(active))
        if unknown:
            problem = f"neither it nor the active version has the label {unknown[0][:80]!r}"
            raise GateMisfitError(version.task, version.number, problem)


@dataclass(frozen=True, slots=True)
class GateScores:
    """How good a version and the active one are on the same rows."""

    measure: str
    rows: int
    score: float
    active_version: int
    active_score: float


class Gate:
    """Compares versions with the active one."""

    def __init__(self, store: Store, engine: Engine, max_text_chars: int) -> None:
        self._store = store
        self._engine = engine
        self._max_text_chars = max_text_chars

    def load(self, task: str) -> LabelledSet:
        """A task's labelled set, read from disk.

        Raises:
            GateNotFoundError
        """
        found = self._store.gate(task)
        if found is None:
            raise GateNotFoundError(task)
        return self.parse(found.data, stored=True)

    def parse(self, data: bytes, *, stored: bool = False) -> LabelledSet:
        """A labelled set from JSON lines.

        ``stored``: it was taken already, when longer texts may have been.

        Raises:
            InvalidRequestError: a line is no row, or not one like the first; or there is none.
            TextTooLongError
        """
        rows: list[_Row] = []
        for number, line in enumerate(data.split(b"\n"), start=1):
            if not line.strip():
                continue
            row = _parse_row(number, line)
            first = rows[0] if rows else row
            if (row.kind, row.pair is None) != (first.kind, first.pair is None):
                problem = "not of the same kind as the first; give every row the same fields"
                raise InvalidRequestError(f"line {number}", problem)
            chars = len(row.text) + len(row.pair or "")
            if chars > self._max_text_chars and not stored:
                raise TextTooLongError(len(rows), chars, self._max_text_chars)
            rows.append(row)
        if not rows:
            raise InvalidRequestError("body", "no row; send one JSON object a line")
        return LabelledSet(
            kind=rows[0].kind,
            pair=rows[0].pair is not None,
            texts=[row.text if row.pair is None else (row.text, row.pair) for row in rows],
            truths=[row.truth for row in rows],
            labels=frozenset[str]().union(*(row.names for row in rows)),
        )

    async def check(
        self, labelled: LabelledSet, version: Version, active: Version, caller: Caller
    ) -> GateScores:
        """How good both are, if the version is at least as good as the active one.

        Raises:
            GateFailedError: it is not.
            GateMisfitError: the set is not of their kind, or has a label that neither has.
            ServerError: one of them could not answer.
        """
        for each in (version, active):
            labelled.check(each)
        labelled.check_labels(version, active)
        # An operator's gate is not held to the rate of the operator's key.
        caller = caller._replace(rights=replace(caller.rights, tokens_per_minute=0))
        said: dict[str, list[Verdict]] = {_pinned(version): [], _pinned(active): []}
        for first in range(0, len(labelled.texts), _TEXTS_PER_CALL):
            texts = labelled.texts[first : first + _TEXTS_PER_CALL]
            for column in await self._ask(list(said), texts, caller):
                said[column.name] += _verdicts(column, texts)
        own, other = (_score(labelled, said[_pinned(each)]) for each in (version, active))
        scores = GateScores(MEASURES[labelled.kind], len(labelled.texts), own, active.number, other)
        if own < other:
            raise GateFailedError(version.task, version.number, asdict(scores))
        return scores

    async def _ask(
        self, names: Sequence[str], texts: Sequence[TextInput], caller: Caller
    ) -> Sequence[Column]:
        """The answer, once there is room for the question."""
        while True:
            try:
                return (await self._engine.classify(names, texts, caller)).columns
            except OverloadedError as error:
                await asyncio.sleep(error.retry_after_s)


def _labels(version: Version) -> set[str]:
    """What a version may say: labels, or types of span."""
    labels = version.manifest.labels
    return set(types_of(labels) if version.manifest.task_kind == "token" else labels)


def _parse_row(number: int, line: bytes) -> _Row:
    try:
        return _Row.model_validate_json(line)
    except ValidationError as error:
        if half := find_half(line):
            raise InvalidRequestError(f"line {number}.{half.field}", half.problem) from error
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join([f"line {number}", *map(str, first["loc"])])
        raise InvalidRequestError(where, first["msg"].removeprefix("Value error, ")) from error


def _pinned(version: Version) -> str:
    return f"{version.task}@{version.number}"


def _verdicts(column: Column, texts: Sequence[TextInput]) -> list[Verdict]:
    for error in (column.error, *(outcome.error for outcome in column.outcomes)):
        if error is not None:
            raise error
    assert column.version is not None
    found = readings(column.version, list(zip(texts, column.outcomes, strict=True)))
    return [reading.verdict for reading in found]


def _score(labelled: LabelledSet, said: Sequence[Any]) -> float:
    truths: Sequence[Any] = labelled.truths
    if labelled.kind == "token":
        return span_f1(truths, said)
    if labelled.kind == "single_label":
        ids = {label: at for at, label in enumerate({*truths, *said})}
        return accuracy(*(np.array([ids[label] for label in of]) for of in (truths, said)))
    labels: list[Hashable] = sorted(frozenset[str]().union(*truths, *said))
    return labels_macro_f1(
        *(np.array([[name in has for name in labels] for has in of], bool) for of in (truths, said))
    )
