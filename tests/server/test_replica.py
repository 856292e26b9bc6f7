"""What the feature cache promises, seen through a whole server."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelmux_server.replica import parts
from labelmux_server.submission import EncoderRow

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


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 200))
def test_parts_hold_every_row_once_in_order_and_little_padding(lengths, part_tokens):
    rows = [EncoderRow((0,) * length, (0,) * length, at, 0.0) for at, length in enumerate(lengths)]
    found = list(parts(rows, part_tokens))
    assert [row for part in found for row in part] == rows
    for part in found:
        padded = len(part) * max(row.tokens for row in part)
        assert part and (len(part) == 1 or padded <= part_tokens)


def test_texts_read_in_parts_have_the_logits_of_texts_read_alone(serving, adapter_bytes):
    async def scenario(client, service):
        service._replica._part_tokens = 20
        await put(client, "t", adapter_bytes(labels=("a", "b", "c")))
        await put(client, "u", adapter_bytes(seed=1))
        alone = [(await classify(client, text))["results"][0] for text in TEXTS]
        texts = [TEXTS[2], "one more", TEXTS[3], TEXTS[0], "and another", TEXTS[1]]
        together = (await classify(client, *texts))["results"]
        for text, found in zip(texts, together, strict=True):
            if text in TEXTS:
                expected = alone[TEXTS.index(text)]
                for task in ("t", "u"):
                    pairs = zip(
                        found["predictions"][task]["labels"],
                        expected["predictions"][task]["labels"],
                        strict=True,
                    )
                    for a, b in pairs:
                        assert (a["label"], a["score"]) == (
                            b["label"],
                            pytest.approx(b["score"], abs=1e-5),
                        )

    serving(scenario, feature_cache_bytes=64 * 3 * 32 * 4 * 2)
