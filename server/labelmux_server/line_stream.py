"""A stream of lines, read, asked and answered at once, with bounded room in between.

What is in work is bounded in lines and bytes. While there is no room the body is not read, so the
caller's writes wait; while the caller does not read, nothing leaves and no room comes free.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import Response
from starlette.types import Message, Receive, Scope, Send

from labelmux_server.bodies import LINES_TYPES, next_message
from labelmux_server.caller import Caller
from labelmux_server.classification import answer
from labelmux_server.errors import (
    BodyStalledError,
    CallerGoneError,
    DrainingError,
    OverloadedError,
    RateLimitedError,
    ServerError,
    TextTruncatedError,
    TooManyTextsError,
)
from labelmux_server.lines import Part, PartLimits, Splitter, parts_of
from labelmux_server.schemas import ClassifyRequest
from labelmux_server.service import Service
from labelmux_server.statuses import error_part

#: A client may send so much before it reads: HTTP libraries send all of a body first.
LEAST_WINDOW_LINES = 256
WINDOW_BYTES = 4 * 1024 * 1024

#: Lines in one call to the engine: enough for a good batch, few enough that answers flow.
_PART_LINES = 64
_PART_BYTES = 256 * 1024
#: A blank line goes out where no answer does for so long, or callers would think us dead.
_HEARTBEAT_S = 15.0
_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0


class LineStream(Response):
    """The answer to a stream; reads the request's body by itself."""

    def __init__(self, service: Service, caller: Caller, wanted: ClassifyRequest) -> None:
        """``wanted``: what is asked of every line; its texts are not looked at."""
        super().__init__(media_type=LINES_TYPES[0])
        settings = service.settings
        self._service = service
        self._stall_s = settings.stall_s
        #: Why no more is read, before the body's end; what is read is answered.
        self._cut: ServerError | None = None
        self._questions = _Questions(service, caller, wanted)
        self._window = _Window(settings.stream_window_lines, WINDOW_BYTES)
        self._limits = PartLimits(
            line_bytes=settings.max_body_bytes,
            text_chars=settings.max_text_chars,
            part_lines=min(_PART_LINES, settings.max_client_batch_size),
            part_bytes=_PART_BYTES,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Answer until the body ends or the caller leaves; then nothing of it is in work."""
        asked: asyncio.Queue[_Asked | None] = asyncio.Queue()
        try:
            async with asyncio.TaskGroup() as group:
                stopping = group.create_task(self._service.stopping.wait())
                reading = group.create_task(self._read(receive, stopping, group, asked))
                # A caller that waits for "100 Continue" gets it when the body is first asked for.
                await asyncio.sleep(0)
                await send(self._head())
                await self._write(send, asked)
                reading.cancel()
                stopping.cancel()
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except* CallerGoneError:
            pass

    def _head(self) -> Message:
        headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        return {"type": "http.response.start", "status": 200, "headers": headers}

    async def _read(
        self,
        receive: Receive,
        stopping: asyncio.Task[bool],
        group: asyncio.TaskGroup,
        asked: asyncio.Queue[_Asked | None],
    ) -> None:
        """Ask about each part as soon as there is room; ends when the caller leaves."""
        splitter = Splitter(self._limits.line_bytes)
        more = True
        while more:
            try:
                async with asyncio.timeout(self._stall_s):
                    message = await _message_before(stopping, receive)
            except TimeoutError:
                self._cut = BodyStalledError(self._stall_s, progress_bytes=1)
                break
            if message is None:
                self._cut = DrainingError()
                break
            more = message.get("more_body", False)
            lines = [*splitter.feed(message.get("body", b"")), *(() if more else splitter.end())]
            for part in parts_of(lines, self._limits):
                await self._window.enter(part)
                asked.put_nowait(_Asked(part, group.create_task(self._questions.answer(part))))
            if more and self._service.draining:
                self._cut = DrainingError()
                break
        asked.put_nowait(None)
        while True:
            await next_message(receive)

    async def _write(self, send: Send, asked: asyncio.Queue[_Asked | None]) -> None:
        """Every part's answers, in order."""
        while (next_asked := await asked.get()) is not None:
            while not (await asyncio.wait({next_asked.answers}, timeout=_HEARTBEAT_S))[0]:
                await send({"type": "http.response.body", "body": b"\n", "more_body": True})
            body = b"".join(next_asked.answers.result())
            await send({"type": "http.response.body", "body": body, "more_body": True})
            self._window.leave(next_asked.part)
        if self._cut is not None:
            last = _line(None, {"error": error_part(self._cut)})
            await send({"type": "http.response.body", "body": last, "more_body": True})


async def _message_before(stopping: asyncio.Task[bool], receive: Receive) -> Message | None:
    """The next part of a body; None if the server stops before one is there."""
    receiving = asyncio.ensure_future(next_message(receive))
    try:
        await asyncio.wait((receiving, stopping), return_when=asyncio.FIRST_COMPLETED)
        return receiving.result() if receiving.done() else None
    finally:
        receiving.cancel()


class _Asked:
    """A part in work."""

    __slots__ = ("answers", "part")

    def __init__(self, part: Part, answers: asyncio.Task[list[bytes]]) -> None:
        self.part = part
        self.answers = answers


class _Window:
    """Room for what is in work. One reader waits for it."""

    def __init__(self, max_lines: int, max_bytes: int) -> None:
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._lines = 0
        self._bytes = 0
        self._left = asyncio.Event()

    async def enter(self, part: Part) -> None:
        """Return once there is room for the part; an empty window has room for any."""
        while self._lines and not (
            self._lines + len(part.numbers) <= self._max_lines
            and self._bytes + part.size_bytes <= self._max_bytes
        ):
            self._left.clear()
            await self._left.wait()
        self._lines += len(part.numbers)
        self._bytes += part.size_bytes

    def leave(self, part: Part) -> None:
        """The part was answered, and the caller has it."""
        self._lines -= len(part.numbers)
        self._bytes -= part.size_bytes
        self._left.set()


class _Questions:
    """Asks the engine about parts; where there is no room for one now, it waits and asks again."""

    def __init__(self, service: Service, caller: Caller, wanted: ClassifyRequest) -> None:
        self._service = service
        self._caller = caller
        self._wanted = wanted
        #: One part at a time looks for room, in order.
        self._door = asyncio.Lock()
        self._closed_until_s = 0.0

    async def answer(self, part: Part) -> list[bytes]:
        """The answers' lines."""
        if part.error is not None:
            return _error_lines(part.numbers, part.error)
        return await self._ask(part.numbers, part.texts, pairs=part.pairs)

    async def _ask(
        self, numbers: Sequence[int], texts: Sequence[Any], *, pairs: bool
    ) -> list[bytes]:
        fields = {"texts": None, "pairs": texts} if pairs else {"texts": texts, "pairs": None}
        try:
            body = await self._patiently(self._wanted.model_copy(update=fields))
        except TooManyTextsError as error:
            if len(numbers) == 1:
                return _error_lines(numbers, error)
            half = len(numbers) // 2
            return [
                *await self._ask(numbers[:half], texts[:half], pairs=pairs),
                *await self._ask(numbers[half:], texts[half:], pairs=pairs),
            ]
        except ServerError as error:
            return _error_lines(numbers, error)
        return [
            _line(number, {"predictions": _renumbered(result["predictions"], number)})
            for number, result in zip(numbers, body["results"], strict=True)
        ]

    async def _patiently(self, wanted: ClassifyRequest) -> dict[str, Any]:
        while True:
            await self._wait_for_room()
            try:
                return (await answer(self._service, self._caller, wanted)).body
            except (OverloadedError, RateLimitedError) as error:
                pause_s = min(error.retry_after_s, _LONGEST_PAUSE_S)
                self._closed_until_s = time.monotonic() + pause_s

    async def _wait_for_room(self) -> None:
        async with self._door:
            while (pause_s := self._pause_s()) > 0:
                if self._service.draining:
                    raise DrainingError
                await asyncio.sleep(pause_s)

    def _pause_s(self) -> float:
        try:
            self._service.batcher.check_room()
        except OverloadedError:
            return _PAUSE_S
        return min(self._closed_until_s - time.monotonic(), _PAUSE_S)


def _line(number: int | None, answer: dict[str, Any]) -> bytes:
    return orjson.dumps(
        {"line": number, **answer}, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    )


def _error_lines(numbers: Sequence[int], error: ServerError) -> list[bytes]:
    return [_line(number, {"error": error_part(error)}) for number in numbers]


def _renumbered(predictions: dict[str, Any], number: int) -> dict[str, Any]:
    """Errors that count texts count lines here."""
    for name, found in predictions.items():
        error = found.get("error")
        if error is not None and "index" in error:
            said = TextTruncatedError(error["task"], number, error["limit_tokens"])
            predictions[name] = {"error": error_part(said)}
    return predictions
