"""Changes to tasks: uploads, activation, rollback, deletion, and what a start finds on disk.

All changes run one after another on one thread of their own. Each either happens wholly or leaves
everything as it was. Order of an upload: validate, into the bank, blob durable, row committed,
pointer moved, acknowledged. A start reads no adapter file: it registers what the database names.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from labelmux_adapters.bank import Bank
from labelmux_adapters.canaries import Admission
from labelmux_adapters.errors import AdapterError, ForeignEncoderError
from labelmux_adapters.files import DEFAULT_LIMITS, Adapter, FileLimits, read_adapter
from labelmux_encoder.weights import LoadedEncoder
from labelmux_server.blobs import DamagedBlobError, digest_of
from labelmux_server.errors import (
    DigestMismatchError,
    InvalidRequestError,
    StorageError,
    StoreFullError,
    TaskExistsError,
    VersionActiveError,
)
from labelmux_server.history import Action, previous_active
from labelmux_server.library import STORED, Library
from labelmux_server.pins import Pins
from labelmux_server.registry import Registry, Version, check_task_name
from labelmux_server.release_errors import (
    ActiveChangedError,
    GateNotFoundError,
    NoPreviousVersionError,
    VersionOnTrialError,
)
from labelmux_server.residency import Residency
from labelmux_server.store import (
    AdapterRecord,
    GateRecord,
    Store,
    VersionRecord,
)
from labelmux_server.trial import NO_TRIALS
from labelmux_server.trials import TrialChanges

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What an upload led to."""

    version: Version
    #: False where the task had these bytes already.
    created: bool


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What is taken at most."""

    file: FileLimits = DEFAULT_LIMITS
    max_tasks: int = sys.maxsize
    #: Versions of all tasks.
    max_adapters: int = sys.maxsize


class Changes:
    """Changes what serves. Not for two threads at once."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        library: Library,
        bank: Bank,
        residency: Residency,
        pins: Pins,
        loaded: LoadedEncoder,
        limits: UploadLimits,
    ) -> None:
        self._store = store
        self._registry = registry
        self._library = library
        self._admission = Admission(loaded, bank)
        self._residency = residency
        self._pins = pins
        self._loaded = loaded
        self._limits = limits
        self.trials = TrialChanges(store, registry, residency)

    def upload(
        self,
        task: str,
        data: bytes,
        *,
        sha256: str | None = None,
        create_only: bool = False,
        activate: bool = True,
        by: str | None = None,
    ) -> Uploaded:
        """Make these bytes a version of ``task``, new or found again, and the active one.

        ``by``, here and below, is the name of the key that asked for it.

        Args:
            activate: False leaves the active version as it is, where the task has one.

        Raises:
            TaskExistsError: the task exists and only a new one was wanted.
            DigestMismatchError: the bytes are not those that the caller meant.
            AdapterError: the file is not whole, or does not belong here.
            BankFullError: adapters in use leave no room for it.
            StoreFullError: the server has all the tasks or adapters that it may have.
            StorageError: the disk does not take it.
        """
        if create_only and task in self._registry:
            raise TaskExistsError(task)
        digest = digest_of(data)
        if sha256 is not None and f"sha256:{sha256.lower()}" != digest:
            raise DigestMismatchError(sha256, digest)
        adapter = read_adapter(data, self._limits.file)
        known = self._registry.find_digest(task, digest)
        if known is not None:
            self._residency.put(adapter)
            if digest not in self._store.blobs:
                self._store.blobs.put(digest, data)
            if activate:
                self._make_active(known, "activate", by)
            return Uploaded(known, created=False)
        self._check_room(task)
        return self._add(task, data, adapter, by, activate=activate or task not in self._registry)

    def activate(
        self, task: str, number: int, by: str | None = None, *, over: int | None = None
    ) -> Version:
        """New requests get this version, and nothing runs beside it.

        Args:
            over: the version that must be active now.

        Raises:
            TaskNotFoundError, VersionNotFoundError
            BankFullError: the task is pinned, and adapters in use leave no room for this version.
            ActiveChangedError: another one than ``over`` is active.
        """
        if over is not None and self._registry.get(task).number != over:
            raise ActiveChangedError(task, number, over)
        return self._make_active(self._registry.get(task, number), "activate", by)

    def rollback(self, task: str, by: str | None = None) -> Version:
        """New requests get the version that was active before, and nothing runs beside it.

        Raises:
            TaskNotFoundError, NoPreviousVersionError
            BankFullError: as for ``activate``.
        """
        active = self._registry.get(task)
        number = previous_active(
            self._store.history(task), {v.number for v in self._registry.versions(task)}
        )
        if number is None:
            raise NoPreviousVersionError(task, active.number)
        return self._make_active(self._registry.get(task, number), "rollback", by)

    def delete_task(self, task: str, by: str | None = None) -> None:
        """The task and all its versions are gone.

        Raises:
            TaskNotFoundError
        """
        self._registry.get(task)
        self._store.delete_task(task, by)
        self._pins.drop(task)
        self._unname(task)

    def delete_version(self, task: str, number: int, by: str | None = None) -> None:
        """One version that is not active and not on trial is gone.

        Raises:
            TaskNotFoundError, VersionNotFoundError, VersionActiveError, VersionOnTrialError
        """
        version = self._registry.get(task, number)
        if self._registry.get(task).number == number:
            raise VersionActiveError(task, number)
        if kind := self._registry.trials(task).kind_of(number):
            raise VersionOnTrialError(task, number, kind)
        self._store.delete_version(task, version.number, by)
        self._unname(task, number)

    def put_gate(self, task: str, digest: str, data: bytes, by: str | None = None) -> GateRecord:
        """These labelled rows are the task's gate from now on.

        Raises:
            TaskNotFoundError
        """
        self._registry.get(task)
        self._store.put_gate(task, digest, data, by)
        found = self._store.gate(task)
        assert found is not None
        return found

    def delete_gate(self, task: str) -> None:
        """The task has no gate any more.

        Raises:
            TaskNotFoundError, GateNotFoundError
        """
        self._registry.get(task)
        if self._store.gate(task) is None:
            raise GateNotFoundError(task)
        self._store.delete_gate(task)

    def load_stored(self) -> None:
        """Make everything that the state folder holds serve again.

        What is made for another encoder is left out, with a line in the log; the rest serves.
        """
        if not self._store.is_fresh:
            for name in self._store.blobs.sweep(self._store.needed_digests()):
                _log.info("removed adapter file %s, which no version needs", name)
            self._store.sweep_manifests()
        known = self._store.adapters()
        by_task: dict[str, list[VersionRecord]] = {}
        for record in self._store.versions():
            by_task.setdefault(record.task, []).append(record)
        for task, records in by_task.items():
            self._register(task, records, known)
        self.trials.restore()

    def seed(self, folder: Path) -> None:
        """Upload every adapter file of a folder, under its stem, as far as it belongs here."""
        for path in sorted(folder.glob("*.safetensors")):
            try:
                self.upload(check_task_name(path.stem), path.read_bytes())
            except (AdapterError, InvalidRequestError, StoreFullError) as error:
                _log.warning("demo task %s left out: %s", path.stem, error)

    def _register(
        self, task: str, records: Iterable[VersionRecord], known: Mapping[str, AdapterRecord]
    ) -> None:
        found = [(record, self._find(record, known)) for record in records]
        if not any(record.active and version for record, version in found):
            _log.error("task %s does not serve: its active version was left out", task)
            return
        for record, version in found:
            if version is not None:
                self._registry.add(version, activate=record.active)

    def _find(self, record: VersionRecord, known: Mapping[str, AdapterRecord]) -> Version | None:
        adapter = known.get(record.digest) or self._describe(record)
        if adapter is None:
            return None
        if adapter.encoder_fingerprint != self._loaded.encoder.fingerprint:
            error = ForeignEncoderError(
                adapter.encoder_fingerprint, self._loaded.encoder.fingerprint
            )
            _log.error("version %d of task %s left out: %s", record.number, record.task, error)
            return None
        return self._version(record, adapter.pair)

    def _describe(self, record: VersionRecord) -> AdapterRecord | None:
        """What a folder that an earlier release wrote holds in the adapter's file alone."""
        try:
            adapter = read_adapter(self._store.blobs.read(record.digest), STORED)
        except (DamagedBlobError, AdapterError) as error:
            self._store.blobs.set_aside(record.digest, whole=isinstance(error, AdapterError))
            _log.error(
                "version %d of task %s left out, its file set aside in quarantine/: %s",
                record.number,
                record.task,
                error,
            )
            return None
        self._store.put_manifest(record.digest, adapter.manifest)
        return AdapterRecord(adapter.manifest.encoder_fingerprint, adapter.manifest.pair)

    def _check_room(self, task: str) -> None:
        if task not in self._registry and len(self._registry) >= self._limits.max_tasks:
            raise StoreFullError("tasks", self._limits.max_tasks)
        if self._store.count_versions() >= self._limits.max_adapters:
            raise StoreFullError("adapters", self._limits.max_adapters)

    def _add(
        self, task: str, data: bytes, adapter: Adapter, by: str | None, *, activate: bool
    ) -> Uploaded:
        # Left out at the start, or of an upload that the disk did not take to its end.
        stored = self._store.find_version(task, adapter.digest)
        record = VersionRecord(
            task=task,
            number=stored.number if stored else self._store.next_number(task),
            digest=adapter.digest,
            size_bytes=len(data),
            created_at=stored.created_at if stored else datetime.now(UTC),
            active=activate,
        )
        version = self._version(record, adapter.manifest.pair)
        self._residency.put(adapter, self._admission.admit(adapter))
        try:
            with self._pins.moving_to(version) if activate else nullcontext():
                self._store.blobs.put(record.digest, data)
                if stored is None:
                    self._store.add_version(record, adapter.manifest, by)
                else:
                    self._store.put_manifest(record.digest, adapter.manifest)
                    if activate:
                        self._store.activate(task, record.number, "upload", by)
                self._registry.add(version, activate=activate)
        except StorageError:
            if not self._registry.names_digest(record.digest):
                self._residency.forget(record.digest)
                # On a full disk, the file of a refused upload would be in the way of a delete.
                self._store.drop_unneeded({record.digest})
            raise
        return Uploaded(version, created=not stored)

    def _version(self, record: VersionRecord, pair: bool) -> Version:
        return Version(
            task=record.task,
            number=record.number,
            digest=record.digest,
            size_bytes=record.size_bytes,
            created_at=record.created_at,
            pair=pair,
            read_manifest=self._library.manifest,
        )

    def _unname(self, task: str, number: int | None = None) -> None:
        for digest in self._registry.remove(task, number):
            self._residency.forget(digest)

    def _make_active(self, version: Version, action: Action, by: str | None) -> Version:
        with self._pins.moving_to(version):
            active, trials = self._registry.route(version.task)
            if active.number != version.number or trials is not NO_TRIALS:
                self._store.activate(version.task, version.number, action, by)
                self._registry.activate(version.task, version.number)
        return version
