"""What wraps every request: its id, its log line, its metrics, and the last handler.

A route that is asked thousands of times a second is called from here. Between here and a route the
framework spends 0.1 ms, a fifth of what a whole request of one text costs the event loop.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from itertools import count

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labelmux_adapters.errors import AdapterError
from labelmux_server.error_shapes import error_answer
from labelmux_server.errors import (
    BatchFailedError,
    BodyStalledError,
    InternalError,
    InvalidRequestError,
    MethodNotAllowedError,
    OverloadedError,
    RateLimitedError,
    RouteNotFoundError,
    ServerError,
    UnauthorizedError,
)
from labelmux_server.logs import REQUEST_ID
from labelmux_server.metrics import Metrics, Reading
from labelmux_server.statuses import answer_for
from labelmux_server.tracing import RequestSpan, Tracing

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_UNMATCHED = "unmatched"
_PROBES = ("/health", "/v2/health/")
#: Ids that callers do not send: this process, and the number of the request.
_PROCESS, _numbers = secrets.token_hex(4), count()

Endpoint = Callable[[Request], Awaitable[Response]]

_log = logging.getLogger(__name__)


class Edge:
    """ASGI middleware around the routes."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        direct: Mapping[tuple[str, str], Endpoint],
        max_concurrent_requests: int,
        tracing: Tracing | None = None,
    ) -> None:
        """``direct``: by method and path, routes without parameters that read their own body."""
        self._app = app
        self._metrics = metrics
        self._tracing = tracing
        self._max_in_flight = max_concurrent_requests
        self._in_flight = 0
        metrics.watch(Reading("requests_in_flight", "Requests in work.", lambda: self._in_flight))
        self._direct = {place: self._calling(endpoint) for place, endpoint in direct.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; nothing that its route raises gets past here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers.get("x-request-id"))
        REQUEST_ID.set(request_id)
        span = self._tracing.begin(scope["method"], headers) if self._tracing else None
        started = time.monotonic()
        scope.setdefault("state", {}).update(request_id=request_id, started_s=started)
        status: list[int] = []

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                status.append(message["status"])
                message["headers"].append((b"x-request-id", request_id.encode()))
            await send(message)

        self._in_flight += 1
        try:
            await self._choose(scope)(scope, receive, send_with_id)
        except Exception:  # noqa: BLE001 - the app's last handler
            _log.exception("request %s failed", request_id)
            if not status:
                self._metrics.record_rejected(answer_for(InternalError).code)
                response = error_answer(InternalError(), scope["path"], request_id)
                await response(scope, receive, send_with_id)
        finally:
            self._in_flight -= 1
            seconds = time.monotonic() - started
            self._record(scope, request_id, status[0] if status else 499, seconds, span)

    def _choose(self, scope: Scope) -> ASGIApp:
        """Who serves the request; a probe is answered however much is in work."""
        path = scope["path"]
        if self._in_flight > self._max_in_flight and not path.startswith(_PROBES):
            return self._refuse_full
        return self._direct.get((scope["method"], path), self._app)

    async def _refuse_full(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = OverloadedError(
            f"{self._max_in_flight} requests are in work already", retry_after_s=1
        )
        await refuse(Request(scope, receive), error, self._metrics)(scope, receive, send)

    def _calling(self, endpoint: Endpoint) -> ASGIApp:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope, receive)
            try:
                response = await endpoint(request)
            except (ServerError, AdapterError) as error:
                response = refuse(request, error, self._metrics)
            await response(scope, receive, send)

        return app

    def _record(
        self, scope: Scope, request_id: str, status: int, seconds: float, span: RequestSpan | None
    ) -> None:
        direct = (scope["method"], scope["path"]) in self._direct
        route = scope["path"] if direct else getattr(scope.get("route"), "path", _UNMATCHED)
        self._metrics.record_request(route, status, seconds)
        if span is not None:
            span.end(route, status, request_id)
        if not _log.isEnabledFor(logging.INFO):
            return
        line = {
            "method": scope["method"],
            "route": route,
            "status": status,
            "duration_ms": round(seconds * 1000, 1),
            "key": scope["state"]["caller"].key if "caller" in scope["state"] else None,
        }
        if span is not None:
            line["trace_id"] = span.trace_id
        _log.info("%s %s %d %.1f ms", scope["method"], route, status, seconds * 1000, extra=line)


def _request_id(sent: str | None) -> str:
    return sent if sent and _REQUEST_ID.fullmatch(sent) else f"{_PROCESS}{next(_numbers):08x}"


def refuse(request: Request, error: BaseException, metrics: Metrics) -> Response:
    """The error in the shape of its route; what is our fault goes to the log.

    What a failed batch failed with was logged where it ran, once for all who were in it.
    """
    known = answer_for(type(error))
    if known.status == 500:
        if isinstance(error, BatchFailedError):
            _log.error("request %s failed with its batch", request.state.request_id)
        else:
            _log.error("request %s failed", request.state.request_id, exc_info=error)
    metrics.record_rejected(known.code)
    path, request_id = request.scope["path"], request.state.request_id
    return error_answer(error, path, request_id, _headers(error))


def add_error_handlers(app: FastAPI, metrics: Metrics) -> None:
    """Answer every error, the framework's own too, in the shape of its route."""

    async def ours(request: Request, error: Exception) -> Response:
        return refuse(request, error, metrics)

    async def framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.url.path
        if error.status_code == 405:
            response = refuse(request, MethodNotAllowedError(request.method, path), metrics)
            response.headers.update(error.headers or {})
            return response
        if error.status_code == 404:
            return refuse(request, RouteNotFoundError(path), metrics)
        return refuse(request, InvalidRequestError("request", str(error.detail)), metrics)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "request"
        return refuse(request, InvalidRequestError(where, first["msg"]), metrics)

    app.add_exception_handler(ServerError, ours)
    app.add_exception_handler(AdapterError, ours)
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(RequestValidationError, invalid)


def _headers(error: BaseException) -> dict[str, str] | None:
    if isinstance(error, OverloadedError | RateLimitedError):
        return {"retry-after": str(error.retry_after_s)}
    if isinstance(error, BodyStalledError):
        return {"connection": "close"}
    if isinstance(error, UnauthorizedError):
        return {"www-authenticate": "Bearer"}
    return None
