"""Tasks that are in the bank before the first request, and those that never leave it."""

from __future__ import annotations

import httpx2
import pytest

from labelmux_server.errors import SettingsError
from labelmux_server.registry import Version

BYTES = {"content-type": "application/octet-stream"}
TASKS = ("shop-a", "shop-b", "other")


async def put(client, task: str, data: bytes) -> None:
    answer = await client.put(f"/v1/tasks/{task}/adapter", content=data, headers=BYTES)
    assert answer.status_code in (200, 201), answer.text


async def ask(client, *tasks: str) -> dict:
    answer = await client.post("/v1/classify", json={"tasks": tasks, "texts": ["the train"]})
    return answer.json()["results"][0]["predictions"]


def resident(service) -> set[str]:
    return {v.task for v in service.registry.active() if v.digest in service.residency}


def bytes_of(service, version: Version) -> int:
    return service._bank.bytes_of(version.manifest)


@pytest.fixture
def one_adapter_bytes(serving, adapter_bytes) -> int:
    """A state folder with three tasks of equal size, none resident at the next start; that size."""

    async def upload(client, service):
        for seed, task in enumerate(TASKS):
            await put(client, task, adapter_bytes(seed=seed))
        return bytes_of(service, service.registry.get("other"))

    return serving(upload)


@pytest.mark.parametrize(
    ("preload", "pin", "found"),
    [
        (None, None, set()),
        ("other", None, {"other"}),
        ("shop-*", None, {"shop-a", "shop-b"}),
        ("other, shop-a", None, {"other", "shop-a"}),
        ("other", "shop-?", set(TASKS)),
        (None, "not-yet-there, other", {"other"}),
        ("*", None, set(TASKS)),
    ],
)
def test_what_is_preloaded_or_pinned_is_there_before_the_first_request(
    serving, one_adapter_bytes, preload, pin, found
):
    async def scenario(client, service):
        assert (await client.get("/health/ready")).status_code == 200
        assert resident(service) == found

    serving(scenario, preload=preload, pin=pin)


def test_a_pinned_task_stays_where_a_preloaded_one_gives_way(serving, one_adapter_bytes):
    async def scenario(client, service):
        assert resident(service) == {"shop-a", "shop-b"}
        await ask(client, "other")
        assert resident(service) == {"shop-a", "other"}
        await ask(client, "shop-b")
        assert resident(service) == {"shop-a", "shop-b"}

    serving(scenario, preload="shop-b", pin="shop-a", max_resident_bytes=2 * one_adapter_bytes)


def test_the_pin_follows_the_active_version(serving, one_adapter_bytes, adapter_bytes):
    async def scenario(client, service):
        await put(client, "shop-a", adapter_bytes(seed=7))
        first, second = service.registry.versions("shop-a")
        await ask(client, "other")
        assert second.digest in service.residency
        assert first.digest not in service.residency
        answer = await client.post("/v1/tasks/shop-a/rollback")
        assert answer.status_code == 200
        await ask(client, "shop-b")
        await ask(client, "other")
        assert first.digest in service.residency
        assert second.digest not in service.residency

    serving(scenario, pin="shop-a", max_resident_bytes=2 * one_adapter_bytes)


def test_a_deleted_task_is_pinned_no_more(serving, one_adapter_bytes):
    async def scenario(client, service):
        digest = service.registry.get("shop-a").digest
        assert (await client.delete("/v1/tasks/shop-a")).status_code == 204
        assert digest not in service.residency
        assert service.residency.resident_bytes == 0

    serving(scenario, pin="shop-a")


def test_an_upload_that_the_disk_refuses_leaves_the_pin_where_it_was(
    serving, one_adapter_bytes, adapter_bytes, tmp_path
):
    async def scenario(client, service):
        before = service.registry.get("shop-a")
        # A file in place of the folder: refused to root too, as by a full disk.
        blobs = tmp_path / "state/blobs/sha256"
        kept = blobs.rename(tmp_path / "kept")
        blobs.write_text("")
        answer = await client.put(
            "/v1/tasks/shop-a/adapter", content=adapter_bytes(seed=7), headers=BYTES
        )
        assert answer.status_code >= 500
        blobs.unlink()
        kept.rename(blobs)
        for task in ("shop-b", "other", "shop-b"):
            await ask(client, task)
        assert before.digest in service.residency
        assert "labels" in (await ask(client, "shop-a"))["shop-a"]

    serving(scenario, pin="shop-a", max_resident_bytes=2 * one_adapter_bytes)


def test_a_damaged_adapter_is_not_preloaded_and_the_rest_serves(
    serving, one_adapter_bytes, adapter_bytes, tmp_path, caplog
):
    async def damage(_, service):
        name = service.registry.get("shop-a").digest.removeprefix("sha256:")
        (tmp_path / "state/blobs/sha256" / name[:2] / name).write_bytes(b"x")

    async def scenario(client, service):
        assert "shop-a is not preloaded" in caplog.text
        found = await ask(client, "shop-a", "shop-b")
        assert found["shop-a"]["error"]["code"] == "adapter_damaged"
        assert "labels" in found["shop-b"]
        await put(client, "shop-a", adapter_bytes(seed=0))
        assert "labels" in (await ask(client, "shop-a"))["shop-a"]

    serving(damage)
    serving(scenario, pin="shop-*")


def test_names_that_are_not_there_and_tasks_that_do_not_fit_are_refused_at_start(
    serving, one_adapter_bytes
):
    async def nothing(client, service):
        raise AssertionError("it must not start")

    with pytest.raises(SettingsError, match="shop-c"):
        serving(nothing, preload="shop-a,shop-c")
    with pytest.raises(SettingsError, match="3 tasks to preload and pin do not fit"):
        serving(nothing, preload="other", pin="shop-*", max_resident_bytes=2 * one_adapter_bytes)


@pytest.mark.slow
def test_a_server_says_that_it_serves_once_they_are_there(start_server, adapter_bytes, until):
    first = start_server()
    for seed, task in enumerate(TASKS):
        url = f"{first.url}/v1/tasks/{task}/adapter"
        httpx2.put(url, content=adapter_bytes(seed=seed)).raise_for_status()
    first.terminate()
    assert first.process.wait(30) == 0
    second = start_server("--preload", "shop-*", "--pin", "other")
    metrics = httpx2.get(f"{second.url}/metrics").text
    assert "labelmux_resident_adapters 3.0" in metrics
