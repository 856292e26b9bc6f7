"""What each method sends, and how it reads the answer."""

import hashlib
from datetime import UTC, datetime

import pytest

from labelmux_client import (
    AnswerError,
    LabelScore,
    PushResult,
    Span,
    TaskNotFoundError,
    VersionRef,
    Windows,
)


def test_classify_one_text_for_one_task(ask, wire):
    server = wire.server(wire.classified({"spam": wire.PREDICTION}))
    result = ask(server, "classify", "win a prize", task="spam")
    (request,) = server.requests
    assert (request.method, request.url.path) == ("POST", "/v1/classify")
    assert server.bodies == [{"task": "spam", "texts": ["win a prize"]}]
    assert result.prediction.label == "spam"
    assert result.prediction.score == 0.75
    assert result.prediction.labels == (LabelScore("spam", 0.75), LabelScore("ham", 0.25))
    assert (result.prediction.version, result.prediction.digest) == (3, wire.DIGEST)
    assert (result.encoder_rows, result.tokens, result.request_id) == (1, 9, "r-1")


def test_classify_keeps_the_order_of_texts(ask, wire):
    low = wire.PREDICTION | {"labels": [{"label": "ham", "score": 0.9}]}
    server = wire.server(wire.classified({"spam": wire.PREDICTION}, {"spam": low}))
    result = ask(server, "classify", ["a", "b"], task="spam", top_k=1)
    assert server.bodies == [{"task": "spam", "texts": ["a", "b"], "top_k": 1}]
    assert [item.label for item in result.predictions] == ["spam", "ham"]
    assert len(result) == 2
    assert [text["spam"].label for text in result] == ["spam", "ham"]
    with pytest.raises(ValueError, match="2 texts"):
        _ = result.prediction


def test_texts_of_any_script_are_sent_as_utf8_not_as_escapes(ask, wire):
    text = "日本語\u2028😀"
    server = wire.server(wire.classified({"spam": wire.PREDICTION}))
    ask(server, "classify", text, task="spam")
    assert text.encode() in server.requests[0].content
    # Two halves that belong together are a character; one alone is the server's to refuse.
    server = wire.server(wire.classified({"spam": wire.PREDICTION}))
    ask(server, "classify", "\ud83d\ude00 \ud800", task="spam")
    assert rb"\ud83d\ude00 \ud800" in server.requests[0].content


def test_classify_all_tasks_with_every_option(ask, wire):
    server = wire.server(wire.classified({"spam": wire.PREDICTION, "tone": wire.PREDICTION}))
    result = ask(
        server, "classify", pairs=[("a", "b")], tasks="*", raw_scores=True, truncation=False
    )
    assert server.bodies == [
        {"tasks": ["*"], "pairs": [["a", "b"]], "raw_scores": True, "truncation": False}
    ]
    assert set(result[0].predictions) == {"spam", "tone"}
    with pytest.raises(ValueError, match="2 tasks"):
        _ = result.prediction


def test_what_a_kind_of_task_does_not_have_is_none(ask, wire):
    common = {name: wire.PREDICTION[name] for name in ("task", "version", "digest")}
    common |= {"truncated": False, "windows": 3, "calibrated": False}
    span = {"label": "PER", "start": 0, "end": 3, "text": "Ada", "score": 0.9}
    spans = common | {"task_kind": "token", "spans": [span]}
    several = common | {"task_kind": "multi_label", "predicted": ["joy"]}
    several |= {"labels": [{"label": "joy", "score": 0.7}, {"label": "anger", "score": 0.1}]}
    server = wire.server(wire.classified({"ner": spans, "mood": several, "spam": wire.PREDICTION}))
    (found,) = ask(server, "classify", "Ada", tasks="*", windows=Windows(8, "max"))
    assert server.bodies[0]["windows"] == {"overlap_tokens": 8, "aggregation": "max"}
    assert found["ner"].spans == (Span("PER", 0, 3, "Ada", 0.9),)
    assert (found["ner"].labels, found["ner"].predicted, found["ner"].windows) == (None, None, 3)
    with pytest.raises(ValueError, match="spans"):
        _ = found["ner"].label
    assert found["mood"].predicted == ("joy",) and found["mood"].label == "joy"
    assert (found["mood"].spans, found["mood"].abstained) == (None, None)
    assert (found["spam"].abstained, found["spam"].predicted) == (False, None)


