"""Tasks of every method in one batch: what each answers, and what they share."""

from __future__ import annotations

import asyncio

import pytest

from labelmux_adapters.canaries import serve_logits
from labelmux_adapters.methods import METHODS

TOLERANCE = 2e-4
TEXTS = ["the train to the coast", "a good film, all in all", "two dogs"]
LABELS = ("a", "b", "c")


async def put(client, task: str, data: bytes) -> None:
    answer = await client.put(f"/v1/tasks/{task}/adapter", content=data)
    assert answer.status_code == 201, answer.text


async def ask(client, **body):
    answer = await client.post("/v1/classify", json={"raw_scores": True, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def logits(prediction) -> dict[str, float]:
    return {entry["label"]: entry["score"] for entry in prediction["labels"]}


async def metrics(client) -> dict[str, float]:
    lines = (await client.get("/metrics")).text.splitlines()
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    }


async def grown(client, before, *names: str) -> list[float]:
    after = await metrics(client)
    return [after[name] - before[name] for name in names]


def test_tasks_of_every_method_answer_in_one_pass(
    serving, make_adapter, adapter_bytes, tiny_encoder
):
    made = {name: {"labels": LABELS, "method": name, "seed": 7} for name in METHODS}

    async def scenario(client, service):
        for name, options in made.items():
            await put(client, name, adapter_bytes(**options))
        before = await metrics(client)
        answer = await ask(client, tasks=["*"], texts=TEXTS)
        for place, text in enumerate(TEXTS):
            for name, options in made.items():
                (expected,) = serve_logits(make_adapter(**options), tiny_encoder, [text])
                found = logits(answer["results"][place]["predictions"][name])
                assert list(map(found.get, LABELS)) == pytest.approx(
                    expected.tolist(), abs=TOLERANCE
                ), name
        # ytuning and linear read the same plain features; each of the others has rows of its own.
        rows = len(TEXTS) * (len(METHODS) - 1)
        assert answer["encoder_rows"] == rows
        assert await grown(
            client,
            before,
            "labelmux_encoder_passes_total",
            "labelmux_encoder_rows_total",
            "labelmux_edited_rows_total",
            "labelmux_batch_adapters_sum",
        ) == [1, rows, len(TEXTS) * (len(METHODS) - 2), len(METHODS)]

    serving(scenario)


def test_features_that_an_adapter_changed_are_never_taken_from_the_cache(serving, adapter_bytes):
    async def scenario(client, service):
        for name in ("ytuning", "pasta", "lora"):
            await put(client, name, adapter_bytes(labels=LABELS, method=name, seed=3))
        first = [await ask(client, task=name, texts=TEXTS) for name in ("pasta", "ytuning")]
        again = await ask(client, tasks=["ytuning", "pasta", "lora"], texts=TEXTS)
        assert again["encoder_rows"] == 2 * len(TEXTS)  # the plain ones came before
        for place in range(len(TEXTS)):
            found = again["results"][place]["predictions"]
            for name, before in zip(("pasta", "ytuning"), first, strict=True):
                expected = logits(before["results"][place]["predictions"][name])
                assert logits(found[name]) == pytest.approx(expected, abs=TOLERANCE)

    serving(scenario)


def test_versions_of_a_task_may_be_of_different_methods(serving, make_adapter, adapter_bytes):
    async def scenario(client, service):
        answers = {}
        for number, name in enumerate(("pasta", "unipelt", "ytuning", "ia3"), start=1):
            await put(client, "t", adapter_bytes(labels=LABELS, method=name, seed=number))
            (result,) = (await ask(client, task="t", texts=TEXTS[:1]))["results"]
            answers[f"t@{number}"] = result["predictions"]["t"]
            assert result["predictions"]["t"]["version"] == number
        (result,) = (await ask(client, tasks=list(answers), texts=TEXTS[:1]))["results"]
        for name, before in answers.items():
            expected = pytest.approx(logits(before), abs=TOLERANCE)
            assert logits(result["predictions"][name]) == expected

    serving(scenario)


def test_one_text_written_like_a_special_token_shifts_nothing_more(
    serving, make_adapter, adapter_bytes, tiny_encoder
):
    text = "the train [SEP] to the [CLS] coast"
    adapter = make_adapter(labels=LABELS, method="pasta", seed=3)
    row = tiny_encoder.tokenizer.encode([text], 64)[0]
    assert row.special == (0, len(row.token_ids) - 1)

    async def scenario(client, service):
        await put(client, "t", adapter_bytes(labels=LABELS, method="pasta", seed=3))
        (result,) = (await ask(client, task="t", texts=text))["results"]
        (expected,) = serve_logits(adapter, tiny_encoder, [text])
        found = logits(result["predictions"]["t"])
        assert list(map(found.get, LABELS)) == pytest.approx(expected.tolist(), abs=TOLERANCE)

    serving(scenario)


def test_calls_for_one_adapter_share_a_row_of_an_edited_pass(serving, adapter_bytes, gate_replica):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes(labels=LABELS, method="lora", seed=3))
        before = await metrics(client)
        gated = gate_replica(service)
        held = asyncio.create_task(ask(client, task="t", texts=["ahead"]))
        await asyncio.to_thread(gated.entered.wait, 30)
        calls = [asyncio.create_task(ask(client, task="t", texts=TEXTS)) for _ in range(5)]
        while service.batcher.queued_rows < 5 * len(TEXTS):
            await asyncio.sleep(0)
        gated.gate.set()
        answers = await asyncio.gather(held, *calls)
        assert all(answer["results"] == answers[1]["results"] for answer in answers[1:])
        assert await grown(client, before, "labelmux_edited_rows_total") == [1 + len(TEXTS)]

    serving(scenario)
