"""What happens when there is too much to do, when callers leave, and when a pass fails."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback

import pytest

from labelmux_server.batcher import Batcher, Limits
from labelmux_server.errors import BatchFailedError, NotReadyError
from labelmux_server.submission import Row, row_key
from labelmux_server.waiting import answered

WORDS = ("train", "coast", "film", "soup", "bread", "dogs")


async def put(client, task: str, data: bytes) -> None:
    assert (await client.put(f"/v1/tasks/{task}/adapter", content=data)).status_code == 201


async def classify(client, text: str, task: str = "t"):
    return await client.post("/v1/classify", json={"task": task, "texts": text})


async def until(condition, limit_s: float = 20.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.fixture
def busy(adapter_bytes, gate_replica):
    """Upload ``t`` and let the replica hang on a first request; the gate and that request."""

    async def make(client, service):
        await put(client, "t", adapter_bytes())
        gated = gate_replica(service)
        first = asyncio.ensure_future(classify(client, "the first"))
        await until(gated.entered.is_set)
        return gated, first

    return make


def test_a_full_queue_answers_429_and_says_when_to_come_back(serving, busy):
    async def scenario(client, service):
        gated, first = await busy(client, service)
        texts = [f"the {start} to the {end}" for start in WORDS for end in WORDS]
        waiting = [asyncio.ensure_future(classify(client, text)) for text in texts]
        await until(lambda: any(task.done() for task in waiting))
        refused = next(task for task in waiting if task.done()).result()
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "overloaded"
        assert int(refused.headers["retry-after"]) >= 1
        assert (await client.get("/health/ready")).status_code == 200
        gated.gate.set()
        statuses = {answer.status_code for answer in await asyncio.gather(first, *waiting)}
        assert statuses == {200, 429}
        assert service.batcher.queued_tokens == 0
        assert (await classify(client, "again")).status_code == 200
        assert 'labelmux_rejected_total{code="overloaded"}' in (await client.get("/metrics")).text

    serving(scenario, max_batch_tokens=64, max_queue_tokens=64, max_client_batch_size=8)


def test_a_call_that_cannot_be_queued_is_refused_unread(serving, busy):
    async def scenario(client, service):
        gated, first = await busy(client, service)
        texts = [f"the {start} to {end}" for start in WORDS for end in WORDS][:8]
        waiting = [asyncio.ensure_future(classify(client, text)) for text in texts]
        await until(lambda: service.batcher.queued_rows == 8)
        refused = await client.post("/v1/classify", content=b"not json at all")
        assert refused.status_code == 429
        gated.gate.set()
        answers = await asyncio.gather(first, *waiting)
        assert {answer.status_code for answer in answers} == {200}
        assert (await client.post("/v1/classify", content=b"not json")).status_code == 415

    serving(scenario, max_queue_rows=8, max_client_batch_size=8)


async def call_and_leave(app, body: dict, left: asyncio.Event) -> list[dict]:
    """One request over bare ASGI whose caller disconnects once ``left`` is set."""
    sent: list[dict] = []
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive():
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/classify",
        "raw_path": b"/v1/classify",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json")],
        "server": ("labelmux", 80),
        "client": ("127.0.0.1", 1),
    }
    await app(scope, receive, send)
    return sent


def test_a_request_whose_caller_left_leaves_the_queue(serving, busy):
    async def scenario(client, service):
        app = client._transport.app
        gated, first = await busy(client, service)
        left = asyncio.Event()
        body = {"task": "t", "texts": ["one text", "another text"]}
        leaver = asyncio.ensure_future(call_and_leave(app, body, left))
        await until(lambda: service.batcher.queued_rows == 2)
        left.set()
        sent = await leaver
        assert sent[0]["status"] == 499
        assert service.batcher.queued_rows == 0
        assert service.batcher.queued_tokens == 0
        gated.gate.set()
        assert (await first).status_code == 200

    serving(scenario)


def test_a_version_that_runs_stays_though_its_caller_left_and_its_task_is_deleted(
    serving, busy, monkeypatch
):
    async def scenario(client, service):
        freed = []
        monkeypatch.setattr(service._bank, "remove", freed.append)
        gated, first = await busy(client, service)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await client.delete("/v1/tasks/t")).status_code == 204
        assert freed == []
        gated.gate.set()
        await until(lambda: len(freed) == 1)

    serving(scenario)


def test_a_request_is_answered_by_the_version_that_was_active_when_it_came(
    serving, busy, adapter_bytes
):
    async def scenario(client, service):
        gated, first = await busy(client, service)
        waiting = asyncio.ensure_future(classify(client, "a good film"))
        await until(lambda: service.batcher.queued_rows == 1)
        await put(client, "t", adapter_bytes(seed=1))
        later = asyncio.ensure_future(classify(client, "a good film"))
        await until(lambda: service.batcher.queued_rows == 2)
        await client.delete("/v1/tasks/t/versions/1")
        gated.gate.set()
        await first
        versions = [
            (await answer).json()["results"][0]["predictions"]["t"]["version"]
            for answer in (waiting, later)
        ]
        assert versions == [1, 2]

    serving(scenario)


def test_a_failed_pass_fails_its_rows_and_no_others(serving, busy, caplog):
    async def scenario(client, service):
        gated, first = await busy(client, service)
        gated.fault = RuntimeError("device on fire while reading: the first")
        gated.gate.set()
        with caplog.at_level(logging.ERROR):
            failed = await first
        assert failed.status_code == 500
        error = failed.json()["error"]
        assert error["code"] == "internal"
        assert "fire" not in failed.text
        assert "device on fire" in caplog.text
        assert error["request_id"] == failed.headers["x-request-id"]
        gated.fault = None
        assert (await classify(client, "the second")).status_code == 200
        assert service.ready

    serving(scenario)


def test_a_failed_pass_is_told_to_each_caller_and_logged_once(serving, busy, caplog):
    async def scenario(client, service):
        gated, first = await busy(client, service)
        gated.fault = RuntimeError("device on fire")
        texts = [f"the {start} to the {end}" for start in WORDS for end in WORDS]
        waiting = [asyncio.ensure_future(classify(client, text)) for text in texts]
        await until(lambda: service.batcher.queued_rows == len(texts))
        with caplog.at_level(logging.ERROR):
            gated.gate.set()
            answers = await asyncio.gather(first, *waiting)
        assert {answer.json()["error"]["code"] for answer in answers} == {"internal"}
        traced = [record for record in caplog.records if record.exc_info]
        assert {record.name for record in traced} == {"labelmux_server.replica"}
        failures = (await client.get("/metrics")).text
        assert f"labelmux_batch_failures_total {float(len(traced))}" in failures
        assert len(traced) < len(answers)
        for answer in answers:
            assert answer.headers["x-request-id"] in caplog.text

    serving(scenario)


def test_each_caller_of_a_failed_batch_has_an_error_of_its_own():
    async def scenario():
        batcher = Batcher(Limits(64, 64, 64, 64, max_queue_s=5.0, max_wait_ms=0.0))
        rows = [Row(row_key((1,), (0,)), (1,), (0,), slot="s")]
        waiting = [
            asyncio.ensure_future(answered(batcher, rows, 20.0, lambda: None)) for _ in range(16)
        ]
        await asyncio.sleep(0)
        batcher.take_now().deliver(BatchFailedError)
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert len({id(error) for error in errors}) == 16
        depths = {len(traceback.extract_tb(error.__traceback__)) for error in errors}
        assert len(depths) == 1
        assert all(isinstance(error, BatchFailedError) for error in errors)
        assert all(error.__cause__ is None and error.__suppress_context__ for error in errors)

    asyncio.run(scenario())


def test_whatever_the_queue_refuses_leaves_nothing_held():
    async def scenario():
        batcher = Batcher(Limits(64, 64, 64, 64, max_queue_s=5.0, max_wait_ms=0.0))
        batcher.close()
        settled = []
        rows = [Row(row_key((1,), (0,)), (1,), (0,), slot="s")]
        with pytest.raises(NotReadyError):
            await answered(batcher, rows, 20.0, lambda: settled.append(True))
        assert settled == [True]

    asyncio.run(scenario())


def test_no_answer_in_time_is_504(serving, busy):
    async def scenario(client, service):
        gated, first = await busy(client, service)
        late = await classify(client, "too late")
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        assert (await first).status_code == 504
        assert service.batcher.queued_rows == 0
        gated.gate.set()
        await until(lambda: service.batcher.queued_rows == 0)
        assert (await classify(client, "in time")).status_code == 200

    serving(scenario, request_timeout_s=1.0, max_queue_s=1.0)


def test_rows_that_wait_when_the_server_stops_are_told_so(serving, busy):
    async def scenario(client, service):
        gated, first = await busy(client, service)
        waiting = asyncio.ensure_future(classify(client, "still waiting"))
        await until(lambda: service.batcher.queued_rows == 1)
        stopping = asyncio.ensure_future(service._replica.stop())
        answer = await waiting
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
        gated.gate.set()
        assert (await first).status_code == 200
        await stopping
        assert (await client.get("/health/live")).status_code == 503
        assert (await client.get("/health/ready")).json()["error"]["code"] == "not_ready"

    serving(scenario)


def test_concurrent_requests_share_passes(serving, busy):
    async def scenario(client, service):
        gated, first = await busy(client, service)
        texts = [
            "train",
            "coast",
            "film",
            "soup",
            "bread",
            "dogs",
            "snow",
            "money",
            "free",
            "win",
        ] * 2
        waiting = [asyncio.ensure_future(classify(client, text)) for text in texts]
        await until(lambda: service.batcher.queued_rows == 20)
        gated.gate.set()
        await asyncio.gather(first, *waiting)
        lines = (await client.get("/metrics")).text.splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        assert float(values["labelmux_batch_encoder_rows_count"]) == 2
        assert float(values["labelmux_encoder_rows_total"]) == 11
        assert float(values["labelmux_rows_total"]) == 21

    serving(scenario)
