"""Changes to tasks: uploads, activation, rollback, deletion, and what a start finds on disk.

All changes run one after another on one thread of their own. Each either happens wholly or leaves
everything as it was. Order of an upload: validate, into the bank, blob durable, row committed,
pointer moved, acknowledged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from labelmux_adapters.bank import Bank
from labelmux_adapters.canaries import check_canaries, check_fit
from labelmux_adapters.errors import AdapterError, ForeignEncoderError
from labelmux_adapters.files import Adapter, FileLimits, read_adapter
from labelmux_encoder.weights import LoadedEncoder
from labelmux_server.blobs import DamagedBlobError, digest_of
from labelmux_server.errors import (
    DigestMismatchError,
    InvalidRequestError,
    NoPreviousVersionError,
    TaskExistsError,
    VersionActiveError,
)
from labelmux_server.registry import Registry, Version, check_task_name
from labelmux_server.store import Action, HistoryRecord, Store, VersionRecord, previous_active

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What an upload led to."""

    version: Version
    #: False where the task had these bytes already.
    created: bool


class Changes:
    """Changes what serves. Not for two threads at once."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        bank: Bank,
        loaded: LoadedEncoder,
        max_upload_bytes: int,
    ) -> None:
        self._store = store
        self._registry = registry
        self._bank = bank
        self._loaded = loaded
        self._limits = FileLimits(max_bytes=max_upload_bytes)

    def upload(
        self, task: str, data: bytes, *, sha256: str | None = None, create_only: bool = False
    ) -> Uploaded:
        """Make these bytes the active version of ``task``, new or found again.

        Raises:
            TaskExistsError: the task exists and only a new one was wanted.
            DigestMismatchError: the bytes are not those that the caller meant.
            AdapterError: the file is not whole, or does not belong here.
        """
        if create_only and task in self._registry:
            raise TaskExistsError(task)
        digest = digest_of(data)
        if sha256 is not None and f"sha256:{sha256.lower()}" != digest:
            raise DigestMismatchError(sha256, digest)
        known = self._registry.find_digest(task, digest)
        if known is not None:
            return Uploaded(self._make_active(known, "activate"), created=False)
        adapter = read_adapter(data, self._limits)
        check_canaries(adapter, self._loaded)
        return self._add(task, data, adapter)

    def activate(self, task: str, number: int) -> Version:
        """New requests get this version.

        Raises:
            TaskNotFoundError, VersionNotFoundError
        """
        return self._make_active(self._registry.get(task, number), "activate")

    def rollback(self, task: str) -> Version:
        """New requests get the version that was active before.

        Raises:
            TaskNotFoundError, NoPreviousVersionError
        """
        active = self._registry.get(task)
        number = previous_active(
            self._store.history(task), {v.number for v in self._registry.versions(task)}
        )
        if number is None:
            raise NoPreviousVersionError(task, active.number)
        return self._make_active(self._registry.get(task, number), "rollback")

    def delete_task(self, task: str) -> None:
        """The task and all its versions are gone.

        Raises:
            TaskNotFoundError
        """
        self._registry.get(task)
        self._store.delete_task(task)
        self._registry.remove(task)

    def delete_version(self, task: str, number: int) -> None:
        """One version that is not active is gone.

        Raises:
            TaskNotFoundError, VersionNotFoundError, VersionActiveError
        """
        version = self._registry.get(task, number)
        if self._registry.get(task).number == number:
            raise VersionActiveError(task, number)
        self._store.delete_version(task, version.number)
        self._registry.remove(task, number)

    def history(self, task: str) -> list[HistoryRecord]:
        """Every change to a task, oldest first.

        Raises:
            TaskNotFoundError
        """
        self._registry.get(task)
        return self._store.history(task)

    def load_stored(self) -> None:
        """Make everything that the state folder holds serve again.

        What is damaged or made for another encoder is left out, with a line in the log; the rest
        serves.
        """
        if not self._store.is_fresh:
            for name in self._store.blobs.sweep(self._store.needed_digests()):
                _log.info("removed adapter file %s, which no version needs", name)
        by_task: dict[str, list[VersionRecord]] = {}
        for record in self._store.versions():
            by_task.setdefault(record.task, []).append(record)
        for task, records in by_task.items():
            self._load_task(task, records)

    def seed(self, folder: Path) -> None:
        """Upload every adapter file of a folder, under its stem, as far as it belongs here."""
        for path in sorted(folder.glob("*.safetensors")):
            try:
                self.upload(check_task_name(path.stem), path.read_bytes())
            except (AdapterError, InvalidRequestError) as error:
                _log.warning("demo task %s left out: %s", path.stem, error)

    def _load_task(self, task: str, records: Iterable[VersionRecord]) -> None:
        loaded = [(record, self._load(record)) for record in records]
        if not any(record.active and version for record, version in loaded):
            _log.error("task %s does not serve: its active version was left out", task)
            for _, version in loaded:
                if version is not None:
                    self._bank.remove(version.slot)
            return
        for record, version in loaded:
            if version is not None:
                self._registry.add(version, activate=record.active)

    def _load(self, record: VersionRecord) -> Version | None:
        try:
            data = self._store.blobs.read(record.digest)
            adapter = read_adapter(data, self._limits)
            check_fit(adapter, self._loaded.encoder)
        except ForeignEncoderError as error:
            _log.error("version %d of task %s left out: %s", record.number, record.task, error)
            return None
        except (DamagedBlobError, AdapterError) as error:
            self._store.blobs.set_aside(record.digest)
            _log.error(
                "version %d of task %s left out, its file set aside in quarantine/: %s",
                record.number,
                record.task,
                error,
            )
            return None
        return self._resident(record, adapter)

    def _add(self, task: str, data: bytes, adapter: Adapter) -> Uploaded:
        known = self._store.versions(task)
        stored = [record for record in known if record.digest == adapter.digest]
        record = VersionRecord(
            task=task,
            number=stored[0].number if stored else self._store.next_number(task),
            digest=adapter.digest,
            size_bytes=len(data),
            created_at=stored[0].created_at if stored else datetime.now(UTC),
            active=True,
        )
        version = self._resident(record, adapter)
        try:
            self._store.blobs.put(record.digest, data)
            if stored:
                self._store.activate(task, record.number, "upload")
            else:
                self._store.add_version(record)
        except (OSError, SQLAlchemyError):
            self._bank.remove(version.slot)
            raise
        self._registry.add(version)
        return Uploaded(version, created=not stored)

    def _resident(self, record: VersionRecord, adapter: Adapter) -> Version:
        return Version(
            task=record.task,
            number=record.number,
            digest=record.digest,
            size_bytes=record.size_bytes,
            created_at=record.created_at,
            manifest=adapter.manifest,
            slot=self._bank.add(adapter),
        )

    def _make_active(self, version: Version, action: Action) -> Version:
        if self._registry.get(version.task).number != version.number:
            self._store.activate(version.task, version.number, action)
            self._registry.activate(version.task, version.number)
        return version
