"""Tasks that are registered and not resident, as callers see them."""

from __future__ import annotations

import asyncio
import threading

import pytest

LIMIT_S = 20


@pytest.fixture
def stored(serving, adapter_bytes):
    """A state folder with the tasks ``hot`` and ``cold``, neither resident at the next start."""

    async def upload(client, service):
        for seed, task in enumerate(("hot", "cold")):
            answer = await client.put(
                f"/v1/tasks/{task}/adapter",
                content=adapter_bytes(seed=seed),
                headers={"content-type": "application/octet-stream"},
            )
            assert answer.status_code == 201
            assert service.registry.get(task).digest in service.residency

    serving(upload)


async def classify(client, *tasks: str):
    return await client.post("/v1/classify", json={"tasks": list(tasks), "texts": ["the train"]})


def predictions(answer):
    assert answer.status_code == 200
    return answer.json()["results"][0]["predictions"]


def test_tasks_are_listed_without_being_resident(serving, stored):
    async def scenario(client, service):
        tasks = (await client.get("/v1/tasks")).json()["tasks"]
        assert [task["task"] for task in tasks] == ["cold", "hot"]
        assert (await client.get("/v1/tasks/cold")).json()["labels"] == ["a", "b"]
        assert service.residency.resident_bytes == 0

    serving(scenario)


def test_a_cold_load_stalls_no_other_request(serving, stored):
    async def scenario(client, service):
        gate, read = threading.Event(), service.residency._read

        def gated(version):
            assert version.task == "hot" or gate.wait(LIMIT_S)
            return read(version)

        service.residency._read = gated
        waiting = [asyncio.create_task(classify(client, "cold", "hot")) for _ in range(3)]
        for _ in range(3):
            assert "labels" in predictions(await classify(client, "hot"))["hot"]
        assert not any(task.done() for task in waiting)
        gate.set()
        for answer in await asyncio.gather(*waiting):
            assert {"cold", "hot"} == {
                name for name, cell in predictions(answer).items() if "labels" in cell
            }

    serving(scenario)


def test_a_caller_that_leaves_during_a_load_spoils_it_for_nobody(serving, stored):
    async def scenario(client, service):
        gate, entered, read = threading.Event(), threading.Event(), service.residency._read

        def gated(version):
            entered.set()
            assert gate.wait(LIMIT_S)
            return read(version)

        service.residency._read = gated
        left = asyncio.create_task(classify(client, "cold"))
        await asyncio.to_thread(entered.wait, LIMIT_S)
        stays = asyncio.create_task(classify(client, "cold"))
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        gate.set()
        assert "labels" in predictions(await stays)["cold"]

    serving(scenario)


def test_a_damaged_file_is_told_to_those_who_ask_for_it_alone(serving, stored, tmp_path):
    async def scenario(client, service):
        digest = service.registry.get("cold").digest
        name = digest.removeprefix("sha256:")
        (tmp_path / "state/blobs/sha256" / name[:2] / name).write_bytes(b"x")
        found = predictions(await classify(client, "cold", "hot"))
        assert found["cold"]["error"]["code"] == "adapter_damaged"
        assert found["cold"]["error"]["digest"] == digest
        assert "labels" in found["hot"]
        alone = {"task": "cold", "texts": ["the train"]}
        assert (await client.post("/v1/classify", json=alone)).status_code == 500

    serving(scenario)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (RuntimeError("device on fire"), "internal"),
    ],
)
def test_an_adapter_that_finds_no_place_on_the_device_fails_its_task_alone(
    serving, stored, monkeypatch, fault, code
):
    async def scenario(client, service):
        await classify(client, "hot")

        def add(_):
            raise fault

        with monkeypatch.context() as patch:
            patch.setattr(service._bank, "add", add)
            found = predictions(await classify(client, "cold", "hot"))
        assert found["cold"]["error"]["code"] == code
        assert "labels" in found["hot"]
        assert "labels" in predictions(await classify(client, "cold"))["cold"]

    serving(scenario)


def test_a_load_that_fails_is_told_to_many_in_a_log_of_as_many_lines(
    serving, stored, tmp_path, caplog
):
    for path in (tmp_path / "state" / "blobs").rglob("*"):
        if path.is_file():
            path.write_bytes(b"x")

    async def scenario(client, service):
        gate, read = threading.Event(), service.residency._read

        def gated(version):
            assert gate.wait(LIMIT_S)
            return read(version)

        service.residency._read = gated
        body = {"task": "cold", "texts": ["the train"]}
        waiting = [asyncio.create_task(client.post("/v1/classify", json=body)) for _ in range(24)]
        held = next(iter(service.residency._places.values()), None)
        while held is None or held.holds < len(waiting):
            await asyncio.sleep(0)
            held = next(iter(service.residency._places.values()), None)
        gate.set()
        answers = await asyncio.gather(*waiting)
        assert {answer.json()["error"]["code"] for answer in answers} == {"adapter_damaged"}

    serving(scenario)
    traced = [caplog.handler.format(r).count("\n") for r in caplog.records if r.exc_info]
    assert len(traced) >= 24
    assert max(traced) < 4 * min(traced)


def test_more_tasks_than_fit_at_once_are_refused_by_name(serving, stored):
    async def scenario(client, service):
        version = service.registry.get("hot")
        service.residency._max_bytes = service._bank.bytes_of(version.manifest)
        found = predictions(await classify(client, "hot", "cold"))
        assert "labels" in found["hot"]
        assert found["cold"]["error"]["code"] == "bank_full"
        assert "labels" in predictions(await classify(client, "cold"))["cold"]

    serving(scenario)
