from __future__ import annotations

import asyncio
import itertools
import re
import threading

import numpy as np
import pytest

from labelmux_adapters.canaries import serve_logits
from labelmux_adapters.scores import to_scores
from labelmux_server.answers import classify_body
from labelmux_server.schemas import ClassifyAnswer

TOLERANCE = 1e-5


async def put(client, task: str, data: bytes) -> dict:
    answer = await client.put(f"/v1/tasks/{task}/adapter", content=data)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


async def classify(client, **body):
    return await client.post("/v1/classify", json=body)


def scores(prediction: dict) -> dict[str, float]:
    return {entry["label"]: entry["score"] for entry in prediction["labels"]}


async def metric(client, name: str) -> float:
    text = (await client.get("/metrics")).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def test_one_task_one_text(serving, make_adapter, adapter_bytes, tiny_encoder):
    adapter = make_adapter(labels=("no", "yes", "maybe"))

    async def scenario(client, service):
        uploaded = await put(client, "t", adapter_bytes(labels=("no", "yes", "maybe")))
        answer = await classify(client, task="t", texts="a good film")
        assert answer.status_code == 200
        body = answer.json()
        ClassifyAnswer.model_validate(body)
        prediction = body["results"][0]["predictions"]["t"]
        assert (prediction["task"], prediction["version"]) == ("t", 1)
        assert prediction["digest"] == uploaded["digest"]
        assert prediction["truncated"] is False
        expected = to_scores(
            serve_logits(adapter, tiny_encoder, ["a good film"])[0], adapter.manifest
        )
        found = scores(prediction)
        for label, score in zip(adapter.manifest.labels, expected, strict=True):
            assert found[label] == pytest.approx(score, abs=TOLERANCE)
        ordered = [entry["score"] for entry in prediction["labels"]]
        assert ordered == sorted(ordered, reverse=True)
        assert body["encoder_rows"] == 1
        assert body["tokens"] > 0

    serving(scenario)


def test_top_k_and_raw_scores(serving, make_adapter, adapter_bytes, tiny_encoder):
    labels = ("a", "b", "c", "d")
    adapter = make_adapter(labels=labels)

    async def scenario(client, service):
        await put(client, "t", adapter_bytes(labels=labels))
        answer = await classify(client, task="t", texts=["a good film"], top_k=2, raw_scores=True)
        prediction = answer.json()["results"][0]["predictions"]["t"]
        logits = serve_logits(adapter, tiny_encoder, ["a good film"])[0]
        best = sorted(zip(logits.tolist(), labels, strict=True), reverse=True)[:2]
        assert [entry["label"] for entry in prediction["labels"]] == [label for _, label in best]
        for entry, (logit, _) in zip(prediction["labels"], best, strict=True):
            assert entry["score"] == pytest.approx(logit, abs=TOLERANCE)
        assert prediction["calibrated"] is False

    serving(scenario)


def test_many_tasks_on_one_text_cost_one_encoder_row(serving, adapter_bytes):
    async def scenario(client, service):
        for seed in range(5):
            await put(client, f"t{seed}", adapter_bytes(seed=seed))
        before = await metric(client, "labelmux_encoder_rows_total ")
        answer = await classify(client, tasks=["*"], texts=["the soup was cold"])
        body = answer.json()
        assert set(body["results"][0]["predictions"]) == {f"t{seed}" for seed in range(5)}
        assert body["encoder_rows"] == 1
        assert await metric(client, "labelmux_encoder_rows_total ") - before == 1
        assert await metric(client, "labelmux_rows_total ") == 5

    serving(scenario)


def test_a_long_answer_is_put_together_beside_the_event_loop(serving, adapter_bytes, monkeypatch):
    threads = []

    def noted(*args):
        threads.append(threading.current_thread())
        return classify_body(*args)

    monkeypatch.setattr("labelmux_server.classification.classify_body", noted)

    async def scenario(client, _):
        await put(client, "t", adapter_bytes())
        texts = [f"text number {number}" for number in range(8)]
        at_once = (await classify(client, task="t", texts=texts)).json()
        for limit in ("_LOOP_TOKENS", "_LOOP_CELLS"):
            with monkeypatch.context() as small:
                small.setattr(f"labelmux_server.classification.{limit}", 1)
                beside = (await classify(client, task="t", texts=texts)).json()
            assert beside["results"] == at_once["results"]

    serving(scenario)
    here, *others = threads
    assert here is threading.main_thread()
    assert len(others) == 2 and here not in others


