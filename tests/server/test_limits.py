"""Every limit: one more than it allows is refused with the error of its own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from labelmux_server.settings import Settings

#: Limits of time and memory, which have tests of their own, and sizes of batches.
ELSEWHERE = {
    "max_queue_s": "test_overload",
    "max_resident_bytes": "test_residency",
    "max_requests_per_minute": "test_rates",
    "max_tokens_per_minute": "test_rates",
    "max_head_bytes": "test_connections",
    "max_batch_tokens": "",
    "max_batch_rows": "",
    "max_wait_ms": "",
}


async def put(client: Any, task: str, data: bytes) -> Any:
    return await client.put(f"/v1/tasks/{task}/adapter", content=data)


async def classify(client: Any, **body: Any) -> Any:
    body = {"task": "t", "texts": "a film"} | body
    return await client.post("/v1/classify", json=body)


def says(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def tasks(*names: str) -> dict[str, Any]:
    return {"task": None, "tasks": list(names)}


CALLS = {
    "max_body_bytes": (
        {"max_body_bytes": 2000, "max_text_chars": 900},
        {"texts": ["x" * 850] * 2},
        {"texts": ["x" * 850] * 3},
        (413, "body_too_large"),
    ),
    "max_client_batch_size": (
        {"max_client_batch_size": 2},
        {"texts": ["a", "b"]},
        {"texts": ["a", "b", "c"]},
        (413, "too_many_texts"),
    ),
    "max_tasks_per_call": (
        {"max_tasks_per_call": 1},
        tasks("t"),
        tasks("*"),
        (413, "too_many_tasks"),
    ),
    "max_text_chars": (
        {"max_text_chars": 10},
        {"texts": "x" * 10},
        {"texts": "x" * 11},
        (413, "text_too_long"),
    ),
    "max_text_tokens": (
        {"max_text_tokens": 8},
        {"texts": "a good film with a warm heart"},
        {"texts": "a good film with a warm heart", "truncation": False},
        (422, "text_truncated"),
    ),
    "max_queue_rows": (
        {"max_queue_rows": 4, "max_client_batch_size": 4},
        tasks("*") | {"texts": ["a", "b"]},
        tasks("*") | {"texts": ["a", "b", "c"]},
        (413, "too_many_texts"),
    ),
    "max_queue_tokens": (
        {"max_queue_tokens": 64, "max_batch_tokens": 64, "max_client_batch_size": 8},
        {"texts": "the coast " * 40},
        {"texts": ["the coast " * 40, "the bread " * 40]},
        (413, "too_many_texts"),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_at_the_limit_passes_and_one_beyond_it_is_refused(serving, adapter_bytes, name):
    settings, within, beyond, expected = CALLS[name]

    async def scenario(client, service):
        for task in ("t", "u"):
            await put(client, task, adapter_bytes())
        answer = await classify(client, **within)
        assert answer.status_code == 200, answer.text
        refused = await classify(client, **beyond)
        assert says(refused) == expected
        assert str(settings[name]) in refused.json()["error"]["message"]

    serving(scenario, **settings)


def test_a_text_over_the_token_limit_is_cut_and_says_so(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        answer = (await classify(client, texts="a good film with a warm heart")).json()
        assert answer["tokens"] == 8
        assert answer["results"][0]["predictions"]["t"]["truncated"] is True

    serving(scenario, max_text_tokens=8)


def test_windows_are_no_longer_than_the_token_limit(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        body = {"texts": "a good film with a warm heart", "windows": {"overlap_tokens": 3}}
        answer = await classify(client, **body)
        assert answer.json()["results"][0]["predictions"]["t"]["windows"] > 1
        body["windows"]["overlap_tokens"] = 4
        assert says(await classify(client, **body)) == (422, "overlap_too_long")

    serving(scenario, max_text_tokens=8)


UPLOADS = {
    "max_upload_bytes": ({}, {"width": 32}, (413, "file_too_large")),
    "max_adapter_labels": ({}, {"labels": ("a", "b", "c")}, (400, "bad_labels")),
    "max_adapter_header_bytes": ({}, {"labels": ("a" * 200, "b")}, (400, "header_too_large")),
}


def sizes(data: bytes) -> dict[str, int]:
    return {
        "max_upload_bytes": len(data),
        "max_adapter_labels": 2,
        "max_adapter_header_bytes": int.from_bytes(data[:8], "little"),
    }


@pytest.mark.parametrize("name", UPLOADS)
def test_a_file_at_the_limit_is_taken_and_one_beyond_it_refused(serving, adapter_bytes, name):
    within, beyond, expected = UPLOADS[name]
    limit = sizes(adapter_bytes(**within))[name]

    async def scenario(client, service):
        assert (await put(client, "t", adapter_bytes(**within))).status_code == 201
        refused = await put(client, "t", adapter_bytes(**beyond))
        assert says(refused) == expected
        assert str(limit) in refused.json()["error"]["message"]

    serving(scenario, **{name: limit})


def test_a_file_with_more_tensors_than_the_limit_is_refused(serving, make_adapter, adapter_bytes):
    count = len(make_adapter().tensors)

    async def upload(client, service):
        return await put(client, "t", adapter_bytes())

    assert serving(upload, max_adapter_tensors=count).status_code == 201
    assert says(serving(upload, max_adapter_tensors=count - 1)) == (400, "header_too_large")


def test_a_server_takes_no_more_tasks_than_it_may_have(serving, adapter_bytes):
    async def scenario(client, service):
        assert (await put(client, "t", adapter_bytes(seed=1))).status_code == 201
        refused = await put(client, "u", adapter_bytes(seed=1))
        assert says(refused) == (507, "store_full")
        assert "max_tasks" in refused.json()["error"]["message"]
        assert (await put(client, "t", adapter_bytes(seed=2))).status_code == 201
        await client.delete("/v1/tasks/t")
        assert (await put(client, "u", adapter_bytes(seed=1))).status_code == 201

    serving(scenario, max_tasks=1)


def test_a_server_takes_no_more_adapters_than_it_may_have(serving, adapter_bytes):
    async def scenario(client, service):
        for seed in (1, 2):
            assert (await put(client, "t", adapter_bytes(seed=seed))).status_code == 201
        for task in ("t", "u"):
            refused = await put(client, task, adapter_bytes(seed=3))
            assert says(refused) == (507, "store_full")
        assert "max_adapters" in refused.json()["error"]["message"]
        assert (await put(client, "t", adapter_bytes(seed=1))).status_code == 200
        await client.delete("/v1/tasks/t/versions/2")
        assert (await put(client, "u", adapter_bytes(seed=3))).status_code == 201

    serving(scenario, max_adapters=2)


def test_demo_tasks_beyond_the_limit_are_left_out(serving, adapter_bytes, tmp_path):
    demo = tmp_path / "demo"
    demo.mkdir()
    for name in ("a", "b"):
        (demo / f"{name}.safetensors").write_bytes(adapter_bytes())

    async def scenario(client, service):
        return [version.task for version in service.registry.active()]

    assert serving(scenario, max_tasks=1, no_demo=False, demo_dir=demo) == ["a"]


def test_what_is_stored_serves_on_under_lower_limits(serving, adapter_bytes):
    async def upload(client, service):
        assert (await put(client, "t", adapter_bytes(("a", "b", "c")))).status_code == 201

    async def ask(client, service):
        return (await classify(client)).status_code

    serving(upload)
    lower = dict.fromkeys((*UPLOADS, "max_adapter_tensors"), 2)
    assert serving(ask, **lower, max_tasks=1, max_adapters=1) == 200


def test_a_request_beyond_those_in_work_is_refused_but_no_probe(
    serving, adapter_bytes, gate_replica
):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        gated = gate_replica(service)
        first = asyncio.ensure_future(classify(client))
        async with asyncio.timeout(20):
            while not gated.entered.is_set():
                await asyncio.sleep(0.002)
        for refused in (await classify(client), await client.get("/v1/tasks")):
            assert says(refused) == (429, "overloaded")
            assert refused.headers["retry-after"] == "1"
            assert refused.headers["x-request-id"]
        assert (await client.get("/health/ready")).status_code == 200
        assert "labelmux_requests_in_flight 1.0" in service.metrics.render().decode()
        gated.gate.set()
        assert (await first).status_code == 200
        assert (await classify(client)).status_code == 200

    serving(scenario, max_concurrent_requests=1)


def test_every_limit_has_a_test():
    here = CALLS.keys() | UPLOADS.keys() | ELSEWHERE.keys()
    here |= {"max_adapter_tensors", "max_tasks", "max_adapters", "max_concurrent_requests"}
    here |= {"max_uploads", "max_gate_bytes"}  # test_routes_tasks, test_gate
    assert here == {knob.name for knob in Settings.knobs() if knob.name.startswith("max_")}
