"""Uploads and activations that depend on a labelled set, through the HTTP routes."""

from __future__ import annotations

import asyncio
import json

import pytest

from labelmux_adapters.manifest import Calibration
from labelmux_server.release_schemas import GateInfo
from labelmux_server.schemas import ActivateAnswer, UploadAnswer

WORDS = ("train", "coast", "film", "soup", "bread", "money", "snow")
TEXTS = [f"the {one} and the {other}" for one in WORDS for other in WORDS][:40]
#: For each kind, what tells apart two versions of the same tensors that never agree.
OPPOSITES = {
    "single_label": [{"labels": ("good", "bad")}, {"labels": ("bad", "good")}],
    "multi_label": [
        {"calibration": Calibration(temperature=1000, thresholds=thresholds)}
        for thresholds in ((0.4, 0.6), (0.6, 0.4))
    ],
    "token": [
        {"labels": ("O", "B-x", "I-x", "B-y", "I-y")},
        {"labels": ("I-y", "O", "B-x", "I-x", "B-y")},
    ],
}


def lines(rows) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


async def put(client, data: bytes, activate: str = "now"):
    return await client.put("/v1/tasks/t/adapter", content=data, params={"activate": activate})


async def put_gate(client, rows):
    return await client.put("/v1/tasks/t/gate", content=lines(rows))


async def said_by(client, name: str):
    """Rows whose truth is what a version says."""
    answer = await client.post("/v1/classify", json={"task": name, "texts": TEXTS})
    rows = []
    for text, result in zip(TEXTS, answer.json()["results"], strict=True):
        found = result["predictions"][name]
        if "spans" in found:
            truth = {
                "spans": [{k: s[k] for k in ("label", "start", "end")} for s in found["spans"]]
            }
        elif "predicted" in found:
            truth = {"labels": found["predicted"]}
        else:
            truth = {"label": found["labels"][0]["label"]}
        rows.append({"text": text, **truth})
    return rows


@pytest.mark.parametrize("kind", OPPOSITES)
def test_a_version_passes_the_gate_only_if_it_is_as_good_as_the_active_one(
    serving, adapter_bytes, kind
):
    files = [adapter_bytes(task_kind=kind, **fields) for fields in OPPOSITES[kind]]

    async def scenario(client, service):
        await put(client, files[0])
        stored = await put_gate(client, await said_by(client, "t"))
        assert stored.status_code == 200, stored.text
        GateInfo.model_validate(stored.json())
        assert (stored.json()["rows"], stored.json()["task_kind"]) == (len(TEXTS), kind)
        assert (await client.get("/v1/tasks/t/gate")).json() == stored.json()

        refused = await put(client, files[1], "gated")
        assert refused.status_code == 409, refused.text
        error = refused.json()["error"]
        assert (error["code"], error["version"], error["active_version"]) == ("gate_failed", 2, 1)
        assert error["rows"] == len(TEXTS)
        assert error["score"] < error["active_score"] == 1.0
        assert (await client.get("/v1/tasks/t")).json()["version"] == 1
        refused = await client.post("/v1/tasks/t/activate", json={"version": 2, "gated": True})
        assert refused.json()["error"]["score"] == error["score"]

        await put_gate(client, await said_by(client, "t@2"))
        passed = await put(client, files[1], "gated")
        assert passed.status_code == 200, passed.text
        UploadAnswer.model_validate(passed.json())
        assert passed.json()["active"] is True
        scores = passed.json()["gate"]
        assert scores["score"] == 1.0 > scores["active_score"]
        assert scores["active_version"] == 1
        assert (await client.get("/v1/tasks/t")).json()["version"] == 2
        history = (await client.get("/v1/tasks/t/history")).json()["history"]
        assert [(entry["action"], entry["version"]) for entry in history] == [
            ("upload", 1),
            ("stage", 2),
            ("activate", 2),
        ]

    serving(scenario)


def test_equal_scores_pass_and_the_active_version_has_nothing_to_beat(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, adapter_bytes(labels=("good", "bad")))
        # Whatever a version says of it, one of the two is right.
        await put_gate(client, [{"text": "a", "label": label} for label in ("good", "bad")])
        same = await put(client, adapter_bytes(labels=("good", "bad")), "gated")
        assert (same.status_code, same.json()["gate"], same.json()["active"]) == (200, None, True)
        other = await put(client, adapter_bytes(labels=("good", "bad"), seed=1), "gated")
        assert other.status_code == 201
        assert (other.json()["gate"]["score"], other.json()["gate"]["active_score"]) == (0.5, 0.5)
        back = await client.post("/v1/tasks/t/activate", json={"version": 1, "gated": True})
        ActivateAnswer.model_validate(back.json())
        assert (back.json()["version"], back.json()["gate"]["active_version"]) == (1, 2)

    serving(scenario)


def test_a_gate_outlives_a_restart_and_goes_with_its_task(serving, adapter_bytes):
    async def start(client, service):
        await put(client, adapter_bytes())
        return (await put_gate(client, [{"text": "a", "label": "a"}])).json()

    async def again(client, service):
        found = (await client.get("/v1/tasks/t/gate")).json()
        await client.delete("/v1/tasks/t")
        await put(client, adapter_bytes())
        gone = await client.get("/v1/tasks/t/gate")
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "gate_not_found")
        await put_gate(client, [{"text": "a", "label": "a"}])
        assert (await client.delete("/v1/tasks/t/gate")).status_code == 204
        assert (await client.delete("/v1/tasks/t/gate")).status_code == 404
        return found

    stored = serving(start)
    assert serving(again) == stored


