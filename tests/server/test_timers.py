from __future__ import annotations

import asyncio

import pytest

from labelmux_server.timers import Timers

SOON_S, LATE_S = 0.01, 20.0


def test_calls_come_in_order_once_their_time_is_up():
    async def scenario():
        timers, called = Timers(), []
        done = asyncio.Event()
        begun_s = asyncio.get_running_loop().time()
        for number in range(3):
            timers.after(SOON_S, lambda number=number: called.append(number))
        timers.after(SOON_S, done.set)
        await asyncio.wait_for(done.wait(), LATE_S)
        assert called == [0, 1, 2]
        assert asyncio.get_running_loop().time() - begun_s >= 0.8 * SOON_S

    asyncio.run(scenario())


def test_what_was_cancelled_is_not_called_and_holds_nobody_up():
    async def scenario():
        timers, called = Timers(), []
        done = asyncio.Event()
        first, second = (timers.after(SOON_S, lambda: called.append("no")) for _ in range(2))
        first.cancel()
        timers.after(2 * SOON_S, done.set)
        second.cancel()
        second.cancel()
        await asyncio.wait_for(done.wait(), LATE_S)
        # What comes to an idle line is called too.
        again = asyncio.Event()
        timers.after(SOON_S, again.set)
        await asyncio.wait_for(again.wait(), LATE_S)
        assert called == []

    asyncio.run(scenario())


def test_another_delay_does_not_wait_behind_a_longer_one():
    async def scenario():
        timers, done = Timers(), asyncio.Event()
        timers.after(LATE_S, lambda: None)
        timers.after(SOON_S, done.set)
        await asyncio.wait_for(done.wait(), LATE_S / 2)

    asyncio.run(scenario())


def test_a_limit_ends_what_takes_longer_and_nothing_else():
    async def scenario():
        timers = Timers()
        with timers.limit(LATE_S):
            await asyncio.sleep(0)
        with pytest.raises(TimeoutError), timers.limit(SOON_S):
            await asyncio.Event().wait()
        await asyncio.sleep(0)

    asyncio.run(scenario())


def test_a_limit_that_is_restarted_counts_from_then_on():
    async def scenario():
        timers = Timers()
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        with pytest.raises(TimeoutError), timers.limit(0.1) as limit:
            while loop.time() < begun_s + 0.05:
                await asyncio.sleep(0)
            limit.restart()
            await asyncio.Event().wait()
        assert loop.time() >= begun_s + 0.14

    asyncio.run(scenario())


def test_who_is_cancelled_inside_a_limit_is_not_told_of_time():
    async def scenario():
        timers, entered = Timers(), asyncio.Event()

        async def work() -> None:
            with timers.limit(LATE_S):
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.ensure_future(work())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
