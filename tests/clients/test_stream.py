"""Streams: how texts become requests, and what answers become."""

from __future__ import annotations

import json
from collections.abc import Iterator
from threading import Event, Semaphore, Thread, current_thread
from typing import Any

import httpx2
import pytest

from labelmux_client import (
    AnswerError,
    Client,
    InvalidRequestError,
    NotReadyError,
    TaskNotFoundError,
    Windows,
)

GONE = {"code": "task_not_found", "message": "no task 'gone'"}
WRONG = {"code": "text_too_long", "message": "text 2 is too long", "limit": 10}


def lines(*answers: dict[str, Any]) -> httpx2.Response:
    body = b"".join(json.dumps(answer).encode() + b"\n" for answer in answers)
    return httpx2.Response(200, content=b"\n" + body, headers={"X-Request-Id": "r-1"})


def answered(wire, count: int) -> httpx2.Response:
    return lines(*({"line": n, "predictions": {"spam": wire.PREDICTION}} for n in range(count)))


def sent(request: httpx2.Request) -> list[Any]:
    return [json.loads(line) for line in request.content.splitlines()]


def test_texts_are_lines_and_the_question_is_in_the_query(ask, wire):
    server = wire.server(answered(wire, 2))
    found = ask(
        server,
        "classify_stream",
        iter(["a", "b"]),
        tasks=["spam", "tone@2"],
        top_k=1,
        raw_scores=True,
        truncation=False,
        windows=Windows(8, "max"),
    )
    (request,) = server.requests
    assert (request.method, request.url.path) == ("POST", "/v1/classify/stream")
    assert request.headers["content-type"] == "application/x-ndjson"
    assert request.url.params.multi_items() == [
        ("task", "spam"),
        ("task", "tone@2"),
        ("top_k", "1"),
        ("raw_scores", "true"),
        ("truncation", "false"),
        ("overlap_tokens", "8"),
        ("aggregation", "max"),
    ]
    assert sent(request) == [{"text": "a"}, {"text": "b"}]
    assert [result["spam"].label for result in found] == ["spam", "spam"]


def test_pairs_are_lines_too(ask, wire):
    server = wire.server(answered(wire, 1))
    ask(server, "classify_stream", pairs=[("a", "b")], tasks="*")
    assert sent(server.requests[0]) == [{"text": "a", "pair": "b"}]


def test_lines_of_any_script_are_utf8_not_escapes(ask, wire):
    server = wire.server(answered(wire, 1))
    ask(server, "classify_stream", ["日本語\u2028😀"], tasks="spam")
    assert server.requests[0].content == '{"text": "日本語\u2028😀"}'.encode()


def test_a_request_has_no_more_than_a_server_always_takes_in(ask, wire):
    server = wire.server(*(answered(wire, count) for count in (256, 256, 88)))
    found = ask(server, "classify_stream", (f"t{n}" for n in range(600)), tasks="spam")
    assert len(found) == 600
    assert sorted(len(sent(request)) for request in server.requests) == [88, 256, 256]
    server = wire.server(answered(wire, 2), answered(wire, 1))
    ask(server, "classify_stream", ["x" * 400_000] * 3, tasks="spam")
    assert sorted(len(sent(request)) for request in server.requests) == [1, 2]


def test_no_texts_are_no_request(ask, wire):
    server = wire.server()
    assert ask(server, "classify_stream", [], tasks="spam") == []


def test_a_wrong_line_has_its_error_and_the_others_their_answers(ask, wire):
    server = wire.server(
        lines(
            {"line": 1, "predictions": {"spam": wire.PREDICTION, "gone": {"error": GONE}}},
            {"line": 2, "error": WRONG},
        )
    )
    first, second = ask(server, "classify_stream", ["a", "b"], tasks=["spam", "gone"])
    assert (first["spam"].label, first.error) == ("spam", None)
    with pytest.raises(TaskNotFoundError):
        _ = first["gone"]
    with pytest.raises(InvalidRequestError) as told:
        _ = second["spam"]
    assert told.value is second.error
    assert (told.value.fields["limit"], told.value.request_id) == (10, "r-1")


def test_a_piece_is_sent_again_where_that_may_help(ask, wire):
    server = wire.server(
        wire.refusal(429, "overloaded"),
        httpx2.ReadError("broken off"),
        answered(wire, 1),
    )
    assert len(ask(server, "classify_stream", ["a"], tasks="spam")) == 1
    assert len(server.pauses_s) == 2


def test_a_server_that_stops_within_a_piece_is_an_error(ask, wire):
    last = {"line": None, "error": {"code": "draining", "message": "shutting down"}}
    server = wire.server(lines({"line": 1, "predictions": {}}, last))
    with pytest.raises(NotReadyError):
        ask(server, "classify_stream", ["a", "b"], tasks="spam")
    server = wire.server(lines({"line": 1, "predictions": {}}))
    with pytest.raises(AnswerError, match="1 answers to 2 lines"):
        ask(server, "classify_stream", ["a", "b"], tasks="spam")


class Stalled(httpx2.SyncByteStream):
    """A blank line, and one more each time that it is woken; remembers what became of it."""

    def __init__(self) -> None:
        self.wakes, self.reached, self.closed = Semaphore(0), Event(), Event()

    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield b"\n"
            self.reached.set()
            if not self.wakes.acquire(timeout=30):
                return

    def close(self) -> None:
        self.closed.set()


def test_who_takes_no_more_results_waits_for_none_and_the_requests_end(wire):
    stalled = [Stalled() for _ in range(3)]
    left = list(stalled)

    def handle(request: httpx2.Request) -> httpx2.Response:
        if sent(request)[0]["text"] == "t0":
            return answered(wire, 256)
        return httpx2.Response(200, stream=left.pop())

    with httpx2.Client(transport=httpx2.MockTransport(handle)) as http_client:
        client = Client(http_client=http_client)
        for _ in client.classify_stream((f"t{n}" for n in range(4 * 256)), tasks="spam"):
            assert all(stream.reached.wait(30) for stream in stalled)
            break
        assert not any(stream.closed.is_set() for stream in stalled)
        for stream in stalled:
            stream.wakes.release()
        assert all(stream.closed.wait(30) for stream in stalled)


def test_nothing_is_sent_again_for_whom_nobody_waits(wire):
    requests, pausing, go_on, paused = [], Event(), Event(), Event()

    def handle(request: httpx2.Request) -> httpx2.Response:
        requests.append(request)
        refused = len(sent(request)) < 256
        return wire.refusal(429, "overloaded") if refused else answered(wire, 256)

    def sleep(_: float) -> None:
        pausing.set()
        go_on.wait(30)
        threads.append(current_thread())
        paused.set()

    threads: list[Thread] = []
    with httpx2.Client(transport=httpx2.MockTransport(handle)) as http_client:
        client = Client(http_client=http_client, sleep=sleep)
        for _ in client.classify_stream((f"t{n}" for n in range(257)), tasks="spam"):
            assert pausing.wait(30)
            break
        go_on.set()
        assert paused.wait(30)
        threads[0].join(30)
    assert len(requests) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"texts": ["a"], "pairs": [("a", "b")]},
        {"pairs": [("a", "b")], "windows": Windows()},
        {"pairs": ["ab"]},
    ],
)
def test_arguments_that_exclude_each_other_are_refused(ask, wire, arguments):
    server = wire.server()
    with pytest.raises(ValueError):
        ask(server, "classify_stream", tasks="spam", **arguments)
    assert server.requests == []
