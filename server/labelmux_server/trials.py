"""Trials begin, end and come back after a restart. A part of ``Changes``, on the same thread."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime

from labelmux_server.errors import TaskNotFoundError, VersionNotFoundError
from labelmux_server.registry import Registry, Version
from labelmux_server.release_errors import TrialMisfitError, TrialNotFoundError
from labelmux_server.residency import Residency
from labelmux_server.store import Store, TrialRecord
from labelmux_server.trial import Canary, Shadow, TrialKind, TrialTerms

_log = logging.getLogger(__name__)


class TrialChanges:
    """Lets versions run beside the active one of their task, one of each kind."""

    def __init__(self, store: Store, registry: Registry, residency: Residency) -> None:
        self._store = store
        self._registry = registry
        self._residency = residency

    def start(
        self, task: str, kind: TrialKind, number: int, terms: TrialTerms, by: str | None = None
    ) -> Shadow | Canary:
        """Let a version run beside the active one, in the place of the one that does.

        Raises:
            TaskNotFoundError, VersionNotFoundError
            TrialMisfitError: it is the active one, or answers other questions.
            AdapterDamagedError, BankFullError: its adapter cannot be brought into the bank.
        """
        version = self._registry.get(task, number)
        _check_pair(self._registry.get(task), version)
        self._bring(version)
        record = TrialRecord(task, kind, number, terms, datetime.now(UTC), by)
        self._store.start_trial(record)
        return self._set(record, version)

    def end(self, task: str, kind: TrialKind, by: str | None = None) -> None:
        """The active version is alone again.

        Raises:
            TaskNotFoundError, TrialNotFoundError
        """
        trials = self._registry.trials(task)
        if (trials.shadow if kind == "shadow" else trials.canary) is None:
            raise TrialNotFoundError(task, kind)
        self._store.end_trial(task, kind, by)
        self._registry.set_trials(
            task, replace(trials, shadow=None) if kind == "shadow" else replace(trials, canary=None)
        )

    def restore(self) -> None:
        """Let what is stored run again, where its versions are there."""
        for record in self._store.trials():
            try:
                version = self._registry.get(record.task, record.version)
                _check_pair(self._registry.get(record.task), version)
            except (TaskNotFoundError, VersionNotFoundError, TrialMisfitError) as error:
                _log.error("the %s of task %s does not run: %s", record.kind, record.task, error)
                continue
            self._set(record, version)

    def _bring(self, version: Version) -> None:
        hold = self._residency.hold(version)
        try:
            hold.slot.result()
        finally:
            hold.release()

    def _set(self, record: TrialRecord, version: Version) -> Shadow | Canary:
        trials = self._registry.trials(record.task)
        trial: Shadow | Canary
        if record.kind == "shadow":
            trial = Shadow(version, record.terms, record.since, record.started_by)
            trials = replace(trials, shadow=trial)
        else:
            trial = Canary(version, record.terms, record.since, record.started_by)
            trials = replace(trials, canary=trial)
        self._registry.set_trials(record.task, trials)
        return trial


def _check_pair(active: Version, version: Version) -> None:
    if version.number == active.number:
        raise TrialMisfitError(version.task, version.number, "it is the active one")
    if version.pair != active.pair:
        reads = "two texts" if version.pair else "one text"
        raise TrialMisfitError(version.task, version.number, f"it alone reads {reads}")
    ours, own = active.manifest.task_kind, version.manifest.task_kind
    if own != ours:
        problem = f"its task_kind is {own}, that of the active version {ours}"
        raise TrialMisfitError(version.task, version.number, problem)
