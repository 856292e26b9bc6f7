"""Keys: who may ask a server for what. They live in the database of its state folder.

A key is shown once, when it is made; the database has its SHA-256 alone. That is enough: a key
holds 256 random bits, so there is nothing to guess that a slow hash would protect.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, get_args

from sqlalchemy import Engine, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from labelmux_server.database import KeyRow, database_path, now, open_database, when
from labelmux_server.errors import KeysError, StateError

Scope = Literal["classify", "admin", "metrics"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

EVERY_TASK = ("*",)

_PREFIX = "lmx"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_TASKS = re.compile(r"[A-Za-z0-9_.*?-]{1,128}")


@dataclass(frozen=True, slots=True)
class Rights:
    """What a key opens, and how fast it may be used."""

    scopes: frozenset[Scope]
    #: Patterns of task names, with ``*`` and ``?``.
    tasks: tuple[str, ...] = EVERY_TASK
    #: None: what the server's settings say; 0: no limit.
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def covers(self, task: str) -> bool:
        """Whether the key opens the task of this name."""
        return self.tasks == EVERY_TASK or any(fnmatchcase(task, each) for each in self.tasks)


EVERY_RIGHT = Rights(frozenset(SCOPES))


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One key, as stored. Until the grace of a rotation ends, two may have one name."""

    id: str
    name: str
    #: SHA-256 of the whole key, in hexadecimal.
    digest: str
    rights: Rights
    created_at: datetime
    #: From then on it opens nothing.
    ends_at: datetime | None = None

    @property
    def live(self) -> bool:
        """Whether it opens anything."""
        return self.ends_at is None or self.ends_at > datetime.now(UTC)


class Keys:
    """The keys of a state folder. A server may run on it: it sees a change at its next request."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def all(self) -> list[KeyRecord]:
        """Every key there ever was, by name and time."""
        with Session(self._engine) as session:
            rows = session.scalars(select(KeyRow).order_by(KeyRow.name, KeyRow.created_at))
            return [_record(row) for row in rows]

    def create(self, name: str, rights: Rights) -> str:
        """A new key, which nobody can show again.

        Raises:
            KeysError: the name or the rights cannot be, or the name is taken or was once.
        """
        _check(name, rights)
        with self._change() as session:
            if session.scalars(select(KeyRow).where(KeyRow.name == name)).first():
                raise KeysError(
                    f"a key {name!r} is there already, or was: the history goes by names; rotate "
                    "it, or choose another name"
                )
            return _add(session, name, rights)

    def rotate(self, name: str, grace_s: float = 0.0) -> str:
        """Another key of the same name and rights; the one before opens for so long still.

        Raises:
            KeysError: no key of that name opens anything.
        """
        with self._change() as session:
            rows = self._live(session, name)
            rights = _record(rows[-1]).rights
            _end(rows, timedelta(seconds=grace_s))
            return _add(session, name, rights)

    def revoke(self, name: str) -> None:
        """From now on the key opens nothing.

        Raises:
            KeysError: no key of that name opens anything.
        """
        with self._change() as session:
            _end(self._live(session, name), timedelta())

    def _live(self, session: Session, name: str) -> list[KeyRow]:
        query = select(KeyRow).where(KeyRow.name == name).order_by(KeyRow.created_at)
        rows = [row for row in session.scalars(query) if _record(row).live]
        if not rows:
            raise KeysError(f"no live key {name!r}; `labelmux keys list` shows what there is")
        return rows

    @contextmanager
    def _change(self) -> Iterator[Session]:
        try:
            with Session(self._engine) as session, session.begin():
                yield session
        except OperationalError as error:
            raise StateError(f"the keys cannot be changed ({error.orig}); try again") from error


@contextmanager
def opened_keys(state_dir: Path, *, create: bool = False) -> Iterator[Keys]:
    """The keys of a folder, for a process that is not its server.

    Args:
        state_dir: the folder.
        create: whether to make it if it is not there, or else to refuse.

    Raises:
        StateError: the folder cannot be used.
    """
    try:
        if create:
            state_dir.mkdir(parents=True, exist_ok=True)
        elif not database_path(state_dir).is_file():
            raise StateError(
                f"{str(state_dir)!r} is no state folder yet; check --state-dir, or create a key"
            )
    except OSError as error:
        raise StateError(f"state folder {str(state_dir)!r} cannot be used: {error}") from error
    keys = Keys(open_database(state_dir))
    try:
        yield keys
    finally:
        keys.close()


def digest_of_key(key: bytes) -> str:
    """What is stored and compared in a key's place."""
    return hashlib.sha256(key).hexdigest()


def id_of_key(key: str) -> str:
    """The part of a key that finds it; empty where it has none."""
    prefix, _, rest = key.partition("_")
    return rest.partition("_")[0] if prefix == _PREFIX else ""


def _check(name: str, rights: Rights) -> None:
    if not _NAME.fullmatch(name):
        raise KeysError(
            f"{name!r} is no name for a key; use 1 to 64 letters, digits, '_', '.', '-', the first "
            "a letter or digit"
        )
    if not rights.scopes or not rights.scopes <= set(SCOPES):
        raise KeysError(f"a key takes one or more of the scopes {', '.join(SCOPES)}")
    for pattern in rights.tasks:
        if not _TASKS.fullmatch(pattern):
            raise KeysError(
                f"{pattern!r} matches no task; a pattern has letters, digits, '_', '.', '-', '*', "
                "'?'"
            )


def _add(session: Session, name: str, rights: Rights) -> str:
    number = secrets.token_hex(6)
    key = f"{_PREFIX}_{number}_{secrets.token_urlsafe(32)}"
    session.add(
        KeyRow(
            id=number,
            name=name,
            digest=digest_of_key(key.encode()),
            scopes=" ".join(sorted(rights.scopes)),
            tasks=" ".join(rights.tasks),
            requests_per_minute=rights.requests_per_minute,
            tokens_per_minute=rights.tokens_per_minute,
            created_at=now(),
            ends_at=None,
        )
    )
    return key


def _end(rows: list[KeyRow], grace: timedelta) -> None:
    """Let keys end after ``grace``, or when they would have ended, if that is sooner."""
    ends_at = datetime.now(UTC) + grace
    for row in rows:
        if row.ends_at is None or when(row.ends_at) > ends_at:
            row.ends_at = ends_at.isoformat()


def _record(row: KeyRow) -> KeyRecord:
    return KeyRecord(
        id=row.id,
        name=row.name,
        digest=row.digest,
        rights=Rights(
            frozenset(row.scopes.split()),  # type: ignore[arg-type]
            tuple(row.tasks.split()),
            row.requests_per_minute,
            row.tokens_per_minute,
        ),
        created_at=when(row.created_at),
        ends_at=None if row.ends_at is None else when(row.ends_at),
    )
