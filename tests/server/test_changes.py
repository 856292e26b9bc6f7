from __future__ import annotations

import logging
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from labelmux_adapters.bank import Bank
from labelmux_adapters.errors import AdapterError, CanaryMismatchError, ForeignEncoderError
from labelmux_adapters.files import read_adapter, write_adapter
from labelmux_server.blobs import Blobs, digest_of
from labelmux_server.changes import Changes, UploadLimits
from labelmux_server.database import VersionRow
from labelmux_server.errors import (
    AdapterDamagedError,
    DigestMismatchError,
    DiskFullError,
    TaskExistsError,
    VersionActiveError,
    VersionNotFoundError,
)
from labelmux_server.library import Library
from labelmux_server.metrics import Metrics
from labelmux_server.pins import Pins
from labelmux_server.registry import Registry
from labelmux_server.release_errors import NoPreviousVersionError
from labelmux_server.residency import Residency
from labelmux_server.store import Store


class World:
    """A state folder, opened as a start of the server opens it."""

    def __init__(self, folder, loaded) -> None:
        self.store = Store(folder)
        self.bank = CountingBank.beside(loaded.encoder)
        self.registry = Registry()
        self.library = Library(self.store, self.registry, loaded.encoder)
        self.residency = Residency(self.bank, self.library.adapter, 1 << 30, Metrics(8))
        self.changes = Changes(
            self.store,
            self.registry,
            self.library,
            self.bank,
            self.residency,
            Pins(self.residency),
            loaded,
            UploadLimits(),
        )
        self.changes.load_stored()
        self.store.mark_started()

    def active(self) -> dict[str, tuple[int, str]]:
        return {v.task: (v.number, v.digest) for v in self.registry.active()}


class CountingBank(Bank):
    resident = 0

    def add(self, adapter):
        self.resident += 1
        return super().add(adapter)

    def remove(self, slot):
        self.resident -= 1
        super().remove(slot)


def blob_path(tmp_path, data: bytes):
    """Where an adapter's file lies."""
    name = digest_of(data).removeprefix("sha256:")
    return tmp_path / "state/blobs/sha256" / name[:2] / name


@pytest.fixture
def open_world(tmp_path, tiny_encoder):
    opened: list[World] = []

    def make(folder=tmp_path / "state") -> World:
        if opened:
            opened[-1].store.close()
        opened.append(World(folder, tiny_encoder))
        return opened[-1]

    yield make
    opened[-1].store.close()


@pytest.fixture
def foreign(make_adapter) -> bytes:
    adapter = make_adapter()
    manifest = adapter.manifest.model_copy(update={"encoder_fingerprint": "sha256:" + "1" * 64})
    return write_adapter(manifest, adapter.tensors)


@pytest.fixture
def lying(make_adapter) -> bytes:
    """Its canaries state logits that it does not give."""
    adapter = make_adapter()
    canaries = tuple(
        canary.model_copy(update={"logits": tuple(value + 1 for value in canary.logits)})
        for canary in adapter.manifest.canaries
    )
    return write_adapter(
        adapter.manifest.model_copy(update={"canaries": canaries}), adapter.tensors
    )


def test_uploads_serve_again_after_a_restart(open_world, adapter_bytes):
    world = open_world()
    for seed in (0, 1):
        world.changes.upload("t", adapter_bytes(seed=seed))
    world.changes.upload("u", adapter_bytes(seed=0))
    world.changes.activate("t", 1)
    before = world.active()
    world = open_world()
    assert world.active() == before
    assert [v.number for v in world.registry.versions("t")] == [1, 2]


def test_the_same_bytes_are_the_same_version(open_world, adapter_bytes):
    world = open_world()
    first = world.changes.upload("t", adapter_bytes(seed=0))
    world.changes.upload("t", adapter_bytes(seed=1))
    again = world.changes.upload("t", adapter_bytes(seed=0))
    assert first.created
    assert not again.created
    assert again.version.number == 1
    assert world.active()["t"][0] == 1
    assert [h.action for h in world.store.history("t")] == ["upload", "upload", "activate"]
    assert world.bank.resident == 2


