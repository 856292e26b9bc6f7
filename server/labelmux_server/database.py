"""The SQLite file of a state folder: its tables, and how it is opened.

The server holds the folder's lock while it runs; ``labelmux keys`` opens the same file beside it,
which SQLite's write-ahead log allows.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, ForeignKey, create_engine, event, inspect, select
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.schema import CreateColumn

from labelmux_server.errors import DiskFullError, StateError, StorageError

SCHEMA = "1"
_NAME = "labelmux.sqlite"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class _Base(DeclarativeBase):
    pass


class FactRow(_Base):
    __tablename__ = "facts"
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class TaskRow(_Base):
    __tablename__ = "tasks"
    name: Mapped[str] = mapped_column(primary_key=True)
    active: Mapped[int]


class VersionRow(_Base):
    __tablename__ = "versions"
    task: Mapped[str] = mapped_column(ForeignKey("tasks.name"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(index=True)
    size_bytes: Mapped[int]
    created_at: Mapped[str]


class ManifestRow(_Base):
    __tablename__ = "manifests"
    digest: Mapped[str] = mapped_column(primary_key=True)
    encoder_fingerprint: Mapped[str]
    pair: Mapped[bool]
    text: Mapped[str]


class HistoryRow(_Base):
    __tablename__ = "history"
    id: Mapped[int] = mapped_column(primary_key=True)
    task: Mapped[str] = mapped_column(index=True)
    at: Mapped[str]
    action: Mapped[str]
    version: Mapped[int]
    digest: Mapped[str]
    #: The name of the key that asked for it.
    by: Mapped[str | None]
    #: Of a trial.
    share: Mapped[float | None]


class TrialRow(_Base):
    __tablename__ = "trials"
    task: Mapped[str] = mapped_column(ForeignKey("tasks.name"), primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int]
    share: Mapped[float]
    #: What the share is of.
    share_of: Mapped[str]
    since: Mapped[str]
    started_by: Mapped[str | None]


class GateRow(_Base):
    __tablename__ = "gates"
    task: Mapped[str] = mapped_column(ForeignKey("tasks.name"), primary_key=True)
    digest: Mapped[str]
    stored_at: Mapped[str]
    stored_by: Mapped[str | None]
    #: JSON lines, as they came.
    data: Mapped[bytes]


class KeyRow(_Base):
    __tablename__ = "keys"
    #: Stands in the key itself, to find it by.
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(index=True)
    #: SHA-256 of the whole key, in hexadecimal.
    digest: Mapped[str]
    #: Separated by spaces, as are the patterns of tasks.
    scopes: Mapped[str]
    tasks: Mapped[str]
    requests_per_minute: Mapped[int | None]
    tokens_per_minute: Mapped[int | None]
    created_at: Mapped[str]
    #: From then on it opens nothing.
    ends_at: Mapped[str | None]


def database_path(state_dir: Path) -> Path:
    """Where a state folder has its database."""
    return state_dir / _NAME


def open_database(state_dir: Path) -> Engine:
    """The database of a folder that is there, made if need be, with every table and column.

    Raises:
        StateError: it cannot be read, or is of another format.
    """
    engine = _engine(database_path(state_dir))
    try:
        _create(engine, state_dir)
    except DatabaseError as error:
        engine.dispose()
        raise unreadable(state_dir, error.orig) from error
    except StateError:
        engine.dispose()
        raise
    return engine


def unreadable(state_dir: Path, detail: object) -> StateError:
    """What a start says of a database that is damaged."""
    return StateError(
        f"the database in {str(state_dir)!r} cannot be read ({detail}); restore it from a backup, "
        "or start with another state folder"
    )


def check_whole(engine: Engine) -> None:
    """Read every page of the database once.

    Raises:
        StorageError: one is missing or damaged.
    """
    with storage_faults(), engine.connect() as connection:
        found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        if found != "ok":
            raise StorageError(found)


@contextmanager
def storage_faults() -> Iterator[None]:
    """What the disk or SQLite fails with is a StorageError."""
    try:
        yield
    except OSError as error:
        kind = DiskFullError if error.errno in _FULL else StorageError
        raise kind(error.strerror or error) from error
    except DatabaseError as error:
        code = getattr(error.orig, "sqlite_errorcode", 0)
        kind = DiskFullError if code == sqlite3.SQLITE_FULL else StorageError
        raise kind(error.orig) from error


def now() -> str:
    """The time as the tables have it."""
    return datetime.now(UTC).isoformat()


def when(text: str) -> datetime:
    """The time that a table has."""
    return datetime.fromisoformat(text)


def _create(engine: Engine, state_dir: Path) -> None:
    _Base.metadata.create_all(engine)
    _add_what_lacks(engine)
    with Session(engine) as session, session.begin():
        found = session.scalar(select(FactRow.value).where(FactRow.name == "schema"))
        if found is None:
            if any((state_dir / "blobs").glob("sha256/*/*")):
                # It is there before the first file. As a new one, it would lose them to a sweep.
                raise unreadable(state_dir, "it is missing or empty, though there are adapters")
            session.add(FactRow(name="schema", value=SCHEMA))
        elif found != SCHEMA:
            raise StateError(
                f"state folder {str(state_dir)!r} has format {found}, this release reads {SCHEMA}; "
                "use the release that wrote it"
            )


def _add_what_lacks(engine: Engine) -> None:
    """Columns and indexes that a release added since the folder was made; each may be empty."""
    for table in _Base.metadata.sorted_tables:
        present = {column["name"] for column in inspect(engine).get_columns(table.name)}
        for column in table.columns:
            if column.name not in present:
                words = CreateColumn(column).compile(dialect=engine.dialect)
                with engine.begin() as connection:
                    connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {words}")
        for index in table.indexes:
            index.create(engine, checkfirst=True)


def _engine(path: Path) -> Engine:
    # Errors would quote what is stored, such as digests of keys.
    engine = create_engine(f"sqlite:///{path}", hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    return engine
