"""Uploads under load, against a real server: no request fails, every answer is its version's."""

from __future__ import annotations

import asyncio
import dataclasses

import httpx2
import numpy as np
import pytest

from labelmux_adapters.canaries import serve_logits
from labelmux_adapters.files import read_adapter, write_adapter
from labelmux_adapters.scores import to_scores

CLIENTS = 8
UPLOADS = 100
ROUNDS = 10
TOLERANCE = 1e-5
TEXTS = (
    "the train to the coast",
    "a good film with a warm heart",
    "the soup was cold, the bread was stale and nobody cared!",
    "win a free prize now",
    "what is the capital of the country? where do rivers begin?",
)


@dataclasses.dataclass
class Seen:
    """What the clients got."""

    answers: int = 0
    digests: set[str] = dataclasses.field(default_factory=set)


@pytest.fixture(scope="module")
def opposites(make_adapter) -> list[bytes]:
    """Two adapters that give each text opposite labels."""
    adapter = make_adapter(labels=("good", "bad"))
    flipped = adapter.manifest.model_copy(update={"labels": ("bad", "good")})
    return [
        write_adapter(adapter.manifest, adapter.tensors),
        write_adapter(flipped, adapter.tensors),
    ]


@pytest.fixture(scope="module")
def offline(opposites, tiny_encoder) -> dict[str, dict[str, dict[str, float]]]:
    """By digest and text, the scores that each version gives without a server."""
    expected = {}
    for data in opposites:
        adapter = read_adapter(data)
        logits = [serve_logits(adapter, tiny_encoder, [text])[0] for text in TEXTS]
        expected[adapter.digest] = {
            text: dict(
                zip(
                    adapter.manifest.labels,
                    to_scores(row, adapter.manifest).tolist(),
                    strict=True,
                )
            )
            for text, row in zip(TEXTS, logits, strict=True)
        }
    first, second = expected.values()
    assert all(np.sign(first[t]["good"] - 0.5) == -np.sign(second[t]["good"] - 0.5) for t in TEXTS)
    return expected


def check(result: dict, text: str, offline: dict) -> str:
    """The digest that a result names, after comparing its scores with that version's."""
    prediction = result["predictions"]["t"]
    expected = offline[prediction["digest"]][text]
    for entry in prediction["labels"]:
        assert abs(entry["score"] - expected[entry["label"]]) <= TOLERANCE
    return str(prediction["digest"])


async def ask_without_pause(
    url: str, number: int, offline: dict, stop: asyncio.Event, seen: Seen, versions: int = 1
) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
        turn = number
        while not stop.is_set():
            texts = [TEXTS[(turn + at) % len(TEXTS)] for at in range(1 + turn % 3)]
            answer = await client.post("/v1/classify", json={"task": "t", "texts": texts})
            assert answer.status_code == 200, answer.text
            results = zip(answer.json()["results"], texts, strict=True)
            digests = {check(result, text, offline) for result, text in results}
            assert len(digests) <= versions, "one request was answered by too many versions"
            seen.digests |= digests
            seen.answers += 1
            turn += 1


@pytest.mark.slow
def test_a_hundred_swaps_under_load_fail_no_request_and_mix_no_weights(
    start_server, opposites, offline
):
    server = start_server()
    digests = list(offline)

    async def upload_all(client, seen: Seen) -> None:
        for turn in range(1, UPLOADS):
            answer = await client.put("/v1/tasks/t/adapter", content=opposites[turn % 2])
            assert answer.status_code in (200, 201), answer.text
            assert answer.json()["digest"] == digests[turn % 2]
            body = {"task": "t", "texts": TEXTS[0]}
            after = (await client.post("/v1/classify", json=body)).json()
            assert check(after["results"][0], TEXTS[0], offline) == digests[turn % 2]
            answers = seen.answers
            async with asyncio.timeout(30):
                while seen.answers < answers + CLIENTS // 2:
                    await asyncio.sleep(0.001)

    async def main() -> Seen:
        seen, stop = Seen(), asyncio.Event()
        async with httpx2.AsyncClient(base_url=server.url, timeout=60) as client:
            first = await client.put("/v1/tasks/t/adapter", content=opposites[0])
            assert first.status_code == 201
            async with asyncio.TaskGroup() as group:
                for number in range(CLIENTS):
                    group.create_task(ask_without_pause(server.url, number, offline, stop, seen))
                await upload_all(client, seen)
                stop.set()
            versions = (await client.get("/v1/tasks/t/versions")).json()
            assert len(versions["versions"]) == 2
            assert len(versions["history"]) == UPLOADS
        return seen

    seen = asyncio.run(main())
    assert seen.digests == set(digests)
    assert seen.answers >= UPLOADS * CLIENTS // 2


async def change(client, method: str, path: str, body: object = None) -> None:
    answer = await client.request(method, f"/v1/tasks/t/{path}", json=body)
    assert answer.status_code < 300, answer.text


async def more_answers(seen: Seen, count: int) -> None:
    wanted = seen.answers + count
    async with asyncio.timeout(60):
        while seen.answers < wanted:
            await asyncio.sleep(0.001)


@pytest.mark.slow
def test_canaries_and_shadows_come_and_go_under_load_and_outlive_a_kill(
    start_server, opposites, offline
):
    server = start_server()
    first, second = offline

    async def release(client, seen: Seen) -> None:
        for turn in range(ROUNDS):
            active, other = 1 + turn % 2, 2 - turn % 2
            await change(client, "POST", "shadow", {"version": other})
            for share in (0.2, 0.5, 1.0):
                await change(client, "POST", "canary", {"version": other, "share": share})
                await more_answers(seen, CLIENTS)
            if turn % 3 == 0:
                await change(client, "DELETE", "canary")
            trials = (await client.get("/v1/tasks/t/trials")).json()
            assert trials["active"] == active
            assert trials["shadow"]["agreed"] == 0
            await change(client, "POST", "activate", {"version": other})
            await more_answers(seen, CLIENTS // 2)

    async def load() -> Seen:
        seen, stop = Seen(), asyncio.Event()
        async with httpx2.AsyncClient(base_url=server.url, timeout=60) as client:
            for activate, data in zip(("now", "later"), opposites, strict=True):
                url = f"/v1/tasks/t/adapter?activate={activate}"
                assert (await client.put(url, content=data)).status_code == 201
            async with asyncio.TaskGroup() as group:
                for number in range(CLIENTS):
                    group.create_task(
                        ask_without_pause(server.url, number, offline, stop, seen, versions=2)
                    )
                await release(client, seen)
                stop.set()
            await change(client, "POST", "shadow", {"version": 2})
            await change(client, "POST", "canary", {"version": 2, "share": 0.5})
        return seen

    def split(url: str) -> list[str]:
        texts = [f"{text} {other}" for text in TEXTS for other in TEXTS]
        body = {"task": "t", "texts": texts}
        answer = httpx2.post(f"{url}/v1/classify", json=body, timeout=60).json()
        return [result["predictions"]["t"]["digest"] for result in answer["results"]]

    assert asyncio.run(load()).digests == {first, second}
    before = split(server.url)
    assert {*before} == {first, second}
    server.kill()
    again = start_server()
    assert split(again.url) == before
    trials = httpx2.get(f"{again.url}/v1/tasks/t/trials").json()
    assert (trials["shadow"]["version"], trials["canary"]["share"]) == (2, 0.5)