@pytest.mark.parametrize("step", ["blob", "row"])
def test_an_upload_that_fails_half_way_changes_nothing(
    open_world, adapter_bytes, monkeypatch, step
):
    world = open_world()
    world.changes.upload("t", adapter_bytes(seed=0))
    before = (world.active(), world.store.versions(), world.bank.resident)

    def no_space(*_):
        raise DiskFullError("no space left")

    if step == "blob":
        monkeypatch.setattr(world.store.blobs, "put", no_space)
    else:
        monkeypatch.setattr(world.store, "add_version", no_space)
    with pytest.raises(DiskFullError):
        world.changes.upload("t", adapter_bytes(seed=1))
    assert (world.active(), world.store.versions(), world.bank.resident) == before
    assert digest_of(adapter_bytes(seed=1)) not in world.store.blobs
    monkeypatch.undo()
    assert world.changes.upload("t", adapter_bytes(seed=1)).version.number == 2


def test_a_refused_upload_leaves_the_file_of_a_task_that_does_not_serve(
    open_world, adapter_bytes, foreign, monkeypatch
):
    world = open_world()
    world.changes.upload("t", adapter_bytes(seed=0))
    world.changes.upload("t", adapter_bytes(seed=1))
    other = digest_of(foreign)
    world.store.blobs.put(other, foreign)
    world.store.put_manifest(other, read_adapter(foreign).manifest)
    with world.store._change() as session:
        session.get_one(VersionRow, ("t", 2)).digest = other
    world = open_world()
    assert world.active() == {}

    def no_space(*_):
        raise DiskFullError("no space left")

    monkeypatch.setattr(world.store, "add_version", no_space)
    with pytest.raises(DiskFullError):
        world.changes.upload("u", adapter_bytes(seed=0))
    assert digest_of(adapter_bytes(seed=0)) in world.store.blobs


def test_a_blob_is_durable_before_its_row_and_the_row_before_the_pointer(
    open_world, adapter_bytes, monkeypatch
):
    world = open_world()
    events: list[str] = []
    for owner, name in (
        (world.bank, "add"),
        (world.store.blobs, "put"),
        (world.store, "add_version"),
        (world.registry, "add"),
    ):
        real = getattr(owner, name)

        def record(*args, real=real, name=name, owner=owner, **kwargs):
            events.append(f"{type(owner).__name__}.{name}")
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, record)
    world.changes.upload("t", adapter_bytes())
    assert events == ["CountingBank.add", "Blobs.put", "Store.add_version", "Registry.add"]


def test_a_file_that_does_not_belong_changes_nothing(open_world, adapter_bytes, foreign, lying):
    world = open_world()
    world.changes.upload("t", adapter_bytes(seed=0))
    before = (world.active(), world.store.versions(), world.bank.resident)
    for data, error in (
        (b"nonsense", AdapterError),
        (adapter_bytes(seed=1)[:-1], AdapterError),
        (foreign, ForeignEncoderError),
        (lying, CanaryMismatchError),
    ):
        with pytest.raises(error):
            world.changes.upload("t", data)
    with pytest.raises(DigestMismatchError):
        world.changes.upload("t", adapter_bytes(seed=1), sha256="0" * 64)
    with pytest.raises(TaskExistsError):
        world.changes.upload("t", adapter_bytes(seed=1), create_only=True)
    assert (world.active(), world.store.versions(), world.bank.resident) == before


def test_rollback_goes_back_by_history(open_world, adapter_bytes):
    world = open_world()
    for seed in range(3):
        world.changes.upload("t", adapter_bytes(seed=seed))
    assert world.changes.rollback("t").number == 2
    world = open_world()
    assert world.changes.rollback("t").number == 1
    with pytest.raises(NoPreviousVersionError):
        world.changes.rollback("t")


def test_deleting_frees_disk_and_bank(open_world, adapter_bytes, tmp_path):
    world = open_world()
    for seed in range(2):
        world.changes.upload("t", adapter_bytes(seed=seed))
    with pytest.raises(VersionActiveError):
        world.changes.delete_version("t", 2)
    world.changes.delete_version("t", 1)
    assert world.bank.resident == 1
    world.changes.delete_task("t")
    assert world.bank.resident == 0
    assert [path for path in (tmp_path / "state/blobs").rglob("*") if path.is_file()] == []
    assert open_world().active() == {}


