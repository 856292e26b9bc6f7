"""Tasks, versions, the active pointer and the history, in SQLite; durable once a call returns.

Every call may raise a StorageError; then it has changed nothing.

Adapter bytes are in ``blobs``; a row here names a blob that is durable already. Version numbers of
a task are never used twice, not even after it was deleted.
"""

from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TextIO

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from labelmux_adapters.manifest import Manifest
from labelmux_server.blobs import Blobs, sync_folder
from labelmux_server.database import (
    FactRow,
    GateRow,
    HistoryRow,
    ManifestRow,
    TaskRow,
    TrialRow,
    VersionRow,
    check_whole,
    now,
    open_database,
    storage_faults,
    unreadable,
    when,
)
from labelmux_server.errors import StateError, StorageError
from labelmux_server.history import Action, HistoryRecord, note
from labelmux_server.trial import TrialKind, TrialTerms

_log = logging.getLogger(__name__)

#: Each with its task's active one.
_VERSIONS = select(VersionRow, TaskRow.active).join(TaskRow, TaskRow.name == VersionRow.task)


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One immutable version, as stored."""

    task: str
    number: int
    digest: str
    size_bytes: int
    created_at: datetime
    active: bool


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """What is known of an adapter without its file or manifest."""

    encoder_fingerprint: str
    pair: bool


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """A version that runs beside the active one, as stored."""

    task: str
    kind: TrialKind
    version: int
    terms: TrialTerms
    since: datetime
    #: The name of the key that asked for it.
    started_by: str | None


@dataclass(frozen=True, slots=True)
class GateRecord:
    """A task's labelled set, as stored."""

    digest: str
    stored_at: datetime
    #: The name of the key that sent it.
    stored_by: str | None
    data: bytes


