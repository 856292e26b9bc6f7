"""A replica that waits a moment for those whom it has just answered together."""

from __future__ import annotations

import pytest
from tests.server.test_batcher import Clock, lengths, limits, row, submit, taken_by_a_thread

from labelmux_server.batcher import Batcher


def answered_together(batcher: Batcher, requests: int, rows: int = 1) -> None:
    """A batch of so many requests has just been answered."""
    for start in range(requests):
        submit(batcher, *(row(4 + at, start=start) for at in range(rows)))
    batcher.done(batcher.take_now(), seconds=1.0)


def test_who_was_answered_together_is_waited_for(monkeypatch):
    monkeypatch.setattr("labelmux_server.batcher._LONGEST_PAUSE_S", 60.0)
    batcher = Batcher(limits(), lambda: 100.0)
    answered_together(batcher, 4)
    submit(batcher, row(4))
    thread, taken = taken_by_a_thread(batcher)
    for length in (5, 6):
        assert not taken
        submit(batcher, row(length))
    thread.join(10)
    assert [lengths(batch.rows) for batch in taken] == [[4, 5, 6]]


def test_a_pause_ends_when_its_time_is_up_and_when_a_batch_is_full():
    clock = Clock()
    batcher = Batcher(limits(), clock)
    answered_together(batcher, 8)
    clock.now += 0.021
    submit(batcher, row(4))
    late = batcher.take()
    assert lengths(late.rows) == [4]
    batcher.done(late, seconds=1.0)
    answered_together(batcher, 8)
    submit(batcher, row(100))
    assert lengths(batcher.take().rows) == [100]


@pytest.mark.parametrize(("requests", "rows"), [(1, 1), (1, 8)])
def test_nobody_is_waited_for_after_one_request_alone(requests, rows):
    batcher = Batcher(limits(), Clock())
    answered_together(batcher, requests, rows)
    submit(batcher, row(4))
    assert lengths(batcher.take().rows) == [4]


def test_a_request_cancelled_in_a_pause_is_not_taken(monkeypatch):
    monkeypatch.setattr("labelmux_server.batcher._LONGEST_PAUSE_S", 60.0)
    batcher = Batcher(limits(), lambda: 100.0)
    answered_together(batcher, 4)
    first = submit(batcher, row(4))
    thread, taken = taken_by_a_thread(batcher)
    batcher.cancel(first)
    for length in (5, 6, 7):
        submit(batcher, row(length))
    thread.join(10)
    assert [lengths(batch.rows) for batch in taken] == [[5, 6, 7]]
    answered_together(batcher, 4)
    submit(batcher, row(4))
    thread, taken = taken_by_a_thread(batcher)
    batcher.close()
    thread.join(10)
    assert taken == [None]
