"""The keys as a running server knows them: which one a request carries, if any."""

from __future__ import annotations

import hmac
import logging
import math
import sqlite3
import time
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy.exc import SQLAlchemyError

from labelmux_server.database import database_path, open_database
from labelmux_server.errors import SettingsError, StateError
from labelmux_server.keys import (
    EVERY_RIGHT,
    KeyRecord,
    Keys,
    digest_of_key,
    id_of_key,
    opened_keys,
)
from labelmux_server.settings import Settings, is_loopback

#: Whether a request needs a key.
Access = Literal["open", "key"]

#: The name that the key of the settings has in histories and metrics; no other can have it.
ADMIN_KEY = "(admin-key)"
#: What a key that is not there is compared with, so that it takes as long.
_NOBODY = "0" * 64
_HASHED = "sha256:"
#: For how long what was read counts as what is there: of requests that come together, one asks.
_FRESH_S = 0.001
_UNREADABLE = (sqlite3.Error, SQLAlchemyError)

_log = logging.getLogger(__name__)


class Keyring:
    """Finds keys. For the event loop alone."""

    def __init__(self, settings: Settings) -> None:
        """Read the keys of the state folder, which must be there.

        Raises:
            StateError: its database cannot be used.
        """
        self._keys = Keys(open_database(settings.state_dir))
        self._watch = sqlite3.connect(
            database_path(settings.state_dir), timeout=0, check_same_thread=False
        )
        self._admin = _admin_key(settings)
        self._loopback = is_loopback(settings.host)
        self._known: dict[str, KeyRecord] = {}
        self._seen: object = None
        self._read_at_s = -math.inf
        try:
            self._read()
        except _UNREADABLE as error:
            raise StateError(f"the keys of this state folder cannot be read: {error}") from error

    def close(self) -> None:
        """Let go of the database."""
        self._watch.close()
        self._keys.close()

    @property
    def access(self) -> Access:
        """Whether a request needs a key: on loopback it does not until the first key is made.

        A key that was revoked counts: what was closed once does not open by itself.
        """
        self._refresh()
        closed = self._known or self._admin is not None or not self._loopback
        return "key" if closed else "open"

    def find(self, sent: str) -> KeyRecord | None:
        """The live key that a header holds, compared in constant time."""
        self._refresh()
        record = self._known.get(id_of_key(sent), self._admin)
        found = digest_of_key(sent.encode("latin-1"))
        same = hmac.compare_digest(found, record.digest if record else _NOBODY)
        return record if same and record is not None and record.live else None

    def _refresh(self) -> None:
        now_s = time.monotonic()
        if now_s - self._read_at_s < _FRESH_S:
            return
        self._read_at_s = now_s
        try:
            self._read()
        except _UNREADABLE:
            _log.exception("the keys cannot be read again; those known stay in force")

    def _read(self) -> None:
        """Read the keys if another connection has changed the database; takes 3 us if none has."""
        (seen,) = self._watch.execute("PRAGMA data_version").fetchone()
        if seen != self._seen:
            self._known = {record.id: record for record in self._keys.all()}
            self._seen = seen


def check_exposure(settings: Settings) -> None:
    """Refuse to bind an address that other machines reach while there is no key.

    Raises:
        SettingsError: there is none.
        StateError: the state folder cannot be used.
    """
    if is_loopback(settings.host) or settings.admin_key is not None:
        return
    if database_path(settings.state_dir).is_file():
        with opened_keys(settings.state_dir) as keys:
            if any(record.live for record in keys.all()):
                return
    raise SettingsError(
        f"host is {settings.host}, which other machines reach, and there is no key: create one "
        f"with `labelmux keys create NAME --state-dir {settings.state_dir}`, or give --admin-key, "
        "or bind 127.0.0.1"
    )


def _admin_key(settings: Settings) -> KeyRecord | None:
    if settings.admin_key is None:
        return None
    hashed = settings.admin_key.startswith(_HASHED)
    digest = settings.admin_key.removeprefix(_HASHED).lower()
    return KeyRecord(
        id="",
        name=ADMIN_KEY,
        digest=digest if hashed else digest_of_key(settings.admin_key.encode()),
        rights=EVERY_RIGHT,
        created_at=datetime.now(UTC),
    )
