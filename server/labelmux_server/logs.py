"""Log lines, plain or JSON. Only ``serve`` configures logging.

No line holds a text that was sent, unless a setting asks for it. So an exception is logged with its
kind and where it came from, and with its message only where that cannot quote a text.
"""

from __future__ import annotations

import logging
import sqlite3
import sys
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy.exc import SQLAlchemyError

from labelmux_server.settings import LogFormat, LogLevel

#: Of the request that the asyncio task at work belongs to; every line of it carries it.
REQUEST_ID: ContextVar[str | None] = ContextVar("labelmux_request_id", default=None)

_EXTRAS = ("method", "route", "status", "duration_ms", "key", "trace_id")
#: Errors of files, memory and the database, which know of no text; beside those of our own.
_TEXTLESS = (OSError, MemoryError, sqlite3.Error, SQLAlchemyError)
#: What is raised there has seen token ids at most.
_BEYOND_TEXTS = "labelmux_server.replica"


class _Lines(logging.Formatter):
    """What both formats share."""

    def __init__(self, pattern: str | None = None, *, log_texts: bool = False) -> None:
        super().__init__(pattern)
        self._log_texts = log_texts

    def exception_of(self, record: logging.LogRecord) -> str | None:
        """What the record says of an exception."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return None
        whole = self._log_texts or record.name == _BEYOND_TEXTS
        return "".join(_told(error, whole=whole)).rstrip()


class JsonLines(_Lines):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record, with what the request's line carries."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": REQUEST_ID.get(),
            "exception": self.exception_of(record),
        }
        line |= {name: getattr(record, name) for name in _EXTRAS if hasattr(record, name)}
        return orjson.dumps(
            {name: value for name, value in line.items() if value is not None}
        ).decode()


class PlainLines(_Lines):
    """Time, level, message, request id where there is one."""

    def __init__(self, *, log_texts: bool = False) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", log_texts=log_texts)

    def format(self, record: logging.LogRecord) -> str:
        """The line, and an exception beneath it."""
        # The library's own would have its message; it leaves in place what stands here.
        record.exc_text = self.exception_of(record)
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """The line, its request id last."""
        line, request_id = super().formatMessage(record), REQUEST_ID.get()
        return line if request_id is None else f"{line} [{request_id}]"


def configure(log_format: LogFormat, log_level: LogLevel, *, log_texts: bool = False) -> None:
    """Send every log line of this process to stderr in one format."""
    # Nothing prints these, and every record would gather them.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(sys.stderr)
    kind = JsonLines if log_format == "json" else PlainLines
    handler.setFormatter(kind(log_texts=log_texts))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("labelmux_server").setLevel(log_level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
        logger.setLevel(logging.WARNING)


def _told(error: BaseException, *, whole: bool) -> Iterator[str]:
    """An exception as the library tells it, its causes first; without what may quote a text."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _told(before, whole=whole)
        yield "\nThat led to:\n\n"
    yield "Traceback (most recent call last):\n"
    yield from traceback.format_tb(error.__traceback__)
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    ours = type(error).__module__.startswith("labelmux_")
    if whole or ours or isinstance(error, _TEXTLESS):
        yield f"{kind}: {error}\n"
    else:
        yield f"{kind} (what it says may quote a text; --log-texts shows it)\n"
