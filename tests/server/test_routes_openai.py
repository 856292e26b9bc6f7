"""The routes of vLLM, Infinity and OpenAI's list of models."""

from __future__ import annotations

from typing import Any

import pytest

LABELS = ("low", "middle", "high")
SPANS = ("O", "B-x", "I-x")
TEXTS = ["a film", "the train to the coast"]


async def put(client: Any, task: str, data: bytes) -> None:
    assert (await client.put(f"/v1/tasks/{task}/adapter", content=data)).status_code == 201


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
@pytest.mark.parametrize("raw", [False, True])
def test_both_say_what_our_own_route_says(serving, adapter_bytes, kind, raw):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes(LABELS, task_kind=kind))
        body = {"task": "t", "texts": TEXTS, "raw_scores": raw}
        ours = (await client.post("/v1/classify", json=body)).json()
        labels = [result["predictions"]["t"]["labels"] for result in ours["results"]]
        usage = {"prompt_tokens": ours["tokens"], "total_tokens": ours["tokens"]}
        usage["completion_tokens"] = 0

        body = {"model": "t", "input": TEXTS, "raw_scores": raw}
        infinity = (await client.post("/infinity/classify", json=body)).json()
        assert infinity["data"] == labels
        assert (infinity["object"], infinity["model"]) == ("classify", "t")
        assert infinity["usage"] == usage

        body = {"model": "t", "input": TEXTS, "use_activation": not raw}
        answer = await client.post("/classify", json=body)
        vllm = answer.json()
        for index, (item, expected) in enumerate(zip(vllm["data"], labels, strict=True)):
            scores = {each["label"]: each["score"] for each in expected}
            assert item == {
                "index": index,
                "label": expected[0]["label"],
                "probs": [scores[name] for name in LABELS],
                "num_classes": 3,
            }
        assert vllm["id"] == f"classify-{answer.headers['x-request-id']}"
        assert (vllm["object"], vllm["model"], vllm["usage"]) == ("list", "t", usage)

    serving(scenario)


def test_one_text_is_a_batch_of_one_and_a_model_may_name_a_version(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes(LABELS))
        for path in ("/classify", "/infinity/classify"):
            answer = await client.post(path, json={"model": "t@1", "input": "a", "user": "u"})
            assert (len(answer.json()["data"]), answer.json()["model"]) == (1, "t@1")

    serving(scenario)


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
def test_a_canary_may_have_other_labels_than_the_active_version(serving, adapter_bytes, kind):
    """The labels that both have keep their places, since callers of vLLM go by these."""
    texts = [f"film {number}" for number in range(16)]
    own = ("high", "new", "low")

    async def scenario(client, service):
        await put(client, "t", adapter_bytes(LABELS, task_kind=kind))
        staged = {"content": adapter_bytes(own, task_kind=kind), "params": {"activate": "later"}}
        assert (await client.put("/v1/tasks/t/adapter", **staged)).status_code == 201
        await client.post("/v1/tasks/t/canary", json={"version": 2, "share": 0.5})
        body = {"task": "t", "texts": texts}
        ours = [
            result["predictions"]["t"]
            for result in (await client.post("/v1/classify", json=body)).json()["results"]
        ]
        assert {prediction["version"] for prediction in ours} == {1, 2}
        answer = await client.post("/classify", json={"model": "t", "input": texts})
        assert answer.status_code == 200, answer.text
        for item, prediction in zip(answer.json()["data"], ours, strict=True):
            scores = {each["label"]: each["score"] for each in prediction["labels"]}
            order = LABELS if prediction["version"] == 1 else ("low", "high", "new")
            assert item["probs"] == [scores[name] for name in order]
            assert (item["label"], item["num_classes"]) == (prediction["labels"][0]["label"], 3)

    serving(scenario)


def test_vllm_cuts_a_long_text_only_where_it_is_asked_to(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        body = {"model": "t", "input": "the coast " * 99}
        refused = await client.post("/classify", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "text_truncated")
        answer = await client.post("/classify", json=body | {"truncate_prompt_tokens": -1})
        assert answer.status_code == 200
        assert (await client.post("/infinity/classify", json=body)).status_code == 200

    serving(scenario)


@pytest.mark.parametrize("path", ["/classify", "/infinity/classify"])
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "t"}, 422, "invalid_request"),
        ({"model": "t", "input": []}, 422, "invalid_request"),
        ({"model": "t", "input": [[1, 2]]}, 422, "invalid_request"),
        ({"model": "spans", "input": "a"}, 422, "spans_unsupported"),
        ({"model": "pairs", "input": "a"}, 422, "task_needs_pairs"),
        ({"model": "none", "input": "a"}, 404, "task_not_found"),
        ({"input": "a"}, 422, "no_default_task"),
    ],
)
def test_what_is_wrong_is_an_error_object(serving, adapter_bytes, path, body, status, code):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        await put(client, "spans", adapter_bytes(SPANS, task_kind="token"))
        await put(client, "pairs", adapter_bytes(pair=True))
        answer = await client.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)

    serving(scenario)


@pytest.mark.parametrize(
    ("path", "model", "remedy"),
    [
        ("/classify", "t", '"truncate_prompt_tokens": -1'),
        ("/classify", "pairs", "/v1/classify"),
        ("/infinity/classify", "pairs", "/v1/classify"),
    ],
)
def test_errors_say_what_to_do_there(serving, adapter_bytes, path, model, remedy):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        await put(client, "pairs", adapter_bytes(pair=True))
        body = {"model": model, "input": "the coast " * 99}
        answer = await client.post(path, json=body)
        assert answer.status_code == 422
        assert remedy in answer.json()["error"]["message"]
        assert '"truncation"' not in answer.json()["error"]["message"]

    serving(scenario)


def test_models_are_the_tasks_at_once(serving, adapter_bytes, tiny_encoder):
    async def scenario(client, service):
        assert (await client.get("/v1/models")).json() == {"object": "list", "data": []}
        await put(client, "t", adapter_bytes())
        (model,) = (await client.get("/v1/models")).json()["data"]
        task = (await client.get("/v1/tasks/t")).json()
        assert model["id"] == "t"
        assert model["root"] == task["digest"]
        assert model["parent"] == tiny_encoder.name
        assert model["max_model_len"] == 64
        assert (await client.get("/v1/models/t")).json() == model
        (infinitys,) = (await client.get("/infinity/models")).json()["data"]
        assert infinitys.items() >= (model | {"owned_by": "infinity"}).items()
        assert infinitys["stats"] == {
            "queue_fraction": 0.0,
            "queue_absolute": 0,
            "batch_size": 256,
        }
        assert (await client.get("/v1/models/u")).status_code == 404
        await client.delete("/v1/tasks/t")
        assert (await client.get("/v1/models")).json()["data"] == []

    serving(scenario)
