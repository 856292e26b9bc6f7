"""SIGKILL in the middle of any change: a restart serves exactly what was acknowledged.

Fifty starts would import torch fifty times. So one process imports the server once, and each
round runs in a fork of it: a process of its own that opens the state folder afresh.
"""

from __future__ import annotations

import contextlib
import copy
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
    """What the server has of one task."""

    #: Digests by version number.
    versions: dict[int, str]
    active: int


@dataclasses.dataclass
class State:
    """What a client knows of the server."""

    tasks: dict[str, Task] = dataclasses.field(default_factory=dict)
    #: The highest number that each task ever had; it is never given again.
    used: dict[str, int] = dataclasses.field(default_factory=dict)

    def after(self, change: Change) -> State:
        """As it is once the change has happened wholly."""
        later = copy.deepcopy(self)
        change.happen(later)
        return later


@dataclasses.dataclass
class Upload:
    """Bytes that the task has already, or new ones."""

    task: str
    data: bytes

    def ask(self, client):
        return client.put(f"/v1/tasks/{self.task}/adapter", content=self.data)

    def happen(self, state: State) -> None:
        digest = digest_of(self.data)
        task = state.tasks.setdefault(self.task, Task({}, 0))
        found = [number for number, known in task.versions.items() if known == digest]
        if not found:
            state.used[self.task] = state.used.get(self.task, 0) + 1
            found = [state.used[self.task]]
        task.versions[found[0]] = digest
        task.active = found[0]


@dataclasses.dataclass
class Activate:
    task: str
    number: int

    def ask(self, client):
        return client.post(f"/v1/tasks/{self.task}/activate", json={"version": self.number})

    def happen(self, state: State) -> None:
        state.tasks[self.task].active = self.number


@dataclasses.dataclass
class DeleteVersion:
    task: str
    number: int

    def ask(self, client):
        return client.delete(f"/v1/tasks/{self.task}/versions/{self.number}")

    def happen(self, state: State) -> None:
        del state.tasks[self.task].versions[self.number]


@dataclasses.dataclass
class DeleteTask:
    task: str

    def ask(self, client):
        return client.delete(f"/v1/tasks/{self.task}")

    def happen(self, state: State) -> None:
        del state.tasks[self.task]


Change = Upload | Activate | DeleteVersion | DeleteTask


class Changes:
    """Changes without end, each of which the server must take."""

    def __init__(self, seed: int, adapter) -> None:
        self._chance = random.Random(seed)
        self._adapter = adapter
        self._files: dict[str, bytes] = {}

    def next(self, state: State) -> Change:
        name = self._chance.choice(TASKS)
        task = state.tasks.get(name)
        kind = self._chance.random()
        if task is None or kind < 0.5:
            return Upload(name, self._new_file())
        number = self._chance.choice(list(task.versions))
        if kind < 0.6:
            return Upload(name, self._files[task.versions[number]])
        if kind < 0.8:
            return Activate(name, number)
        if kind < 0.92 and number != task.active:
            return DeleteVersion(name, number)
        return DeleteTask(name)

    def moment(self, longest_s: float) -> float:
        return self._chance.uniform(0, longest_s)

    def count(self) -> int:
        return self._chance.randint(1, 6)

    def _new_file(self) -> bytes:
        card = {"number": str(len(self._files))}
        manifest = self._adapter.manifest.model_copy(update={"card": card})
        data = write_adapter(manifest, self._adapter.tensors)
        self._files[digest_of(data)] = data
        return data


def served(client) -> dict[str, Task]:
    """What the server has, each file checked and each active version asked."""
    tasks = {}
    for info in client.get("/v1/tasks").json()["tasks"]:
        name = info["task"]
        listed = client.get(f"/v1/tasks/{name}/versions").json()
        versions = {each["version"]: each["digest"] for each in listed["versions"]}
        for number, digest in versions.items():
            file = client.get(f"/v1/tasks/{name}/adapter", params={"version": number})
            assert digest_of(file.content) == digest
        answer = client.post("/v1/classify", json={"task": name, "texts": "a good film"})
        assert answer.json()["results"][0]["predictions"][name]["digest"] == info["digest"]
        assert versions[listed["active"]] == info["digest"]
        tasks[name] = Task(versions, listed["active"])
    return tasks


def change_until_killed(client, state: State, changes: Changes, kill) -> tuple[State, Change, int]:
    """Change tasks until the server is gone.

    The kill comes some changes later, at any moment of one.

    Returns:
        What it acknowledged, the change that was under way, and how many were acknowledged.
    """
    started, count, kill_after = time.monotonic(), 0, changes.count()
    killer = None
    while True:
        change = changes.next(state)
        try:
            answer = change.ask(client)
        except httpx2.TransportError:
            killer.join()
            return state, change, count
        assert answer.is_success, answer.text
        state = state.after(change)
        count += 1
        if count == kill_after:
            change_s = (time.monotonic() - started) / count
            killer = threading.Timer(changes.moment(2 * change_s), kill)
            killer.start()


@pytest.mark.parametrize("count", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_in_the_middle_of_changes_it_serves_exactly_what_it_acknowledged(
    rounds, make_adapter, tmp_path, count
):
    changes, state, acknowledged = Changes(2, make_adapter()), State(), 0
    possible = [state]
    for last in [False] * count + [True]:
        with httpx2.Client(base_url=rounds.start(), timeout=60) as client:
            found = served(client)
            state = next((known for known in possible if known.tasks == found), None)
            assert state is not None, (found, possible)
            if last:
                break
            state, change, done = change_until_killed(client, state, changes, rounds.kill)
            possible = [state, state.after(change)]
            acknowledged += done
        rounds.wait()
    assert acknowledged >= count
    needed = {digest[7:] for task in state.tasks.values() for digest in task.versions.values()}
    blobs = (tmp_path / "state" / "blobs").rglob("*")
    assert {path.name for path in blobs if path.is_file()} == needed
