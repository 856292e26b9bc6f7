"""Every kind of task over HTTP: what its answers say, and long texts in windows."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from labelmux_adapters.canaries import serve_logits
from labelmux_adapters.iob2 import runs_of, word_tokens, words_of
from labelmux_adapters.manifest import Calibration
from labelmux_adapters.scores import to_scores
from labelmux_server.schemas import ClassifyAnswer

TOLERANCE = 1e-5
TAGS = ("O", "B-x", "I-x", "B-y", "I-y")
TEXT = "the train to the coast, leaves at nine"
LONG = "the train to the coast leaves at nine and the bus at ten; two dogs play in the snow " * 4


async def put(client, task: str, data: bytes) -> None:
    answer = await client.put(f"/v1/tasks/{task}/adapter", content=data)
    assert answer.status_code == 201, answer.text


async def ask(client, **body):
    answer = await client.post("/v1/classify", json=body)
    assert answer.status_code == 200, answer.text
    ClassifyAnswer.model_validate(answer.json())
    return [result["predictions"] for result in answer.json()["results"]]


async def refused(client, **body):
    answer = await client.post("/v1/classify", json=body)
    assert answer.status_code == 422, answer.text
    return answer.json()["error"]


def test_a_multi_label_task_gives_every_label_its_own_score(
    serving, make_adapter, adapter_bytes, tiny_encoder
):
    labels = ("a", "b", "c", "d")
    made = {"labels": labels, "task_kind": "multi_label", "seed": 3}
    made["calibration"] = Calibration(temperature=2.0, thresholds=(0.01, 0.99, 0.5, 0.5))
    adapter = make_adapter(**made)

    async def scenario(client, service):
        await put(client, "t", adapter_bytes(**made))
        (whole,), (top,) = [
            await ask(client, task="t", texts=TEXT, top_k=top_k) for top_k in (None, 1)
        ]
        (logits,) = serve_logits(adapter, tiny_encoder, [TEXT])
        expected = dict(zip(labels, to_scores(logits, adapter.manifest).tolist(), strict=True))
        found = {entry["label"]: entry["score"] for entry in whole["t"]["labels"]}
        assert found == pytest.approx(expected, abs=TOLERANCE)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        thresholds = dict(zip(labels, adapter.manifest.calibration.thresholds, strict=True))
        said = [label for label, score in found.items() if score >= thresholds[label]]
        assert whole["t"]["predicted"] == top["t"]["predicted"] == said
        assert len(top["t"]["labels"]) == 1
        assert whole["t"]["task_kind"] == "multi_label" and whole["t"]["calibrated"]
        assert "abstained" not in whole["t"] and "spans" not in whole["t"]

    serving(scenario)


def test_a_task_abstains_below_its_threshold(serving, make_adapter, adapter_bytes):
    async def scenario(client, service):
        for name, abstain in (("never", None), ("sure", 0.001), ("strict", 0.999999)):
            await put(client, name, adapter_bytes(calibration=Calibration(abstain=abstain)))
        (found,) = await ask(client, tasks=["*"], texts=TEXT)
        assert {name: cell["abstained"] for name, cell in found.items()} == {
            "never": False,
            "sure": False,
            "strict": True,
        }
        assert found["strict"]["labels"] == found["never"]["labels"]
        (raw,) = await ask(client, task="strict", texts=TEXT, raw_scores=True)
        assert raw["strict"]["abstained"]

    serving(scenario)


def test_a_token_task_gives_spans_of_the_text(serving, make_adapter, adapter_bytes, tiny_encoder):
    adapter = make_adapter(TAGS, task_kind="token", seed=1)

    async def scenario(client, service):
        await put(client, "t", adapter_bytes(TAGS, task_kind="token", seed=1))
        alone, empty = await ask(client, task="t", texts=[TEXT, ""])
        (logits,) = serve_logits(adapter, tiny_encoder, [TEXT])
        (row,) = tiny_encoder.tokenizer.encode([TEXT], 64, offsets=True)
        words = words_of(TEXT)
        scores = to_scores(logits, adapter.manifest)[word_tokens(words, row.offsets, row.special)]
        tags = [TAGS[at] for at in scores.argmax(1)]
        expected = []
        for label, first, end in runs_of(tags):
            start, stop = words[first][0], words[end - 1][1]
            score = pytest.approx(float(scores[first:end].max(1).mean()), abs=TOLERANCE)
            expected.append(
                {"label": label, "start": start, "end": stop, "text": TEXT[start:stop]}
                | {"score": score}
            )
        assert expected
        assert alone["t"]["spans"] == expected
        assert empty["t"]["spans"] == []
        assert alone["t"]["task_kind"] == "token" and alone["t"]["windows"] == 1
        assert "labels" not in alone["t"]

    serving(scenario)


def test_a_span_lies_where_people_see_it(serving, adapter_bytes):
    text = "Ünï\n🙂 naïve  the train"

    async def scenario(client, service):
        await put(client, "t", adapter_bytes(TAGS, task_kind="token", seed=1))
        (found,) = await ask(client, task="t", texts=text)
        assert found["t"]["spans"]
        for span in found["t"]["spans"]:
            assert text[span["start"] : span["end"]] == span["text"]

    serving(scenario)


def test_kinds_share_a_call_and_a_pass(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "one", adapter_bytes())
        await put(client, "many", adapter_bytes(task_kind="multi_label"))
        await put(client, "spans", adapter_bytes(TAGS, task_kind="token"))
        crowd = [
            client.post("/v1/classify", json={"tasks": ["*"], "texts": [TEXT, LONG[:60]]})
            for _ in range(6)
        ]
        (alone,) = await ask(client, tasks=["*"], texts=TEXT)
        assert set(alone) == {"one", "many", "spans"}
        for answer in await asyncio.gather(*crowd):
            found = answer.json()["results"][0]["predictions"]
            assert [s["label"] for s in found["spans"]["spans"]] == [
                s["label"] for s in alone["spans"]["spans"]
            ]
            for task in ("one", "many"):
                for entry, wanted in zip(found[task]["labels"], alone[task]["labels"], strict=True):
                    assert entry["score"] == pytest.approx(wanted["score"], abs=TOLERANCE)

    serving(scenario)


def test_spans_have_no_logits(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes(TAGS, task_kind="token"))
        await put(client, "u", adapter_bytes())
        error = await refused(client, task="t", texts=TEXT, raw_scores=True)
        assert error["code"] == "no_raw_scores" and error["task"] == "t"
        (found,) = await ask(client, tasks=["*"], texts=TEXT, raw_scores=True)
        assert found["t"]["error"]["code"] == "no_raw_scores"
        assert found["u"]["labels"]

    serving(scenario)


@pytest.mark.parametrize("how", ["mean", "max"])
def test_a_long_text_is_read_in_windows(how, serving, make_adapter, adapter_bytes, tiny_encoder):
    adapter = make_adapter(labels=("a", "b", "c"), max_tokens=16)

    async def scenario(client, service):
        await put(client, "t", adapter_bytes(labels=("a", "b", "c"), max_tokens=16))
        windows = {"overlap_tokens": 4, "aggregation": how}
        long, short = await ask(client, task="t", texts=[LONG, "the bus"], windows=windows)
        (rows,) = tiny_encoder.tokenizer.windows([LONG], 16, 4, offsets=True)
        assert long["t"]["windows"] == len(rows) > 5 and not long["t"]["truncated"]
        assert short["t"]["windows"] == 1
        parts = [LONG[row.offsets[1][0] : row.offsets[-2][1]] for row in rows]
        logits = np.array(serve_logits(adapter, tiny_encoder, parts))
        expected = to_scores(getattr(logits, how)(0), adapter.manifest)
        found = {entry["label"]: entry["score"] for entry in long["t"]["labels"]}
        for label, score in zip(("a", "b", "c"), expected.tolist(), strict=True):
            assert found[label] == pytest.approx(score, abs=1e-4)
        plain, cut = await ask(client, task="t", texts=["the bus", LONG])
        assert plain["t"]["labels"] == short["t"]["labels"]
        assert cut["t"]["truncated"] and cut["t"]["windows"] == 1
        strict = await ask(client, task="t", texts=[LONG], windows=windows, truncation=False)
        assert strict[0]["t"]["windows"] == len(rows)

    serving(scenario)


def test_spans_are_found_in_every_window(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes(TAGS, task_kind="token", seed=1, max_tokens=16))
        (cut,) = await ask(client, task="t", texts=LONG)
        (whole,) = await ask(client, task="t", texts=LONG, windows={"overlap_tokens": 6})
        assert cut["t"]["truncated"] and not whole["t"]["truncated"]
        last = max(span["end"] for span in cut["t"]["spans"])
        assert last < len(LONG) / 4 < max(span["end"] for span in whole["t"]["spans"])
        ends = [(span["start"], span["end"]) for span in whole["t"]["spans"]]
        assert ends == sorted(ends)

    serving(scenario)


def test_windows_that_cannot_be_are_refused(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes(max_tokens=16))
        await put(client, "pair", adapter_bytes(pair=True))
        error = await refused(client, task="t", texts=LONG, windows={"overlap_tokens": 8})
        assert error["code"] == "overlap_too_long" and error["limit_tokens"] == 7
        assert await ask(client, task="t", texts=LONG, windows={"overlap_tokens": 7})
        for windows in ({"overlap_tokens": -1}, {"aggregation": "sum"}, {"stride": 1}):
            error = await refused(client, task="t", texts=LONG, windows=windows)
            assert error["code"] == "invalid_request" and "windows" in error["field"]
        error = await refused(client, task="pair", pairs=[["a", "b"]], windows={})
        assert error["code"] == "invalid_request" and "texts" in error["message"]

    serving(scenario)


def test_windows_count_as_rows(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes(max_tokens=8))
        body = {"task": "t", "texts": LONG, "windows": {"overlap_tokens": 3}}
        answer = await client.post("/v1/classify", json=body)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "too_many_texts"

    serving(scenario, max_queue_rows=20, max_client_batch_size=4)
