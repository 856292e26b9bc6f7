"""Streams of lines: what is answered to each line, and what happens where there is no room."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from labelmux_server.keys import Rights, opened_keys
from labelmux_server.schemas import StreamAnswer

PATH = "/v1/classify/stream"
#: 216 texts of words that the tiny tokenizer knows, so that all of them differ.
WORDS = ("train", "coast", "film", "soup", "bread", "dogs")
TEXTS = [" ".join(words) for words in itertools.product(WORDS, repeat=3)]


async def put(client: Any, task: str, data: bytes) -> None:
    assert (await client.put(f"/v1/tasks/{task}/adapter", content=data)).status_code == 201


async def stream(client: Any, lines: list[Any], task: Any = "t", **params: Any) -> list[Any]:
    """The answers to lines, each of which is JSON or bytes as they are."""
    data = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    answer = await client.post(
        PATH, content=b"\n".join(data), params={"task": task, **params}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    found = [json.loads(line) for line in answer.content.splitlines() if line]
    for line in found:
        StreamAnswer.model_validate(line)
    return found


async def native(client: Any, texts: list[str], **body: Any) -> list[Any]:
    answer = await client.post("/v1/classify", json={"texts": texts, **body})
    return [result["predictions"] for result in answer.json()["results"]]


def codes(lines: list[Any]) -> list[str | None]:
    return [line["error"]["code"] if "error" in line else None for line in lines]


async def until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.002)


def test_every_line_is_answered_in_order_as_our_own_route_does(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        await put(client, "m", adapter_bytes(("x", "y", "z"), seed=1, task_kind="multi_label"))
        found = await stream(client, [{"text": text} for text in TEXTS], ["t", "m"])
        assert [line["line"] for line in found] == list(range(1, 217))
        expected = await native(client, TEXTS, tasks=["t", "m"])
        for line, predictions in zip(found, expected, strict=True):
            for task in ("t", "m"):
                labels = line["predictions"][task]["labels"]
                for item, other in zip(labels, predictions[task]["labels"], strict=True):
                    assert item["label"] == other["label"]
                    assert item["score"] == pytest.approx(other["score"], abs=1e-5)

    serving(scenario)


def test_the_question_stands_in_the_query(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes(("x", "y", "z")))
        text = "the coast and the train " * 20
        for params, body in (
            ({"top_k": 1}, {"top_k": 1}),
            ({"raw_scores": "true"}, {"raw_scores": True}),
            (
                {"overlap_tokens": 8, "aggregation": "max"},
                {"windows": {"overlap_tokens": 8, "aggregation": "max"}},
            ),
            ({"overlap_tokens": 8}, {"windows": {"overlap_tokens": 8}}),
        ):
            (line,) = await stream(client, [{"text": text}], **params)
            (expected,) = await native(client, [text], tasks=["t"], **body)
            assert line["predictions"] == expected
        lines = await stream(client, [{"text": "a"}, {"text": text}], truncation="false")
        error = lines[1]["predictions"]["t"]["error"]
        assert (error["code"], error["index"]) == ("text_truncated", 2)
        assert "text 2" in error["message"]

    serving(scenario)


def test_a_wrong_line_is_told_and_the_stream_goes_on(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        await put(client, "p", adapter_bytes(pair=True))
        lines = [{"text": "a"}, b"{", b"", {"text": 1}, {"text": "b"}, {"text": "x" * 1001}, b"\r"]
        found = await stream(client, [*lines, {"text": "c", "pair": "d"}], ["*"])
        assert [line["line"] for line in found] == [1, 2, 4, 5, 6, 8]
        assert codes(found) == [
            None,
            "invalid_json",
            "invalid_request",
            None,
            "text_too_long",
            None,
        ]
        assert [set(line.get("predictions", ())) for line in found if "predictions" in line] == [
            {"t"},
            {"t"},
            {"p"},
        ]

    serving(scenario, max_text_chars=1000)


def test_a_task_that_cannot_read_a_line_says_so_beside_the_others(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        await put(client, "p", adapter_bytes(pair=True))
        (line,) = await stream(client, [{"text": "a"}], ["t", "p"])
        error = line["predictions"]["p"]["error"]
        assert error["code"] == "task_needs_pairs"
        assert 'line of a stream "text" and "pair"' in error["message"]
        assert line["predictions"]["t"]["labels"]

    serving(scenario)


def test_lines_that_are_too_much_together_are_asked_apart(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        texts = [f"{text} {'the coast ' * 30}" for text in TEXTS[:20]]
        found = await stream(client, [{"text": text} for text in texts])
        assert codes(found) == [None] * 20

    serving(
        scenario,
        max_queue_tokens=128,
        max_batch_tokens=64,
        max_client_batch_size=16,
        max_queue_rows=16,
    )


def test_what_could_answer_no_line_is_told_before_the_first(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        with opened_keys(service.settings.state_dir) as keys:
            key = keys.create("k", Rights(frozenset({"classify"}), tasks=("t",)))
        headers = {"authorization": f"Bearer {key}"}
        for params, kind, status, code in (
            ({}, "", 422, "invalid_request"),
            ({"task": "u"}, "", 403, "task_forbidden"),
            ({"task": "t@7"}, "", 404, "version_not_found"),
            ({"task": "t", "top_k": 0}, "", 422, "invalid_request"),
            ({"task": "t", "aggregation": "sum"}, "", 422, "invalid_request"),
            ({"task": "t"}, "application/json", 415, "unsupported_media_type"),
        ):
            sent = headers | ({"content-type": kind} if kind else {})
            answer = await client.post(PATH, content=b"{}", params=params, headers=sent)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)

    serving(scenario)


def test_what_no_task_can_do_is_told_before_the_first_line(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        await put(client, "s", adapter_bytes(("O", "B-x", "I-x"), task_kind="token"))
        for tasks, params, code in (
            (["s"], {"raw_scores": "true"}, "no_raw_scores"),
            (["s", "s@1"], {"raw_scores": "true"}, "no_raw_scores"),
            (["t"], {"overlap_tokens": 32}, "overlap_too_long"),
            # Windows share 32 tokens where only their aggregation is given.
            (["t"], {"aggregation": "max"}, "overlap_too_long"),
            (["t", "s"], {"overlap_tokens": 32, "raw_scores": "true"}, "overlap_too_long"),
        ):
            answer = await client.post(PATH, content=b"{}", params={"task": tasks, **params})
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)
        for tasks in (["s", "t"], ["s", "*"]):
            (line,) = await stream(client, [{"text": "a"}], tasks, raw_scores="true")
            assert line["predictions"]["s"]["error"]["code"] == "no_raw_scores"
            assert line["predictions"]["t"]["labels"]

    serving(scenario)


def test_where_the_queue_is_full_a_stream_waits(serving, adapter_bytes, gate_replica):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        gated = gate_replica(service)
        lines = [{"text": text} for text in TEXTS[:60]]
        asking = asyncio.ensure_future(stream(client, lines))
        await until(gated.entered.is_set)
        await until(lambda: service.batcher.queued_rows == 8)
        assert not asking.done()
        gated.gate.set()
        assert codes(await asking) == [None] * 60

    serving(scenario, max_queue_rows=8, max_client_batch_size=8)


def test_a_key_that_was_used_too_fast_waits_for_its_rate(
    serving, adapter_bytes, gate_replica, tiny_encoder
):
    rows = tiny_encoder.tokenizer.clone().encode(TEXTS, 64)
    tokens = sum(len(row.token_ids) for row in rows)

    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        gated = gate_replica(service)
        asking = asyncio.ensure_future(stream(client, [{"text": text} for text in TEXTS]))
        await until(lambda: b"labelmux_key_limited_total{" in service.metrics.render())
        assert not asking.done()
        gated.gate.set()
        assert codes(await asking) == [None] * 216

    serving(scenario, max_tokens_per_minute=tokens - 100, max_client_batch_size=8)


def test_a_line_whose_answer_is_not_there_in_time_is_told(serving, adapter_bytes, gate_replica):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        gated = gate_replica(service)
        found = await stream(client, [{"text": "a"}, {"text": "b"}])
        assert codes(found) == ["timeout", "timeout"]
        gated.gate.set()

    serving(scenario, request_timeout_s=0.5, max_queue_s=0.5)


def test_a_failed_batch_fails_its_lines_and_the_stream_goes_on(calling, gate_replica):
    async def scenario(caller, service):
        gated = gate_replica(service)
        gated.gate.set()
        for number, fault in enumerate((RuntimeError("device on fire"), None, None), start=1):
            gated.fault = fault
            caller.send({"text": TEXTS[number]})
            (line,) = await caller.lines(1)
            assert line["line"] == number
            assert codes([line]) == ["internal" if fault else None]
            assert "fire" not in str(line)
        caller.end()
        await caller.done

    calling(scenario)


class Caller:
    """One request over bare ASGI: lines go in and answers come out by hand."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue()
        self.unread = 0
        self.reads = asyncio.Event()
        self.reads.set()
        self.done = asyncio.ensure_future(self._run())

    def send(self, *lines: Any) -> None:
        for line in lines:
            body = json.dumps(line).encode() + b"\n"
            self._put({"type": "http.request", "body": body, "more_body": True})

    def end(self) -> None:
        self._put({"type": "http.request", "body": b"", "more_body": False})

    def leave(self) -> None:
        self._put({"type": "http.disconnect"})

    async def lines(self, count: int) -> list[Any]:
        found: list[Any] = []
        async with asyncio.timeout(20):
            while len(found) < count:
                body = await self._outgoing.get()
                found += [json.loads(line) for line in body.splitlines() if line]
        return found

    def _put(self, message: dict[str, Any]) -> None:
        self.unread += 1
        self._incoming.put_nowait(message)

    async def _run(self) -> None:
        async def receive() -> dict[str, Any]:
            message = await self._incoming.get()
            self.unread -= 1
            return message

        async def send(message: dict[str, Any]) -> None:
            await self.reads.wait()
            if message["type"] == "http.response.body":
                self._outgoing.put_nowait(message["body"])

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": PATH,
            "raw_path": PATH.encode(),
            "query_string": b"task=t",
            "root_path": "",
            "headers": [(b"content-type", b"application/x-ndjson")],
            "server": ("labelmux", 80),
            "client": ("127.0.0.1", 1),
        }
        await self._app(scope, receive, send)


