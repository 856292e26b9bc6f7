"""TEI's routes, and what of Hugging Face's inference they take."""

from __future__ import annotations

from typing import Any

import pytest

LABELS = ("low", "middle", "high")


async def put(client: Any, task: str, data: bytes) -> None:
    assert (await client.put(f"/v1/tasks/{task}/adapter", content=data)).status_code == 201


async def native(client: Any, task: str, **body: Any) -> list[list[dict[str, Any]]]:
    """The labels of each text, as our own route gives them."""
    answer = await client.post("/v1/classify", json={"task": task, **body})
    return [result["predictions"][task]["labels"] for result in answer.json()["results"]]


@pytest.fixture
def tasks(adapter_bytes):
    async def make(client: Any) -> None:
        await put(client, "one", adapter_bytes(LABELS))
        await put(client, "many", adapter_bytes(LABELS, seed=1, task_kind="multi_label"))
        await put(client, "pairs", adapter_bytes(LABELS, seed=2, pair=True))
        await put(client, "spans", adapter_bytes(("O", "B-x", "I-x"), task_kind="token"))

    return make


@pytest.mark.parametrize("task", ["one", "many"])
@pytest.mark.parametrize("raw", [False, True])
def test_a_text_gives_a_list_and_a_batch_a_list_of_lists(serving, tasks, task, raw):
    async def scenario(client, service):
        await tasks(client)
        expected = await native(client, task, texts=["a film", "a train"], raw_scores=raw)
        path = f"/tei/{task}/predict"
        for inputs in ("a film", ["a film"]):
            answer = await client.post(path, json={"inputs": inputs, "raw_scores": raw})
            assert answer.json() == expected[0]
        body = {"inputs": [["a film"], ["a train"]], "raw_scores": raw}
        answer = await client.post(path, json=body)
        assert answer.json() == expected
        assert "encode;dur=" in answer.headers["server-timing"]

    serving(scenario)


def test_two_strings_are_a_pair(serving, tasks):
    async def scenario(client, service):
        await tasks(client)
        pairs = [["a film", "a train"], ["a dog", "snow"]]
        expected = await native(client, "pairs", pairs=pairs)
        answer = await client.post("/tei/pairs/predict", json={"inputs": pairs[0]})
        assert answer.json() == expected[0]
        answer = await client.post("/tei/pairs/predict", json={"inputs": pairs})
        assert answer.json() == expected

    serving(scenario)


def test_hugging_faces_parameters_nest_the_answer_and_choose(serving, tasks):
    async def scenario(client, service):
        await tasks(client)
        logits = await native(client, "one", texts="a film", raw_scores=True)
        ask = {"inputs": "a film", "parameters": {"function_to_apply": "none", "top_k": 2}}
        assert (await client.post("/tei/one/predict", json=ask)).json() == [logits[0][:2]]
        ask = {"inputs": "a film", "parameters": {}}
        assert (await client.post("/tei/one/predict", json=ask)).json() == await native(
            client, "one", texts="a film"
        )
        ask["parameters"] = {"function_to_apply": "sigmoid"}
        assert (await client.post("/tei/many/predict", json=ask)).status_code == 200
        refused = await client.post("/tei/one/predict", json=ask)
        assert refused.status_code == 422
        assert "softmax" in refused.json()["error"]

    serving(scenario)


def test_a_path_may_name_a_version(serving, adapter_bytes):
    async def scenario(client, service):
        for seed in (1, 2):
            data = adapter_bytes(LABELS, seed=seed)
            await client.put("/v1/tasks/one/adapter", content=data)
        first, active = [
            (await client.post(f"/tei/{name}/predict", json={"inputs": "a film"})).json()
            for name in ("one@1", "one")
        ]
        assert first != active
        sha = (await client.get("/tei/one@1/info")).json()["model_sha"]
        digests = (await client.get("/v1/tasks/one/versions")).json()["versions"]
        assert digests[0]["digest"] == f"sha256:{sha}"

    serving(scenario)


