"""What log lines say, and what none of them ever says."""

from __future__ import annotations

import io
import json
import logging
import sqlite3
import sys

import httpx2
import pytest

from labelmux_server.errors import StoreFullError
from labelmux_server.logs import REQUEST_ID, JsonLines, PlainLines

SECRET = "xylophonist"
TEXT = f"the {SECRET} leaves at nine"


def record(name: str = "labelmux_server.x", **extra) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.INFO, "f", 1, "%d tasks", (3,), None)
    vars(made).update(extra)
    return made


@pytest.fixture
def request_id():
    token = REQUEST_ID.set("r1")
    yield "r1"
    REQUEST_ID.reset(token)


def raised(error: Exception, cause: Exception | None = None):
    try:
        raise error from cause
    except type(error):
        return sys.exc_info()


def test_json_lines_carry_the_request(request_id):
    line = json.loads(JsonLines().format(record(status=200, duration_ms=1.5)))
    assert line["message"] == "3 tasks"
    assert line["level"] == "info"
    assert (line["request_id"], line["status"], line["duration_ms"]) == ("r1", 200, 1.5)


def test_json_lines_outside_of_a_request_have_no_id():
    assert "request_id" not in json.loads(JsonLines().format(record()))


def test_json_lines_stay_one_line_with_an_exception():
    text = JsonLines().format(record(exc_info=raised(ValueError("two\nlines"))))
    assert "\n" not in text
    assert "ValueError" in json.loads(text)["exception"]


def test_plain_lines_end_with_the_request_id(request_id):
    assert PlainLines().format(record()).endswith("3 tasks [r1]")


def test_plain_lines_outside_of_a_request_end_with_the_message():
    assert PlainLines().format(record()).endswith("3 tasks")


@pytest.mark.parametrize("kind", [JsonLines, PlainLines])
@pytest.mark.parametrize(
    ("error", "name", "shown"),
    [
        (ValueError(TEXT), "labelmux_server.edge", False),
        (KeyError(TEXT), "uvicorn.error", False),
        (OSError(28, "No space left on device"), "labelmux_server.edge", True),
        (sqlite3.OperationalError("disk I/O error"), "labelmux_server.edge", True),
        (StoreFullError("tasks", 3), "labelmux_server.edge", True),
        (RuntimeError("CUDA error: out of memory"), "labelmux_server.replica", True),
    ],
)
def test_an_exception_is_told_with_its_message_where_that_can_quote_no_text(
    kind, error, name, shown
):
    exc_info = raised(error, cause=ValueError(TEXT))
    told = kind().format(record(name, exc_info=exc_info))
    assert type(error).__name__ in told
    assert "in raised" in told
    assert "That led to" in told
    assert (str(error) in told) == shown
    if name != "labelmux_server.replica":
        assert SECRET not in told
    asked_for = kind(log_texts=True).format(record(name, exc_info=exc_info))
    assert SECRET in asked_for


@pytest.fixture
def logged():
    """All that the server logs, at its most talkative, as ``serve`` would write it."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonLines())
    root, ours = logging.getLogger(), logging.getLogger("labelmux_server")
    before = ours.level
    root.addHandler(handler)
    ours.setLevel(logging.DEBUG)
    yield out
    root.removeHandler(handler)
    ours.setLevel(before)


async def _calls(client, service, adapter_bytes) -> list[int]:
    """Calls with the text in every place where one can stand; their statuses."""
    put = await client.put("/v1/tasks/t/adapter", content=adapter_bytes())
    assert put.status_code == 201
    bodies = [
        {"task": "t", "texts": TEXT},
        {"task": "t", "texts": [TEXT] * 3, "top_k": -1},
        {"task": "t", "texts": {TEXT: TEXT}},
        {"task": "t", "pairs": [[TEXT, TEXT]]},
        {"task": "t", "texts": TEXT * 100, "truncation": False},
        {"task": "t", "texts": TEXT * 10_000},
        {"task": TEXT, "texts": TEXT},
        {TEXT: TEXT},
    ]
    answers = [await client.post("/v1/classify", json=body) for body in bodies]
    answers.append(await client.post("/v1/classify", content=TEXT))
    answers.append(await client.get(f"/v1/tasks/{TEXT}"))
    answers.append(await client.get(f"/{TEXT}", headers={"x-request-id": "mine"}))
    encode = service.engine._tokenizers.encode

    async def fails(texts, want):
        raise ValueError(f"cannot read {texts!r}")

    service.engine._tokenizers.encode = fails
    answers.append(await client.post("/v1/classify", json={"task": "t", "texts": TEXT}))
    service.engine._tokenizers.encode = encode
    return [answer.status_code for answer in answers]


def test_no_text_is_ever_logged_also_where_a_call_fails(serving, adapter_bytes, logged):
    async def scenario(client, service):
        statuses = await _calls(client, service, adapter_bytes)
        assert statuses == [200, 422, 422, 422, 422, 413, 404, 422, 415, 404, 404, 500]

    serving(scenario)
    assert SECRET not in logged.getvalue()
    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    of_requests = [line for line in lines if "status" in line]
    assert len(of_requests) == 13
    assert all(line["request_id"] for line in of_requests)
    assert of_requests[-2]["request_id"] == "mine"
    (failed,) = [line for line in lines if "exception" in line]
    assert "ValueError" in failed["exception"]
    assert failed["request_id"] == of_requests[-1]["request_id"]


def test_texts_are_logged_with_their_request_where_a_setting_asks(serving, adapter_bytes, logged):
    async def scenario(client, service):
        await _calls(client, service, adapter_bytes)

    serving(scenario, log_texts=True)
    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    told = [line for line in lines if SECRET in line["message"]]
    assert len(told) > 3
    assert all(line["request_id"] for line in told)


@pytest.mark.slow
def test_a_server_logs_json_with_request_ids_and_without_texts(start_server, adapter_bytes):
    server = start_server("--log-format", "json", "--log-level", "debug")
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        client.put("/v1/tasks/t/adapter", content=adapter_bytes()).raise_for_status()
        for body in ({"task": "t", "texts": TEXT}, {"task": "t", "texts": [TEXT, 3]}):
            client.post("/v1/classify", json=body, headers={"x-request-id": "r7"})
    server.terminate()
    assert server.process.wait(30) == 0
    text = server.log_path.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["status"] for line in lines if line.get("request_id") == "r7"] == [200, 422]
    assert SECRET not in text