@pytest.fixture
def calling(serving, adapter_bytes) -> Callable[..., Any]:
    """Run a scenario with a caller and the service; the task ``t`` is there."""

    def run(scenario: Callable[..., Any], **settings: Any) -> None:
        async def with_caller(client: Any, service: Any) -> None:
            await put(client, "t", adapter_bytes())
            await scenario(Caller(client._transport.app), service)

        serving(with_caller, **settings)

    return run


def test_a_line_is_answered_before_the_next_one_comes(calling):
    async def scenario(caller, service):
        for number in range(1, 4):
            caller.send({"text": TEXTS[number]})
            (line,) = await caller.lines(1)
            assert line["line"] == number
        caller.end()
        await caller.done

    calling(scenario)


def test_a_caller_that_does_not_read_is_not_read_from(calling):
    async def scenario(caller, service):
        caller.reads.clear()
        lines = [{"text": TEXTS[number % 216]} for number in range(1000)]
        caller.send(*lines)
        caller.end()
        await until(lambda: caller.unread <= 1001 - 256)
        await until(lambda: service.batcher.queued_rows == 0)
        # Nothing left the window, and one message more was taken than it has room for.
        assert caller.unread == 1001 - 257
        caller.reads.set()
        found = await caller.lines(1000)
        assert [line["line"] for line in found] == list(range(1, 1001))
        await caller.done

    calling(scenario, stream_window_lines=256)


