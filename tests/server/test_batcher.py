from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelmux_server.batcher import Batcher, Limits
from labelmux_server.errors import BatchFailedError, OverloadedError, TimedOutError
from labelmux_server.submission import Row, Submission, Times, row_key


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def limits(**changes) -> Limits:
    values = {
        "max_batch_tokens": 100,
        "max_batch_rows": 8,
        "max_queue_tokens": 1000,
        "max_queue_rows": 100,
        "max_queue_s": 1e9,
        "max_wait_ms": 50.0,
    }
    return Limits(**(values | changes))


def make_row(token_ids: tuple, type_ids: tuple, slot: str = "s", edit: str | None = None) -> Row:
    return Row(row_key(token_ids, type_ids, edit), token_ids, type_ids, slot)


def row(length: int, start: int = 0, slot: str = "s") -> Row:
    return make_row(tuple(range(start, start + length)), (0,) * length, slot)


def submit(batcher: Batcher, *rows: Row, timeout_s: float = 30.0) -> Submission:
    settled: list[Submission] = []
    submission = Submission(rows, timeout_s, settled.append)
    batcher.submit(submission)
    return submission


def lengths(rows: Sequence) -> list[int]:
    return [item.tokens for item in rows]


def taken_by_a_thread(batcher: Batcher, **as_what: bool) -> tuple[threading.Thread, list]:
    taken: list = []
    thread = threading.Thread(target=lambda: taken.append(batcher.take(**as_what)), daemon=True)
    thread.start()
    return thread, taken


def echo(batch) -> list[list[str]]:
    """What a replica might answer: the slot and length of each reader's row."""
    return [
        [f"{submission.rows[place].slot}:{item.tokens}" for submission, place in item.readers]
        for item in batch.rows
    ]


def test_a_batch_stays_within_its_tokens_and_counts_no_padding():
    batcher = Batcher(limits(), Clock())
    submit(batcher, row(30), row(31), row(32), row(33), row(7))
    assert lengths(batcher.take_now().rows) == [30, 31, 32, 7]
    assert lengths(batcher.take_now().rows) == [33]
    assert batcher.take_now() is None


def test_a_row_as_long_as_the_budget_still_goes():
    batcher = Batcher(limits(), Clock())
    submit(batcher, row(100))
    assert lengths(batcher.take_now().rows) == [100]


def test_a_batch_stays_within_its_rows():
    batcher = Batcher(limits(max_batch_rows=2), Clock())
    submit(batcher, row(1), row(2), row(3))
    assert len(batcher.take_now().rows) == 2


def test_the_oldest_row_goes_with_the_nearest_lengths():
    batcher = Batcher(limits(max_batch_rows=4), Clock())
    submit(batcher, row(20), row(2), row(21), row(3), row(19), row(4), row(22))
    assert lengths(batcher.take_now().rows) == [20, 21, 19, 22]
    assert lengths(batcher.take_now().rows) == [2, 3, 4]


def test_a_row_that_waited_too_long_goes_before_nearer_lengths():
    clock = Clock()
    batcher = Batcher(limits(max_batch_rows=2), clock)
    submit(batcher, row(10), row(40))
    clock.now += 0.2
    submit(batcher, row(10, start=1), row(11))
    assert lengths(batcher.take_now().rows) == [10, 40]


def test_rows_that_waited_too_long_go_in_order_of_arrival():
    clock = Clock()
    batcher = Batcher(limits(max_batch_rows=3), clock)
    submit(batcher, row(10), row(40), row(30), row(11))
    clock.now += 0.2
    submit(batcher, row(10, start=1))
    assert lengths(batcher.take_now().rows) == [10, 40, 30]
    assert lengths(batcher.take_now().rows) == [11, 10]


@given(
    steps=st.lists(st.lists(st.integers(1, 100), min_size=1, max_size=12), min_size=1, max_size=12),
    takes=st.integers(0, 3),
    apart_s=st.sampled_from([0.0, 0.01, 0.1]),
)
def test_every_row_goes_once_within_the_limits_and_the_oldest_first(steps, takes, apart_s):
    clock = Clock()
    batcher = Batcher(limits(max_queue_tokens=10**6, max_queue_rows=10**6), clock)
    arrived, gone, batches = [], [], []

    def take() -> None:
        if (batch := batcher.take_now()) is not None:
            batches.append(batch)
            waiting = [ids for ids in arrived if ids not in gone]
            assert batch.rows[0].token_ids == waiting[0]
            gone.extend(item.token_ids for item in batch.rows)

    for number, step in enumerate(steps):
        clock.now += apart_s
        rows = [row(length, start=1000 * number + at) for at, length in enumerate(step)]
        submit(batcher, *rows, timeout_s=1e9)
        arrived.extend(item.token_ids for item in rows)
        for _ in range(takes):
            take()
    while batcher.queued_rows:
        take()
    assert sorted(gone) == sorted(arrived)
    assert batcher.queued_tokens == 0
    assert all(batch.tokens <= 100 and len(batch.rows) <= 8 for batch in batches)