def test_equal_texts_in_one_call_are_read_once(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        body = (await classify(client, task="t", texts=["a", "b", "a"])).json()
        assert body["encoder_rows"] == 2
        first, _, third = (result["predictions"]["t"] for result in body["results"])
        assert first == third

    serving(scenario)


def test_an_error_of_one_task_stands_in_its_place_and_the_others_answer(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "single", adapter_bytes())
        await put(client, "pair", adapter_bytes(pair=True))
        answer = await classify(
            client, tasks=["single", "pair", "absent", "single@9", "single@1"], texts=["a", "b"]
        )
        assert answer.status_code == 200
        ClassifyAnswer.model_validate(answer.json())
        for result in answer.json()["results"]:
            found = result["predictions"]
            assert found["single"]["version"] == found["single@1"]["version"] == 1
            codes = {name: cell["error"]["code"] for name, cell in found.items() if "error" in cell}
            assert codes == {
                "pair": "task_needs_pairs",
                "absent": "task_not_found",
                "single@9": "version_not_found",
            }

    serving(scenario)


def test_the_answer_says_where_its_time_went(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        answer = await classify(client, task="t", texts=["a", "b"])
        stages = {
            name: float(duration)
            for name, duration in re.findall(
                r"(\w+);dur=([0-9.]+)", answer.headers["server-timing"]
            )
        }
        assert list(stages) == ["tokenise", "queue", "encode", "readout", "total"]
        assert all(duration >= 0 for duration in stages.values())
        assert 0 < sum(stages.values()) - stages["total"] <= stages["total"] + 0.05
        assert "server-timing" not in (await classify(client, task="absent", texts="a")).headers

    serving(scenario)


def test_all_tasks_of_a_call_may_fail(serving):
    async def scenario(client, service):
        answer = await classify(client, tasks=["x", "y"], texts=["a"])
        assert answer.status_code == 200
        assert answer.json()["encoder_rows"] == 0

    serving(scenario)


def test_every_task_means_those_that_read_what_is_sent(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "single", adapter_bytes())
        await put(client, "pair", adapter_bytes(pair=True))
        texts = (await classify(client, tasks=["*"], texts=["a"])).json()
        pairs = (await classify(client, tasks=["*"], pairs=[["a", "b"]])).json()
        assert set(texts["results"][0]["predictions"]) == {"single"}
        assert set(pairs["results"][0]["predictions"]) == {"pair"}
        assert "labels" in pairs["results"][0]["predictions"]["pair"]

    serving(scenario)


def test_every_task_named_often_is_looked_up_once(serving, adapter_bytes, monkeypatch):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        looked, real = [], service.registry.active

        def active():
            looked.append(True)
            return real()

        monkeypatch.setattr(service.registry, "active", active)
        answer = await classify(client, tasks=["*", "t"] * 500, texts="a")
        assert list(answer.json()["results"][0]["predictions"]) == ["t"]
        assert len(looked) == 1
        answer = await classify(client, tasks=["*", "a", "b", "c"], texts="a")
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_tasks")
        assert len(looked) == 1

    serving(scenario, max_tasks_per_call=3)


def test_a_pinned_version_serves_beside_the_active_one(serving, adapter_bytes):
    async def scenario(client, service):
        first = await put(client, "t", adapter_bytes(seed=0))
        second = await put(client, "t", adapter_bytes(seed=1))
        found = (await classify(client, tasks=["t", "t@1"], texts=["a"])).json()
        predictions = found["results"][0]["predictions"]
        assert predictions["t"]["digest"] == second["digest"]
        assert predictions["t@1"]["digest"] == first["digest"]
        pinned = (await classify(client, task="t@1", texts="a")).json()
        assert pinned["results"][0]["predictions"]["t@1"]["version"] == 1

    serving(scenario)


def test_truncation_is_said_or_refused(serving, adapter_bytes):
    long = "the train to the coast " * 40

    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        body = (await classify(client, task="t", texts=[long, "short"])).json()
        flags = [result["predictions"]["t"]["truncated"] for result in body["results"]]
        assert flags == [True, False]
        refused = await classify(client, task="t", texts=["short", long], truncation=False)
        assert refused.status_code == 422
        assert refused.json()["error"]["code"] == "text_truncated"
        assert refused.json()["error"]["index"] == 1
        mixed = await classify(client, tasks=["t"], texts=[long, "short"], truncation=False)
        first, second = (result["predictions"]["t"] for result in mixed.json()["results"])
        assert first["error"]["code"] == "text_truncated"
        assert "labels" in second

    serving(scenario)


def test_adapters_with_different_limits_share_the_rows_that_fit_both(serving, make_adapter):
    from labelmux_adapters.files import write_adapter

    async def scenario(client, service):
        for name, limit in (("long", 64), ("short", 16)):
            adapter = make_adapter()
            manifest = adapter.manifest.model_copy(
                update={"max_tokens": limit, "canary_tolerance": 0.1}
            )
            await put(client, name, write_adapter(manifest, adapter.tensors))
        texts = ["a good film", "the train to the coast leaves at nine and the bus at ten " * 2]
        body = (await classify(client, tasks=["long", "short"], texts=texts)).json()
        assert body["encoder_rows"] == 3
        flags = [
            (r["predictions"]["long"]["truncated"], r["predictions"]["short"]["truncated"])
            for r in body["results"]
        ]
        assert flags == [(False, False), (False, True)]

    serving(scenario)


def test_a_row_alone_equals_the_row_in_a_batch(serving, adapter_bytes):
    words = ["the", "coast", "film", "cold", "12345", "rivers", "dogs", "wonderful"]
    texts = [" ".join(itertools.islice(itertools.cycle(words), n)) for n in range(1, 50, 3)]

    async def scenario(client, service):
        for seed in range(3):
            labels = tuple("abcde"[: 2 + seed])
            await put(client, f"t{seed}", adapter_bytes(labels=labels, seed=seed))
        together = (await classify(client, tasks=["*"], texts=texts, raw_scores=True)).json()
        crowd = await asyncio.gather(
            *(classify(client, tasks=["*"], texts=[text], raw_scores=True) for text in texts)
        )
        for at, text in enumerate(texts):
            alone = (await classify(client, tasks=["*"], texts=text, raw_scores=True)).json()
            for task in ("t0", "t1", "t2"):
                expected = scores(alone["results"][0]["predictions"][task])
                for body in (together["results"][at], crowd[at].json()["results"][0]):
                    found = scores(body["predictions"][task])
                    assert found == pytest.approx(expected, abs=TOLERANCE)

    serving(scenario)


def test_a_text_is_text_even_if_it_names_special_tokens(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        plain = (await classify(client, task="t", texts="a b")).json()
        marked = (await classify(client, task="t", texts="a [SEP] b")).json()
        assert marked["tokens"] > plain["tokens"] + 1

    serving(scenario)


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ({}, 422, "invalid_request", "body"),
        ({"task": "t"}, 422, "invalid_request", "body"),
        ({"texts": ["a"]}, 422, "invalid_request", "body"),
        ({"task": "t", "tasks": ["t"], "texts": "a"}, 422, "invalid_request", "body"),
        ({"task": "t", "texts": "a", "pairs": [["a", "b"]]}, 422, "invalid_request", "body"),
        ({"task": "t", "texts": []}, 422, "invalid_request", "texts"),
        ({"task": "t", "texts": [1]}, 422, "invalid_request", "texts.0"),
        ({"task": "t", "texts": None}, 422, "invalid_request", "body"),
        ({"task": "t", "pairs": [["a"]]}, 422, "invalid_request", "pairs.0.1"),
        ({"task": "t", "pairs": [["a", "b", "c"]]}, 422, "invalid_request", "pairs.0"),
        ({"tasks": [], "texts": "a"}, 422, "invalid_request", "tasks"),
        ({"task": "t", "texts": "a", "top_k": 0}, 422, "invalid_request", "top_k"),
        ({"task": "t", "texts": "a", "top_k": "1"}, 422, "invalid_request", "top_k"),
        ({"task": "t", "texts": "a", "raw_scores": 1}, 422, "invalid_request", "raw_scores"),
        ({"task": "t", "texts": "a", "colour": "red"}, 422, "invalid_request", "colour"),
        ({"task": "absent", "texts": "a"}, 404, "task_not_found", None),
        ({"task": "*", "texts": "a"}, 404, "task_not_found", None),
        ({"task": "t@7", "texts": "a"}, 404, "version_not_found", None),
        ({"task": "t", "pairs": [["a", "b"]]}, 422, "task_takes_single_texts", None),
        ({"task": "p", "texts": "a"}, 422, "task_needs_pairs", None),
        ({"task": "t", "texts": ["a"] * 9}, 413, "too_many_texts", None),
        ({"task": "t", "texts": ["a" * 1001]}, 413, "text_too_long", None),
        ({"task": "t", "texts": ["a" * 900] * 5}, 413, "body_too_large", None),
    ],
)
def test_what_is_wrong_is_named(serving, adapter_bytes, body, status, code, field):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        await put(client, "p", adapter_bytes(pair=True))
        answer = await classify(client, **body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (status, code), error
        assert error["request_id"] == answer.headers["x-request-id"]
        if field is not None:
            assert error["field"] == field

    serving(scenario, max_client_batch_size=8, max_text_chars=1000, max_body_bytes=4000)


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "invalid_json"),
        (b"", "application/json", 400, "invalid_json"),
        (b"\xff\xfe", "application/json", 400, "invalid_json"),
        (b'{"task": "t", "texts": "\\ud800', "application/json", 400, "invalid_json"),
        (b"[" * 2000, "application/json", 400, "invalid_json"),
        (b"[]", "application/json", 422, "invalid_request"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
        (b"{}", "", 415, "unsupported_media_type"),
        (b"{}", "application/json; charset=utf-8", 422, "invalid_request"),
    ],
)
def test_bodies_that_are_not_json(serving, content, kind, status, code):
    async def scenario(client, service):
        headers = {"content-type": kind} if kind else {}
        answer = await client.post("/v1/classify", content=content, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)

    serving(scenario)


