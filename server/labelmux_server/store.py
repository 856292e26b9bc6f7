"""Tasks, versions, the active pointer and the history, in SQLite; durable once a call returns.

Adapter bytes are in ``blobs``; a row here names a blob that is durable already. Version numbers of
a task are never used twice, not even after it was deleted.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO

from sqlalchemy import Engine, ForeignKey, create_engine, delete, event, func, select
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from labelmux_adapters.manifest import Manifest
from labelmux_server.blobs import Blobs, sync_folder
from labelmux_server.errors import StateError

Action = Literal["upload", "activate", "rollback", "delete"]

SCHEMA = "1"


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
class HistoryRecord:
    """One change that was made to a task."""

    at: datetime
    action: Action
    version: int
    digest: str


class _Base(DeclarativeBase):
    pass


class _Fact(_Base):
    __tablename__ = "facts"
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class _Task(_Base):
    __tablename__ = "tasks"
    name: Mapped[str] = mapped_column(primary_key=True)
    active: Mapped[int]


class _Version(_Base):
    __tablename__ = "versions"
    task: Mapped[str] = mapped_column(ForeignKey("tasks.name"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str]
    size_bytes: Mapped[int]
    created_at: Mapped[str]


class _Manifest(_Base):
    __tablename__ = "manifests"
    digest: Mapped[str] = mapped_column(primary_key=True)
    encoder_fingerprint: Mapped[str]
    pair: Mapped[bool]
    text: Mapped[str]


class _History(_Base):
    __tablename__ = "history"
    id: Mapped[int] = mapped_column(primary_key=True)
    task: Mapped[str] = mapped_column(index=True)
    at: Mapped[str]
    action: Mapped[str]
    version: Mapped[int]
    digest: Mapped[str]


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
        self._engine = _engine(state_dir / "labelmux.sqlite")
        try:
            self._create(state_dir)
        except DatabaseError as error:
            self.close()
            raise StateError(
                f"the database in {str(state_dir)!r} cannot be read ({error.orig}); restore it "
                "from a backup, or start with another state folder"
            ) from error
        except StateError:
            self.close()
            raise

    def _create(self, state_dir: Path) -> None:
        _Base.metadata.create_all(self._engine)
        sync_folder(state_dir)
        found = self._fact("schema")
        if found is None:
            self._set_fact("schema", SCHEMA)
        elif found != SCHEMA:
            raise StateError(
                f"state folder {str(state_dir)!r} has format {found}, this release reads {SCHEMA}; "
                "use the release that wrote it"
            )

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
        self._set_fact("started", _now())

    def versions(self, task: str | None = None) -> list[VersionRecord]:
        """All versions, or one task's, by task and number."""
        query = select(_Version, _Task.active).join(_Task, _Task.name == _Version.task)
        if task is not None:
            query = query.where(_Version.task == task)
        with Session(self._engine) as session:
            rows = session.execute(query.order_by(_Version.task, _Version.number)).all()
            return [_version_record(row, active) for row, active in rows]

    def adapters(self) -> dict[str, AdapterRecord]:
        """Every adapter whose manifest is stored, by digest."""
        query = select(_Manifest.digest, _Manifest.encoder_fingerprint, _Manifest.pair)
        with Session(self._engine) as session:
            return {
                digest: AdapterRecord(fingerprint, pair)
                for digest, fingerprint, pair in session.execute(query)
            }

    def manifest(self, digest: str) -> str:
        """An adapter's manifest as its file carries it."""
        with Session(self._engine) as session:
            return session.get_one(_Manifest, digest).text

    def put_manifest(self, digest: str, manifest: Manifest) -> None:
        """Store what an adapter says of itself, before a version names it."""
        with self._change() as session:
            session.merge(
                _Manifest(
                    digest=digest,
                    encoder_fingerprint=manifest.encoder_fingerprint,
                    pair=manifest.pair,
                    text=manifest.to_json(),
                )
            )

    def sweep_manifests(self) -> None:
        """Remove what no version needs."""
        with self._change() as session:
            session.execute(
                delete(_Manifest).where(_Manifest.digest.not_in(select(_Version.digest)))
            )

    def history(self, task: str) -> list[HistoryRecord]:
        """Every change to a task, oldest first; it outlives the task."""
        with Session(self._engine) as session:
            query = select(_History).where(_History.task == task).order_by(_History.id)
            return [
                HistoryRecord(_when(row.at), row.action, row.version, row.digest)  # type: ignore[arg-type]
                for row in session.scalars(query)
            ]

    def next_number(self, task: str) -> int:
        """The number that the task's next version gets."""
        with Session(self._engine) as session:
            query = select(func.max(_History.version)).where(_History.task == task)
            return (session.scalar(query) or 0) + 1

    def add_version(self, record: VersionRecord) -> None:
        """Store a version whose blob is durable, and make it active."""
        with self._change() as session:
            task = session.get(_Task, record.task)
            if task is None:
                session.add(_Task(name=record.task, active=record.number))
                session.flush()
            else:
                task.active = record.number
            session.add(
                _Version(
                    task=record.task,
                    number=record.number,
                    digest=record.digest,
                    size_bytes=record.size_bytes,
                    created_at=record.created_at.isoformat(),
                )
            )
            _note(session, record.task, "upload", record.number, record.digest)

    def activate(self, task: str, number: int, action: Action) -> None:
        """Move the active pointer."""
        with self._change() as session:
            session.get_one(_Task, task).active = number
            _note(session, task, action, number, session.get_one(_Version, (task, number)).digest)

    def delete_version(self, task: str, number: int) -> None:
        """Forget one version; its blob goes too if nothing else needs it."""
        with self._change() as session:
            found = session.get_one(_Version, (task, number))
            _note(session, task, "delete", number, found.digest)
            session.delete(found)
        self._drop_unneeded({found.digest})

    def delete_task(self, task: str) -> None:
        """Forget a task and all its versions."""
        with self._change() as session:
            found = session.scalars(select(_Version).where(_Version.task == task)).all()
            for row in found:
                _note(session, task, "delete", row.number, row.digest)
            session.execute(delete(_Version).where(_Version.task == task))
            session.execute(delete(_Task).where(_Task.name == task))
            digests = {row.digest for row in found}
        self._drop_unneeded(digests)

    def needed_digests(self) -> set[str]:
        """The blobs that some version needs."""
        with Session(self._engine) as session:
            return set(session.scalars(select(_Version.digest)))

    def _drop_unneeded(self, digests: set[str]) -> None:
        for digest in digests - self.needed_digests():
            self.blobs.remove(digest)

    @contextmanager
    def _change(self) -> Iterator[Session]:
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    def _fact(self, name: str) -> str | None:
        with Session(self._engine) as session:
            found = session.get(_Fact, name)
            return None if found is None else found.value

    def _set_fact(self, name: str, value: str) -> None:
        with self._change() as session:
            session.merge(_Fact(name=name, value=value))


def previous_active(history: list[HistoryRecord], present: Set[int]) -> int | None:
    """The version that was active before the present one, undoing changes like a stack.

    A rollback takes the newest change back, so two rollbacks go two versions back. Versions that
    are not ``present`` any more are passed over.
    """
    stack: list[int] = []
    for record in history:
        if record.action == "delete":
            stack = [number for number in stack if number != record.version]
        elif record.action == "rollback":
            while stack and stack[-1] != record.version:
                stack.pop()
        else:
            stack.append(record.version)
        stack = [number for at, number in enumerate(stack) if at == 0 or stack[at - 1] != number]
    earlier = [number for number in stack[:-1] if number in present and number != stack[-1]]
    return earlier[-1] if earlier else None


def _note(session: Session, task: str, action: Action, version: int, digest: str) -> None:
    session.add(_History(task=task, at=_now(), action=action, version=version, digest=digest))


def _version_record(row: _Version, active: int) -> VersionRecord:
    return VersionRecord(
        task=row.task,
        number=row.number,
        digest=row.digest,
        size_bytes=row.size_bytes,
        created_at=_when(row.created_at),
        active=row.number == active,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _when(text: str) -> datetime:
    return datetime.fromisoformat(text)


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


def _engine(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}")

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    return engine
