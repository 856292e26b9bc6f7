"""One caller's connection, closed if it keeps us waiting: uvicorn's protocol with bounds.

uvicorn bounds neither the head of a request, in bytes or in time, nor how long an answer waits for
a caller that does not read it. A connection that waits for a first or a next request is bounded
too, so callers that do nothing hold nothing for long.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from labelmux_server.answers import json_answer
from labelmux_server.errors import HeadTooLargeError
from labelmux_server.statuses import answer_for, error_part


class Joined:
    """A transport on which two writes in one turn of the loop are one packet.

    uvicorn writes a head and a body apart, and uvloop sends each at once: a system call here and
    one at the caller's for each.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send ``data`` with what is held; hold it for the rest of the turn if nothing is."""
        if self._held:
            data, self._held = self._held + data, b""
            self._transport.write(data)
        elif data:
            self._held = data
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Send what is held, then close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held:
            data, self._held = self._held, b""
            self._transport.write(data)


class Connection(HttpToolsProtocol):
    """Refuses a head that is too long, and closes what stalls.

    A request's head must be whole ``stall_s`` after its first byte, the first one after the
    connection's; an answer must have been read so long after the caller stopped reading. The body
    is its route's concern, until it has answered.
    """

    def __init__(self, *args: Any, max_head_bytes: int, stall_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._max_head_bytes = max_head_bytes
        self._stall_s = stall_s
        #: Bytes since the parser last came to the end of a head, or to a part of a body.
        self._pending_bytes = 0
        self._head_bytes = 0
        #: Whether the parser is at the end of a message, so that a head comes next or nothing.
        self._between = True
        self._advanced = False
        self._overlong = False
        self._stall: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A caller is there, who should say something."""
        super().connection_made(transport)
        self.transport = cast("asyncio.Transport", Joined(transport, self.loop))
        self._await_caller()

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller is gone, or was sent away."""
        self._caller_acted()
        self._answer_read()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; then see whether the caller owes us the rest of something."""
        self._advanced = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        self._pending_bytes = 0 if self._advanced else self._pending_bytes + len(data)
        if self._pending_bytes > self._max_head_bytes:
            self._refuse_head()
        elif self._serving or self._between:
            self._caller_acted()
        else:
            self._await_caller()

    def on_message_begin(self) -> None:
        """A head begins."""
        self._head_bytes = 0
        self._between = False
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the path."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole header, or one of those that may follow a body."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._advanced = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._advanced = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._advanced = self._between = True
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The caller does not read its answer."""
        super().pause_writing()
        self._unread = self.loop.call_later(self._stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        self._answer_read()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for long; an answer that is still unread by now never will be."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or has too long a head."""
        if self._overlong:
            self._refuse_head()
        else:
            super().send_400_response(msg)

    @property
    def _serving(self) -> bool:
        """Whether a route is at work for the caller, and so has its own bounds."""
        return self.cycle is not None and not self.cycle.response_complete

    def _count(self, more_bytes: int) -> None:
        self._head_bytes += more_bytes
        if self._head_bytes > self._max_head_bytes:
            self._overlong = True
            raise HeadTooLargeError(self._max_head_bytes)

    def _refuse_head(self) -> None:
        self._caller_acted()
        if not self._serving:
            self.transport.write(_refusal(self._max_head_bytes))
        self.transport.close()

    def _await_caller(self) -> None:
        """Begin to count the time, if it is not counted already."""
        if self._stall is None:
            self._stall = self.loop.call_later(self._stall_s, self.transport.abort)

    def _caller_acted(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _answer_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


def _refusal(max_head_bytes: int) -> bytes:
    error = HeadTooLargeError(max_head_bytes)
    body = {"error": {**error_part(error), "request_id": secrets.token_hex(8)}}
    answer = json_answer(body, answer_for(HeadTooLargeError).status, {"connection": "close"})
    head = [f"HTTP/1.1 {answer.status_code} Request Header Fields Too Large\r\n".encode()]
    head += [name + b": " + value + b"\r\n" for name, value in answer.raw_headers]
    return b"".join((*head, b"\r\n", bytes(answer.body)))
