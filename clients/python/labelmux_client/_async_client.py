"""The client for asyncio, the twin of ``Client``; it may be shared within one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import httpx2

from labelmux_client import _calls, _stream
from labelmux_client._address import Address
from labelmux_client._call import Call, T
from labelmux_client._constants import (
    DEFAULT_BASE_URL,
    DEFAULT_MAX_RETRIES,
    DEFAULT_TIMEOUT_S,
)
from labelmux_client._errors import NotReadyError, TransportError
from labelmux_client._lines import Question
from labelmux_client._retry import pause_after_answer, pause_after_loss
from labelmux_client._types import (
    Activation,
    Canary,
    ClassifyResult,
    GateInfo,
    HistoryEntry,
    PushResult,
    ServerInfo,
    Shadow,
    TaskInfo,
    TextResult,
    Trials,
    VersionList,
    VersionRef,
    Windows,
)

__all__ = ["AsyncClient"]


class AsyncClient:
    """A labelmux server, from asyncio code. Arguments and methods are those of ``Client``."""

    def __init__(
        self,
        *,
        base_url: str = DEFAULT_BASE_URL,
        key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_retries: int = DEFAULT_MAX_RETRIES,
        http_client: httpx2.AsyncClient | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._address = Address(base_url, key, timeout_s, max_retries)
        self._owned = http_client is None
        self._http = http_client or httpx2.AsyncClient()
        self._sleep = sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """As ``Client.close``."""
        if self._owned:
            await self._http.aclose()

    async def classify(
        self,
        texts: str | Sequence[str] | None = None,
        *,
        pairs: Sequence[tuple[str, str]] | None = None,
        task: str | None = None,
        tasks: str | Sequence[str] | None = None,
        top_k: int | None = None,
        raw_scores: bool = False,
        truncation: bool = True,
        windows: Windows | None = None,
    ) -> ClassifyResult:
        """As ``Client.classify``."""
        return await self._send(
            _calls.classify(
                texts,
                pairs=pairs,
                task=task,
                tasks=tasks,
                top_k=top_k,
                raw_scores=raw_scores,
                truncation=truncation,
                windows=windows,
            )
        )

    def classify_stream(
        self,
        texts: Iterable[str] | AsyncIterable[str] | None = None,
        *,
        pairs: Iterable[tuple[str, str]] | AsyncIterable[tuple[str, str]] | None = None,
        tasks: str | Sequence[str],
        top_k: int | None = None,
        raw_scores: bool = False,
        truncation: bool = True,
        windows: Windows | None = None,
    ) -> AsyncIterator[TextResult]:
        """As ``Client.classify_stream``; texts may come from an async iterator."""
        question = Question(tasks, top_k, raw_scores, truncation, windows)
        return _stream.run_async(self._send, texts, pairs, question)

    async def tasks(
        self, *, search: str | None = None, after: str | None = None, limit: int | None = None
    ) -> list[TaskInfo]:
        """As ``Client.tasks``."""
        return await self._send(_calls.tasks(search, after, limit))

    async def task(self, name: str) -> TaskInfo:
        """As ``Client.task``."""
        return await self._send(_calls.task(name))

    async def push(
        self,
        name: str,
        data: bytes | Path,
        *,
        create_only: bool = False,
        activate: Activation = "now",
    ) -> PushResult:
        """As ``Client.push``."""
        content = await asyncio.to_thread(data.read_bytes) if isinstance(data, Path) else data
        call = _calls.push(name, content, create_only=create_only, activate=activate)
        return await self._send(call)

    async def versions(self, name: str) -> VersionList:
        """As ``Client.versions``."""
        return await self._send(_calls.versions(name))

    async def history(self, name: str) -> tuple[HistoryEntry, ...]:
        """As ``Client.history``."""
        return await self._send(_calls.history(name))

    async def activate(self, name: str, version: int, *, gated: bool = False) -> VersionRef:
        """As ``Client.activate``."""
        return await self._send(_calls.activate(name, version, gated=gated))

    async def shadow(self, name: str, version: int, *, share: float = 1.0) -> Shadow:
        """As ``Client.shadow``."""
        return await self._send(_calls.shadow(name, version, share))

    async def canary(
        self, name: str, version: int, *, share: float, by: Literal["text", "caller"] = "text"
    ) -> Canary:
        """As ``Client.canary``."""
        return await self._send(_calls.canary(name, version, share, by))

    async def end_shadow(self, name: str) -> None:
        """As ``Client.end_shadow``."""
        return await self._send(_calls.end_trial(name, "shadow"))

    async def end_canary(self, name: str) -> None:
        """As ``Client.end_canary``."""
        return await self._send(_calls.end_trial(name, "canary"))

    async def trials(self, name: str) -> Trials:
        """As ``Client.trials``."""
        return await self._send(_calls.trials(name))

    async def put_gate(self, name: str, data: bytes | Path) -> GateInfo:
        """As ``Client.put_gate``."""
        content = await asyncio.to_thread(data.read_bytes) if isinstance(data, Path) else data
        return await self._send(_calls.put_gate(name, content))

    async def gate(self, name: str) -> GateInfo:
        """As ``Client.gate``."""
        return await self._send(_calls.gate(name))

    async def delete_gate(self, name: str) -> None:
        """As ``Client.delete_gate``."""
        return await self._send(_calls.delete_gate(name))

    async def rollback(self, name: str) -> VersionRef:
        """As ``Client.rollback``."""
        return await self._send(_calls.rollback(name))

    async def delete(self, name: str, *, version: int | None = None) -> None:
        """As ``Client.delete``."""
        return await self._send(_calls.delete(name, version))

    async def download(self, name: str, *, version: int | None = None) -> bytes:
        """As ``Client.download``."""
        return await self._send(_calls.download(name, version))

    async def info(self) -> ServerInfo:
        """As ``Client.info``."""
        return await self._send(_calls.info())

    async def ready(self) -> bool:
        """As ``Client.ready``."""
        try:
            return await self._send(_calls.ready())
        except (TransportError, NotReadyError):
            return False

    async def _send(self, call: Call[T]) -> T:
        attempt = 0
        while True:
            try:
                response = await self._http.request(**self._address.arguments(call))
            except httpx2.RequestError as error:
                pause_s = pause_after_loss(call.repeat, attempt, self._address.max_retries, error)
                if pause_s is None:
                    raise self._address.lost(call, error) from error
            else:
                pause_s = pause_after_answer(
                    call.repeat, attempt, self._address.max_retries, response
                )
                if pause_s is None:
                    return call.parse(response)
            await self._sleep(pause_s)
            attempt += 1
