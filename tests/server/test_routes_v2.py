"""The Open Inference Protocol."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

LABELS = ("low", "middle", "high")
TEXTS = ["a film", "the train to the coast"]
INFER = "/v2/models/t/infer"


async def put(client: Any, task: str, data: bytes) -> Any:
    return await client.put(f"/v1/tasks/{task}/adapter", content=data)


def tensor(data: list[Any], name: str = "text", **fields: Any) -> dict[str, Any]:
    shape = fields.pop("shape", [len(data)])
    return {"name": name, "shape": shape, "datatype": "BYTES", "data": data, **fields}


def outputs(answer: Any) -> dict[str, dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return {output["name"]: output for output in answer.json()["outputs"]}


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
@pytest.mark.parametrize("raw", [False, True])
def test_outputs_are_what_our_own_route_says(serving, adapter_bytes, kind, raw):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes(LABELS, task_kind=kind))
        texts = [*TEXTS, "the coast " * 99]
        ours = await client.post(
            "/v1/classify", json={"task": "t", "texts": texts, "raw_scores": raw}
        )
        cells = [
            item
            for result in ours.json()["results"]
            for item in result["predictions"]["t"]["labels"]
        ]
        body = {"id": "7", "inputs": [tensor(texts)], "parameters": {"raw_scores": raw}}
        answer = await client.post(INFER, json=body)
        found = outputs(answer)
        assert found["labels"]["data"] == [item["label"] for item in cells]
        assert found["scores"]["data"] == [item["score"] for item in cells]
        assert found["labels"]["shape"] == found["scores"]["shape"] == [3, 3]
        assert (found["labels"]["datatype"], found["scores"]["datatype"]) == ("BYTES", "FP32")
        assert found["truncated"]["data"] == [False, False, True]
        about = {"model_name": "t", "model_version": "1", "id": "7"}
        assert answer.json().items() >= about.items()

    serving(scenario)


def test_a_canary_with_other_labels_leaves_tensors_that_fit_their_shape(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes(LABELS))
        staged = {"content": adapter_bytes(("low", "high")), "params": {"activate": "later"}}
        await client.put("/v1/tasks/t/adapter", **staged)
        await client.post("/v1/tasks/t/canary", json={"version": 2, "share": 0.5})
        by_version: dict[str, str] = {}
        for text in (f"film {number}" for number in range(16)):
            answer = await client.post(INFER, json={"inputs": [tensor([text])]})
            by_version[answer.json()["model_version"]] = text
            most = 3 if answer.json()["model_version"] == "1" else 2
            assert outputs(answer)["labels"]["shape"] == [1, most]
        texts = [by_version["1"], by_version["2"]]
        answer = await client.post(INFER, json={"inputs": [tensor(texts)]})
        for name in ("labels", "scores"):
            found = outputs(answer)[name]
            assert (found["shape"], len(found["data"])) == ([2, 2], 4)
        assert answer.json()["model_version"] == "1"

    serving(scenario)


def test_tensors_may_be_nested_chosen_and_of_pairs(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes(LABELS))
        plain = outputs(await client.post(INFER, json={"inputs": [tensor(TEXTS)]}))
        nested = tensor([[text] for text in TEXTS], shape=[2, 1])
        body = {"inputs": [nested], "outputs": [{"name": "labels"}]}
        assert outputs(await client.post(INFER, json=body)) == {"labels": plain["labels"]}
        await put(client, "p", adapter_bytes(LABELS, pair=True))
        pairs = {"inputs": [tensor(["b"], "pair"), tensor(["a"])]}
        ours = await client.post("/v1/classify", json={"task": "p", "pairs": [["a", "b"]]})
        labels = ours.json()["results"][0]["predictions"]["p"]["labels"]
        found = outputs(await client.post("/v2/models/p/infer", json=pairs))
        assert found["scores"]["data"] == [item["score"] for item in labels]

    serving(scenario)


def test_texts_may_lie_behind_the_json(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes(LABELS))
        plain = outputs(await client.post(INFER, json={"inputs": [tensor(TEXTS)]}))
        packed = b"".join(struct.pack("<I", len(text)) + text.encode() for text in TEXTS)
        head = tensor([], shape=[2], parameters={"binary_data_size": len(packed)})
        del head["data"]

        async def send(packed: bytes, head: Any = head, **headers: str) -> Any:
            start = json.dumps({"inputs": [head]}).encode()
            length = {"inference-header-content-length": str(len(start))} | headers
            return await client.post(INFER, content=start + packed, headers=length)

        assert outputs(await send(packed)) == plain
        wrong = [
            await send(packed + b"x"),
            await send(packed[:-1]),
            await send(b"\xff\xff\xff\xff" + packed[4:]),
            await send(packed[:4] + b"\xff" + packed[5:]),
            await send(packed, head | {"parameters": {"binary_data_size": -1}}),
            await send(packed, head | {"parameters": {"binary_data_size": "9"}}),
            await send(packed, **{"inference-header-content-length": "99999"}),
            await send(packed, **{"inference-header-content-length": "x"}),
            await send(packed, **{"inference-header-content-length": "1" * 5000}),
        ]
        for answer in wrong:
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")

    serving(scenario)


def test_a_version_is_asked_by_its_path(serving, adapter_bytes):
    async def scenario(client, service):
        for seed in (1, 2):
            await put(client, "t", adapter_bytes(LABELS, seed=seed))
        body = {"inputs": [tensor(TEXTS)]}
        first = await client.post("/v2/models/t/versions/1/infer", json=body)
        active = await client.post(INFER, json=body)
        assert (first.json()["model_version"], active.json()["model_version"]) == ("1", "2")
        assert outputs(first) != outputs(active)
        about = (await client.get("/v2/models/t/versions/1")).json()
        assert (about["name"], about["versions"]) == ("t", ["1", "2"])
        assert about["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        assert [each["shape"] for each in about["outputs"]] == [[-1, 3], [-1, 3], [-1]]
        for path, status in (("ready", 200), ("versions/2/ready", 200), ("versions/3/ready", 404)):
            assert (await client.get(f"/v2/models/t/{path}")).status_code == status
        for body in ({"content": b""}, {"json": {"ready": True}}):
            index = (await client.post("/v2/repository/index", **body)).json()
            assert [(each["name"], each["version"], each["state"]) for each in index] == [
                ("t", "1", "READY"),
                ("t", "2", "READY"),
            ]

    serving(scenario)


def test_the_server_is_live_ready_and_says_what_it_is(serving):
    async def scenario(client, service):
        assert (await client.get("/v2")).json()["name"] == "labelmux"
        assert (await client.get("/v2/health/live")).json() == {"live": True}
        assert (await client.get("/v2/health/ready")).json() == {"ready": True}
        service.draining = True
        answer = await client.get("/v2/health/ready")
        assert (answer.status_code, answer.json()["code"]) == (503, "draining")

    serving(scenario)


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        (INFER, {"inputs": []}, 422, "invalid_request"),
        (INFER, {"inputs": [tensor([])]}, 422, "invalid_request"),
        (INFER, {"inputs": [tensor(["a"], shape=[2])]}, 422, "invalid_request"),
        (INFER, {"inputs": [tensor(["a"], shape=[-1])]}, 422, "invalid_request"),
        (INFER, {"inputs": [tensor(["a"], shape=[-1, -1])]}, 422, "invalid_request"),
        (INFER, {"inputs": [tensor(["a"], shape=[1, 1, 1])]}, 422, "invalid_request"),
        (INFER, {"inputs": [tensor(["a"], shape=[2**31 + 1])]}, 422, "invalid_request"),
        (INFER, {"inputs": [tensor(["a"], shape=[9] * 100_000)]}, 422, "invalid_request"),
        (INFER, {"inputs": [tensor(["a"], "other")]}, 422, "invalid_request"),
        (INFER, {"inputs": [tensor(["a"]), tensor(["a"])]}, 422, "invalid_request"),
        (INFER, {"inputs": [tensor(["a"]), tensor(["a", "b"], "pair")]}, 422, "invalid_request"),
        (INFER, {"inputs": [tensor([1])]}, 422, "invalid_request"),
        (INFER, {"inputs": [tensor([1.0], datatype="FP32")]}, 422, "invalid_request"),
        (INFER, {"inputs": [tensor(["a"])], "outputs": [{"name": "x"}]}, 422, "invalid_request"),
        (INFER, {"inputs": [tensor(["a"]), tensor(["a"], "pair")]}, 422, "task_takes_single_texts"),
        ("/v2/models/p/infer", {"inputs": [tensor(["a"])]}, 422, "task_needs_pairs"),
        ("/v2/models/s/infer", {"inputs": [tensor(["a"])]}, 422, "spans_unsupported"),
        ("/v2/models/none/infer", {"inputs": [tensor(["a"])]}, 404, "task_not_found"),
        ("/v2/models/t/versions/9/infer", {"inputs": [tensor(["a"])]}, 404, "version_not_found"),
        ("/v2/models/t/versions/0/infer", {"inputs": [tensor(["a"])]}, 422, "invalid_request"),
    ],
)
def test_what_is_wrong_is_told_in_one_string(serving, adapter_bytes, path, body, status, code):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        await put(client, "p", adapter_bytes(pair=True))
        await put(client, "s", adapter_bytes(("O", "B-x", "I-x"), task_kind="token"))
        answer = await client.post(path, json=body)
        error = answer.json()
        assert (answer.status_code, error["code"]) == (status, code), error
        assert error["request_id"] == answer.headers["x-request-id"]
        assert isinstance(error["error"], str)
        assert len(error["error"]) < 200

    serving(scenario)