def test_a_load_that_meets_a_delete_is_told_that_the_version_is_gone(
    open_world, adapter_bytes, monkeypatch
):
    world = open_world()
    world.changes.upload("t", adapter_bytes(seed=0))
    world.changes.upload("t", adapter_bytes(seed=1))
    remove, met = world.registry.remove, []

    def load_first(task, number=None):
        with pytest.raises(VersionNotFoundError):
            world.library.adapter(world.registry.get(task, number))
        met.append(number)
        return remove(task, number)

    monkeypatch.setattr(world.registry, "remove", load_first)
    world.changes.delete_version("t", 1)
    world.changes.delete_task("t")
    assert met == [1, None]


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_file_fails_its_own_task_until_it_is_uploaded_again(
    open_world, adapter_bytes, tmp_path, damage
):
    world = open_world()
    bad, good = adapter_bytes(seed=0), adapter_bytes(seed=1)
    world.changes.upload("bad", bad)
    world.changes.upload("good", good)
    path = blob_path(tmp_path, bad)
    if damage == "changed":
        path.write_bytes(bad[:-1] + b"?")
    else:
        path.unlink()
    world = open_world()
    assert set(world.active()) == {"bad", "good"}
    with pytest.raises(AdapterDamagedError, match="upload"):
        world.residency.hold(world.registry.get("bad")).slot.result(20)
    world.residency.hold(world.registry.get("good")).slot.result(20)
    assert (tmp_path / "state/quarantine" / path.name).is_file() == (damage == "changed")
    assert world.changes.upload("bad", bad).version.number == 1
    world = open_world()
    world.residency.hold(world.registry.get("bad")).slot.result(20)


def test_an_upload_mends_a_file_whose_damage_nobody_has_met(open_world, adapter_bytes, tmp_path):
    data = adapter_bytes()
    open_world().changes.upload("t", data)
    path = blob_path(tmp_path, data)
    path.write_bytes(data[:-1] + b"?")
    open_world().changes.upload("t", data)
    assert path.read_bytes() == data
    world = open_world()
    world.residency.hold(world.registry.get("t")).slot.result(20)


@pytest.mark.parametrize("task", ["t", "another"])
def test_an_upload_mends_a_file_that_is_just_found_damaged(
    open_world, adapter_bytes, tmp_path, monkeypatch, task
):
    data = adapter_bytes()
    open_world().changes.upload("t", data)
    blob_path(tmp_path, data).write_bytes(data[:-1] + b"?")
    world = open_world()
    found, go_on = threading.Event(), threading.Event()
    set_aside = Blobs.set_aside

    def late(*args, **options):
        found.set()
        assert go_on.wait(20)
        set_aside(*args, **options)

    monkeypatch.setattr(Blobs, "set_aside", late)
    with ThreadPoolExecutor() as pool:
        # A download and a load find it; the upload's bytes are there before either sets it aside.
        download = pool.submit(world.library.file, world.registry.get("t"))
        assert found.wait(20)
        Blobs(tmp_path / "state").put(digest_of(data), data)
        go_on.set()
        with pytest.raises(AdapterDamagedError):
            download.result(20)
        assert blob_path(tmp_path, data).read_bytes() == data

        blob_path(tmp_path, data).write_bytes(data[:-1] + b"?")
        found.clear()
        go_on.clear()
        hold = world.residency.hold(world.registry.get("t"))
        assert found.wait(20)
        upload = pool.submit(world.changes.upload, task, data)
        go_on.set()
        with pytest.raises(AdapterDamagedError):
            hold.slot.result(20)
        upload.result(20)
    world.residency.hold(world.registry.get(task)).slot.result(20)
    assert blob_path(tmp_path, data).read_bytes() == data


def test_a_start_reads_no_adapter_file(open_world, adapter_bytes, monkeypatch):
    world = open_world()
    world.changes.upload("t", adapter_bytes(seed=0))
    world.changes.upload("pairs", adapter_bytes(seed=1, pair=True))

    def read(*_):
        raise AssertionError("a file was read")

    monkeypatch.setattr(Blobs, "read", read)
    world = open_world()
    assert world.bank.resident == 0
    assert [(v.task, v.pair) for v in world.registry.active()] == [("pairs", True), ("t", False)]
    assert world.registry.get("t").manifest.labels == ("a", "b")


