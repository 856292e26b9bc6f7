"""Shadows and canaries, through the HTTP routes of an app in this process."""

from __future__ import annotations

import asyncio

import pytest

from labelmux_server.release_schemas import CanaryInfo, ShadowInfo, TrialList
from labelmux_server.trial import Canary, TrialTerms

WORDS = ("train", "coast", "film", "soup", "bread", "money", "snow")
TEXTS = [f"the {one} and the {other}" for one in WORDS for other in WORDS][:40]
LABELS = ("good", "bad")


@pytest.fixture
def versions(adapter_bytes, make_adapter):
    """Two files of one task that give each text opposite labels."""
    from labelmux_adapters.files import write_adapter

    adapter = make_adapter(labels=LABELS)
    flipped = adapter.manifest.model_copy(update={"labels": LABELS[::-1]})
    return [
        write_adapter(adapter.manifest, adapter.tensors),
        write_adapter(flipped, adapter.tensors),
    ]


async def put(client, data: bytes, activate: str = "now", task: str = "t"):
    url = f"/v1/tasks/{task}/adapter"
    answer = await client.put(url, content=data, params={"activate": activate})
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


async def begin(client, files) -> None:
    """Version 1 is active, version 2 is there."""
    await put(client, files[0])
    staged = await put(client, files[1], "later")
    assert (staged["version"], staged["active"]) == (2, False)


async def ask(client, texts, task: str = "t", **fields):
    body = {"task": task, "texts": texts} | fields
    answer = await client.post("/v1/classify", json=body)
    assert answer.status_code == 200, answer.text
    whole = answer.json()
    return [result["predictions"][task] for result in whole["results"]], whole


async def trials(client, task: str = "t"):
    answer = await client.get(f"/v1/tasks/{task}/trials")
    assert answer.status_code == 200, answer.text
    TrialList.model_validate(answer.json())
    return answer.json()


async def seen(client, texts: int):
    """The shadow's counts, once it has said what became of so many texts."""
    async with asyncio.timeout(20):
        while True:
            shadow = (await trials(client))["shadow"]
            if sum(shadow[name] for name in ("compared", "dropped", "unloaded")) >= texts:
                return shadow
            await asyncio.sleep(0.002)


def best(prediction) -> str:
    return prediction["labels"][0]["label"]


def test_a_shadow_reads_along_answers_nobody_and_is_compared(serving, versions):
    async def scenario(client, service):
        await begin(client, versions)
        before, _ = await ask(client, TEXTS)
        started = await client.post("/v1/tasks/t/shadow", json={"version": 2})
        assert started.status_code == 200, started.text
        ShadowInfo.model_validate(started.json())
        after, whole = await ask(client, TEXTS)
        assert after == before
        assert {prediction["version"] for prediction in after} == {1}
        assert whole["encoder_rows"] == 0
        shadow = await seen(client, len(TEXTS))
        assert (shadow["compared"], shadow["agreed"]) == (len(TEXTS), 0)
        assert shadow["agreement"] == 0.0
        apart = [abs(2 * answer["labels"][0]["score"] - 1) for answer in before]
        assert shadow["score_difference"] == pytest.approx(sum(apart) / len(apart), abs=1e-5)
        await ask(client, TEXTS, "t@1")
        await ask(client, TEXTS, "t@2")
        assert (await trials(client))["shadow"]["compared"] == len(TEXTS)

    serving(scenario)


def test_a_shadow_of_plain_features_costs_no_row_of_the_encoder(serving, adapter_bytes):
    async def scenario(client, service):
        for seed in (0, 1):
            await put(client, adapter_bytes(seed=seed), "now" if seed == 0 else "later")
        await client.post("/v1/tasks/t/shadow", json={"version": 2})
        _, whole = await ask(client, TEXTS)
        assert (await seen(client, len(TEXTS)))["compared"] == len(TEXTS)
        assert whole["encoder_rows"] == len(TEXTS)
        metrics = (await client.get("/metrics")).text
        assert f"labelmux_encoder_rows_total {len(TEXTS)}.0" in metrics
        assert 'labelmux_shadow_texts_total{task="t",version="2"} 40.0' in metrics

    serving(scenario, feature_cache_bytes=0)


def test_a_shadow_that_changes_the_pass_reads_after_the_answer(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, adapter_bytes(seed=0))
        await put(client, adapter_bytes(seed=1, method="lora"), "later")
        await client.post("/v1/tasks/t/shadow", json={"version": 2})
        _, whole = await ask(client, TEXTS[:3])
        assert whole["encoder_rows"] == 3
        shadow = await seen(client, 3)
        assert shadow["compared"] == 3
        metrics = (await client.get("/metrics")).text
        assert "labelmux_encoder_rows_total 6.0" in metrics
        assert "labelmux_edited_rows_total 3.0" in metrics

    serving(scenario)


