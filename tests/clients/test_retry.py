"""What is sent again, how often, and after which pause."""

import httpx2
import pytest

from labelmux_client import NotReadyError, OverloadedError, TransportError

SAFE = [
    ("classify", ("a",), {"task": "spam"}),
    ("tasks", (), {}),
    ("task", ("spam",), {}),
    ("push", ("spam", b"x"), {}),
    ("versions", ("spam",), {}),
    ("activate", ("spam", 2), {}),
    ("download", ("spam",), {}),
    ("info", (), {}),
]
ONLY_REFUSED = [
    ("delete", ("spam",), {}),
    ("push", ("spam", b"x"), {"create_only": True}),
    ("push", ("spam", b"x"), {"activate": "gated"}),
    ("activate", ("spam", 2), {"gated": True}),
]
NEVER = [("rollback", ("spam",), {})]
UNSENT = [
    httpx2.ConnectError("refused"),
    httpx2.ConnectTimeout("late"),
    httpx2.PoolTimeout("late"),
]
CUT_OFF = [
    httpx2.WriteTimeout("late"),
    httpx2.ReadError("reset"),
    httpx2.RemoteProtocolError("broken off"),
]
LOST = [
    httpx2.ConnectError("refused"),
    httpx2.ReadTimeout("late"),
    httpx2.RemoteProtocolError("broken off"),
]


@pytest.mark.parametrize(("method", "args", "kwargs"), SAFE + ONLY_REFUSED)
@pytest.mark.parametrize(("status", "code"), [(429, "overloaded"), (503, "draining")])
def test_what_was_refused_is_sent_twice_more(ask, wire, method, args, kwargs, status, code):
    server = wire.server(*[wire.refusal(status, code) for _ in range(3)])
    with pytest.raises((OverloadedError, NotReadyError)):
        ask(server, method, *args, **kwargs)
    assert len(server.requests) == 3
    assert len({request.content for request in server.requests}) == 1


@pytest.mark.parametrize(("method", "args", "kwargs"), SAFE)
@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_what_is_safe_is_sent_again_where_no_answer_came(ask, wire, method, args, kwargs, error):
    server = wire.server(error, error, error)
    with pytest.raises(TransportError):
        ask(server, method, *args, **kwargs)
    assert len(server.requests) == 3


@pytest.mark.parametrize(("method", "args", "kwargs"), ONLY_REFUSED + NEVER)
def test_what_may_have_worked_is_not_sent_again(ask, wire, method, args, kwargs):
    server = wire.server(httpx2.ReadTimeout("late"))
    with pytest.raises(TransportError, match="within 60 s"):
        ask(server, method, *args, **kwargs)
    assert len(server.requests) == 1


@pytest.mark.parametrize(("method", "args", "kwargs"), ONLY_REFUSED)
@pytest.mark.parametrize("error", UNSENT, ids=lambda error: type(error).__name__)
def test_what_did_not_reach_the_server_is_sent_again(ask, wire, method, args, kwargs, error):
    server = wire.server(error, error, error)
    with pytest.raises(TransportError):
        ask(server, method, *args, **kwargs)
    assert len(server.requests) == 3


@pytest.mark.parametrize(("method", "args", "kwargs"), ONLY_REFUSED)
@pytest.mark.parametrize("error", CUT_OFF, ids=lambda error: type(error).__name__)
def test_what_may_have_reached_the_server_is_not_sent_again(ask, wire, method, args, kwargs, error):
    server = wire.server(error)
    with pytest.raises(TransportError):
        ask(server, method, *args, **kwargs)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (httpx2.ConnectError("refused"), "is a labelmux server running there"),
        (httpx2.ConnectTimeout("late"), "is a labelmux server running there"),
        (httpx2.ReadTimeout("late"), "need longer than timeout_s"),
    ],
)
def test_an_answer_that_is_late_is_not_called_a_server_that_is_not_there(ask, wire, error, remedy):
    with pytest.raises(TransportError, match=remedy):
        ask(wire.server(error), "info", options={"max_retries": 0})


@pytest.mark.parametrize(("method", "args", "kwargs"), NEVER)
def test_rollback_is_never_sent_twice(ask, wire, method, args, kwargs):
    server = wire.server(wire.refusal(503, "draining"))
    with pytest.raises(NotReadyError):
        ask(server, method, *args, **kwargs)
    assert len(server.requests) == 1


def test_a_second_try_that_works_is_the_answer(ask, wire):
    server = wire.server(
        wire.refusal(429, "overloaded"),
        httpx2.ReadError("reset"),
        wire.classified({"spam": wire.PREDICTION}),
    )
    assert ask(server, "classify", "a", task="spam").prediction.label == "spam"
    first, second = server.pauses_s
    assert 0.125 <= first <= 0.25
    assert 0.25 <= second <= 0.5


@pytest.mark.parametrize(("said", "pause_s"), [("7", 7.0), ("0.5", 0.5), ("0", 0.0)])
def test_retry_after_is_honoured(ask, wire, said, pause_s):
    refused = wire.refusal(429, "overloaded")
    refused.headers["Retry-After"] = said
    server = wire.server(refused, wire.answer(200, wire.INFO))
    ask(server, "info")
    assert server.pauses_s == [pause_s]


@pytest.mark.parametrize("said", ["soon", "-1", "nan"])
def test_a_retry_after_without_sense_is_passed_over(ask, wire, said):
    refused = wire.refusal(429, "overloaded")
    refused.headers["Retry-After"] = said
    server = wire.server(refused, wire.answer(200, wire.INFO))
    ask(server, "info")
    assert 0 < server.pauses_s[0] <= 0.25


@pytest.mark.parametrize("said", ["3600", "inf"])
def test_a_server_that_asks_for_too_much_patience_is_not_waited_for(ask, wire, said):
    refused = wire.refusal(503, "draining")
    refused.headers["Retry-After"] = said
    server = wire.server(refused)
    with pytest.raises(NotReadyError):
        ask(server, "info")
    assert server.pauses_s == []


def test_pauses_grow_no_longer_than_eight_seconds(ask, wire):
    server = wire.server(*[httpx2.ConnectError("refused")] * 11)
    with pytest.raises(TransportError):
        ask(server, "tasks", options={"max_retries": 10})
    assert len(server.pauses_s) == 10
    assert 4.0 <= max(server.pauses_s) <= 8.0


@pytest.mark.parametrize(
    "answer_of",
    [
        lambda wire: wire.refusal(500, "internal"),
        lambda wire: wire.refusal(504, "timeout"),
        lambda wire: wire.refusal(422, "invalid_request"),
        lambda wire: httpx2.UnsupportedProtocol("no"),
        lambda wire: httpx2.DecodingError("bad gzip"),
    ],
)
def test_what_a_second_time_cannot_help_is_not_sent_again(ask, wire, answer_of):
    server = wire.server(answer_of(wire))
    with pytest.raises(Exception, match=r"\[|no answer"):
        ask(server, "tasks")
    assert len(server.requests) == 1


def test_ready_asks_once(ask, wire):
    server = wire.server(httpx2.ConnectError("refused"))
    assert ask(server, "ready") is False
    assert len(server.requests) == 1
