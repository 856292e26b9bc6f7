"""Any number of texts in requests of some lines each, a few at once, answers in order.

HTTP libraries send all of a body before they read the answer. A stream of any length would stall
there, since the server stops reading while answers wait; so each request has no more lines than a
server always takes in. Each is sent again by itself where that may help.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from concurrent.futures import Future
from functools import partial
from threading import Event
from typing import Any

from labelmux_client._call import Call
from labelmux_client._calls import checked_pair, json_bytes
from labelmux_client._lines import Question, classify_lines
from labelmux_client._threads import started
from labelmux_client._types import TextResult

__all__: list[str] = []

Item = str | tuple[str, str]
Items = Iterable[Item] | AsyncIterable[Item]
#: Goes no further once the event is set.
Send = Callable[[Call[list[TextResult]], Event], list[TextResult]]
AsyncSend = Callable[[Call[list[TextResult]]], Awaitable[list[TextResult]]]

#: What a server takes in without an answer read: 256 lines, 4 MiB.
_LINES = 256
_BYTES = 1024 * 1024
#: Enough that the server has work while an answer is on its way.
_AT_ONCE = 4


class _Segments:
    """Gathers lines until they make a request."""

    def __init__(self, *, pairs: bool) -> None:
        self._pairs = pairs
        self._lines: list[bytes] = []
        self._bytes = 0

    def add(self, item: Item) -> Iterator[Sequence[bytes]]:
        """The request that is full before this line, if one is."""
        line = _line(item, pairs=self._pairs)
        if self._lines and (len(self._lines) == _LINES or self._bytes + len(line) > _BYTES):
            yield from self.end()
        self._lines.append(line)
        self._bytes += len(line)

    def end(self) -> Iterator[Sequence[bytes]]:
        """What is left, if anything."""
        if self._lines:
            yield self._lines
        self._lines, self._bytes = [], 0


def run(
    send: Send, texts: Iterable[Item] | None, pairs: Iterable[Item] | None, question: Question
) -> Iterator[TextResult]:
    """The answers; requests are sent from threads, texts are taken on the caller's.

    Raises:
        ValueError: the arguments exclude each other.
    """
    question.check(texts, pairs)
    return _results(send, _segments(texts, pairs), question)


def run_async(
    send: AsyncSend, texts: Items | None, pairs: Items | None, question: Question
) -> AsyncIterator[TextResult]:
    """The answers; all in the caller's event loop.

    Raises:
        ValueError: the arguments exclude each other.
    """
    question.check(texts, pairs)
    return _results_async(send, _segments_async(texts, pairs), question)


def _results(
    send: Send, segments: Iterable[Sequence[bytes]], question: Question
) -> Iterator[TextResult]:
    waiting: deque[Future[list[TextResult]]] = deque()
    ended = Event()
    try:
        for lines in segments:
            work = partial(send, classify_lines(lines, question), ended)
            waiting.append(started(work, "labelmux-stream"))
            if len(waiting) == _AT_ONCE:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        ended.set()


async def _results_async(
    send: AsyncSend, segments: AsyncIterable[Sequence[bytes]], question: Question
) -> AsyncIterator[TextResult]:
    waiting: deque[asyncio.Task[list[TextResult]]] = deque()
    try:
        async for lines in segments:
            call = classify_lines(lines, question)
            waiting.append(asyncio.ensure_future(_awaited(send, call)))
            if len(waiting) == _AT_ONCE:
                for result in await waiting.popleft():
                    yield result
        while waiting:
            for result in await waiting.popleft():
                yield result
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _awaited(send: AsyncSend, call: Call[list[TextResult]]) -> list[TextResult]:
    return await send(call)


def _segments(
    texts: Iterable[Item] | None, pairs: Iterable[Item] | None
) -> Iterator[Sequence[bytes]]:
    segments = _Segments(pairs=pairs is not None)
    for item in (texts if pairs is None else pairs) or ():
        yield from segments.add(item)
    yield from segments.end()


async def _segments_async(
    texts: Items | None, pairs: Items | None
) -> AsyncIterator[Sequence[bytes]]:
    segments = _Segments(pairs=pairs is not None)
    async for item in _one_by_one(texts if pairs is None else pairs):
        for lines in segments.add(item):
            yield lines
    for lines in segments.end():
        yield lines


async def _one_by_one(items: Items | None) -> AsyncIterator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items or ():
            yield item


def _line(item: Any, *, pairs: bool) -> bytes:
    if not pairs:
        return json_bytes({"text": item})
    first, second = checked_pair(item)
    return json_bytes({"text": first, "pair": second})