def test_shadows_of_several_labels_and_of_spans_are_compared_by_their_answers(
    serving, adapter_bytes
):
    kinds = {"multi_label": ("x", "y"), "token": ("O", "B-x", "I-x")}

    async def scenario(client, service):
        for kind, labels in kinds.items():
            for seed in (0, 1):
                data = adapter_bytes(labels=labels, task_kind=kind, seed=seed)
                await put(client, data, "later", kind)
            await client.post(f"/v1/tasks/{kind}/shadow", json={"version": 2})
            texts = [text + "!" * at for at, text in enumerate(TEXTS[:8])]
            ours, _ = await ask(client, texts, kind)
            theirs, _ = await ask(client, texts, f"{kind}@2")

            def said(answer):
                if "predicted" in answer:
                    return set(answer["predicted"])
                return {(s["label"], s["start"], s["end"]) for s in answer["spans"]}

            agreed = sum(said(a) == said(b) for a, b in zip(ours, theirs, strict=True))
            async with asyncio.timeout(20):
                while (shadow := (await trials(client, kind))["shadow"])["compared"] < 8:
                    await asyncio.sleep(0.002)
            assert shadow["agreed"] == agreed

    serving(scenario)


def test_a_shadow_that_is_not_in_memory_is_fetched_meanwhile(serving, versions, until):
    async def start(client, service):
        await begin(client, versions)
        await client.post("/v1/tasks/t/shadow", json={"version": 2})

    async def later(client, service):
        answers, _ = await ask(client, TEXTS)
        assert {answer["version"] for answer in answers} == {1}
        shadow = await seen(client, len(TEXTS))
        assert (shadow["unloaded"], shadow["compared"]) == (len(TEXTS), 0)
        async with asyncio.timeout(20):
            while service.registry.get("t", 2).digest not in service.residency:
                await asyncio.sleep(0.002)
            while (await trials(client))["shadow"]["compared"] == 0:
                await ask(client, TEXTS)

    serving(start)
    serving(later)


def test_a_shadow_whose_file_is_damaged_fails_nobody(serving, versions, tmp_path):
    async def start(client, service):
        await begin(client, versions)
        await client.post("/v1/tasks/t/shadow", json={"version": 2})
        return service.registry.get("t", 2).digest

    digest = serving(start).removeprefix("sha256:")
    (tmp_path / "state/blobs/sha256" / digest[:2] / digest).write_bytes(b"?")

    async def later(client, service):
        for turn in range(1, 4):
            answers, _ = await ask(client, TEXTS)
            assert {answer["version"] for answer in answers} == {1}
            assert (await seen(client, turn * len(TEXTS)))["compared"] == 0
        refused = await client.post("/v1/tasks/t/shadow", json={"version": 2})
        assert refused.json()["error"]["code"] == "adapter_damaged"

    serving(later)


def test_a_shadow_is_dropped_while_more_than_a_batch_waits(serving, versions, gate_replica):
    async def scenario(client, service):
        await begin(client, versions)
        await client.post("/v1/tasks/t/shadow", json={"version": 2})
        gated = gate_replica(service)
        first = asyncio.create_task(ask(client, "a good film"))
        await asyncio.to_thread(gated.entered.wait, 20)
        waiting = [asyncio.create_task(ask(client, [f"{'train ' * 30} {at}"])) for at in range(6)]
        async with asyncio.timeout(20):
            while service.batcher.queued_rows < 6:
                await asyncio.sleep(0.002)
        gated.gate.set()
        for answers, _ in await asyncio.gather(first, *waiting):
            assert [answer["version"] for answer in answers] == [1]
        shadow = await seen(client, 7)
        assert shadow["dropped"] >= 3
        assert shadow["compared"] + shadow["dropped"] == 7

    serving(scenario, max_batch_tokens=64, feature_cache_bytes=0)


def test_a_canary_answers_the_same_share_every_time_and_says_so(serving, versions):
    async def scenario(client, service):
        await begin(client, versions)
        ours, _ = await ask(client, TEXTS, "t@1")
        theirs, _ = await ask(client, TEXTS, "t@2")
        started = await client.post("/v1/tasks/t/canary", json={"version": 2, "share": 0.3})
        CanaryInfo.model_validate(started.json())
        answers, _ = await ask(client, TEXTS)
        small = {at for at, answer in enumerate(answers) if answer["version"] == 2}
        assert 0 < len(small) < len(TEXTS) / 2
        for at, answer in enumerate(answers):
            assert answer == (theirs if at in small else ours)[at]
        backwards, _ = await ask(client, TEXTS[::-1])
        assert backwards == answers[::-1]
        pinned, _ = await ask(client, TEXTS, "t@1")
        assert {answer["version"] for answer in pinned} == {1}
        canary = (await trials(client))["canary"]
        assert canary["answered"] == 2 * len(small)
        assert canary["active_answered"] == 2 * (len(TEXTS) - len(small))
        line = f'labelmux_canary_texts_total{{task="t",version="2"}} {2.0 * len(small)}'
        assert line in (await client.get("/metrics")).text

        await client.post("/v1/tasks/t/canary", json={"version": 2, "share": 0.6})
        answers, _ = await ask(client, TEXTS)
        large = {at for at, answer in enumerate(answers) if answer["version"] == 2}
        assert small < large
        assert (await client.delete("/v1/tasks/t/canary")).status_code == 204
        answers, _ = await ask(client, TEXTS)
        assert answers == ours

    serving(scenario)


