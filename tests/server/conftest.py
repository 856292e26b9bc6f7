"""Apps in this process, and real servers in processes of their own, on the tiny encoder."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

START_LIMIT_S = 90.0


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def adapter_bytes(make_adapter) -> Callable[..., bytes]:
    """The file of an adapter made by ``make_adapter``."""
    from labelmux_adapters.files import write_adapter

    def make(*args: Any, **kwargs: Any) -> bytes:
        adapter = make_adapter(*args, **kwargs)
        return write_adapter(adapter.manifest, adapter.tensors)

    return make


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
                httpx2.AsyncClient(transport=transport, base_url="http://labelmux") as client,
            ):
                return await scenario(client, app.state.service)

        return asyncio.run(main())

    return run


class ServerProcess:
    """``python -m labelmux_server`` on a free port of this machine."""

    def __init__(self, folder: Path, encoder: Path, *flags: str) -> None:
        self._log = (folder / "server.log").open("ab")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "labelmux_server", "--port", "0", "--no-demo"),
                *("--state-dir", str(folder / "state"), "--encoder", str(encoder), *flags),
            ],
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self.log_path = folder / "server.log"
        self.url = ""

    def wait_ready(self) -> ServerProcess:
        """Return once the server has said that it serves."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], START_LIMIT_S)
        line = self.process.stdout.readline().decode() if ready else ""
        assert "serving" in line, self.log_path.read_text()
        self.url = next(word for word in line.split() if word.startswith("http://"))
        return self

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> None:
        """Ask it to drain."""
        self.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Reap it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()


@pytest.fixture
def start_server(tmp_path, tiny_encoder_folder) -> Iterator[Callable[..., ServerProcess]]:
    """A starter of real servers, all on one state folder; each is reaped."""
    with contextlib.ExitStack() as started:

        def start(*flags: str) -> ServerProcess:
            server = ServerProcess(tmp_path, tiny_encoder_folder, *flags)
            started.callback(server.close)
            return server.wait_ready()

        yield start


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
