"""Commands that release a version with care, against a fake server."""

from __future__ import annotations

import pytest


@pytest.fixture
def adapter_file(tmp_path):
    path = tmp_path / "new.safetensors"
    path.write_bytes(b"adapter of another kind")
    return path


def test_push_stage_leaves_the_active_version_as_it_is(labelmux, server, adapter_file):
    done = labelmux("push", adapter_file, "--task", "spam", "--stage", url=server.url)
    assert (done.code, server.tasks["spam"].active) == (0, 1)
    assert "version 2 is stored, not active" in done.out
    done = labelmux("push", adapter_file, "--task", "spam", "--stage", "--gated", url=server.url)
    assert (done.code, "--stage" in done.err) == (2, True)


def test_push_gate_sends_the_rows_first_and_tells_both_scores(
    labelmux, server, adapter_file, tmp_path
):
    data = tmp_path / "dev.csv"
    data.write_text("text,label\nwin a prize,spam\nsee you,ham\n")
    done = labelmux("push", adapter_file, "--task", "spam", "--gate", data, url=server.url)
    assert done.code == 0, done.err
    assert server.tasks["spam"].gate == [
        {"text": "win a prize", "label": "spam"},
        {"text": "see you", "label": "ham"},
    ]
    assert "gate: accuracy 0.9000 on 2 rows, 0.9000 of version 1" in done.out
    assert server.tasks["spam"].active == 2


def test_push_that_does_not_pass_the_gate_fails(labelmux, server, adapter_file):
    server.tasks["spam"].gate = [{"text": "a", "label": "spam"}]
    server.tasks["spam"].score = 0.5
    done = labelmux("push", adapter_file, "--task", "spam", "--gated", url=server.url)
    assert done.code == 1
    assert "in spite" in done.err
    assert server.tasks["spam"].active == 1


def test_the_first_version_of_a_task_needs_no_gate(labelmux, server, adapter_file, tmp_path):
    data = tmp_path / "dev.csv"
    data.write_text("text,label\nwin a prize,spam\n")
    done = labelmux("push", adapter_file, "--task", "fresh", "--gate", data, url=server.url)
    assert (done.code, "new task" in done.err) == (0, True)
    assert server.tasks["fresh"].gate == []


def test_rows_of_every_kind_become_a_gate(labelmux, server, adapter_file, tmp_path):
    server.tasks["spam"].kind = "token"
    data = tmp_path / "dev.conll"
    data.write_text("Ada B-PER\nLovelace I-PER\nwrote O\n")
    labelmux("push", adapter_file, "--task", "spam", "--gate", data, url=server.url)
    span = {"label": "PER", "start": 0, "end": 12}
    assert server.tasks["spam"].gate == [{"text": "Ada Lovelace wrote", "spans": [span]}]
    server.tasks["spam"].kind = "multi_label"
    data = tmp_path / "dev.csv"
    data.write_text("text,labels\nboth,spam|ham\n")
    labelmux("push", adapter_file, "--task", "spam", "--gate", data, url=server.url)
    assert server.tasks["spam"].gate == [{"text": "both", "labels": ["spam", "ham"]}]


def test_shadow_canary_and_trials(labelmux, server, adapter_file):
    labelmux("push", adapter_file, "--task", "spam", "--stage", url=server.url)
    assert "nothing runs" in labelmux("trials", "spam", url=server.url).out
    assert labelmux("shadow", "spam", 2, url=server.url).code == 0
    done = labelmux("canary", "spam", 2, "--share", 0.05, "--by", "caller", url=server.url)
    assert "version 2 is the canary of 0.05" in done.out
    asked = {"version": 2, "share": 0.05, "by": "caller"}
    assert server.tasks["spam"].trials == {"shadow": {"version": 2, "share": 1.0}, "canary": asked}
    said = labelmux("trials", "spam", url=server.url).out
    assert "100 texts compared, 97.00% agree" in said
    assert "it answered 5 texts" in said
    found = labelmux("trials", "spam", "--json", url=server.url).json
    assert (found["shadow"]["agreed"], found["canary"]["by"]) == (97, "caller")
    assert "no shadow any more" in labelmux("shadow", "spam", "--end", url=server.url).out
    assert labelmux("canary", "spam", "--end", "--json", url=server.url).json["canary"] is None
    again = labelmux("canary", "spam", "--end", url=server.url)
    assert (again.code, "labelmux trials" in again.err) == (1, True)


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["shadow", "spam"], "--end"),
        (["shadow", "spam", 2, "--end"], "--end"),
        (["canary", "spam", 2], "--share"),
        (["canary", "spam", 2, "--share", 0.1, "--by", "moon"], "moon"),
        (["canary", "spam", 2, "--share", "nan"], "--share is nan"),
        (["canary", "spam", 2, "--share", 0], "--share is 0"),
        (["shadow", "spam", 2, "--share", "inf"], "--share is inf"),
    ],
)
def test_trials_that_make_no_sense_ask_nobody(labelmux, server, args, problem):
    done = labelmux(*args, url=server.url)
    assert (done.code, problem in done.err) == (2, True)
    assert server.requests == []
