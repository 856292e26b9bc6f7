"""What serves: tasks, their versions, and which one is active; resident or not.

Reading and changing are short critical sections under one lock, so any thread may call.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from labelmux_adapters.manifest import Manifest
from labelmux_server.errors import InvalidRequestError, TaskNotFoundError, VersionNotFoundError
from labelmux_server.trial import NO_TRIALS, Trials

TASK_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$"
_TASK = re.compile(TASK_PATTERN)
#: The highest version that a pinned name, and so any request, can name.
MAX_VERSION = 999_999_999
_PINNED = re.compile(r"([^@]*)@([1-9][0-9]{0,8})")


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """One immutable version of a task."""

    task: str
    number: int
    digest: str
    size_bytes: int
    created_at: datetime
    #: Whether the task reads two texts.
    pair: bool
    read_manifest: Callable[[str], Manifest] = field(repr=False)

    @property
    def manifest(self) -> Manifest:
        """What the adapter's file says of itself; may be read from disk."""
        return self.read_manifest(self.digest)


@dataclass(slots=True)
class _Task:
    versions: dict[int, Version]
    active: int
    trials: Trials = NO_TRIALS


class Registry:
    """Task to versions."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[str, _Task] = {}
        self._named: Counter[str] = Counter()

    def resolve(self, name: str) -> Version:
        """The version that ``name`` means now: the active one of ``task``, or ``task@3``.

        Raises:
            TaskNotFoundError, VersionNotFoundError
        """
        return self.get(*parse_name(name))

    def route(self, task: str, number: int | None = None) -> tuple[Version, Trials]:
        """One version of a task, by default the active one, and what runs beside it.

        That is nothing where a version is named.

        Raises:
            TaskNotFoundError, VersionNotFoundError
        """
        with self._lock:
            version = self._find(task, number)
            return version, self._tasks[task].trials if number is None else NO_TRIALS

    def get(self, task: str, number: int | None = None) -> Version:
        """One version of a task, by default the active one.

        Raises:
            TaskNotFoundError, VersionNotFoundError
        """
        with self._lock:
            return self._find(task, number)

    def is_active(self, version: Version) -> bool:
        """Whether a version, which may be gone, is its task's active one."""
        with self._lock:
            task = self._tasks.get(version.task)
            return task is not None and task.active == version.number

    def active(self) -> list[Version]:
        """The active version of every task, by task."""
        with self._lock:
            found = [(name, task.versions[task.active]) for name, task in self._tasks.items()]
        return [version for _, version in sorted(found, key=lambda pair: pair[0])]

    def trials(self, task: str) -> Trials:
        """What runs beside the active version.

        Raises:
            TaskNotFoundError
        """
        with self._lock:
            return self._task(task).trials

    def every_trials(self) -> list[Trials]:
        """The trials of every task that has any."""
        with self._lock:
            found = [(name, task.trials) for name, task in self._tasks.items()]
        return [trials for _, trials in found if trials is not NO_TRIALS]

    def versions(self, task: str) -> list[Version]:
        """A task's versions, by number.

        Raises:
            TaskNotFoundError
        """
        with self._lock:
            versions = self._task(task).versions
            return [versions[number] for number in sorted(versions)]

    def find_digest(self, task: str, digest: str) -> Version | None:
        """The version of a task with these bytes."""
        with self._lock:
            versions = self._tasks[task].versions if task in self._tasks else {}
            return next((v for v in versions.values() if v.digest == digest), None)

    def names_digest(self, digest: str) -> bool:
        """Whether any version has these bytes."""
        with self._lock:
            return digest in self._named

    def __contains__(self, task: str) -> bool:
        with self._lock:
            return task in self._tasks

    def __len__(self) -> int:
        with self._lock:
            return len(self._tasks)

    def add(self, version: Version, *, activate: bool = True) -> None:
        """From now on the version can be named; if activated, new requests get it alone."""
        with self._lock:
            task = self._tasks.setdefault(version.task, _Task({}, version.number))
            task.versions[version.number] = version
            self._named[version.digest] += 1
            if activate:
                task.active, task.trials = version.number, NO_TRIALS

    def activate(self, task: str, number: int) -> Version:
        """New requests get this version, and nothing runs beside it.

        Raises:
            TaskNotFoundError, VersionNotFoundError
        """
        with self._lock:
            version = self._find(task, number)
            self._tasks[task].active, self._tasks[task].trials = number, NO_TRIALS
            return version

    def set_trials(self, task: str, trials: Trials) -> None:
        """From now on these run beside the active version."""
        with self._lock:
            self._tasks[task].trials = NO_TRIALS if trials == NO_TRIALS else trials

    def remove(self, task: str, number: int | None = None) -> list[str]:
        """Forget one version or the whole task; the digests that nothing names any more."""
        with self._lock:
            if number is None:
                removed = list(self._tasks.pop(task).versions.values())
            else:
                removed = [self._tasks[task].versions.pop(number)]
            self._named.subtract(version.digest for version in removed)
            unnamed = [version.digest for version in removed if not self._named[version.digest]]
            for digest in unnamed:
                del self._named[digest]
            return unnamed

    def _task(self, task: str) -> _Task:
        if task not in self._tasks:
            raise TaskNotFoundError(task)
        return self._tasks[task]

    def _find(self, task: str, number: int | None) -> Version:
        found = self._task(task)
        wanted = found.active if number is None else number
        if wanted not in found.versions:
            raise VersionNotFoundError(task, wanted)
        return found.versions[wanted]


def parse_name(name: str) -> tuple[str, int | None]:
    """``task`` or ``task@3`` as task and version number."""
    pinned = _PINNED.fullmatch(name) if "@" in name else None
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
