"""What wraps every request: its id, its log line, its metrics, and the last handler."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Sequence

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labelmux_adapters.errors import AdapterError
from labelmux_server.answers import error_answer
from labelmux_server.errors import (
    InternalError,
    InvalidRequestError,
    MethodNotAllowedError,
    OverloadedError,
    RouteNotFoundError,
    ServerError,
    UnauthorizedError,
    answer_for,
)
from labelmux_server.metrics import Metrics

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_UNMATCHED = "unmatched"

_log = logging.getLogger(__name__)


class Edge:
    """ASGI middleware around the routes."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; nothing that its route raises gets past here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope).get("x-request-id"))
        started = time.monotonic()
        scope.setdefault("state", {}).update(request_id=request_id, started_s=started)
        status: list[int] = []

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                status.append(message["status"])
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:  # noqa: BLE001 - the app's last handler
            _log.exception("request %s failed", request_id, extra={"request_id": request_id})
            if not status:
                response = error_answer(InternalError(), 500, request_id)
                await response(scope, receive, send_with_id)
        finally:
            self._record(scope, request_id, status, time.monotonic() - started)

    def _record(self, scope: Scope, request_id: str, status: Sequence[int], seconds: float) -> None:
        route = getattr(scope.get("route"), "path", _UNMATCHED)
        code = status[0] if status else 499
        self._metrics.record_request(route, code, seconds)
        _log.info(
            "%s %s %d %.1f ms",
            scope["method"],
            route,
            code,
            seconds * 1000,
            extra={
                "request_id": request_id,
                "method": scope["method"],
                "route": route,
                "status": code,
                "duration_ms": round(seconds * 1000, 1),
            },
        )


def _request_id(sent: str | None) -> str:
    return sent if sent and _REQUEST_ID.fullmatch(sent) else secrets.token_hex(8)


def add_error_handlers(app: FastAPI, metrics: Metrics) -> None:
    """Answer every error, the framework's own too, with the one error body."""

    def answer(request: Request, error: BaseException) -> Response:
        known = answer_for(type(error))
        metrics.record_rejected(known.code)
        return error_answer(error, known.status, request.state.request_id, _headers(error))

    async def ours(request: Request, error: Exception) -> Response:
        if answer_for(type(error)).status == 500:
            _log.error("request %s failed", request.state.request_id, exc_info=error)
        return answer(request, error)

    async def framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.url.path
        if error.status_code == 405:
            response = answer(request, MethodNotAllowedError(request.method, path))
            response.headers.update(error.headers or {})
            return response
        if error.status_code == 404:
            return answer(request, RouteNotFoundError(path))
        return answer(request, InvalidRequestError("request", str(error.detail)))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "request"
        return answer(request, InvalidRequestError(where, first["msg"]))

    app.add_exception_handler(ServerError, ours)
    app.add_exception_handler(AdapterError, ours)
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(RequestValidationError, invalid)


def _headers(error: BaseException) -> dict[str, str] | None:
    if isinstance(error, OverloadedError):
        return {"retry-after": str(error.retry_after_s)}
    if isinstance(error, UnauthorizedError):
        return {"www-authenticate": "Bearer"}
    return None
