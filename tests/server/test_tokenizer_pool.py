from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from labelmux_encoder.tokenizer import TokenRow
from labelmux_server import tokenizer_pool
from labelmux_server.tokenizer_pool import TokenizerPool, Want

WORDS = "the train to the coast leaves at nine and the bus at ten"


class FakeTokenizer:
    """One token a word; waits at a gate for ``wait`` and fails on ``fail``."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.threads: set[int] = set()
        self.calls: list[list[str]] = []

    def clone(self) -> FakeTokenizer:
        return self

    def encode(self, texts, max_tokens: int, *, offsets: bool) -> list[TokenRow]:
        self.threads.add(threading.get_ident())
        self.calls.append(list(texts))
        if "wait" in texts:
            self.entered.set()
            assert self.gate.wait(20)
        if "fail" in texts:
            raise RuntimeError("no such words")
        return [TokenRow((1,) * len(text.split()), (), truncated=False) for text in texts]


@pytest.fixture
def fake() -> Iterator[FakeTokenizer]:
    tokenizer = FakeTokenizer()
    yield tokenizer
    tokenizer.gate.set()


def test_each_limit_gets_what_the_tokenizer_gives_for_it(tiny_encoder):
    async def scenario():
        pool = TokenizerPool(tiny_encoder.tokenizer, threads=2)
        found = await pool.encode([WORDS, "the bus"], Want([8, 64]))
        pool.close()
        return found

    found = asyncio.run(scenario())
    for limit, rows in found.items():
        assert [row for (row,) in rows] == tiny_encoder.tokenizer.encode([WORDS, "the bus"], limit)
    assert found[8][0][0].truncated
    assert found[8][1] is found[64][1]


def test_windows_are_of_each_limit_and_of_long_texts_alone(tiny_encoder):
    async def scenario():
        pool = TokenizerPool(tiny_encoder.tokenizer, threads=1)
        found = await pool.encode([WORDS, "the bus"], Want([8, 12, 64], 2, offsets=True))
        pool.close()
        return found

    found = asyncio.run(scenario())
    assert [[len(rows) for rows in found[limit]] for limit in (64, 12, 8)] == [
        *([1, 1], [2, 1], [3, 1]),
    ]
    for limit in (8, 12):
        assert found[limit][0] == tiny_encoder.tokenizer.windows([WORDS], limit, 2, offsets=True)[0]


def test_a_text_that_cannot_be_tokenised_fails_its_call_alone(fake):
    async def scenario():
        pool = TokenizerPool(fake, threads=1)
        with pytest.raises(RuntimeError, match="no such words"):
            await pool.encode(["fail"], Want([8]))
        found = await pool.encode(["a b"], Want([8]))
        pool.close()
        return found

    assert asyncio.run(scenario())[8][0][0].token_ids == (1, 1)


def test_the_loop_and_other_calls_go_on_while_one_call_is_tokenised(fake):
    async def scenario():
        pool = TokenizerPool(fake, threads=2)
        slow = asyncio.ensure_future(pool.encode(["wait"], Want([8])))
        await asyncio.to_thread(fake.entered.wait, 20)
        await pool.encode(["a"], Want([8]))
        assert not slow.done()
        fake.gate.set()
        await slow
        pool.close()

    asyncio.run(scenario())
    assert threading.get_ident() not in fake.threads


def test_a_call_that_was_given_up_is_not_tokenised_and_blocks_nobody(fake):
    async def scenario():
        pool = TokenizerPool(fake, threads=1)
        running = asyncio.ensure_future(pool.encode(["wait"], Want([8])))
        await asyncio.to_thread(fake.entered.wait, 20)
        waiting = asyncio.ensure_future(pool.encode(["fail"], Want([8])))
        await asyncio.sleep(0)
        for call in (running, waiting):
            call.cancel()
        fake.gate.set()
        found = await pool.encode(["a"], Want([8]))
        pool.close()
        return found

    assert len(asyncio.run(scenario())[8]) == 1


def test_a_long_call_that_was_given_up_is_dropped_between_its_texts(fake):
    async def scenario():
        pool = TokenizerPool(fake, threads=1)
        long = asyncio.ensure_future(pool.encode(["wait", "long " * 20_000, "fail"], Want([8])))
        await asyncio.to_thread(fake.entered.wait, 20)
        long.cancel()
        await asyncio.sleep(0)
        fake.gate.set()
        found = await pool.encode(["a"], Want([8]))
        pool.close()
        return found

    assert len(asyncio.run(scenario())[8]) == 1
    assert fake.calls == [["wait"], ["a"]]


@pytest.mark.parametrize("part_chars", [1, 60, 100, 1000])
def test_a_call_in_parts_has_the_rows_of_all_its_texts_in_order(
    part_chars, tiny_encoder, monkeypatch
):
    monkeypatch.setattr(tokenizer_pool, "_PART_CHARS", part_chars)
    calls = [["the bus", WORDS, ("a train", WORDS)], [], ["the coast", "", WORDS]]

    async def scenario():
        pool = TokenizerPool(tiny_encoder.tokenizer, threads=1)
        found = await asyncio.gather(*(pool.encode(texts, Want([8, 64])) for texts in calls))
        pool.close()
        return found

    for texts, found in zip(calls, asyncio.run(scenario()), strict=True):
        assert {limit: [row for (row,) in rows] for limit, rows in found.items()} == {
            limit: tiny_encoder.tokenizer.encode(texts, limit) for limit in (8, 64)
        }


def test_calls_that_come_together_are_tokenised_together_and_each_has_its_own(fake):
    async def scenario():
        pool = TokenizerPool(fake, threads=1)
        calls = (["a b", "c"], Want([8])), (["d e f"], Want([8])), (["g"], Want([16]))
        found = await asyncio.gather(*(pool.encode(*call) for call in calls))
        pool.close()
        return found

    first, second, third = asyncio.run(scenario())
    assert fake.calls == [["a b", "c", "d e f"], ["g"]]
    assert [len(row.token_ids) for (row,) in first[8]] == [2, 1]
    assert [len(row.token_ids) for (row,) in second[8]] == [3]
    assert list(third) == [16]


def test_a_text_that_fails_does_not_fail_those_that_came_with_it(fake):
    async def scenario():
        pool = TokenizerPool(fake, threads=1)
        calls = (pool.encode([text], Want([8])) for text in ("a", "fail", "b c"))
        found = await asyncio.gather(*calls, return_exceptions=True)
        pool.close()
        return found

    first, failed, last = asyncio.run(scenario())
    assert isinstance(failed, RuntimeError)
    assert [len(found[8][0][0].token_ids) for found in (first, last)] == [1, 2]


def test_a_long_call_does_not_share_its_thread_with_the_next(fake):
    async def scenario():
        pool = TokenizerPool(fake, threads=2)
        slow = asyncio.ensure_future(pool.encode(["long " * 2000, "wait"], Want([8])))
        await pool.encode(["a"], Want([8]))
        assert not slow.done()
        fake.gate.set()
        await slow
        pool.close()

    asyncio.run(scenario())
