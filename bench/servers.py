"""Servers as processes of their own: start, wait until ready, pause, read memory, stop.

All servers of a section stay up, so that their cells can be interleaved; those that are not being
measured are paused by a signal, and so take no time from the one that is.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_LIMIT_S = 180.0
_STOP_LIMIT_S = 5.0
_LOG_TAIL_CHARS = 1500


class ServerFailedError(Exception):
    """A server that could not be started; the message holds the end of its log."""


@dataclass(frozen=True)
class Launch:
    """How to start a server; ``{port}`` in the command is a free port."""

    name: str
    command: Sequence[str]
    #: Answers 200 once the server is ready.
    ready_path: str
    env: Mapping[str, str] = field(default_factory=dict)


class Server:
    """A running server, in a process group of its own."""

    def __init__(self, launch: Launch, folder: Path) -> None:
        self.name = launch.name
        self.port = free_port()
        self._launch = launch
        self._log_path = folder / f"{launch.name}.log"
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [part.replace("{port}", str(self.port)) for part in launch.command],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **launch.env},
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Return once it serves.

        Raises:
            ServerFailedError: it ended, or took too long.
        """
        deadline = time.monotonic() + START_LIMIT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ServerFailedError(f"{self.name} did not start: {self._log_tail()}")
            time.sleep(0.2)

    def post(self, path: str, body: object) -> Any:
        """The JSON answer to a JSON body."""
        data = json.dumps(body).encode()
        return self._call("POST", path, data, "application/json")

    def put_file(self, path: str, data: bytes) -> Any:
        """The JSON answer to raw bytes."""
        return self._call("PUT", path, data, "application/octet-stream")

    def delete(self, path: str) -> None:
        """Delete what is there."""
        self._call("DELETE", path, None, "application/json")

    def pause(self) -> None:
        """Take no processor time until ``resume``."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on."""
        self._signal(signal.SIGCONT)

    def rss_bytes(self) -> int:
        """Resident memory of the process that was started; its children's is not in it."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024

    def stop(self) -> None:
        """End it and all that it started."""
        self.resume()
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_LIMIT_S)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self._url(self._launch.ready_path), timeout=2) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def _call(self, method: str, path: str, data: bytes | None, media_type: str) -> Any:
        asked = urllib.request.Request(
            self._url(path), data, {"Content-Type": media_type}, method=method
        )
        try:
            with urllib.request.urlopen(asked, timeout=120) as answer:
                raw = answer.read()
        except urllib.error.HTTPError as error:
            detail = error.read()[:500].decode(errors="replace")
            raise ServerFailedError(f"{self.name} {path}: {error.code} {detail}") from error
        return json.loads(raw) if raw else None

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def _log_tail(self) -> str:
        return self._log_path.read_text(errors="replace")[-_LOG_TAIL_CHARS:]


@contextlib.contextmanager
def running(launches: Sequence[Launch], folder: Path) -> Iterator[list[Server | ServerFailedError]]:
    """Every server ready and paused, or why it could not start; all are stopped at the end."""
    with contextlib.ExitStack() as started:
        found: list[Server | ServerFailedError] = []
        for launch in launches:
            # One after the other: a start is hungry, and some give up when they starve.
            try:
                server = Server(launch, folder)
                started.callback(server.stop)
                server.wait_ready()
                server.pause()
                found.append(server)
            except (ServerFailedError, OSError) as error:
                found.append(ServerFailedError(f"{launch.name}: {error}"))
        yield found


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
