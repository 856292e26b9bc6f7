"""SIGKILL in the middle of uploads: a restart serves exactly what was acknowledged.

Twenty starts would import torch twenty times. So one process imports the server once, and each
round runs in a fork of it: a process of its own that opens the state folder afresh.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import select
import shlex
import signal
import subprocess
import sys
import threading
import time

import httpx2
import pytest

from labelmux_adapters.files import write_adapter
from labelmux_server.blobs import digest_of

ROUNDS = 20
TASKS = ("a", "b", "c")
LIMIT_S = 90.0
FORKS = """
import os, shlex, sys
import labelmux_server.serve
from labelmux_server.__main__ import main

for line in iter(sys.stdin.readline, ""):
    child = os.fork()
    if child == 0:
        os._exit(main(shlex.split(line)))
    print("started", child, flush=True)
    os.waitpid(child, 0)
    print("ended", child, flush=True)
"""


class Rounds:
    """Servers one after another, each in a fork of one process that has imported everything."""

    def __init__(self, folder, encoder) -> None:
        self._flags = shlex.join(
            [
                *("--state-dir", str(folder / "state"), "--encoder", str(encoder)),
                *("--port", "0", "--no-demo", "--log-level", "error"),
            ]
        )
        self._parent = subprocess.Popen(
            [sys.executable, "-u", "-c", FORKS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self._buffer = b""
        self._child = 0

    def start(self) -> str:
        """A new server's address."""
        self._parent.stdin.write(self._flags.encode() + b"\n")
        self._parent.stdin.flush()
        said = [self._line(), self._line()]
        self._child = next(int(line.split()[1]) for line in said if line.startswith("started"))
        serving = next(line for line in said if line.startswith("serving"))
        return next(word for word in serving.split() if word.startswith("http://"))

    def kill(self) -> None:
        os.kill(self._child, signal.SIGKILL)

    def wait(self) -> None:
        assert self._line() == f"ended {self._child}"
        self._child = 0

    def close(self) -> None:
        if self._child:
            with contextlib.suppress(ProcessLookupError):
                self.kill()
        self._parent.stdin.close()
        self._parent.kill()
        self._parent.wait()
        self._parent.stdout.close()

    def _line(self) -> str:
        while b"\n" not in self._buffer:
            assert select.select([self._parent.stdout], [], [], LIMIT_S)[0], "the server is silent"
            chunk = os.read(self._parent.stdout.fileno(), 4096)
            assert chunk, "the server ended"
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode()


@pytest.fixture
def rounds(tmp_path, tiny_encoder_folder):
    servers = Rounds(tmp_path, tiny_encoder_folder)
    yield servers
    servers.close()


@dataclasses.dataclass
class Task:
    """What the server has acknowledged of one task."""

    #: Digests by version number, from 1.
    digests: list[str]
    active: str


class Acknowledged:
    """What a client knows for certain, and the one change that was under way."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.files: dict[str, bytes] = {}
        self.in_flight: tuple[str, str] | None = None

    def with_in_flight(self) -> dict[str, Task]:
        """The tasks, had the last change happened wholly."""
        tasks = {name: Task(list(t.digests), t.active) for name, t in self.tasks.items()}
        if self.in_flight is not None:
            name, digest = self.in_flight
            task = tasks.setdefault(name, Task([], digest))
            if digest not in task.digests:
                task.digests.append(digest)
            task.active = digest
        return tasks

    def settle(self, tasks: dict[str, Task]) -> None:
        self.tasks = tasks
        self.in_flight = None


def served(client) -> dict[str, Task]:
    """What the server has, each file checked."""
    tasks = {}
    for info in client.get("/v1/tasks").json()["tasks"]:
        name = info["task"]
        listed = client.get(f"/v1/tasks/{name}/versions").json()
        assert [v["version"] for v in listed["versions"]] == [
            *range(1, len(listed["versions"]) + 1)
        ]
        tasks[name] = Task([v["digest"] for v in listed["versions"]], info["digest"])
        assert digest_of(client.get(f"/v1/tasks/{name}/adapter").content) == info["digest"]
        answer = client.post("/v1/classify", json={"task": name, "texts": "a good film"})
        assert answer.json()["results"][0]["predictions"][name]["digest"] == info["digest"]
    return tasks


def upload_until_killed(client, known: Acknowledged, chance: random.Random, files, kill) -> int:
    """Upload new files and old ones until the server is gone; how many were acknowledged.

    The kill comes some uploads later, at any moment of one.
    """
    started, count, kill_after = time.monotonic(), 0, chance.randint(1, 6)
    killer = None
    while True:
        name = chance.choice(TASKS)
        old = known.tasks[name].digests if name in known.tasks else []
        again = old and chance.random() < 0.3
        data = known.files[chance.choice(old)] if again else next(files)
        digest = digest_of(data)
        known.files[digest] = data
        known.in_flight = (name, digest)
        try:
            answer = client.put(f"/v1/tasks/{name}/adapter", content=data)
        except httpx2.TransportError:
            killer.join()
            return count
        assert answer.status_code in (200, 201), answer.text
        known.settle(known.with_in_flight())
        count += 1
        if count == kill_after:
            upload_s = (time.monotonic() - started) / count
            killer = threading.Timer(chance.uniform(0, 2 * upload_s), kill)
            killer.start()


@pytest.mark.slow
def test_killed_in_the_middle_of_uploads_it_serves_exactly_what_it_acknowledged(
    rounds, make_adapter
):
    adapter = make_adapter()
    known, chance = Acknowledged(), random.Random(2)
    acknowledged = 0

    def distinct_files():
        for number in range(1_000_000):
            card = {"number": str(number)}
            yield write_adapter(adapter.manifest.model_copy(update={"card": card}), adapter.tensors)

    files = distinct_files()
    for _ in range(ROUNDS):
        with httpx2.Client(base_url=rounds.start(), timeout=60) as client:
            found = served(client)
            assert found in (known.tasks, known.with_in_flight())
            known.settle(found)
            acknowledged += upload_until_killed(client, known, chance, files, rounds.kill)
        rounds.wait()
    with httpx2.Client(base_url=rounds.start(), timeout=60) as client:
        assert served(client) in (known.tasks, known.with_in_flight())
    assert acknowledged >= ROUNDS
