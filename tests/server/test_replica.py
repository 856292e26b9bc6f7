"""What the feature cache promises, seen through a whole server."""

from __future__ import annotations

import itertools

import pytest

TEXTS = ("a good film", "the soup was cold", "two dogs play in the snow", "win a prize " * 12)


async def put(client, task: str, data: bytes) -> None:
    assert (await client.put(f"/v1/tasks/{task}/adapter", content=data)).is_success


async def classify(client, *texts: str) -> dict:
    body = {"tasks": ["*"], "texts": list(texts), "raw_scores": True}
    return (await client.post("/v1/classify", json=body)).json()


async def metrics(client) -> dict[str, float]:
    lines = (await client.get("/metrics")).text.splitlines()
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    }


def test_an_answer_from_the_cache_equals_the_answer_without_it_bit_for_bit(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes(labels=("a", "b", "c")))
        await put(client, "u", adapter_bytes(seed=1))
        first = await classify(client, *TEXTS)
        again = await classify(client, *TEXTS)
        alone = [(await classify(client, text))["results"][0] for text in TEXTS]
        assert (first["encoder_rows"], again["encoder_rows"]) == (4, 0)
        return first["results"], again["results"], alone

    async def plain(client, service):
        for text in TEXTS:
            assert (await classify(client, text))["encoder_rows"] == 1
        return [(await classify(client, text))["results"][0] for text in TEXTS]

    first, again, alone = serving(scenario)
    assert again == first
    without = serving(plain, feature_cache_bytes=0)
    for cached, computed in zip(alone, without, strict=True):
        for task in ("t", "u"):
            found, expected = cached["predictions"][task], computed["predictions"][task]
            values = [entry["score"] for entry in expected["labels"]]
            assert [entry["score"] for entry in found["labels"]] == pytest.approx(values, abs=1e-5)


@pytest.mark.parametrize("cached", [(0,), (1, 3), (0, 1, 2), ()])
def test_hits_and_misses_mix_in_a_batch(serving, adapter_bytes, cached):
    async def fresh(client, service):
        return (await classify(client, *TEXTS))["results"]

    async def mixed(client, service):
        await put(client, "t", adapter_bytes(labels=("a", "b", "c")))
        for at in cached:
            await classify(client, TEXTS[at])
        found = await classify(client, *TEXTS)
        assert found["encoder_rows"] == len(TEXTS) - len(cached)
        return found["results"]

    for found, expected in zip(serving(mixed), serving(fresh), strict=True):
        for a, b in zip(
            found["predictions"]["t"]["labels"],
            expected["predictions"]["t"]["labels"],
            strict=True,
        ):
            assert (a["label"], a["score"]) == (b["label"], pytest.approx(b["score"], abs=1e-5))


def test_a_hit_costs_no_encoder_row_and_is_counted(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        for text in (TEXTS[0], TEXTS[1], TEXTS[0]):
            await classify(client, text)
        found = await metrics(client)
        assert found["labelmux_encoder_rows_total"] == 2
        assert found["labelmux_rows_total"] == 3
        assert found["labelmux_feature_cache_hits_total"] == 1
        assert found["labelmux_feature_cache_misses_total"] == 2
        assert found["labelmux_feature_cache_evictions_total"] == 0
        assert found["labelmux_feature_cache_bytes"] % (3 * 32 * 4) == 0
        assert found["labelmux_feature_cache_bytes"] > 0

    serving(scenario)


def test_a_version_swapped_in_reads_features_kept_before_it_came(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes(seed=0))
        await classify(client, TEXTS[0])
        await put(client, "t", adapter_bytes(seed=1))
        swapped = await classify(client, TEXTS[0])
        assert swapped["encoder_rows"] == 0
        assert swapped["results"][0]["predictions"]["t"]["version"] == 2

    serving(scenario)


def test_the_cache_keeps_copies_within_its_budget(serving, adapter_bytes):
    longest = 64 * 3 * 32 * 4

    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        for first, second in itertools.product(TEXTS, TEXTS):
            await classify(client, f"{first} {second}")
            cache = service._cache
            owned = sum(kept.untyped_storage().nbytes() for kept in cache._kept.values())
            assert owned == cache.kept_bytes <= longest

    serving(scenario, feature_cache_bytes=longest)
