from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
from contextlib import closing, nullcontext
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from labelmux_server.blobs import Blobs, DamagedBlobError, digest_of
from labelmux_server.errors import DiskFullError, StateError
from labelmux_server.history import HistoryRecord, previous_active
from labelmux_server.store import Store, VersionRecord

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
#: As much of a manifest as the store reads.
MANIFEST: Any = SimpleNamespace(encoder_fingerprint="f", pair=False, to_json=lambda: "{}")


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path)
    yield opened
    opened.close()


def add(store: Store, task: str, data: bytes) -> VersionRecord:
    record = VersionRecord(
        task, store.next_number(task), digest_of(data), len(data), NOW, active=True
    )
    store.blobs.put(record.digest, data)
    store.add_version(record, MANIFEST)
    return record


def test_versions_survive_closing(tmp_path):
    store = Store(tmp_path)
    first, second = add(store, "t", b"one"), add(store, "t", b"two")
    store.close()
    store = Store(tmp_path)
    assert [(v.number, v.digest, v.active) for v in store.versions("t")] == [
        (1, first.digest, False),
        (2, second.digest, True),
    ]
    assert store.versions("t")[0].created_at == NOW
    assert store.blobs.read(first.digest) == b"one"
    store.close()


def test_the_database_writes_ahead_and_syncs_fully(tmp_path, store):
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_history_tells_every_change_and_outlives_the_task(store):
    add(store, "t", b"one")
    add(store, "t", b"two")
    store.activate("t", 1, "rollback", "ops")
    store.delete_version("t", 2, "ci")
    store.delete_task("t", "ops")
    assert [(h.action, h.version, h.by) for h in store.history("t")] == [
        ("upload", 1, None),
        ("upload", 2, None),
        ("rollback", 1, "ops"),
        ("delete", 2, "ci"),
        ("delete", 1, "ops"),
    ]
    assert store.versions("t") == []


def test_numbers_are_never_used_twice(store):
    add(store, "t", b"one")
    add(store, "t", b"two")
    store.delete_task("t")
    assert add(store, "t", b"one").number == 3


def test_a_blob_goes_with_the_last_version_that_needs_it(store):
    digest = add(store, "a", b"same").digest
    add(store, "b", b"same")
    store.delete_task("a")
    assert store.blobs.read(digest) == b"same"
    store.delete_task("b")
    with pytest.raises(DamagedBlobError):
        store.blobs.read(digest)


def test_an_earlier_release_s_folder_gets_the_indexes_that_it_lacks(tmp_path):
    Store(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "labelmux.sqlite")) as connection:
        connection.execute("DROP INDEX ix_versions_digest")
    store = Store(tmp_path)
    digest = add(store, "t", b"one").digest
    with store._engine.connect() as connection:
        query = f"EXPLAIN QUERY PLAN SELECT number FROM versions WHERE digest = '{digest}'"
        (plan,) = connection.exec_driver_sql(query).all()
    assert "ix_versions_digest" in plan[-1]
    store.close()


def test_one_folder_serves_one_server(tmp_path, store):
    with pytest.raises(StateError, match="in use"):
        Store(tmp_path)


def test_a_folder_of_another_format_is_refused(tmp_path):
    store = Store(tmp_path)
    store._set_fact("schema", "99")
    store.close()
    with pytest.raises(StateError, match="99"):
        Store(tmp_path)