def test_nobody_waits_for_ever_behind_a_stream_of_other_lengths():
    clock = Clock()
    batcher = Batcher(limits(), clock)
    for index in range(3):
        submit(batcher, row(10, start=index))
    long = submit(batcher, row(90))
    for index in range(50):
        clock.now += 0.01
        submit(batcher, row(10, start=100 + index))
        batch = batcher.take_now()
        batch.deliver(echo(batch))
        if long.remaining == 0:
            break
    assert index < 2


def test_equal_tokens_are_one_encoder_row_whatever_their_tasks_and_requests():
    batcher = Batcher(limits(), Clock())
    first = submit(batcher, row(5, slot="a"), row(5, slot="b"), row(6, slot="a"))
    second = submit(batcher, row(5, slot="c"))
    assert batcher.queued_tokens == 11
    assert batcher.queued_rows == 4
    batch = batcher.take_now()
    assert lengths(batch.rows) == [5, 6]
    batch.deliver(echo(batch))
    assert first.answers == ["a:5", "b:5", "a:6"]
    assert second.answers == ["c:5"]


def test_rows_that_differ_in_types_or_edit_are_apart():
    batcher = Batcher(limits(), Clock())
    tokens = (1, 2, 3)
    submit(
        batcher,
        make_row(tokens, (0, 0, 0)),
        make_row(tokens, (0, 0, 1)),
        make_row(tokens, (0, 0, 0), edit="t"),
    )
    assert len(batcher.take_now().rows) == 3


def test_a_request_settles_once_when_its_last_row_is_answered():
    batcher = Batcher(limits(), Clock())
    settled: list[Submission] = []
    submission = Submission([row(60), row(61)], 30.0, settled.append)
    batcher.submit(submission)
    first, second = batcher.take_now(), batcher.take_now()
    first.deliver(echo(first))
    assert settled == []
    second.deliver(echo(second))
    assert settled == [submission]
    assert submission.answers == ["s:60", "s:61"]


def test_a_requests_times_are_those_of_its_batches_and_the_rest_is_queue():
    clock = Clock()
    batcher = Batcher(limits(), clock)
    submission = submit(batcher, row(60), row(61), row(62, slot="b"), row(62, slot="c"))
    for encode_s, waits_s in ((3.0, 1.0), (4.0, 0.5), (5.0, 0.25)):
        clock.now += waits_s
        batch = batcher.take_now()
        batch.deliver(echo(batch), Times(clock.now, encode_s, readout_s=0.125))
        clock.now += encode_s + 0.125
    assert submission.remaining == 0
    assert (submission.encode_s, submission.readout_s) == (12.0, 0.375)
    assert submission.queue_s == pytest.approx(1.75)


def test_a_failed_batch_fails_its_rows_and_no_others():
    batcher = Batcher(limits(), Clock())
    broken = submit(batcher, row(60))
    fine = submit(batcher, row(61))
    batcher.take_now().deliver(BatchFailedError)
    batch = batcher.take_now()
    batch.deliver(echo(batch))
    assert isinstance(broken.error, BatchFailedError)
    assert fine.error is None
    assert fine.answers == ["s:61"]


def test_a_cancelled_request_leaves_the_queue():
    batcher = Batcher(limits(), Clock())
    gone = submit(batcher, row(5), row(6))
    stays = submit(batcher, row(6), row(7))
    batcher.cancel(gone)
    assert gone.remaining == 0
    assert batcher.queued_tokens == 13
    assert batcher.queued_rows == 2
    batch = batcher.take_now()
    assert lengths(batch.rows) == [6, 7]
    batch.deliver(echo(batch))
    assert stays.answers == ["s:6", "s:7"]
    assert gone.answers == [None, None]


def test_a_request_cancelled_while_it_runs_settles_with_its_batch():
    batcher = Batcher(limits(), Clock())
    submission = submit(batcher, row(60), row(61))
    running = batcher.take_now()
    batcher.cancel(submission)
    assert submission.remaining == 1
    assert batcher.take_now() is None
    running.deliver(echo(running))
    assert submission.remaining == 0


@pytest.mark.parametrize("bound", [{"max_queue_tokens": 100}, {"max_queue_rows": 2}])
def test_a_full_queue_refuses_and_keeps_nothing_of_the_request(bound):
    batcher = Batcher(limits(**bound), Clock())
    submit(batcher, row(50), row(40))
    with pytest.raises(OverloadedError) as caught:
        submit(batcher, row(20))
    assert caught.value.retry_after_s >= 1
    assert (batcher.queued_tokens, batcher.queued_rows) == (90, 2)
    batcher.take_now()
    submit(batcher, row(20))


