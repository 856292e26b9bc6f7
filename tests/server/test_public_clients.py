"""The public clients that people already have, as they are, against a real server process."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
from huggingface_hub import InferenceClient, TextClassificationOutputElement
from huggingface_hub.errors import HfHubHTTPError

from labelmux_server.keys import Rights, opened_keys

pytestmark = pytest.mark.slow

LABELS = ("low", "middle", "high")


@pytest.fixture
def server(start_server, adapter_bytes) -> Any:
    """A server with three tasks that asks for a key: of the settings, ``right``."""
    running = start_server("--admin-key", "right", "--default-task", "one")
    headers = {"authorization": "Bearer right"}
    for task, data in (
        ("one", adapter_bytes(LABELS)),
        ("many", adapter_bytes(LABELS, seed=1, task_kind="multi_label")),
        ("spans", adapter_bytes(("O", "B-x", "I-x"), task_kind="token")),
    ):
        url = f"{running.url}/v1/tasks/{task}/adapter"
        assert httpx2.put(url, content=data, headers=headers, timeout=60).status_code == 201
    return running


def native(server: Any, task: str, texts: list[str]) -> list[dict[str, float]]:
    """Score by label, as our own route gives it."""
    answer = httpx2.post(
        f"{server.url}/v1/classify",
        json={"task": task, "texts": texts},
        headers={"authorization": "Bearer right"},
    )
    return [
        {item["label"]: item["score"] for item in result["predictions"][task]["labels"]}
        for result in answer.json()["results"]
    ]


def scores(found: list[TextClassificationOutputElement]) -> dict[str, float]:
    return {item.label: item.score for item in found}


def test_hugging_faces_inference_client(server):
    for task, path in (("one", "/predict"), ("many", "/tei/many/predict")):
        client = InferenceClient(base_url=server.url + path, api_key="right")
        (expected,) = native(server, task, ["a good film"])
        assert scores(client.text_classification("a good film")) == expected
        (best,) = client.text_classification("a good film", top_k=1)
        assert expected[best.label] == best.score == max(expected.values())
        logits = client.text_classification("a good film", function_to_apply="none")
        assert scores(logits).keys() == expected.keys()
        assert scores(logits) != expected
    wrong = InferenceClient(base_url=f"{server.url}/tei/spans/predict", api_key="right")
    with pytest.raises(HfHubHTTPError, match="answers with spans"):
        wrong.text_classification("a good film")
    stranger = InferenceClient(base_url=f"{server.url}/predict", api_key="wrong")
    with pytest.raises(HfHubHTTPError, match="live key"):
        stranger.text_classification("a good film")


def test_openais_client(server):
    with opened_keys(server.state_dir) as keys:
        key = keys.create("some", Rights(frozenset({"classify"}), tasks=("one", "none")))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="right", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["many", "one", "spans"]
        assert client.models.retrieve("one").owned_by == "labelmux"
        with pytest.raises(openai.NotFoundError) as absent:
            client.models.retrieve("none")
        assert absent.value.code == "task_not_found"
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["one"]
        with pytest.raises(openai.PermissionDeniedError):
            client.models.retrieve("many")
    with openai.OpenAI(base_url=server.url, api_key="right", max_retries=0) as client:
        body = {"model": "one", "input": ["a film", "a train"]}
        answer: Any = client.post("/classify", cast_to=object, body=body)
        expected = native(server, "one", ["a film", "a train"])
        assert [item["probs"] for item in answer["data"]] == [
            [each[label] for label in LABELS] for each in expected
        ]
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


#: In a process of its own: the client brings gevent.
TRITON = """
    import json, sys
    import numpy as np
    import tritonclient.http as http

    client = http.InferenceServerClient(sys.argv[1].removeprefix("http://"))
    key = {"authorization": "Bearer right"}
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("one", headers=key)
    assert client.is_model_ready("one", "1", headers=key)
    assert not client.is_model_ready("none", headers=key)
    assert not client.is_model_ready("one")
    assert client.get_server_metadata(headers=key)["name"] == "labelmux"
    about = client.get_model_metadata("one", headers=key)
    index = client.get_model_repository_index(headers=key)
    assert [each["name"] for each in index] == ["many", "one", "spans"]

    found = {}
    texts = np.array([text.encode() for text in ("a film", "ein Überfall")], dtype=np.object_)
    for binary in (True, False):
        given = http.InferInput(about["inputs"][0]["name"], texts.shape, "BYTES")
        given.set_data_from_numpy(texts, binary_data=binary)
        wanted = [http.InferRequestedOutput(each["name"]) for each in about["outputs"]]
        for outputs in (None, wanted):
            # The client writes into the headers that it is given.
            answer = client.infer(
                "one", [given], outputs=outputs, request_id="7", headers=dict(key)
            )
            assert answer.get_response()["id"] == "7"
            labels, scores = answer.as_numpy("labels"), answer.as_numpy("scores")
            assert labels.shape == scores.shape == (2, 3) and scores.dtype == np.float32
            assert answer.as_numpy("truncated").tolist() == [False, False]
            found[f"{binary} {outputs is None}"] = [
                dict(zip(names, values))
                for names, values in zip(labels.tolist(), scores.tolist())
            ]
    for model, headers, said in (("spans", key, "spans"), ("one", {}, "live key")):
        try:
            client.infer(model, [given], headers=dict(headers))
        except http.InferenceServerException as error:
            assert said in error.message(), error
        else:
            raise SystemExit("not refused")
    client.close()
    print(json.dumps(found))
"""


def test_tritons_client(server, run_alone: Callable[..., Any]):
    expected = native(server, "one", ["a film", "ein Überfall"])
    found = run_alone(TRITON, server.url)
    assert len(found) == 4
    for each in found.values():
        assert each == [pytest.approx(scores, abs=1e-6) for scores in expected]


@pytest.fixture
def run_alone() -> Callable[..., Any]:
    """Run Python code in a process of its own; what it prints, read as JSON."""

    def run(code: str, *arguments: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), *arguments],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
