"""Many texts to a server, some at a time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

from labelmux_cli.texts import Row
from labelmux_client import (
    ClassifyResult,
    Client,
    InvalidRequestError,
    StatusError,
    TextResult,
    Windows,
)

Item = TypeVar("Item")

#: Texts in one call.
CHUNK_ROWS = 64
#: How a server begins what it says of one text; it counts from 0, in each call anew.
_ONE_TEXT = re.compile(r"\Atext \d+ ")
_TOO_MUCH = frozenset({"too_many_texts", "body_too_large"})


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of every text."""

    #: One name makes a failure of the task an error; several, or ``*``, part of the answer.
    tasks: tuple[str, ...]
    pair: bool = False
    top_k: int | None = None
    raw_scores: bool = False
    truncation: bool = True
    windows: Windows | None = None


def ask(client: Client, rows: Sequence[Row], question: Question) -> list[TextResult]:
    """The answers to some rows, in their order; in smaller calls where one would be too big.

    Errors about one row say where it stands.
    """
    try:
        found = _call(client, rows, question)
        return [_placed(result, row) for result, row in zip(found, rows, strict=True)]
    except InvalidRequestError as error:
        if error.code not in _TOO_MUCH or len(rows) == 1:
            raise _located(error, rows) from error
        middle = len(rows) // 2
        return ask(client, rows[:middle], question) + ask(client, rows[middle:], question)


def chunked(items: Iterable[Item], count: int = CHUNK_ROWS) -> Iterator[list[Item]]:
    """The items, ``count`` at a time."""
    source = iter(items)
    while chunk := list(islice(source, count)):
        yield chunk


def _call(client: Client, rows: Sequence[Row], question: Question) -> ClassifyResult:
    one = len(question.tasks) == 1 and question.tasks != ("*",)
    return client.classify(
        None if question.pair else [row.text for row in rows],
        pairs=[(row.text, row.pair or "") for row in rows] if question.pair else None,
        task=question.tasks[0] if one else None,
        tasks=None if one else question.tasks,
        top_k=question.top_k,
        raw_scores=question.raw_scores,
        truncation=question.truncation,
        windows=question.windows,
    )


def _located(error: StatusError, rows: Sequence[Row]) -> StatusError:
    """The error with the row's place instead of its index in a call, where it is about one row."""
    fields = dict(error.fields)
    index = fields.pop("index", None)
    if index is None:
        return error
    where = rows[index].where
    return type(error)(
        status=error.status,
        code=error.code,
        message=_said(error.message, where),
        request_id=error.request_id,
        fields=fields | {"where": where},
    )


def _placed(result: TextResult, row: Row) -> TextResult:
    if not result.failures:
        return result
    failures = {
        name: replace(failure, message=_said(failure.message, row.where))
        for name, failure in result.failures.items()
    }
    return replace(result, failures=failures)


def _said(message: str, where: str) -> str:
    return _ONE_TEXT.sub(lambda _: f"{where} ", message)