def test_the_default_task_is_the_only_one_or_the_one_of_the_settings(serving, tasks, adapter_bytes):
    async def alone(client, service):
        answer = await client.post("/predict", json={"inputs": "a film"})
        assert (answer.status_code, answer.json()["code"]) == (422, "no_default_task")
        await put(client, "one", adapter_bytes(LABELS))
        assert (await client.post("/predict", json={"inputs": "a film"})).status_code == 200
        assert (await client.get("/info")).json()["model_id"] == "one"
        await put(client, "two", adapter_bytes(LABELS, seed=3))
        for answer in (
            await client.post("/predict", json={"inputs": "a film"}),
            await client.get("/info"),
            await client.post("/classify", json={"input": "a film"}),
        ):
            assert answer.status_code == 422
            assert "--default-task" in answer.text

    async def named(client, service):
        expected = await native(client, "two", texts="a film")
        answer = await client.post("/predict", json={"inputs": "a film"})
        assert answer.json() == expected[0]

    serving(alone)
    serving(named, default_task="two")


def test_a_default_task_that_is_not_there_is_named(serving):
    async def scenario(client, service):
        answer = await client.post("/predict", json={"inputs": "a film"})
        assert (answer.status_code, answer.json()["code"]) == (404, "task_not_found")
        assert "'gone'" in answer.json()["error"]

    serving(scenario, default_task="gone")


def test_info_says_what_the_task_is(serving, tasks):
    async def scenario(client, service):
        await tasks(client)
        info = (await client.get("/tei/one/info")).json()
        assert info["model_type"]["classifier"]["id2label"] == {
            "0": "low",
            "1": "middle",
            "2": "high",
        }
        assert info["max_input_length"] == 64
        assert info["max_client_batch_size"] == 256
        assert info["model_dtype"] == "float32"

    serving(scenario)


@pytest.mark.parametrize(
    ("task", "body", "status", "code"),
    [
        ("one", {}, 422, "invalid_request"),
        ("one", {"inputs": []}, 422, "invalid_request"),
        ("one", {"inputs": ["a", "b", "c"]}, 422, "invalid_request"),
        ("one", {"inputs": [["a"], ["a", "b"]]}, 422, "invalid_request"),
        ("one", {"inputs": [["a"], "b"]}, 422, "invalid_request"),
        ("one", {"inputs": 3}, 422, "invalid_request"),
        ("one", {"inputs": "a", "truncation_direction": "Left"}, 422, "invalid_request"),
        ("one", {"inputs": "the coast " * 99, "truncate": False}, 422, "text_truncated"),
        ("one", {"inputs": ["a", "b"]}, 422, "task_takes_single_texts"),
        ("pairs", {"inputs": "a"}, 422, "task_needs_pairs"),
        ("spans", {"inputs": "a"}, 422, "spans_unsupported"),
        ("none", {"inputs": "a"}, 404, "task_not_found"),
        ("one", {"inputs": [["a"]] * 9}, 413, "too_many_texts"),
    ],
)
def test_what_is_wrong_is_told_as_tei_tells_it(serving, tasks, task, body, status, code):
    async def scenario(client, service):
        await tasks(client)
        answer = await client.post(f"/tei/{task}/predict", json=body)
        error = answer.json()
        assert (answer.status_code, error["code"]) == (status, code), error
        assert error["error_type"] == "Validation"
        assert isinstance(error["error"], str)
        assert error["request_id"] == answer.headers["x-request-id"]

    serving(scenario, max_client_batch_size=8)


@pytest.mark.parametrize(
    ("task", "body", "remedy"),
    [
        ("one", {"inputs": "the coast " * 99, "truncate": False}, '"truncate"'),
        ("one", {"inputs": ["a", "b"]}, '"inputs": [["first"], ["second"]]'),
        ("pairs", {"inputs": "a"}, '"inputs": ["first", "second"]'),
    ],
)
def test_errors_say_what_to_do_in_the_fields_of_tei(serving, tasks, task, body, remedy):
    async def scenario(client, service):
        await tasks(client)
        answer = await client.post(f"/tei/{task}/predict", json=body)
        said = answer.json()["error"]
        assert remedy in said
        assert not [name for name in ('"texts"', '"pairs"', '"truncation"') if name in said]

    serving(scenario)


def test_an_empty_text_is_a_text_and_unknown_fields_are_passed_over(serving, tasks):
    async def scenario(client, service):
        await tasks(client)
        body = {"inputs": "", "truncate": None, "prompt_name": "query"}
        assert (await client.post("/tei/one/predict", json=body)).status_code == 200

    serving(scenario)


def test_health_follows_readiness(serving):
    async def scenario(client, service):
        assert (await client.get("/health")).status_code == 200
        service.draining = True
        assert (await client.get("/health")).status_code == 503

    serving(scenario)