def test_a_task_that_fails_leaves_the_others(ask, wire):
    failed = {"error": {"code": "task_not_found", "message": "no task 'x'"}}
    server = wire.server(wire.classified({"spam": wire.PREDICTION, "x": failed}))
    result = ask(server, "classify", "a", tasks=["spam", "x"])
    assert result[0]["spam"].label == "spam"
    assert result[0].failures["x"].code == "task_not_found"
    with pytest.raises(TaskNotFoundError, match="no task 'x'") as caught:
        _ = result[0]["x"]
    assert caught.value.status == 200
    with pytest.raises(KeyError):
        _ = result[0]["never asked"]


@pytest.mark.parametrize(
    ("kwargs", "problem"),
    [
        ({"task": "x"}, "texts or pairs"),
        ({"texts": "a", "pairs": [("a", "b")], "task": "x"}, "texts or pairs"),
        ({"texts": "a"}, "task"),
        ({"pairs": [("a", "b")], "task": "x", "windows": Windows()}, "single texts"),
        ({"texts": "a", "task": "x", "tasks": ["y"]}, "task"),
        ({"pairs": ("ab", "cd"), "task": "x"}, "two texts"),
        ({"pairs": [("a", "b", "c")], "task": "x"}, "two texts"),
    ],
)
def test_contradictions_are_refused_before_anything_is_sent(ask, wire, kwargs, problem):
    server = wire.server()
    with pytest.raises(ValueError, match=problem):
        ask(server, "classify", **kwargs)
    assert server.requests == []


def test_tasks_are_asked_for_in_pages(ask, wire):
    server = wire.server(wire.answer(200, {"tasks": [], "total": 0}))
    assert ask(server, "tasks", search="sp am", after="a", limit=100) == []
    params = {"search": "sp am", "after": "a", "limit": "100"}
    assert dict(server.requests[0].url.params) == params


def test_tasks_and_task_read_what_a_task_is(ask, wire):
    (task,) = ask(wire.server(wire.answer(200, {"tasks": [wire.TASK]})), "tasks")
    server = wire.server(wire.answer(200, wire.TASK))
    assert ask(server, "task", "spam") == task
    assert server.requests[0].url.path == "/v1/tasks/spam"
    assert task.labels == ("ham", "spam")
    assert task.created_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize("status", [201, 200])
@pytest.mark.parametrize("as_path", [True, False])
def test_push_sends_bytes_and_their_digest(ask, wire, tmp_path, status, as_path):
    data = b"adapter"
    path = tmp_path / "spam.safetensors"
    path.write_bytes(data)
    body = {"task": "spam", "version": 4, "digest": wire.DIGEST, "active": True}
    server = wire.server(wire.answer(status, body))
    result = ask(server, "push", "spam", path if as_path else data)
    (request,) = server.requests
    assert (request.method, request.url.path) == ("PUT", "/v1/tasks/spam/adapter")
    assert request.content == data
    assert request.headers["Content-Type"] == "application/octet-stream"
    assert request.headers["X-Content-SHA256"] == hashlib.sha256(data).hexdigest()
    assert "If-None-Match" not in request.headers
    assert result == PushResult("spam", 4, wire.DIGEST, active=True, created=status == 201)


def test_push_create_only_says_so(ask, wire):
    body = {"task": "spam", "version": 1, "digest": wire.DIGEST, "active": True}
    server = wire.server(wire.answer(201, body))
    ask(server, "push", "spam", b"x", create_only=True)
    assert server.requests[0].headers["If-None-Match"] == "*"


