"""What the methods about shadows, canaries and gates send, and how they read the answers."""

from __future__ import annotations

import pytest

from labelmux_client import GateFailedError, GateScores

AT = "2026-01-02T03:04:05Z"


def test_shadow_and_canary_are_begun_read_and_ended(ask, wire):
    common = {"version": 2, "digest": wire.DIGEST, "since": AT, "counted_since": AT}
    common |= {"started_by": "ci", "of a newer server": 1}
    shadow = common | {"share": 1.0, "compared": 4, "agreed": 3, "agreement": 0.75}
    shadow |= {"score_difference": 0.1, "dropped": 0, "unloaded": 0}
    canary = common | {"share": 0.05, "by": "text", "answered": 1, "active_answered": 19}
    canary |= {"fell_back": 0}
    server = wire.server(wire.answer(200, shadow))
    begun = ask(server, "shadow", "spam", 2)
    assert (begun.agreement, begun.since.year, begun.started_by) == (0.75, 2026, "ci")
    assert (server.requests[0].method, server.bodies) == ("POST", [{"version": 2, "share": 1.0}])

    server = wire.server(wire.answer(200, canary))
    assert ask(server, "canary", "spam", 2, share=0.05).answered == 1
    assert server.bodies == [{"version": 2, "share": 0.05, "by": "text"}]

    body = {"task": "spam", "active": 1, "shadow": shadow, "canary": None}
    found = ask(wire.server(wire.answer(200, body)), "trials", "spam")
    assert (found.active, found.shadow, found.canary) == (1, begun, None)

    for method, path in (("end_shadow", "shadow"), ("end_canary", "canary")):
        server = wire.server(wire.answer(204))
        assert ask(server, method, "spam") is None
        assert server.requests[0].method == "DELETE"
        assert server.requests[0].url.path == f"/v1/tasks/spam/{path}"


def test_a_gate_is_stored_read_and_forgotten(ask, wire, tmp_path):
    body = {"task": "spam", "task_kind": "single_label", "pair": False, "rows": 1}
    body |= {"digest": wire.DIGEST, "size_bytes": 9, "stored_at": AT, "stored_by": None}
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{}")
    for data in (b"{}", path):
        server = wire.server(wire.answer(200, body))
        assert ask(server, "put_gate", "spam", data).rows == 1
        (request,) = server.requests
        assert (request.method, request.url.path) == ("PUT", "/v1/tasks/spam/gate")
        assert request.content == b"{}"
        assert request.headers["Content-Type"] == "application/x-ndjson"
    assert ask(wire.server(wire.answer(200, body)), "gate", "spam").stored_at.year == 2026
    assert ask(wire.server(wire.answer(204)), "delete_gate", "spam") is None


def test_gated_pushes_and_activations_have_both_scores(ask, wire):
    scores = {"measure": "accuracy", "rows": 9, "score": 0.9, "active_version": 1}
    scores |= {"active_score": 0.8}
    ref = {"task": "spam", "version": 2, "digest": wire.DIGEST, "gate": scores}
    server = wire.server(wire.answer(201, ref | {"active": True}))
    pushed = ask(server, "push", "spam", b"x", activate="gated")
    assert pushed.gate == GateScores("accuracy", 9, 0.9, 1, 0.8)
    assert dict(server.requests[0].url.params) == {"activate": "gated"}
    server = wire.server(wire.answer(200, ref))
    assert ask(server, "activate", "spam", 2, gated=True).gate == pushed.gate
    assert server.bodies == [{"version": 2, "gated": True}]
    server = wire.server(wire.refusal(409, "gate_failed", score=0.7, active_score=0.8))
    with pytest.raises(GateFailedError) as caught:
        ask(server, "push", "spam", b"x", activate="gated")
    assert (caught.value.fields["score"], caught.value.fields["active_score"]) == (0.7, 0.8)
