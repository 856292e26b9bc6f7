"""A scripted server behind both clients: answers in turn, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

from labelmux_client import AsyncClient, Client

BASE_URL = "http://labelmux.test:8000"
DIGEST = "sha256:" + "ab" * 32

PREDICTION: dict[str, Any] = {
    "task": "spam",
    "version": 3,
    "digest": DIGEST,
    "task_kind": "single_label",
    "labels": [{"label": "spam", "score": 0.75}, {"label": "ham", "score": 0.25}],
    "abstained": False,
    "truncated": False,
    "windows": 1,
    "calibrated": True,
}
TASK: dict[str, Any] = {
    "task": "spam",
    "method": "ytuning",
    "task_kind": "single_label",
    "labels": ["ham", "spam"],
    "pair": False,
    "max_tokens": 128,
    "version": 3,
    "digest": DIGEST,
    "encoder_fingerprint": DIGEST,
    "metrics": {"accuracy": 0.98},
    "parameters": 1000,
    "parameter_share": 0.015,
    "size_bytes": 4321,
    "created_at": "2026-01-02T03:04:05Z",
    "card": {"licence": "CC0"},
    "of a newer server": True,
}
VERSIONS: dict[str, Any] = {
    "task": "spam",
    "active": 3,
    "versions": [
        {
            "version": 3,
            "digest": DIGEST,
            "size_bytes": 4321,
            "created_at": "2026-01-02T03:04:05Z",
            "active": True,
            "metrics": {"accuracy": 0.98},
        }
    ],
    "history": [
        {
            "at": "2026-01-02T03:04:05Z",
            "action": "upload",
            "version": 3,
            "digest": DIGEST,
            "by": "ci",
        }
    ],
}
INFO: dict[str, Any] = {
    "name": "labelmux",
    "version": "0.1.0",
    "encoder": {
        "name": "bundled",
        "fingerprint": DIGEST,
        "hidden_size": 384,
        "layers": 6,
        "parameters": 22_000_000,
        "max_tokens": 512,
    },
    "tasks": 1,
    "limits": {"max_client_batch_size": 256},
    "access": "key",
    "key": {"name": "shop", "scopes": ["classify"], "tasks": ["shop-*"]},
}


def answer(status: int, body: Any = None, **headers: str) -> httpx2.Response:
    """A JSON answer, with header names written with underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.Response(status, json=body, headers={"X-Request-Id": "r-1"} | named)


def refusal(status: int, code: str, message: str = "no", **fields: Any) -> httpx2.Response:
    """An error as the server words it."""
    return answer(
        status, {"error": {"code": code, "message": message, "request_id": "r-2"} | fields}
    )


def classified(*texts: dict[str, Any]) -> httpx2.Response:
    """An answer to classify, one mapping of task to prediction per text."""
    return answer(
        200,
        {"results": [{"predictions": item} for item in texts], "encoder_rows": 1, "tokens": 9},
    )


@dataclass
class FakeServer:
    """Gives ``script`` in turn; an exception in it is raised as if the network had failed."""

    script: list[httpx2.Response | Exception]
    requests: list[httpx2.Request] = field(default_factory=list)
    pauses_s: list[float] = field(default_factory=list)

    def handle(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.requests]


def ask_sync(server: FakeServer, method: str, *args, options: Any = None, **kwargs) -> Any:
    with httpx2.Client(transport=httpx2.MockTransport(server.handle)) as http_client:
        given = {"base_url": BASE_URL} | (options or {})
        client = Client(http_client=http_client, sleep=server.pauses_s.append, **given)
        found = getattr(client, method)(*args, **kwargs)
        return list(found) if isinstance(found, Iterator) else found


def ask_async(server: FakeServer, method: str, *args, options: Any = None, **kwargs) -> Any:
    async def sleep(seconds: float) -> None:
        server.pauses_s.append(seconds)

    async def ask() -> Any:
        transport = httpx2.MockTransport(server.handle)
        async with httpx2.AsyncClient(transport=transport) as http_client:
            given = {"base_url": BASE_URL} | (options or {})
            client = AsyncClient(http_client=http_client, sleep=sleep, **given)
            found = getattr(client, method)(*args, **kwargs)
            if isinstance(found, AsyncIterator):
                return [item async for item in found]
            return await found

    return asyncio.run(ask())


class Wire:
    """The words of the wire, for tests to take one attribute at a time."""

    PREDICTION = PREDICTION
    TASK = TASK
    VERSIONS = VERSIONS
    INFO = INFO
    DIGEST = DIGEST
    answer = staticmethod(answer)
    refusal = staticmethod(refusal)
    classified = staticmethod(classified)
    server = staticmethod(lambda *script: FakeServer(list(script)))


@pytest.fixture
def wire() -> type[Wire]:
    """Answers to script a fake server with, and the fake server."""
    return Wire


@pytest.fixture(params=[ask_sync, ask_async], ids=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """``ask(server, method, *args)``: a client's method against a fake server, for each twin."""
    return request.param
