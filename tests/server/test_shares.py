"""Batches that run side by side, each by one thread of the replica."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice, permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.server.test_batcher import Clock, limits, row, submit, taken_by_a_thread

from labelmux_encoder import kernels
from labelmux_server.batcher import Batcher
from labelmux_server.submission import Submission, Times


def shared(**changes) -> Batcher:
    """Before a replica of four threads, each worth 20 tokens."""
    shares = {"max_shares": 4, "min_share_tokens": 20, "max_share_tokens": 40}
    return Batcher(limits(**shares | changes), Clock())


def test_little_goes_as_a_whole_and_nothing_beside_it():
    batcher = shared()
    submit(batcher, *(row(10, start=start) for start in range(7)))
    whole = batcher.take()
    assert (whole.tokens, whole.one_thread) == (70, False)
    submit(batcher, *(row(20, start=start) for start in range(9)))
    thread, taken = taken_by_a_thread(batcher, helper=True)
    lead, taken_by_lead = taken_by_a_thread(batcher)
    assert not taken and not taken_by_lead
    batcher.done(whole, seconds=1.0)
    for waiting, found in ((thread, taken), (lead, taken_by_lead)):
        waiting.join(10)
        assert [batch.one_thread for batch in found] == [True]


def test_enough_for_all_is_shared_and_each_goes_on_by_itself():
    batcher = shared()
    submit(batcher, *(row(10, start=start) for start in range(9)))
    batches = [batcher.take(helper=place > 0) for place in range(4)]
    assert [batch.tokens for batch in batches] == [20, 20, 20, 30]
    assert all(batch.one_thread for batch in batches)
    batcher.done(batches[2], seconds=1.0)
    submit(batcher, row(10), row(11))
    assert batcher.take(helper=True).tokens == 21


def test_less_than_a_share_waits_for_the_lead_and_for_all_shares_to_end():
    batcher = shared()
    submit(batcher, *(row(10, start=start) for start in range(9)))
    batches = [batcher.take(helper=place > 0) for place in range(4)]
    submit(batcher, row(10))
    helper, helped = taken_by_a_thread(batcher, helper=True)
    lead, taken = taken_by_a_thread(batcher)
    for batch in batches:
        assert not taken
        batcher.done(batch, seconds=1e-6)
    lead.join(10)
    assert [(batch.tokens, batch.one_thread) for batch in taken] == [(10, False)]
    batcher.close()
    helper.join(10)
    assert helped == [None]


def test_a_core_is_left_to_an_event_loop_that_is_behind():
    batcher = shared()
    submit(batcher, *(row(10, start=start) for start in range(12)))
    batcher.loop_s = 1.0
    for place in range(3):
        batcher.take(helper=place > 0)
    thread, taken = taken_by_a_thread(batcher, helper=True)
    assert not taken
    batcher.loop_s = 0.0
    submit(batcher, row(11))
    thread.join(10)
    assert len(taken) == 1


def busy(**changes) -> Batcher:
    """The same, beside an event loop with many requests."""
    batcher = shared(**changes)
    batcher.loop_share = 0.4
    return batcher


def test_a_pass_of_all_leaves_a_core_to_a_busy_event_loop():
    batcher = busy()
    submit(batcher, row(10))
    assert batcher.take().threads == 3
    batcher = busy(max_shares=2)
    submit(batcher, row(10))
    assert batcher.take().threads is None


def test_beside_a_busy_event_loop_two_batches_go_by_turns():
    batcher = busy()
    submit(batcher, *(row(10, start=start) for start in range(4)))
    first = batcher.take()
    batcher.done(first, seconds=0.0)
    second = batcher.take()
    batcher.done(second, seconds=0.0)
    assert (first.tokens, second.tokens) == (20, 10)
    batcher.loop_share = 0.1
    submit(batcher, row(11))
    assert batcher.take().tokens == 21


def test_a_share_is_bounded_but_for_a_row_that_is_longer():
    batcher = shared()
    submit(batcher, row(90), *(row(10, start=start) for start in range(30)))
    assert [batcher.take().tokens, batcher.take().tokens] == [90, 40]


def test_shares_tell_the_speed_of_all_threads_together():
    batcher = shared()
    submit(batcher, *(row(10, start=start) for start in range(30)))
    batch = batcher.take()
    batcher.done(batch, seconds=batch.tokens / 1000)
    assert batcher.wait_s == pytest.approx((300 - batch.tokens) / 4000)


@given(
    steps=st.lists(st.lists(st.integers(1, 100), max_size=12), min_size=1, max_size=10),
    ends=st.lists(st.integers(0, 3), min_size=40, max_size=40),
)
def test_every_row_goes_once_whatever_the_threads_do(steps, ends):
    batcher = shared(max_queue_tokens=10**6, max_queue_rows=10**6)
    running, arrived, gone = [], [], []
    ends = iter(ends)

    def advance() -> None:
        """What idle threads can take now they take; then one batch ends."""
        while batcher.queued_rows and batcher._pause_s() == 0:
            running.append(batcher.take())
            gone.extend(item.token_ids for item in running[-1].rows)
            assert len(running) == 1 or all(batch.one_thread for batch in running)
            assert len(running) <= 4
        if running:
            batcher.done(running.pop(next(ends, 0) % len(running)), seconds=0.0)

    for number, step in enumerate(steps):
        rows = [row(length, start=1000 * number + at) for at, length in enumerate(step)]
        if rows:
            submit(batcher, *rows, timeout_s=1e9)
        arrived.extend(item.token_ids for item in rows)
        advance()
    while running or batcher.queued_rows:
        advance()
    assert sorted(gone) == sorted(arrived)
    assert (batcher.queued_tokens, batcher.queued_rows) == (0, 0)


def test_batches_of_a_request_that_run_side_by_side_count_no_moment_twice():
    submission = Submission([row(1), row(2)], 30.0, lambda _: None)
    submission.submitted_s = 0.0
    submission.ran(Times(1.0, 3.0, 0.5), 1)
    submission.ran(Times(1.5, 4.0, 0.5), 1)
    assert (submission.encode_s, submission.readout_s, submission.queue_s) == (4.0, 1.0, 1.0)


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not kernels.load(), reason="the kernels are not built here")
def test_texts_read_by_threads_side_by_side_have_the_answers_of_texts_read_alone(
    serving, adapter_bytes, monkeypatch, three_threads
):
    words = ("a", "good", "film", "the", "soup", "was", "cold")
    texts = [" ".join(order * 2) for order in islice(permutations(words), 120)]

    async def classify(client, *some: str) -> list[dict]:
        body = {"task": "t", "texts": list(some), "raw_scores": True}
        reply = await client.post("/v1/classify", json=body)
        assert reply.status_code == 200
        return [result["predictions"]["t"]["labels"] for result in reply.json()["results"]]

    async def scenario(client, service):
        await client.put("/v1/tasks/t/adapter", content=adapter_bytes(labels=("a", "b", "c")))
        alone = [(await classify(client, text))[0] for text in texts]
        replica, here, both = service._replica, set(), threading.Event()
        real = replica._encode

        def encode(rows):
            here.add(threading.get_ident())
            if len(here) > 1:
                both.set()
            assert both.wait(30), "no second thread came while the first was here"
            return real(rows)

        monkeypatch.setattr(replica, "_encode", encode)
        return alone, await classify(client, *texts)

    for expected, found in zip(*serving(scenario, feature_cache_bytes=0), strict=True):
        scores = {entry["label"]: entry["score"] for entry in expected}
        assert {entry["label"]: entry["score"] for entry in found} == pytest.approx(
            scores, abs=1e-5
        )
