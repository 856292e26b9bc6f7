"""Mixed traffic for as long as is wanted: nothing grows, nothing is lost, no answer is wrong.

``make soak MINUTES=60`` for longer than the suite's half minute.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import math
import os
import random
import re
import statistics
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

pytestmark = pytest.mark.slow

MINUTES = float(os.environ.get("SOAK_MINUTES", "0.5"))
TOLERANCE = 2e-4
ASKERS, LEAVERS = 4, 1
NAMES = [f"task-{number}" for number in range(16)]
#: Fewer than all tasks need, so that adapters come and go, and sometimes none can.
RESIDENT_BYTES = 260_000
ABSENT = ("task_not_found", "version_not_found", "bank_full")
TAGS = ("O", "B-x", "I-x")
WORDS = ("train", "coast", "film", "soup", "bread", "dogs", "snow", "money", "win", "warm")
TEXTS = [f"the {a} {b} and the {c}" for a in WORDS for b in WORDS[:4] for c in WORDS[:3]]
#: What each change adds to the history, in bytes, indexes counted.
CHANGE_BYTES = 600
#: SQLite's log beside the database, before it is folded in.
LOG_BYTES = 8 * 1024 * 1024


def varieties() -> list[dict[str, Any]]:
    """Options of adapters of several methods and kinds."""
    methods = ("ytuning", "linear", "pasta", "unipelt", "lora", "prefix", "bottleneck", "bitfit")
    made = [{"method": name, "labels": ("a", "b", "c")} for name in methods]
    made += [{"method": name, "labels": TAGS, "task_kind": "token"} for name in ("ytuning", "lora")]
    made += [{"method": "ytuning", "labels": ("p", "q", "r", "s"), "task_kind": "multi_label"}]
    return [{**each, "seed": seed} for seed in (1, 2) for each in made]


@dataclasses.dataclass
class Sample:
    """What the server's process holds."""

    rss_bytes: int
    handles: int
    database_bytes: int


@dataclasses.dataclass
class Seen:
    """What all callers together did and got."""

    statuses: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    left: int = 0
    compared: int = 0
    changes: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)
    samples: list[Sample] = dataclasses.field(default_factory=list)

    def count(self, answer: httpx2.Response) -> httpx2.Response:
        self.statuses[answer.status_code] += 1
        if answer.status_code >= 500 and answer.json()["error"]["code"] != "bank_full":
            self.wrong.append(f"{answer.request.method} {answer.request.url}: {answer.text}")
        return answer


def said(prediction: dict[str, Any]) -> dict[Any, float]:
    """The scores of a prediction, by label or by place."""
    if "spans" in prediction:
        return {(s["start"], s["end"], s["label"]): s["score"] for s in prediction["spans"]}
    return {each["label"]: each["score"] for each in prediction["labels"]}


def same(found: dict[Any, float], alone: dict[Any, float]) -> bool:
    return found.keys() == alone.keys() and all(
        math.isclose(found[key], alone[key], abs_tol=TOLERANCE) for key in alone
    )