class Store:
    """The state folder, held by one process at a time."""

    def __init__(self, state_dir: Path) -> None:
        """Open or create the folder.

        Raises:
            StateError: it cannot be written, is in use, or is of another format.
        """
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(state_dir)
            self.blobs = Blobs(state_dir)
        except OSError as error:
            raise StateError(f"state folder {str(state_dir)!r} cannot be used: {error}") from error
        try:
            self._engine = open_database(state_dir)
            check_whole(self._engine)
        except StateError:
            self._lock.close()
            raise
        except StorageError as error:
            self.close()
            raise unreadable(state_dir, error) from error
        sync_folder(state_dir)

    def close(self) -> None:
        """Let go of the folder."""
        self._engine.dispose()
        self._lock.close()

    @property
    def is_fresh(self) -> bool:
        """Whether no server has finished its first start on this folder."""
        return self._fact("started") is None

    def mark_started(self) -> None:
        """From now on the folder is not fresh."""
        self._set_fact("started", now())

    def versions(self, task: str | None = None) -> list[VersionRecord]:
        """All versions, or one task's, by task and number."""
        query = _VERSIONS
        if task is not None:
            query = query.where(VersionRow.task == task)
        with self._reading() as session:
            rows = session.execute(query.order_by(VersionRow.task, VersionRow.number)).all()
            return [_version_record(row, active) for row, active in rows]

    def find_version(self, task: str, digest: str) -> VersionRecord | None:
        """The version of a task with these bytes."""
        query = _VERSIONS.where(VersionRow.digest == digest, VersionRow.task == task)
        with self._reading() as session:
            found = session.execute(query).first()
            return None if found is None else _version_record(*found)

    def adapters(self) -> dict[str, AdapterRecord]:
        """Every adapter whose manifest is stored, by digest."""
        query = select(ManifestRow.digest, ManifestRow.encoder_fingerprint, ManifestRow.pair)
        with self._reading() as session:
            return {
                digest: AdapterRecord(fingerprint, pair)
                for digest, fingerprint, pair in session.execute(query)
            }

    def manifest(self, digest: str) -> str:
        """An adapter's manifest as its file carries it."""
        with self._reading() as session:
            return session.get_one(ManifestRow, digest).text

    def put_manifest(self, digest: str, manifest: Manifest) -> None:
        """Store what an adapter says of itself, before a version names it."""
        with self._change() as session:
            session.merge(_manifest_row(digest, manifest))

    def sweep_manifests(self) -> None:
        """Remove what no version needs."""
        with self._change() as session:
            session.execute(
                delete(ManifestRow).where(ManifestRow.digest.not_in(select(VersionRow.digest)))
            )

    def history(self, task: str) -> list[HistoryRecord]:
        """Every change to a task, oldest first; it outlives the task."""
        with self._reading() as session:
            query = select(HistoryRow).where(HistoryRow.task == task).order_by(HistoryRow.id)
            return [
                HistoryRecord(
                    *(when(row.at), row.action, row.version, row.digest, row.by, row.share)  # type: ignore[arg-type]
                )
                for row in session.scalars(query)
            ]

    def next_number(self, task: str) -> int:
        """The number that the task's next version gets."""
        with self._reading() as session:
            query = select(func.max(HistoryRow.version)).where(HistoryRow.task == task)
            return (session.scalar(query) or 0) + 1

    def add_version(self, record: VersionRecord, manifest: Manifest, by: str | None = None) -> None:
        """Store a version whose blob is durable, and make it active if it says so."""
        with self._change() as session:
            session.merge(_manifest_row(record.digest, manifest))
            if session.get(TaskRow, record.task) is None:
                session.add(TaskRow(name=record.task, active=record.number))
                session.flush()
            elif record.active:
                _make_active(session, record.task, record.number)
            session.add(
                VersionRow(
                    task=record.task,
                    number=record.number,
                    digest=record.digest,
                    size_bytes=record.size_bytes,
                    created_at=record.created_at.isoformat(),
                )
            )
            action: Action = "upload" if record.active else "stage"
            note(session, record.task, action, record.number, record.digest, by)

    def activate(self, task: str, number: int, action: Action, by: str | None = None) -> None:
        """Move the active pointer, and end the task's trials."""
        with self._change() as session:
            _make_active(session, task, number)
            digest = session.get_one(VersionRow, (task, number)).digest
            note(session, task, action, number, digest, by)

    def delete_version(self, task: str, number: int, by: str | None = None) -> None:
        """Forget one version; its blob goes too if nothing else needs it."""
        with self._change() as session:
            found = session.get_one(VersionRow, (task, number))
            note(session, task, "delete", number, found.digest, by)
            session.delete(found)
        self.drop_unneeded({found.digest})

    def delete_task(self, task: str, by: str | None = None) -> None:
        """Forget a task and all its versions."""
        with self._change() as session:
            found = session.scalars(select(VersionRow).where(VersionRow.task == task)).all()
            for row in found:
                note(session, task, "delete", row.number, row.digest, by)
            for kind in (TrialRow, GateRow, VersionRow):
                session.execute(delete(kind).where(kind.task == task))
            session.execute(delete(TaskRow).where(TaskRow.name == task))
            digests = {row.digest for row in found}
        self.drop_unneeded(digests)

    def trials(self) -> list[TrialRecord]:
        """The trials of all tasks."""
        with self._reading() as session:
            return [_trial_record(row) for row in session.scalars(select(TrialRow))]

    def start_trial(self, record: TrialRecord) -> None:
        """Store a trial, in the place of the task's one of its kind."""
        with self._change() as session:
            session.merge(
                TrialRow(
                    task=record.task,
                    kind=record.kind,
                    version=record.version,
                    share=record.terms.share,
                    share_of=record.terms.by,
                    since=record.since.isoformat(),
                    started_by=record.started_by,
                )
            )
            digest = session.get_one(VersionRow, (record.task, record.version)).digest
            note(
                *(session, record.task, record.kind, record.version, digest, record.started_by),
                share=record.terms.share,
            )

    def end_trial(self, task: str, kind: TrialKind, by: str | None = None) -> None:
        """Forget a trial that is there."""
        with self._change() as session:
            found = session.get_one(TrialRow, (task, kind))
            digest = session.get_one(VersionRow, (task, found.version)).digest
            action: Action = "end_shadow" if kind == "shadow" else "end_canary"
            note(session, task, action, found.version, digest, by)
            session.delete(found)

    def gate(self, task: str) -> GateRecord | None:
        """The task's labelled set, if it has one."""
        with self._reading() as session:
            found = session.get(GateRow, task)
            if found is None:
                return None
            return GateRecord(found.digest, when(found.stored_at), found.stored_by, found.data)

    def put_gate(self, task: str, digest: str, data: bytes, by: str | None = None) -> None:
        """Store a task's labelled set, in the place of the one it has."""
        self.blobs.check_room(len(data))
        with self._change() as session:
            session.merge(
                GateRow(task=task, digest=digest, stored_at=now(), stored_by=by, data=data)
            )

    def delete_gate(self, task: str) -> None:
        """Forget a task's labelled set."""
        with self._change() as session:
            session.execute(delete(GateRow).where(GateRow.task == task))

    def count_versions(self) -> int:
        """How many versions there are, of all tasks."""
        with self._reading() as session:
            return session.scalar(select(func.count()).select_from(VersionRow)) or 0

    def needs(self, digest: str) -> bool:
        """Whether some version needs this blob."""
        with self._reading() as session:
            found = select(VersionRow.number).where(VersionRow.digest == digest).limit(1)
            return session.scalar(found) is not None

    def needed_digests(self) -> set[str]:
        """The blobs that some version needs."""
        with self._reading() as session:
            return set(session.scalars(select(VersionRow.digest)))

    def _needed_of(self, digests: set[str]) -> set[str]:
        # One parameter, however many they are.
        listed = func.json_each(json.dumps(sorted(digests))).table_valued("value")
        query = select(VersionRow.digest).where(VersionRow.digest.in_(select(listed.c.value)))
        with self._reading() as session:
            return set(session.scalars(query))

    def drop_unneeded(self, digests: set[str]) -> None:
        """Remove those of these files that no version needs.

        No change hangs on it: what cannot be removed is left for the next start's sweep.
        """
        try:
            for digest in digests - self._needed_of(digests):
                self.blobs.remove(digest)
        except StorageError as error:
            _log.warning("adapter files that no version needs are left until a restart: %s", error)

    @contextmanager
    def _change(self) -> Iterator[Session]:
        with (
            storage_faults(),
            Session(self._engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with storage_faults(), Session(self._engine) as session:
            yield session

    def _fact(self, name: str) -> str | None:
        with self._reading() as session:
            found = session.get(FactRow, name)
            return None if found is None else found.value

    def _set_fact(self, name: str, value: str) -> None:
        with self._change() as session:
            session.merge(FactRow(name=name, value=value))


def _manifest_row(digest: str, manifest: Manifest) -> ManifestRow:
    return ManifestRow(
        digest=digest,
        encoder_fingerprint=manifest.encoder_fingerprint,
        pair=manifest.pair,
        text=manifest.to_json(),
    )


def _make_active(session: Session, task: str, number: int) -> None:
    session.get_one(TaskRow, task).active = number
    session.execute(delete(TrialRow).where(TrialRow.task == task))


def _trial_record(row: TrialRow) -> TrialRecord:
    return TrialRecord(
        task=row.task,
        kind=row.kind,  # type: ignore[arg-type]
        version=row.version,
        terms=TrialTerms(row.share, row.share_of),  # type: ignore[arg-type]
        since=when(row.since),
        started_by=row.started_by,
    )


def _version_record(row: VersionRow, active: int) -> VersionRecord:
    return VersionRecord(
        task=row.task,
        number=row.number,
        digest=row.digest,
        size_bytes=row.size_bytes,
        created_at=when(row.created_at),
        active=row.number == active,
    )


def _lock(state_dir: Path) -> TextIO:
    file = (state_dir / "lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise StateError(
            f"state folder {str(state_dir)!r} is in use by another server; stop that one, or give "
            "this one another --state-dir"
        ) from error
    return file
