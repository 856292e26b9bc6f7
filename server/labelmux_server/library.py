"""The stored adapters: their manifests, the latest kept in memory, and their files when wanted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from labelmux_adapters.canaries import check_fit
from labelmux_adapters.errors import AdapterError
from labelmux_adapters.files import Adapter, FileLimits, read_adapter
from labelmux_adapters.manifest import Manifest, parse_manifest
from labelmux_encoder.frozen import FrozenEncoder
from labelmux_server.blobs import DamagedBlobError
from labelmux_server.errors import AdapterDamagedError, VersionNotFoundError
from labelmux_server.registry import Registry, Version
from labelmux_server.store import Store

_MANIFESTS_KEPT = 1024

#: Limits are for what comes in. What is stored has its digest, and serves on under lower ones.
STORED = FileLimits(sys.maxsize, sys.maxsize, sys.maxsize, sys.maxsize)


class Library:
    """Reads what the state folder holds of an adapter. Any thread may ask."""

    def __init__(self, store: Store, registry: Registry, encoder: FrozenEncoder) -> None:
        @lru_cache(_MANIFESTS_KEPT)
        def manifest(digest: str) -> Manifest:
            return parse_manifest(store.manifest(digest))

        self._manifest = manifest
        self._store = store
        self._registry = registry
        self._encoder = encoder

    def manifest(self, digest: str) -> Manifest:
        """What a stored adapter says of itself."""
        return self._manifest(digest)

    def adapter(self, version: Version) -> Adapter:
        """A version's adapter, checked as an upload is, but for its canaries.

        Raises:
            VersionNotFoundError: it was deleted meanwhile.
            AdapterDamagedError: its file is not what it was; it is in quarantine/ now.
        """
        with self._quarantining(version):
            adapter = read_adapter(self._store.blobs.read(version.digest), STORED)
            check_fit(adapter, self._encoder)
        return adapter

    def file(self, version: Version) -> bytes:
        """The bytes of a version's file.

        Raises:
            VersionNotFoundError, AdapterDamagedError: as above.
        """
        with self._quarantining(version):
            return self._store.blobs.read(version.digest)

    @contextmanager
    def _quarantining(self, version: Version) -> Iterator[None]:
        try:
            yield
        except (DamagedBlobError, AdapterError) as error:
            # A delete commits, removes the file, and only then takes the version from the registry.
            named = self._registry.names_digest(version.digest)
            if not (named and self._store.needs(version.digest)):
                raise VersionNotFoundError(version.task, version.number) from error
            # A file that could not be read may be whole: there may be no handles left.
            if not isinstance(error.__cause__, OSError):
                whole = isinstance(error, AdapterError)
                self._store.blobs.set_aside(version.digest, whole=whole)
            raise AdapterDamagedError(version.task, version.number, version.digest) from error
