from __future__ import annotations

import asyncio
from typing import Any

import pytest

from labelmux_server.errors import RateLimitedError
from labelmux_server.keys import Rights, opened_keys
from labelmux_server.metrics import Metrics
from labelmux_server.rates import Rates


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rates(clock) -> Rates:
    return Rates(Metrics(8), clock)


def test_a_minutes_worth_may_come_at_once_then_evenly(rates, clock):
    for _ in range(30):
        rates.spend("k", "requests", 1, 30)
    with pytest.raises(RateLimitedError) as caught:
        rates.spend("k", "requests", 1, 30)
    assert caught.value.fields == {"unit": "requests", "per_minute": 30, "retry_after_s": 2}
    clock.now_s = 1.9
    with pytest.raises(RateLimitedError):
        rates.spend("k", "requests", 1, 30)
    clock.now_s = 2.0
    rates.spend("k", "requests", 1, 30)
    clock.now_s = 1000.0
    for _ in range(30):
        rates.spend("k", "requests", 1, 30)
    with pytest.raises(RateLimitedError):
        rates.spend("k", "requests", 1, 30)


def test_a_call_over_the_limit_passes_once_and_is_paid_for_later(rates, clock):
    rates.spend("k", "tokens", 300, 60)
    with pytest.raises(RateLimitedError) as caught:
        rates.spend("k", "tokens", 1, 60)
    assert caught.value.fields["retry_after_s"] == 241
    clock.now_s = 241.0
    rates.spend("k", "tokens", 1, 60)


def test_keys_and_units_do_not_share(rates):
    rates.spend("a", "requests", 1, 1)
    rates.spend("b", "requests", 1, 1)
    rates.spend("a", "tokens", 1, 1)
    with pytest.raises(RateLimitedError):
        rates.spend("a", "requests", 1, 1)


def test_zero_is_no_limit(rates):
    for _ in range(1000):
        rates.spend("k", "requests", 10**6, 0)


def metric(text: str, name: str) -> float:
    return float(next(line for line in text.splitlines() if line.startswith(name)).split()[-1])


def test_requests_are_limited_by_key_with_an_override(serving):
    async def scenario(client, service):
        with opened_keys(service.settings.state_dir) as keys:
            made = {
                "usual": keys.create("usual", Rights(frozenset({"classify"}))),
                "own": keys.create("own", Rights(frozenset({"classify"}), requests_per_minute=5)),
                "free": keys.create("free", Rights(frozenset({"classify"}), requests_per_minute=0)),
            }
        passed = {}
        for name, key in made.items():
            answers = [
                await client.get("/v1/info", headers={"authorization": f"Bearer {key}"})
                for _ in range(9)
            ]
            passed[name] = sum(answer.status_code == 200 for answer in answers)
            if name == "usual":
                assert answers[-1].status_code == 429
                assert answers[-1].json()["error"]["code"] == "rate_limited"
                assert answers[-1].headers["retry-after"] == "20"
                assert answers[-1].json()["error"]["retry_after_s"] == 20
        assert passed == {"usual": 3, "own": 5, "free": 9}
        shown = service.metrics.render().decode()
        assert metric(shown, 'labelmux_key_requests_total{key="usual"}') == 3
        assert metric(shown, 'labelmux_key_limited_total{key="usual",unit="requests"}') == 6
        assert metric(shown, 'labelmux_rejected_total{code="rate_limited"}') == 10

    serving(scenario, max_requests_per_minute=3)


def test_tokens_are_limited_by_key_and_counted_as_answers_count_them(serving, adapter_bytes):
    async def scenario(client, service):
        await client.put("/v1/tasks/t/adapter", content=adapter_bytes())
        with opened_keys(service.settings.state_dir) as keys:
            key = keys.create("k", Rights(frozenset({"classify"}), tokens_per_minute=10))
        headers = {"authorization": f"Bearer {key}"}
        used = 0
        while True:
            body = {"task": "t", "texts": "the train to the coast"}
            answer = await client.post("/v1/classify", json=body, headers=headers)
            if answer.status_code == 429:
                break
            used += answer.json()["tokens"]
        assert answer.json()["error"]["unit"] == "tokens"
        assert 10 <= used <= 24
        shown = service.metrics.render().decode()
        assert metric(shown, 'labelmux_key_tokens_total{key="k"}') == used
        assert (await client.get("/v1/tasks", headers=headers)).status_code == 200

    serving(scenario)


def test_a_call_that_finds_the_queue_full_costs_no_tokens(serving, adapter_bytes, gate_replica):
    texts = [f"{word} {other}" for word in ("train", "coast", "film") for other in ("soup", "dogs")]

    async def scenario(client, service):
        await client.put("/v1/tasks/t/adapter", content=adapter_bytes())
        gated = gate_replica(service)

        def ask(*asked: str) -> asyncio.Future[Any]:
            return asyncio.ensure_future(
                client.post("/v1/classify", json={"task": "t", "texts": list(asked)})
            )

        running = ask("bread")
        async with asyncio.timeout(20):
            while not gated.entered.is_set():
                await asyncio.sleep(0)
            waiting = ask(*texts[:3])
            while service.batcher.queued_rows < 3:
                await asyncio.sleep(0)
            refused = [await ask(*texts[3:]) for _ in range(3)]
        gated.gate.set()
        passed = [await running, await waiting, await ask(*texts[3:])]
        assert [answer.json()["error"]["code"] for answer in refused] == ["overloaded"] * 3
        used = sum(answer.json()["tokens"] for answer in passed)
        shown = service.metrics.render().decode()
        assert metric(shown, 'labelmux_key_tokens_total{key="(anyone)"}') == used

    serving(scenario, max_queue_rows=5, max_client_batch_size=5)


def test_an_open_server_counts_everybody_as_one(serving):
    async def scenario(client, service):
        statuses = [(await client.get("/v1/info")).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert (await client.get("/health/ready")).status_code == 200

    serving(scenario, max_requests_per_minute=2)
