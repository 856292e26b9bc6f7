"""Adapter files on disk, named by the SHA-256 of their bytes: ``blobs/sha256/ab/<hex>``.

A file is whole under its name or not there: it is written beside it, synced, renamed, and the
folder synced. Nothing that a client names becomes a path.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import threading
from collections.abc import Set
from pathlib import Path

from labelmux_server.database import storage_faults
from labelmux_server.errors import DiskFullError, StateError

#: What uploads leave free, so that deletes can be stored: SQLite's log grows to 4 MiB before it is
#: copied into the database, which may grow by as much.
RESERVED_BYTES = 8 * 2**20
DIGEST_PREFIX = "sha256:"
_log = logging.getLogger(__name__)
_HEX = re.compile(r"[0-9a-f]{64}")


def digest_of(data: bytes) -> str:
    """The name of these bytes."""
    return DIGEST_PREFIX + hashlib.sha256(data).hexdigest()


class DamagedBlobError(StateError):
    """A blob is missing, or its bytes are not those that its name states."""


class Blobs:
    """The folder of adapter files; any thread may use it."""

    def __init__(self, state_dir: Path) -> None:
        self._root = state_dir / "blobs" / "sha256"
        self._quarantine = state_dir / "quarantine"
        #: Over what happens to a name: what is set aside is never what was put meanwhile.
        self._names = threading.Lock()
        self._root.mkdir(parents=True, exist_ok=True)
        sync_folder(state_dir)
        sync_folder(self._root.parent)

    def put(self, digest: str, data: bytes) -> None:
        """Once this returns, the bytes survive a loss of power.

        Raises:
            StorageError: they cannot be written; nothing of them is left.
        """
        self.check_room(len(data))
        path = self._path(digest)
        with storage_faults():
            if not path.parent.is_dir():
                path.parent.mkdir(exist_ok=True)
                sync_folder(self._root)
            self._write(path, data)

    def check_room(self, size_bytes: int) -> None:
        """See that the reserve for deletes stays free once so much is written.

        Raises:
            DiskFullError: it would not.
        """
        with storage_faults():
            disk = os.statvfs(self._root)
        free_bytes = disk.f_bavail * disk.f_frsize
        # A file system without a size states no blocks.
        if disk.f_blocks and free_bytes < size_bytes + RESERVED_BYTES:
            raise DiskFullError(
                f"{free_bytes / 2**20:.1f} MiB of its disk are free, of which "
                f"{RESERVED_BYTES // 2**20} are kept for deletes"
            )

    def _write(self, path: Path, data: bytes) -> None:
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            with self._names:
                beside.replace(path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)

    def read(self, digest: str) -> bytes:
        """The bytes, checked against their name.

        Raises:
            DamagedBlobError: missing, unreadable or changed.
        """
        try:
            data = self._path(digest).read_bytes()
        except OSError as error:
            raise DamagedBlobError(f"adapter file {digest} cannot be read: {error}") from error
        found = digest_of(data)
        if found != digest:
            raise DamagedBlobError(f"adapter file {digest} has changed on disk: it is {found} now")
        return data

    def __contains__(self, digest: str) -> bool:
        """Whether these bytes are there, whole."""
        try:
            self.read(digest)
        except DamagedBlobError:
            return False
        return True

    def remove(self, digest: str) -> None:
        """Forget a file that no version needs any more.

        Raises:
            StorageError: it cannot be removed.
        """
        with storage_faults():
            self._path(digest).unlink(missing_ok=True)

    def set_aside(self, digest: str, *, whole: bool = False) -> None:
        """Move a damaged file out of the way, for people to look at, if the disk lets us.

        Args:
            whole: also if its bytes are those that its name states. Else it was put again since it
                was found damaged, and stays.
        """
        path = self._path(digest)
        with self._names:
            if not path.is_file() or (not whole and digest in self):
                return
            try:
                self._quarantine.mkdir(exist_ok=True)
                path.replace(self._quarantine / path.name)
            except OSError as error:
                _log.error("adapter file %s stays where it is: %s", digest, error)

    def sweep(self, needed: Set[str]) -> list[str]:
        """Remove what no version needs: files of uploads that were never acknowledged."""
        removed = []
        for path in sorted(self._root.glob("*/*")):
            if path.is_file() and DIGEST_PREFIX + path.name not in needed:
                path.unlink()
                removed.append(path.name)
        return removed

    def _path(self, digest: str) -> Path:
        name = digest.removeprefix(DIGEST_PREFIX)
        if not _HEX.fullmatch(name):
            raise DamagedBlobError(f"{digest!r} is no SHA-256 digest")
        return self._root / name[:2] / name


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