def test_a_canary_by_caller_gives_all_texts_of_one_the_same_version(serving, versions):
    async def scenario(client, service):
        await begin(client, versions)
        body = {"version": 2, "share": 0.5, "by": "caller"}
        assert (await client.post("/v1/tasks/t/canary", json=body)).status_code == 200
        answers, _ = await ask(client, TEXTS)
        assert len({answer["version"] for answer in answers}) == 1

    serving(scenario)


def test_callers_are_split_by_the_names_of_their_keys():
    class Found:
        task = "t"

    canary = Canary(Found(), TrialTerms(0.25, "caller"), None, None)
    chosen = [canary.covers("x", f"key-{number}") for number in range(2000)]
    assert chosen == [canary.covers("y", f"key-{number}") for number in range(2000)]
    assert 400 < sum(chosen) < 600


def test_the_texts_that_a_canary_answers_are_not_its_shadows(serving, versions):
    async def scenario(client, service):
        await begin(client, versions)
        await client.post("/v1/tasks/t/canary", json={"version": 2, "share": 0.5})
        await client.post("/v1/tasks/t/shadow", json={"version": 2})
        answers, _ = await ask(client, TEXTS)
        active = sum(answer["version"] == 1 for answer in answers)
        assert 0 < active < len(TEXTS)
        assert (await seen(client, active))["compared"] == active

    serving(scenario)


def test_a_canary_that_cannot_read_leaves_its_texts_to_the_active_version(
    serving, versions, tmp_path
):
    async def start(client, service):
        await begin(client, versions)
        await client.post("/v1/tasks/t/canary", json={"version": 2, "share": 1})
        return service.registry.get("t", 2).digest

    digest = serving(start).removeprefix("sha256:")
    (tmp_path / "state/blobs/sha256" / digest[:2] / digest).write_bytes(b"?")

    async def later(client, service):
        answers, _ = await ask(client, TEXTS)
        assert {answer["version"] for answer in answers} == {1}
        canary = (await trials(client))["canary"]
        assert (canary["fell_back"], canary["answered"]) == (len(TEXTS), 0)

    serving(later)


def test_a_text_that_is_too_long_for_the_canary_alone_is_the_active_versions(
    serving, adapter_bytes
):
    """Nobody's call fails for a canary, also where no text may be cut."""
    texts = [*TEXTS[:4], "the train " * 10]

    async def scenario(client, service):
        await begin(client, [adapter_bytes(max_tokens=64), adapter_bytes(seed=1, max_tokens=12)])
        await client.post("/v1/tasks/t/canary", json={"version": 2, "share": 1})
        answers, _ = await ask(client, texts, truncation=False)
        assert [answer["version"] for answer in answers] == [2, 2, 2, 2, 1]
        alone, _ = await ask(client, texts[4:], truncation=False, task="t")
        assert (alone[0]["labels"], alone[0]["truncated"]) == (answers[4]["labels"], False)
        canary = (await trials(client))["canary"]
        assert (canary["fell_back"], canary["answered"]) == (2, 4)
        cut, _ = await ask(client, texts)
        assert (cut[4]["version"], cut[4]["truncated"]) == (2, True)
        body = {"task": "t", "texts": ["the train " * 99], "truncation": False}
        refused = (await client.post("/v1/classify", json=body)).json()["error"]
        assert (refused["code"], refused["limit_tokens"]) == ("text_truncated", 64)

    serving(scenario)