def test_a_caller_that_leaves_takes_its_lines_out_of_the_queue(calling, gate_replica):
    async def scenario(caller, service):
        gated = gate_replica(service)
        caller.send({"text": "the first"})
        await until(gated.entered.is_set)
        caller.send(*({"text": text} for text in TEXTS[:20]))
        await until(lambda: service.batcher.queued_rows == 20)
        caller.leave()
        await caller.done
        assert service.batcher.queued_rows == service.batcher.queued_tokens == 0
        gated.gate.set()

    calling(scenario)


def test_a_server_that_stops_answers_what_it_has_read_and_says_so(calling):
    async def scenario(caller, service):
        caller.send({"text": "a"})
        await caller.lines(1)
        service.draining = True
        caller.send({"text": "b"}, {"text": "c"})
        answered, last = await caller.lines(2)
        assert answered["line"] == 2
        assert (last["line"], last["error"]["code"]) == (None, "draining")
        await caller.done

    calling(scenario)


def test_a_stream_whose_caller_says_nothing_ends_when_the_server_stops(calling):
    async def scenario(caller, service):
        caller.send({"text": "a"})
        await caller.lines(1)
        service.stopping.set()
        (last,) = await caller.lines(1)
        assert (last["line"], last["error"]["code"]) == (None, "draining")
        await caller.done

    calling(scenario)


def test_a_caller_that_sends_nothing_for_long_is_told_so(calling):
    async def scenario(caller, service):
        caller.send({"text": "a"})
        answered, last = await caller.lines(2)
        assert answered["line"] == 1
        assert (last["line"], last["error"]["code"]) == (None, "body_stalled")
        await caller.done

    calling(scenario, stall_s=0.2)


def test_a_stream_says_that_it_lives_while_it_waits(calling, gate_replica, monkeypatch):
    async def scenario(caller, service):
        monkeypatch.setattr("labelmux_server.line_stream._HEARTBEAT_S", 0.01)
        gated = gate_replica(service)
        caller.send({"text": "a"})
        async with asyncio.timeout(20):
            bodies = [await caller._outgoing.get() for _ in range(3)]
        assert bodies == [b"\n"] * 3
        gated.gate.set()
        assert len(await caller.lines(1)) == 1
        caller.end()
        await caller.done

    calling(scenario)