def test_a_damaged_database_is_refused_with_advice(tmp_path):
    (tmp_path / "labelmux.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(StateError, match="backup"):
        Store(tmp_path)


@pytest.mark.parametrize("left", ["nothing", "an empty file", "the file without its log"])
def test_a_lost_database_is_refused_while_there_are_adapters(tmp_path, left):
    store = Store(tmp_path)
    store.blobs.put(digest_of(b"x"), b"x")
    alone = (tmp_path / "labelmux.sqlite").read_bytes()
    store.close()
    for path in tmp_path.glob("labelmux.sqlite*"):
        path.unlink()
    if left != "nothing":
        (tmp_path / "labelmux.sqlite").write_bytes(b"" if left == "an empty file" else alone)
    for _ in range(2):
        with pytest.raises(StateError, match=r"missing or empty.*restore it from a backup"):
            Store(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be used"):
        Store(tmp_path / "file")


def test_a_folder_is_fresh_until_a_start_has_finished(tmp_path):
    store = Store(tmp_path)
    assert store.is_fresh
    add(store, "t", b"one")
    assert store.is_fresh
    store.mark_started()
    store.close()
    store = Store(tmp_path)
    assert not store.is_fresh
    store.close()


def test_the_database_can_be_read_by_other_tools(tmp_path, store):
    add(store, "t", b"one")
    with sqlite3.connect(tmp_path / "labelmux.sqlite") as connection:
        assert connection.execute("select name, active from tasks").fetchall() == [("t", 1)]
    connection.close()


def test_a_blob_is_synced_then_named_then_its_folder_synced(tmp_path, monkeypatch):
    blobs = Blobs(tmp_path)
    events: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(handle: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        events.append("sync folder" if is_folder else "sync file")
        real_sync(handle)

    def replace(source, target) -> None:
        events.append("rename")
        real_replace(source, target)

    digest = digest_of(b"data")
    (tmp_path / "blobs" / "sha256" / digest[7:9]).mkdir()
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    blobs.put(digest, b"data")
    assert events == ["sync file", "rename", "sync folder"]


def test_a_blob_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    blobs = Blobs(tmp_path)

    def fail(handle: int) -> None:
        raise OSError(28, "no space left")

    digest = digest_of(b"data")
    (tmp_path / "blobs" / "sha256" / digest[7:9]).mkdir()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DiskFullError, match="no space"):
        blobs.put(digest, b"data")
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("blocks", "refused"), [(1000, True), (0, False)])
def test_what_would_eat_up_the_room_for_deletes_is_refused(tmp_path, monkeypatch, blocks, refused):
    blobs = Blobs(tmp_path)
    free = os.statvfs_result((4096, 4096, blocks, 4, 4, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: free)
    with pytest.raises(DiskFullError, match="kept for deletes") if refused else nullcontext():
        blobs.put(digest_of(b"data"), b"data")
    assert (digest_of(b"data") in blobs) is not refused


def test_blobs_lie_under_their_digest(tmp_path):
    digest = digest_of(b"data")
    Blobs(tmp_path).put(digest, b"data")
    name = hashlib.sha256(b"data").hexdigest()
    assert (tmp_path / "blobs" / "sha256" / name[:2] / name).read_bytes() == b"data"


def test_a_blob_that_changed_on_disk_is_not_given_out(tmp_path):
    blobs = Blobs(tmp_path)
    digest = digest_of(b"data")
    blobs.put(digest, b"data")
    path = tmp_path / "blobs" / "sha256" / digest[7:9] / digest[7:]
    path.write_bytes(b"Data")
    with pytest.raises(DamagedBlobError, match="changed"):
        blobs.read(digest)
    blobs.set_aside(digest)
    assert (tmp_path / "quarantine" / digest[7:]).read_bytes() == b"Data"
    with pytest.raises(DamagedBlobError, match="read"):
        blobs.read(digest)


@pytest.mark.parametrize("digest", ["sha256:../../etc/passwd", "sha256:", "x" * 64, "sha256:AB"])
def test_nothing_but_a_digest_becomes_a_path(tmp_path, digest):
    with pytest.raises(DamagedBlobError, match="digest"):
        Blobs(tmp_path).read(digest)


def test_sweep_removes_unneeded_and_half_written_files_alone(tmp_path):
    blobs = Blobs(tmp_path)
    kept, orphan = digest_of(b"kept"), digest_of(b"orphan")
    blobs.put(kept, b"kept")
    blobs.put(orphan, b"orphan")
    half = tmp_path / "blobs" / "sha256" / kept[7:9] / f".{kept[7:]}.abcd"
    half.write_bytes(b"ke")
    assert set(blobs.sweep({kept})) == {orphan[7:], half.name}
    assert blobs.read(kept) == b"kept"
    assert not half.exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ("u1", None),
        ("u1 u2", 1),
        ("u1 u2 u3", 2),
        ("u1 u2 u3 r2", 1),
        ("u1 u2 u3 r2 r1", None),
        ("u1 u2 a1", 2),
        ("u1 u2 a1 r2", 1),
        ("u1 u2 a2", 1),
        ("u1 u2 u3 d2", 1),
        ("u1 u2 a1 a2 d1", None),
        ("u1 d1 u2", None),
        ("u1 u2 r1 u3", 1),
    ],
)
def test_rollback_undoes_changes_like_a_stack(changes, expected):
    actions = {"u": "upload", "a": "activate", "r": "rollback", "d": "delete"}
    history = [
        HistoryRecord(NOW, actions[change[0]], int(change[1]), "sha256:x")  # type: ignore[arg-type]
        for change in changes.split()
    ]
    assert previous_active(history, {1, 2, 3}) == expected


def test_rollback_passes_over_versions_that_are_not_here():
    history = [HistoryRecord(NOW, "upload", number, "sha256:x") for number in (1, 2, 3)]
    assert previous_active(history, {1, 3}) == 1