def test_trials_outlive_a_restart_and_stand_in_the_history(serving, versions):
    async def start(client, service):
        await begin(client, versions)
        await client.post("/v1/tasks/t/shadow", json={"version": 2, "share": 0.5})
        await client.post("/v1/tasks/t/canary", json={"version": 2, "share": 0.25})
        answers, _ = await ask(client, TEXTS)
        return [answer["version"] for answer in answers], await trials(client)

    async def again(client, service):
        answers, _ = await ask(client, TEXTS)
        found = await trials(client)
        await client.delete("/v1/tasks/t/shadow")
        await client.delete("/v1/tasks/t/canary")
        history = (await client.get("/v1/tasks/t/history")).json()["history"]
        return [answer["version"] for answer in answers], found, history

    split, before = serving(start)
    split_again, after, history = serving(again)
    assert split_again == split
    for kind in ("shadow", "canary"):
        for name in ("version", "digest", "share", "since", "started_by"):
            assert after[kind][name] == before[kind][name]
    assert [(entry["action"], entry["version"], entry["share"]) for entry in history] == [
        ("upload", 1, None),
        ("stage", 2, None),
        ("shadow", 2, 0.5),
        ("canary", 2, 0.25),
        ("end_shadow", 2, None),
        ("end_canary", 2, None),
    ]
    assert serving(lambda client, service: trials(client))["canary"] is None


@pytest.mark.parametrize("how", ["activate", "same", "rollback", "upload", "known"])
def test_whatever_becomes_active_ends_what_runs_beside(serving, versions, adapter_bytes, how):
    async def scenario(client, service):
        await put(client, adapter_bytes(labels=LABELS, seed=5))
        await put(client, versions[0])
        await put(client, versions[1], "later")
        for kind in ("shadow", "canary"):
            await client.post(f"/v1/tasks/t/{kind}", json={"version": 3, "share": 0.5})
        if how == "rollback":
            await client.post("/v1/tasks/t/rollback")
        elif how in ("activate", "same"):
            number = 3 if how == "activate" else 2
            await client.post("/v1/tasks/t/activate", json={"version": number})
        else:
            await put(client, adapter_bytes(seed=7) if how == "upload" else versions[1])
        active = {"activate": 3, "same": 2, "rollback": 1, "upload": 4, "known": 3}[how]
        expected = {"task": "t", "active": active, "shadow": None, "canary": None}
        assert await trials(client) == expected
        back = await client.post("/v1/tasks/t/rollback")
        assert back.status_code == (409 if how == "rollback" else 200)
        return

    serving(scenario)


def test_what_cannot_run_beside_the_active_version_is_refused(serving, versions, adapter_bytes):
    async def scenario(client, service):
        await begin(client, versions)
        await put(client, adapter_bytes(pair=True), "later")
        await put(client, adapter_bytes(task_kind="multi_label"), "later")
        cases = [
            ({"version": 1}, 409, "trial_misfit"),
            ({"version": 3}, 409, "trial_misfit"),
            ({"version": 4}, 409, "trial_misfit"),
            ({"version": 9}, 404, "version_not_found"),
            ({"version": 2, "share": 0}, 422, "invalid_request"),
            ({"version": 2, "share": 1.1}, 422, "invalid_request"),
            ({"version": 2, "by": "moon"}, 422, "invalid_request"),
        ]
        for kind in ("shadow", "canary"):
            for body, status, code in cases:
                answer = await client.post(f"/v1/tasks/t/{kind}", json={"share": 0.5} | body)
                found = (answer.status_code, answer.json()["error"]["code"])
                assert found == (status, code), answer.text
            absent = await client.delete(f"/v1/tasks/t/{kind}")
            assert (absent.status_code, absent.json()["error"]["code"]) == (404, "trial_not_found")
            elsewhere = await client.post(f"/v1/tasks/x/{kind}", json={"version": 2, "share": 1})
            assert elsewhere.json()["error"]["code"] == "task_not_found"
        assert (await client.get("/v1/tasks/x/trials")).status_code == 404
        assert (await trials(client))["shadow"] is None

    serving(scenario)


def test_a_version_on_trial_cannot_be_deleted_its_task_can(serving, versions):
    async def scenario(client, service):
        await begin(client, versions)
        await client.post("/v1/tasks/t/shadow", json={"version": 2})
        refused = await client.delete("/v1/tasks/t/versions/2")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "version_on_trial")
        await client.delete("/v1/tasks/t/shadow")
        await client.post("/v1/tasks/t/canary", json={"version": 2, "share": 0.5})
        assert (await client.delete("/v1/tasks/t/versions/2")).status_code == 409
        assert (await client.delete("/v1/tasks/t")).status_code == 204
        await begin_again(client)
        assert (await trials(client))["canary"] is None

    async def begin_again(client):
        assert (await put(client, versions[0]))["version"] == 3

    serving(scenario)


def test_the_first_version_of_a_task_serves_whatever_was_asked(serving, versions):
    async def scenario(client, service):
        for task, activate in (("a", "later"), ("b", "gated")):
            answer = await put(client, versions[0], activate, task)
            assert (answer["active"], answer["gate"]) == (True, None)
        odd = await client.put("/v1/tasks/a/adapter?activate=soon", content=versions[0])
        assert odd.json()["error"]["code"] == "invalid_request"

    serving(scenario)