def test_a_body_without_a_stated_length_is_counted_as_it_comes(serving):
    sent = []

    async def chunks():
        for _ in range(100):
            sent.append(1)
            yield b" " * 1000

    async def scenario(client, service):
        answer = await client.post(
            "/v1/classify", content=chunks(), headers={"content-type": "application/json"}
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
        assert len(sent) < 10

    serving(scenario, max_body_bytes=4000, max_text_chars=1000)


def test_rows_and_tokens_that_could_never_wait_are_refused_for_good(serving, adapter_bytes):
    async def scenario(client, service):
        for seed in range(5):
            await put(client, f"t{seed}", adapter_bytes(seed=seed))
        rows = await classify(client, tasks=["*"], texts=["a", "b", "c", "d"])
        tokens = await classify(
            client, task="t0", texts=[f"{at} {'the coast ' * 40}" for at in range(4)]
        )
        for answer in (rows, tokens):
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_texts")

    serving(
        scenario,
        max_client_batch_size=16,
        max_queue_rows=16,
        max_queue_tokens=128,
        max_batch_tokens=64,
    )


def test_non_finite_or_odd_scores_never_reach_json(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        answer = await classify(client, task="t", texts=["", " ", "\u0000", "🙂" * 50])
        assert answer.status_code == 200
        assert not re.search(r"null|NaN|Infinity", answer.text)
        for result in answer.json()["results"]:
            values = [entry["score"] for entry in result["predictions"]["t"]["labels"]]
            assert np.isclose(sum(values), 1.0)

    serving(scenario)