class Soak:
    """One run."""

    def __init__(self, server, files: list[bytes]) -> None:
        self._server = server
        self._files = files
        self._chance = random.Random(5)
        self.seen = Seen()
        #: By digest and text, what the adapter says where nothing else runs.
        self._alone: dict[tuple[str, str], dict[Any, float]] = {}
        self._ends = 0.0

    def client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=self._server.url, timeout=120)

    async def learn(self, client) -> None:
        """Ask every adapter alone, one text at a time."""
        for data in self._files:
            put = self.seen.count(await client.put("/v1/tasks/alone/adapter", content=data))
            for text in TEXTS:
                answer = await client.post("/v1/classify", json={"task": "alone", "texts": text})
                prediction = self.seen.count(answer).json()["results"][0]["predictions"]["alone"]
                self._alone[put.json()["digest"], text] = said(prediction)
        self.seen.count(await client.delete("/v1/tasks/alone"))

    async def run(self, minutes: float) -> None:
        async with self.client() as client:
            await self.learn(client)
            for name in NAMES:
                await self._upload(client, name)
            self._ends = time.monotonic() + 60 * minutes
            async with asyncio.TaskGroup() as group:
                for work in (self._ask,) * ASKERS + (self._leave,) * LEAVERS:
                    group.create_task(self._repeat(work))
                group.create_task(self._repeat(self._change))
                group.create_task(self._repeat(self._err))
                group.create_task(self._watch())

    async def _repeat(self, work) -> None:
        async with self.client() as client:
            while time.monotonic() < self._ends:
                await work(client)

    def _call(self) -> dict[str, Any]:
        texts = self._chance.sample(TEXTS, self._chance.randint(1, 8))
        few = self._chance.sample(NAMES, self._chance.randint(1, 4))
        return {"tasks": self._chance.choice([few, ["*"]]), "texts": texts}

    async def _ask(self, client) -> None:
        body = self._call()
        answer = self.seen.count(await client.post("/v1/classify", json=body))
        if answer.status_code != 200:
            assert answer.status_code == 429, answer.text
            return
        for text, result in zip(body["texts"], answer.json()["results"], strict=True):
            for name, prediction in result["predictions"].items():
                self._compare(name, text, prediction)

    def _compare(self, name: str, text: str, prediction: dict[str, Any]) -> None:
        if "error" in prediction:
            if prediction["error"]["code"] not in ABSENT:
                self.seen.wrong.append(f"{name}: {prediction}")
            return
        alone = self._alone[prediction["digest"], text]
        self.seen.compared += 1
        if not same(said(prediction), alone):
            self.seen.wrong.append(f"{name} on {text!r}: {said(prediction)}, alone {alone}")

    async def _leave(self, client) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._chance.uniform(0.0, 0.05)):
                self.seen.left += 1
                await client.post("/v1/classify", json=self._call())
        await asyncio.sleep(0.01)

    async def _upload(self, client, name: str) -> None:
        data = self._chance.choice(self._files)
        answer = self.seen.count(await client.put(f"/v1/tasks/{name}/adapter", content=data))
        assert answer.status_code in (200, 201, 503), answer.text
        self.seen.changes += answer.is_success

    async def _change(self, client) -> None:
        name = self._chance.choice(NAMES)
        kind = self._chance.random()
        if kind < 0.6:
            await self._upload(client, name)
        elif kind < 0.75:
            answer = self.seen.count(await client.post(f"/v1/tasks/{name}/rollback"))
            assert answer.status_code in (200, 404, 409), answer.text
            self.seen.changes += answer.is_success
        elif kind < 0.9:
            listed = self.seen.count(await client.get(f"/v1/tasks/{name}/versions"))
            numbers = [each["version"] for each in listed.json().get("versions", [])]
            if numbers:
                path = f"/v1/tasks/{name}/versions/{self._chance.choice(numbers)}"
                answer = self.seen.count(await client.delete(path))
                assert answer.status_code in (204, 409), answer.text
                self.seen.changes += answer.is_success
        else:
            answer = self.seen.count(await client.delete(f"/v1/tasks/{name}"))
            assert answer.status_code in (204, 404), answer.text
            self.seen.changes += answer.is_success
        await asyncio.sleep(0.02)

    async def _err(self, client) -> None:
        whole = self._chance.choice(self._files)
        damaged = whole[: self._chance.randrange(len(whole))]
        for answer, expected in (
            (await client.put("/v1/tasks/bad/adapter", content=damaged), (400,)),
            (await client.post("/v1/classify", json={"task": "absent", "texts": "a"}), (404,)),
            (await client.post("/v1/classify", json={"texts": 1}), (422,)),
        ):
            assert self.seen.count(answer).status_code in expected, answer.text
        await asyncio.sleep(0.05)

    async def _watch(self) -> None:
        every_s = max(0.5, MINUTES * 60 / 200)
        while time.monotonic() < self._ends:
            self.seen.samples.append(self._sample())
            await asyncio.sleep(every_s)

    def _sample(self) -> Sample:
        process = Path(f"/proc/{self._server.process.pid}")
        pages = int((process / "statm").read_text().split()[1])
        files = self._server.state_dir.glob("labelmux.sqlite*")
        return Sample(
            pages * os.sysconf("SC_PAGE_SIZE"),
            len(list((process / "fd").iterdir())),
            sum(path.stat().st_size for path in files),
        )


def metric_sum(text: str, pattern: str) -> float:
    found = re.findall(rf"^{pattern} ([0-9.e+]+)$", text, re.MULTILINE)
    return sum(map(float, found))


def medians(samples: list[Sample]) -> tuple[Sample, Sample]:
    """Of the second quarter of the time, when all buffers have their size, and of the last."""
    quarter = len(samples) // 4

    def median(part: list[Sample]) -> Sample:
        return Sample(
            *(
                round(statistics.median(getattr(each, field.name) for each in part))
                for field in dataclasses.fields(Sample)
            )
        )

    return median(samples[quarter : 2 * quarter]), median(samples[-quarter:])


def check_counts(url: str, seen: Seen) -> None:
    """The server's count of each status is the callers', but for those who left."""
    text = httpx2.get(f"{url}/metrics").text
    total = 0.0
    for status in {*seen.statuses, 499}:
        counted = metric_sum(text, rf'labelmux_requests_total{{.*status="{status}"}}')
        assert seen.statuses[status] <= counted <= seen.statuses[status] + seen.left, status
        total += counted
    assert total == metric_sum(text, "labelmux_requests_total{.*}")
    assert total == metric_sum(text, "labelmux_request_duration_seconds_count{.*}")
    asked = sum(seen.statuses.values())
    assert asked <= total <= asked + seen.left
    assert metric_sum(text, "labelmux_requests_in_flight") == 1
    assert metric_sum(text, "labelmux_queue_rows") == 0
    evicted = metric_sum(text, "labelmux_adapter_evictions_total")
    print(f"server counted {total:.0f} requests; {evicted:.0f} adapters gave way to others")


def test_mixed_traffic_grows_nothing_loses_nothing_and_is_never_answered_wrongly(
    start_server, adapter_bytes
):
    files = [adapter_bytes(**options) for options in varieties()]
    flags = ("--max-resident-bytes", str(RESIDENT_BYTES), "--feature-cache-bytes", "200000")
    server = start_server(*flags, "--log-level", "warning")
    soak = Soak(server, files)
    asyncio.run(soak.run(MINUTES))
    seen = soak.seen
    early, late = medians(seen.samples)
    print(f"\n{MINUTES:g} minutes: {dict(sorted(seen.statuses.items()))}, {seen.left} left early")
    print(f"{seen.compared} predictions compared, {seen.changes} changes, {len(seen.wrong)} wrong")
    print(f"early {early}\nlate  {late}")
    assert seen.wrong == []
    assert seen.compared > 100
    check_counts(server.url, seen)
    assert late.rss_bytes <= 1.05 * early.rss_bytes + 16 * 1024 * 1024
    assert late.handles <= early.handles + 8
    assert late.database_bytes <= LOG_BYTES + CHANGE_BYTES * seen.changes
    assert "Traceback" not in server.log_path.read_text()
    server.terminate()
    assert server.process.wait(60) == 0