def test_a_gate_still_judges_where_a_text_may_no_longer_be_as_long(serving, adapter_bytes):
    rows = [{"text": "the coast " * 20, "label": label} for label in ("good", "bad")]

    async def start(client, service):
        await put(client, adapter_bytes(labels=("good", "bad")))
        return (await put_gate(client, rows)).json()

    async def lowered(client, service):
        refused = await put_gate(client, rows)
        assert refused.json()["error"]["code"] == "text_too_long"
        passed = await put(client, adapter_bytes(labels=("good", "bad"), seed=1), "gated")
        assert passed.status_code == 201, passed.text
        return (await client.get("/v1/tasks/t/gate")).json()

    stored = serving(start)
    assert serving(lowered, max_text_chars=50) == stored


def test_a_gated_upload_without_a_gate_stores_nothing(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, adapter_bytes())
        refused = await put(client, adapter_bytes(seed=1), "gated")
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "gate_not_found")
        assert len((await client.get("/v1/tasks/t/versions")).json()["versions"]) == 1

    serving(scenario)


def test_labelled_sets_that_cannot_judge_are_refused_by_line(serving, adapter_bytes):
    row = {"text": "a", "label": "a"}

    def span(start, end):
        return {"text": "ab", "spans": [{"label": "x", "start": start, "end": end}]}

    async def scenario(client, service):
        absent = await put_gate(client, [row])
        assert absent.json()["error"]["code"] == "task_not_found"
        await put(client, adapter_bytes())
        cases = [
            (b"", 422, "invalid_request", "body"),
            (b"\n \n", 422, "invalid_request", "body"),
            (b"{", 422, "invalid_request", "line 1"),
            (b"[]", 422, "invalid_request", "line 1"),
            (lines([row, {"text": "a"}]), 422, "invalid_request", "line 2"),
            (lines([row, row | {"labels": []}]), 422, "invalid_request", "line 2"),
            (lines([row, {"text": "a", "labels": ["a"]}]), 422, "invalid_request", "line 2"),
            (lines([row, row | {"pair": "b"}]), 422, "invalid_request", "line 2"),
            (lines([row | {"text": 1}]), 422, "invalid_request", "line 1.text"),
            (lines([row | {"text": ""}]), 422, "invalid_request", "line 1.text"),
            (lines([row | {"more": 1}]), 422, "invalid_request", "line 1.more"),
            (b'{"text": "\\ud800", "label": "a"}', 422, "invalid_request", "line 1.text"),
            (b"\xff", 422, "invalid_request", "line 1"),
            *(
                (lines([span(0, 1), span(start, end)]), 422, "invalid_request", "line 2")
                for start, end in ((0, 99), (1, 1), (2, 1), (0, 10**23))
            ),
            (lines([{"text": "a", "labels": []}]), 409, "gate_misfit", None),
            (lines([row | {"pair": "b"}]), 409, "gate_misfit", None),
            (lines([row | {"text": "x" * 60}]), 413, "text_too_long", None),
            (lines([row] * 100), 413, "body_too_large", None),
        ]
        for data, status, code, where in cases:
            answer = await client.put("/v1/tasks/t/gate", content=data)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error.get("field")) == (status, code, where)
        typed = {"content-type": "application/json"}
        answer = await client.put("/v1/tasks/t/gate", content=lines([row]), headers=typed)
        assert answer.json()["error"]["expected"] == "application/x-ndjson"
        assert (await client.get("/v1/tasks/t/gate")).status_code == 404

    serving(scenario, max_gate_bytes=1000, max_text_chars=50)


def test_what_became_active_while_the_gate_looked_is_not_overrun(
    serving, adapter_bytes, gate_replica
):
    async def scenario(client, service):
        for seed in (0, 1):
            await put(client, adapter_bytes(seed=seed))
        await put_gate(client, [{"text": text, "label": "a"} for text in TEXTS])
        gated = gate_replica(service)
        checking = asyncio.create_task(put(client, adapter_bytes(seed=2), "gated"))
        await asyncio.to_thread(gated.entered.wait, 20)
        await client.post("/v1/tasks/t/activate", json={"version": 1})
        gated.gate.set()
        answer = await checking
        assert answer.status_code == 409
        assert answer.json()["error"]["code"] in ("active_changed", "gate_failed")
        assert (await client.get("/v1/tasks/t")).json()["version"] == 1

    serving(scenario)


def test_a_gate_is_not_held_to_the_rate_of_a_key(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, adapter_bytes(labels=("good", "bad")))
        both = [{"text": text, "label": label} for text in TEXTS for label in ("good", "bad")]
        await put_gate(client, both[:40] * 5)
        passed = await put(client, adapter_bytes(labels=("good", "bad"), seed=1), "gated")
        assert passed.json()["gate"]["rows"] == 200

    serving(scenario, max_tokens_per_minute=50)


def test_a_gate_of_another_kind_judges_nobody(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, adapter_bytes())
        await put_gate(client, [{"text": "a", "label": "a"}])
        refused = await put(client, adapter_bytes(task_kind="multi_label"), "gated")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "gate_misfit")
        assert (await client.get("/v1/tasks/t")).json()["version"] == 1

    serving(scenario)


def test_a_label_that_nobody_can_say_judges_nobody(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, adapter_bytes(labels=("good", "bad")))
        await put_gate(client, [{"text": "a", "label": "Good"}])
        refused = await put(client, adapter_bytes(labels=("yes", "no")), "gated")
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (409, "gate_misfit")
        assert "'Good'" in error["message"]
        assert (await client.get("/v1/tasks/t")).json()["version"] == 1
        # A label that only the new version knows is one that the active one gets wrong.
        passed = await put(client, adapter_bytes(labels=("Good", "bad")), "gated")
        assert passed.status_code == 201, passed.text

    serving(scenario)