def test_versions_activate_rollback_delete(ask, wire):
    ref = {"task": "spam", "version": 2, "digest": wire.DIGEST}
    listed = ask(wire.server(wire.answer(200, wire.VERSIONS)), "versions", "spam")
    assert (listed.active, listed.versions[0].size_bytes) == (3, 4321)
    assert (listed.history[0].action, listed.history[0].by) == ("upload", "ci")
    server = wire.server(wire.answer(200, {"task": "spam", "history": wire.VERSIONS["history"]}))
    assert ask(server, "history", "spam") == listed.history
    assert server.requests[0].url.path == "/v1/tasks/spam/history"

    server = wire.server(wire.answer(200, ref))
    assert ask(server, "activate", "spam", 2) == VersionRef("spam", 2, wire.DIGEST)
    assert server.bodies == [{"version": 2}]
    assert server.requests[0].url.path == "/v1/tasks/spam/activate"

    server = wire.server(wire.answer(200, ref))
    assert ask(server, "rollback", "spam").version == 2
    assert server.requests[0].url.path == "/v1/tasks/spam/rollback"

    for version, path in ((None, "/v1/tasks/spam"), (2, "/v1/tasks/spam/versions/2")):
        server = wire.server(wire.answer(204))
        assert ask(server, "delete", "spam", version=version) is None
        assert (server.requests[0].method, server.requests[0].url.path) == ("DELETE", path)


def test_download_checks_the_bytes_against_their_etag(ask, wire):
    data = b"adapter"
    digest = hashlib.sha256(data).hexdigest()

    def answer(etag):
        response = wire.answer(200, ETag=etag)
        return type(response)(200, content=data, headers={"ETag": etag})

    server = wire.server(answer(f'"sha256:{digest}"'))
    assert ask(server, "download", "spam", version=2) == data
    assert str(server.requests[0].url).endswith("/v1/tasks/spam/adapter?version=2")
    server = wire.server(answer(f'"{wire.DIGEST}"'))
    with pytest.raises(AnswerError, match="digest"):
        ask(server, "download", "spam")


def test_info_and_ready(ask, wire):
    info = ask(wire.server(wire.answer(200, wire.INFO)), "info")
    assert (info.encoder.hidden_size, info.access, info.tasks) == (384, "key", 1)
    assert (info.key.name, info.key.scopes, info.key.tasks) == ("shop", ("classify",), ("shop-*",))
    assert ask(wire.server(wire.answer(200, {})), "ready") is True
    assert ask(wire.server(wire.refusal(503, "not_ready")), "ready") is False


def test_names_cannot_leave_their_place_in_the_path(ask, wire):
    server = wire.server(wire.answer(200, wire.TASK))
    ask(server, "task", "../info?x=1#y")
    assert server.requests[0].url.raw_path == b"/v1/tasks/..%2Finfo%3Fx%3D1%23y"


def test_the_key_and_the_path_of_a_proxy_are_used(ask, wire):
    server = wire.server(wire.answer(200, wire.INFO))
    ask(server, "info", options={"key": "k-1", "base_url": "https://example.test/labels/"})
    (request,) = server.requests
    assert str(request.url) == "https://example.test/labels/v1/info"
    assert request.headers["Authorization"] == "Bearer k-1"
    assert request.headers["User-Agent"].startswith("labelmux-client/")


@pytest.mark.parametrize("base_url", ["127.0.0.1:8000", "ftp://x", "http://", "", "http://[::1"])
def test_an_address_that_cannot_be_one_is_refused_at_once(ask, wire, base_url):
    with pytest.raises(ValueError, match="base_url"):
        ask(wire.server(), "info", options={"base_url": base_url})


@pytest.mark.parametrize("key", ["", "  ", "a\nb", "schlüssel"])
def test_a_key_that_no_header_carries_is_refused_without_being_shown(ask, wire, key):
    with pytest.raises(ValueError, match="the key") as caught:
        ask(wire.server(), "info", options={"key": key})
    assert not key.strip() or key not in str(caught.value)
