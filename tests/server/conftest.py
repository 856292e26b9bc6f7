"""Apps in this process, on the tiny encoder."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx2
import pytest


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def serving(tmp_path, tiny_encoder) -> Callable[..., Any]:
    """Run ``scenario(client, service)`` against an app of its own; the state folder is kept."""
    from labelmux_server.app import create_app
    from labelmux_server.settings import Settings

    def run(scenario: Callable[..., Awaitable[Any]], **settings: Any) -> Any:
        async def main() -> Any:
            values = {"state_dir": tmp_path / "state", "no_demo": True} | settings
            app = create_app(Settings(**values), tiny_encoder)
            transport = httpx2.ASGITransport(app)
            async with (
                app.router.lifespan_context(app),
                httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
            ):
                return await scenario(client, app.state.service)

        return asyncio.run(main())

    return run


@pytest.fixture
def until() -> Callable[..., None]:
    """Wait for a condition, with a deadline."""

    def wait(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true in time"
            time.sleep(0.005)

    return wait


class GatedEncoder:
    """The tiny encoder behind a gate: a pass waits until it opens, or fails if it is told to."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self.config = encoder.config
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.fault: Exception | None = None

    def __call__(self, *args: Any) -> Any:
        self.entered.set()
        assert self.gate.wait(60)
        if self.fault is not None:
            raise self.fault
        return self._encoder(*args)


@pytest.fixture
def gate_replica(tiny_encoder) -> Iterator[Callable[[Any], GatedEncoder]]:
    """Put a gate before a service's replica."""
    gates: list[GatedEncoder] = []

    def gate(service: Any) -> GatedEncoder:
        gated = GatedEncoder(tiny_encoder.encoder)
        service._replica._loaded = dataclasses.replace(tiny_encoder, encoder=gated)
        gates.append(gated)
        return gated

    yield gate
    for gated in gates:
        gated.gate.set()