def test_a_folder_without_manifests_gets_them_from_its_files(open_world, adapter_bytes, tmp_path):
    world = open_world()
    for seed in range(3):
        world.changes.upload(f"t{seed}", adapter_bytes(seed=seed))
    damaged = world.registry.get("t2").digest.removeprefix("sha256:")
    (tmp_path / "state/blobs/sha256" / damaged[:2] / damaged).write_bytes(b"x")
    with world.store._change() as session:
        session.execute(text("DELETE FROM manifests"))
    world = open_world()
    assert set(world.active()) == {"t0", "t1"}
    assert (tmp_path / "state/quarantine" / damaged).is_file()
    assert world.registry.get("t0").manifest.labels == ("a", "b")


def test_tasks_with_equal_files_share_one_place(open_world, adapter_bytes):
    world = open_world()
    for task in ("t", "u"):
        world.changes.upload(task, adapter_bytes())
    assert world.bank.resident == 1
    world.changes.delete_task("t")
    assert world.bank.resident == 1
    world.changes.delete_task("u")
    assert world.bank.resident == 0


def test_files_of_uploads_that_were_never_acknowledged_are_swept(open_world, adapter_bytes):
    world = open_world()
    world.changes.upload("t", adapter_bytes(seed=0))
    orphan = adapter_bytes(seed=1)
    world.store.blobs.put(digest_of(orphan), orphan)
    world = open_world()
    assert world.store.blobs.sweep(world.store.needed_digests()) == []
    assert set(world.active()) == {"t"}


def test_adapters_of_another_encoder_wait_untouched_for_theirs(
    open_world, adapter_bytes, tiny_encoder, tmp_path, foreign, caplog
):
    world = open_world()
    world.changes.upload("t", adapter_bytes())
    other = digest_of(foreign)
    world.store.blobs.put(other, foreign)
    with world.store._change() as session:
        session.get_one(VersionRow, ("t", 1)).digest = other
    world.store.put_manifest(other, read_adapter(foreign).manifest)
    with caplog.at_level(logging.ERROR):
        world = open_world()
    assert world.active() == {}
    assert "left out" in caplog.text
    assert world.store.blobs.read(other) == foreign


def test_demo_adapters_are_named_by_their_files_and_misfits_are_passed_over(
    open_world, adapter_bytes, foreign, tmp_path, caplog
):
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "sentiment.safetensors").write_bytes(adapter_bytes())
    (folder / "elsewhere.safetensors").write_bytes(foreign)
    (folder / "broken.safetensors").write_bytes(b"?")
    (folder / "bad name.safetensors").write_bytes(adapter_bytes())
    (folder / "notes.txt").write_text("not an adapter")
    world = open_world()
    with caplog.at_level(logging.WARNING):
        world.changes.seed(folder)
    assert set(world.active()) == {"sentiment"}
    for name in ("elsewhere", "broken", "bad name"):
        assert f"demo task {name} left out" in caplog.text


def test_only_a_fresh_folder_is_seeded(serving, adapter_bytes, tmp_path):
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "sentiment.safetensors").write_bytes(adapter_bytes())

    async def delete(client, service):
        assert "sentiment" in service.registry
        await client.delete("/v1/tasks/sentiment")

    async def count(client, service):
        return len(service.registry)

    serving(delete, no_demo=False, demo_dir=folder)
    assert serving(count, no_demo=False, demo_dir=folder) == 0
    shutil.rmtree(tmp_path / "state")
    assert serving(count, no_demo=True, demo_dir=folder) == 0
    assert serving(count, no_demo=False, demo_dir=folder) == 0


def test_an_adapter_that_claims_more_tokens_than_its_encoder_reads_is_refused(
    open_world, make_adapter
):
    adapter = make_adapter()
    data = write_adapter(adapter.manifest.model_copy(update={"max_tokens": 65}), adapter.tensors)
    with pytest.raises(AdapterError, match="64"):
        open_world().changes.upload("t", data)