def test_retry_after_is_the_time_that_the_queue_needs_at_the_speed_of_full_batches():
    batcher = Batcher(limits(), Clock())
    for start in range(10):
        submit(batcher, row(100, start=start))
    batcher.done(batcher.take_now(), seconds=1.0)
    submit(batcher, row(100, start=10))
    with pytest.raises(OverloadedError) as caught:
        submit(batcher, row(7))
    assert caught.value.retry_after_s == 10


def test_what_would_wait_too_long_is_refused_and_taken_again_once_the_queue_is_shorter():
    batcher = Batcher(limits(max_queue_s=5.0), Clock())
    for start in range(8):
        submit(batcher, row(100, start=start))
    batcher.done(batcher.take_now(), seconds=1.0)
    with pytest.raises(OverloadedError, match=r"7\.0 s"):
        submit(batcher, row(7))
    for running in range(3):
        assert batcher.wait_s == 7 - running
        batch = batcher.take_now()
        assert batcher.wait_s == 7 - running
        batcher.done(batch, seconds=1.0)
    submit(batcher, row(7))
    assert batcher.wait_s == pytest.approx(4.07)


def test_a_batch_that_took_all_there_was_tells_nothing_of_the_speed():
    batcher = Batcher(limits(max_queue_s=0.1), Clock())
    submit(batcher, row(1))
    batcher.done(batcher.take_now(), seconds=1.0)
    assert batcher.wait_s == 0
    for start in range(5):
        submit(batcher, row(50, start=start))


def test_an_empty_queue_takes_what_comes_however_slow_the_replica():
    batcher = Batcher(limits(max_queue_s=0.0), Clock())
    submit(batcher, row(100), row(99))
    batcher.done(batcher.take_now(), seconds=60.0)
    batcher.take_now()
    assert batcher.wait_s > 0
    submit(batcher, row(98))


@pytest.mark.parametrize("load", [0.9, 1.1, 3.0])
def test_the_wait_of_what_is_admitted_is_bounded_whatever_the_load(load):
    """A replica of 1000 tokens a second before a stream of texts at ``load`` of that."""
    clock = Clock()
    batcher = Batcher(limits(max_queue_tokens=10**9, max_queue_rows=10**9, max_queue_s=2.0), clock)
    waits, refused, number, next_s = [], 0, 0, clock.now
    while clock.now < 400:
        batch = batcher.take_now()
        for item in batch.rows if batch else ():
            waits.append(clock.now - item.waiting_since_s)
        seconds = batch.tokens / 1000 if batch else 0.001
        ends = clock.now + seconds
        while next_s < ends:
            clock.now, number = next_s, number + 1
            length = 5 + number % 37
            try:
                submit(batcher, row(length, start=1000 * number), timeout_s=1e9)
            except OverloadedError:
                refused += 1
            next_s += length / 1000 / load
        clock.now = ends
        if batch:
            batcher.done(batch, seconds)
    assert max(waits) <= 2.2
    assert (refused > 0) == (load > 1)


def test_rows_past_their_deadline_are_failed_not_run():
    clock = Clock()
    batcher = Batcher(limits(), clock)
    late = submit(batcher, row(5), timeout_s=1.0)
    clock.now += 0.5
    fresh = submit(batcher, row(6), timeout_s=1.0)
    clock.now += 0.6
    batch = batcher.take_now()
    assert lengths(batch.rows) == [6]
    batch.deliver(echo(batch))
    assert isinstance(late.error, TimedOutError)
    assert fresh.answers == ["s:6"]
    assert (batcher.queued_tokens, batcher.queued_rows) == (0, 0)


def test_take_waits_for_work_and_close_ends_it():
    batcher = Batcher(limits())
    taken = []

    def replica() -> None:
        while (batch := batcher.take()) is not None:
            taken.append(batch)
            batch.deliver(echo(batch))

    thread = threading.Thread(target=replica)
    thread.start()
    answered = threading.Event()
    batcher.submit(Submission([row(3)], 30.0, lambda _: answered.set()))
    assert answered.wait(10)
    assert batcher.close() == []
    thread.join(10)
    assert not thread.is_alive()
    assert len(taken) == 1


def test_close_gives_back_what_still_waits():
    batcher = Batcher(limits())
    submit(batcher, row(3), row(4))
    assert lengths(batcher.close()) == [3, 4]
    assert batcher.take() is None


def test_what_is_being_tokenised_takes_room_until_it_is_queued():
    batcher = Batcher(limits(max_queue_tokens=10))
    with batcher.expecting(tokens=9, rows=1):
        batcher.check_room()
        with batcher.expecting(tokens=5, rows=1), pytest.raises(OverloadedError, match="wait"):
            batcher.check_room()
        # Its own place is not counted against it.
        submit(batcher, row(10))
    assert batcher.take_now().tokens == 10
    batcher.check_room()


def test_rows_that_are_being_tokenised_count_too():
    batcher = Batcher(limits(max_queue_rows=2))
    with batcher.expecting(1, 2), pytest.raises(OverloadedError, match="rows wait"):
        batcher.check_room()
