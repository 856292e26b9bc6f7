"""Tasks that are in the bank before the first request, and tasks that never leave it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase

from labelmux_server.errors import BankFullError, ServerError, SettingsError
from labelmux_server.registry import Registry, Version
from labelmux_server.residency import Hold, Residency

_log = logging.getLogger(__name__)


class Pins:
    """Holds on the active versions of pinned tasks. Not for two threads at once."""

    def __init__(self, residency: Residency, pinned: str | None = None) -> None:
        """``pinned``: names or patterns of tasks, also of tasks to come, separated by commas."""
        self._residency = residency
        self._pinned = _words(pinned)
        self._holds: dict[str, Hold] = {}

    def __len__(self) -> int:
        """How many tasks are pinned now."""
        return len(self._holds)

    def load(self, registry: Registry, preload: str | None) -> list[Version]:
        """Bring into the bank what is pinned, and what ``preload`` names as ``pinned`` does.

        Returns what is there now. A task whose adapter is damaged is named in the log, and its
        requests are told so later.

        Raises:
            SettingsError: ``preload`` names a task that is not there, or not all of them fit.
        """
        words = _words(preload)
        for word in words:
            if not set(word) & set("*?[") and word not in registry:
                raise SettingsError(
                    f"preload names task {word!r}, which is not there; name one that is, or a "
                    "pattern such as 'shop-*'"
                )
        wanted = [v for v in registry.active() if _covers([*words, *self._pinned], v.task)]
        try:
            holds = [(version, self._residency.hold(version)) for version in wanted]
        except BankFullError as error:
            raise SettingsError(
                f"the {len(wanted)} tasks to preload and pin do not fit into max_resident_bytes: "
                f"{error}"
            ) from error
        loaded = [version for version, hold in holds if self._settle(version.task, hold)]
        if loaded:
            _log.info("%d tasks preloaded, %d pinned", len(loaded), len(self._holds))
        return loaded

    @contextmanager
    def moving_to(self, version: Version) -> Iterator[None]:
        """Pin a version while it becomes the active one; if that fails, the one before stays.

        Raises:
            BankFullError: what is held already leaves no room for it.
        """
        if not _covers(self._pinned, version.task):
            yield
            return
        hold = self._residency.hold(version)
        with ExitStack() as undo:
            undo.callback(hold.release)
            yield
            undo.pop_all()
        self._keep(version.task, hold)

    def drop(self, task: str) -> None:
        """The task is gone."""
        hold = self._holds.pop(task, None)
        if hold is not None:
            hold.release()

    def _settle(self, task: str, hold: Hold) -> bool:
        """Whether its adapter came into the bank."""
        try:
            hold.slot.result()
        except ServerError as error:
            _log.error("task %s is not preloaded: %s", task, error)
            hold.release()
            return False
        if _covers(self._pinned, task):
            self._keep(task, hold)
        else:
            hold.release()
        return True

    def _keep(self, task: str, hold: Hold) -> None:
        self.drop(task)
        self._holds[task] = hold


def _words(names: str | None) -> list[str]:
    return [name.strip() for name in (names or "").split(",") if name.strip()]


def _covers(patterns: list[str], task: str) -> bool:
    return any(fnmatchcase(task, pattern) for pattern in patterns)
