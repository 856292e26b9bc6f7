from __future__ import annotations

import asyncio
import time

import pytest
from tests.server.test_batcher import Clock, limits, row, submit

from labelmux_server.batcher import Batcher
from labelmux_server.errors import OverloadedError
from labelmux_server.turns import Turns


def test_a_loop_that_is_behind_refuses_calls_though_nothing_waits_in_the_queue():
    batcher = Batcher(limits(max_queue_s=2.0), Clock())
    batcher.loop_s = 2.5
    with pytest.raises(OverloadedError, match=r"2\.5 s") as caught:
        batcher.check_room()
    assert caught.value.retry_after_s == 3
    submit(batcher, row(5))  # what was tokenised meanwhile still goes
    batcher.loop_s = 0.1
    batcher.check_room()


def test_a_long_turn_is_told_and_forgotten_in_time():
    told: list[float] = []
    turns = Turns(lambda wait_s, _share: told.append(wait_s))
    for _ in range(2):
        turns.observe(0.5)
    for _ in range(40):
        turns.observe(0.001)
    assert told.pop(0) == 0
    assert told[0] == pytest.approx(3.0)
    assert told == sorted(told, reverse=True)
    assert told[-1] < 0.01


def test_what_holds_the_loop_up_is_noticed_until_stopped():
    async def scenario() -> list[float]:
        told: list[float] = []
        turns = Turns(lambda wait_s, _share: told.append(wait_s))
        turns.start()
        async with asyncio.timeout(10):
            while not told or told[-1] < 6 * 0.15:
                time.sleep(0.2)  # holds the loop, as work that piled up would
                await asyncio.sleep(0.005)
        turns.stop()
        found = len(told)
        await asyncio.sleep(0.05)
        assert len(told) == found
        return told

    assert asyncio.run(scenario())[-1] >= 6 * 0.15


def test_a_process_that_was_stopped_for_a_while_refuses_nobody():
    told: list[float] = []
    turns = Turns(lambda wait_s, _share: told.append(wait_s))
    for turn_s in (0.001, 60.0, 0.001, 60.0, 0.002):
        turns.observe(turn_s)
    assert max(told) < 0.05


def test_what_the_loop_has_of_a_core_is_told():
    shares: list[float] = []

    async def scenario() -> None:
        turns = Turns(lambda _wait_s, share: shares.append(share))
        turns.start()
        async with asyncio.timeout(20):
            while not shares or shares[-1] < 0.2:
                sum(range(100_000))  # keeps the loop's thread busy
                await asyncio.sleep(0)
            while shares[-1] > 0.05:
                await asyncio.sleep(0.01)
        turns.stop()

    asyncio.run(scenario())
    assert 0 <= min(shares) <= max(shares) < 1.1
