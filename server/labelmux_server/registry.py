"""What serves: tasks, their resident versions, and which one is active.

Reading and changing are short critical sections under one lock, so any thread may call. A version
that a lease names stays in the bank until the last lease is given back, even if it was deleted.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from labelmux_adapters.bank import Slot
from labelmux_adapters.manifest import Manifest
from labelmux_server.errors import InvalidRequestError, TaskNotFoundError, VersionNotFoundError

TASK_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$"
_TASK = re.compile(TASK_PATTERN)
_PINNED = re.compile(r"([^@]*)@([1-9][0-9]{0,8})")


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """One immutable version of a task, resident in the bank."""

    task: str
    number: int
    digest: str
    size_bytes: int
    created_at: datetime
    manifest: Manifest
    slot: Slot


@dataclass(slots=True, eq=False)
class _Hold:
    version: Version
    leases: int = 0
    retired: bool = False


@dataclass(slots=True)
class _Task:
    holds: dict[int, _Hold]
    active: int


class Lease:
    """One request's hold on a version; ``release`` works once, however often it is called."""

    __slots__ = ("_release", "version")

    def __init__(self, version: Version, release: Callable[[], None]) -> None:
        self.version = version
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """The version may leave the bank now."""
        release, self._release = self._release, None
        if release is not None:
            release()


class Registry:
    """Task to versions to slots in the bank."""

    def __init__(self, free: Callable[[Slot], None]) -> None:
        """``free`` takes a slot that nothing uses any more; it is called on any thread."""
        self._free = free
        self._lock = threading.Lock()
        self._tasks: dict[str, _Task] = {}

    def lease(self, name: str) -> Lease:
        """Hold the version that ``name`` means now: the active one of ``task``, or ``task@3``.

        Raises:
            TaskNotFoundError, VersionNotFoundError
        """
        task, number = parse_name(name)
        with self._lock:
            hold = self._find(task, number)
            hold.leases += 1
        return Lease(hold.version, lambda: self._give_back(hold))

    def get(self, task: str, number: int | None = None) -> Version:
        """One version without holding it: good for everything but its slot.

        Raises:
            TaskNotFoundError, VersionNotFoundError
        """
        with self._lock:
            return self._find(task, number).version

    def active(self) -> list[Version]:
        """The active version of every task, by task."""
        with self._lock:
            found = [(name, task.holds[task.active].version) for name, task in self._tasks.items()]
        return [version for _, version in sorted(found, key=lambda pair: pair[0])]

    def versions(self, task: str) -> list[Version]:
        """A task's resident versions, by number.

        Raises:
            TaskNotFoundError
        """
        with self._lock:
            holds = self._task(task).holds
            return [holds[number].version for number in sorted(holds)]

    def find_digest(self, task: str, digest: str) -> Version | None:
        """The version of a task with these bytes."""
        with self._lock:
            holds = self._tasks[task].holds if task in self._tasks else {}
            return next((h.version for h in holds.values() if h.version.digest == digest), None)

    def __contains__(self, task: str) -> bool:
        with self._lock:
            return task in self._tasks

    def __len__(self) -> int:
        with self._lock:
            return len(self._tasks)

    def add(self, version: Version, *, activate: bool = True) -> None:
        """From now on the version can be named; if activated, new requests get it."""
        with self._lock:
            task = self._tasks.setdefault(version.task, _Task({}, version.number))
            task.holds[version.number] = _Hold(version)
            if activate:
                task.active = version.number

    def activate(self, task: str, number: int) -> Version:
        """New requests get this version.

        Raises:
            TaskNotFoundError, VersionNotFoundError
        """
        with self._lock:
            hold = self._find(task, number)
            self._tasks[task].active = number
            return hold.version

    def remove(self, task: str, number: int | None = None) -> None:
        """One version, or the whole task, can no longer be named. What it used is freed in time."""
        with self._lock:
            if number is None:
                holds = list(self._tasks.pop(task).holds.values())
            else:
                holds = [self._tasks[task].holds.pop(number)]
            for hold in holds:
                hold.retired = True
            idle = [hold for hold in holds if hold.leases == 0]
        for hold in idle:
            self._free(hold.version.slot)

    def _give_back(self, hold: _Hold) -> None:
        with self._lock:
            hold.leases -= 1
            idle = hold.retired and hold.leases == 0
        if idle:
            self._free(hold.version.slot)

    def _task(self, task: str) -> _Task:
        if task not in self._tasks:
            raise TaskNotFoundError(task)
        return self._tasks[task]

    def _find(self, task: str, number: int | None) -> _Hold:
        found = self._task(task)
        wanted = found.active if number is None else number
        if wanted not in found.holds:
            raise VersionNotFoundError(task, wanted)
        return found.holds[wanted]


def parse_name(name: str) -> tuple[str, int | None]:
    """``task`` or ``task@3`` as task and version number."""
    pinned = _PINNED.fullmatch(name)
    return (pinned[1], int(pinned[2])) if pinned else (name, None)


def check_task_name(task: str) -> str:
    """``task`` if it may name one.

    Raises:
        InvalidRequestError: it may not.
    """
    if not _TASK.fullmatch(task):
        raise InvalidRequestError(
            "task",
            f"{task!r} is no task name; use 1 to 128 letters, digits, '_', '.', '-', the first "
            "a letter or digit",
        )
    return task
