"""Request bodies: read with a running count, checked, and watched for callers that leave."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.types import Message, Receive

from labelmux_server.errors import (
    BodyStalledError,
    BodyTooLargeError,
    CallerGoneError,
    InvalidJsonError,
    InvalidRequestError,
    MediaTypeError,
    ServerError,
    UploadTooLargeError,
)
from labelmux_server.halves import find_half
from labelmux_server.timers import Timers

Body = TypeVar("Body", bound=BaseModel)
Result = TypeVar("Result")

JSON_TYPE = "application/json"
BYTES_TYPE = "application/octet-stream"
#: JSON lines go by several names.
LINES_TYPES = ("application/x-ndjson", "application/jsonl", "application/jsonlines", BYTES_TYPE)
#: How long a call runs before anybody looks whether its caller is still there.
_UNWATCHED_S = 0.25
#: What must come of a body before the time for it begins anew.
_PROGRESS_BYTES = 64 * 1024
#: Lists stop at their first fault, so more are unknown fields; to look at each takes seconds.
_TOLD_FAULTS = 1000
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


async def read_json(request: Request, kind: type[Body], limit_bytes: int) -> Body:
    """The body as ``kind``.

    Raises:
        MediaTypeError, BodyTooLargeError, BodyStalledError, InvalidJsonError, InvalidRequestError
    """
    found = media_type(request)
    if found != JSON_TYPE:
        raise MediaTypeError(found, JSON_TYPE)
    return parse_json(await read_body(request, limit_bytes), kind)


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The body as it is, of a call that classifies.

    Raises:
        MediaTypeError, BodyTooLargeError, BodyStalledError
    """
    return await _read(request, limit_bytes, BodyTooLargeError(limit_bytes))


def parse_json(data: bytes, kind: type[Body]) -> Body:
    """JSON as ``kind``.

    Raises:
        InvalidJsonError, InvalidRequestError
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise _translated(error, data) from error


async def read_upload(request: Request, limit_bytes: int) -> bytes:
    """The body as it is.

    Raises:
        MediaTypeError, UploadTooLargeError, BodyStalledError
    """
    return await read_bytes(request, (BYTES_TYPE,), limit_bytes, UploadTooLargeError(limit_bytes))


async def read_bytes(
    request: Request, types: Sequence[str], limit_bytes: int, too_large: ServerError
) -> bytes:
    """The body as it is, if it is of one of these types or of none.

    Raises:
        MediaTypeError: it is of another; the first is the one to send.
        ServerError: ``too_large``, if it is over the limit.
        BodyStalledError
    """
    found = media_type(request)
    if found not in ("", *types):
        raise MediaTypeError(found, types[0])
    return await _read(request, limit_bytes, too_large)


def stated_sha256(request: Request) -> str | None:
    """The digest that the caller states for its body.

    Raises:
        InvalidRequestError: it is no SHA-256 in hexadecimal.
    """
    stated = request.headers.get("x-content-sha256")
    if stated is not None and not _SHA256.fullmatch(stated):
        raise InvalidRequestError("X-Content-SHA256", "not 64 hexadecimal digits")
    return stated


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of ``work``, which is cancelled if the caller leaves. Call once the body is read.

    The watch begins late, since most calls are answered before it would be worth its cost.

    Raises:
        CallerGoneError: the caller left.
    """
    task = asyncio.current_task()
    assert task is not None
    gone = False
    watching: asyncio.Task[None] | None = None

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    def begin() -> None:
        nonlocal watching
        watching = asyncio.ensure_future(watch())

    timers: Timers = request.app.state.timers
    timer = timers.after(_UNWATCHED_S, begin)
    try:
        return await work
    except asyncio.CancelledError as error:
        if not gone:
            raise
        task.uncancel()
        raise CallerGoneError from error
    finally:
        timer.cancel()
        if watching is not None:
            watching.cancel()


async def next_message(receive: Receive) -> Message:
    """The next part of a body, once it is there.

    Raises:
        CallerGoneError: nobody sends one any more.
    """
    message = await receive()
    if message["type"] == "http.disconnect":
        raise CallerGoneError
    return message


def check_encoding(request: Request) -> None:
    """Return if the body is not compressed: what it would grow to has no bound.

    Raises:
        MediaTypeError
    """
    found = request.headers.get("content-encoding", "").strip().lower()
    if found not in ("", "identity"):
        raise MediaTypeError(found, "identity, not compressed", "content encoding")


async def _read(request: Request, limit_bytes: int, too_large: ServerError) -> bytes:
    check_encoding(request)
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > limit_bytes:
        raise too_large
    stall_s = request.app.state.settings.stall_s
    timers: Timers = request.app.state.timers
    data, awaited, more = bytearray(), _PROGRESS_BYTES, True
    try:
        with timers.limit(stall_s) as limit:
            while more:
                message = await next_message(request.receive)
                data += message.get("body", b"")
                more = message.get("more_body", False)
                if len(data) > limit_bytes:
                    raise too_large
                if len(data) >= awaited:
                    awaited = len(data) + _PROGRESS_BYTES
                    limit.restart()
    except TimeoutError as error:
        raise BodyStalledError(stall_s, _PROGRESS_BYTES) from error
    return bytes(data)


def media_type(request: Request) -> str:
    """The content type, without its parameters; empty where there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _translated(error: ValidationError, data: bytes) -> ServerError:
    if (faults := error.error_count()) > _TOLD_FAULTS:
        return InvalidRequestError(
            "body", f"{faults} fields are unknown or wrong; GET /docs shows those of the route"
        )
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        if half := find_half(data):
            return InvalidRequestError(*half)
        return InvalidJsonError(first["msg"].removeprefix("Invalid JSON: "))
    where = ".".join(str(part) for part in first["loc"]) or "body"
    return InvalidRequestError(where, first["msg"].removeprefix("Value error, "))
