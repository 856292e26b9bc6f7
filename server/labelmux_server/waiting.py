"""Waiting for rows on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from labelmux_server.batcher import Batcher
from labelmux_server.errors import ServerError
from labelmux_server.submission import Row, Submission


async def answered(
    batcher: Batcher,
    rows: Sequence[Row],
    timeout_s: float,
    settled: Callable[[], None],
    queued: Callable[[], None] = lambda: None,
) -> Submission:
    """Queue rows and return once each has its answer; whoever is cancelled takes them out again.

    Args:
        batcher, rows, timeout_s: what waits, where, and for how long at most.
        settled: called once, when none of them waits or runs any more, or none was queued.
        queued: called once they are queued.

    Raises:
        OverloadedError: too much waits already.
        ServerError: what became of a batch with one of the rows, or of the queue.
    """
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def finish(_: Submission) -> None:
        settled()
        if not done.done():
            done.set_result(None)

    submission = Submission(rows, timeout_s, finish)
    try:
        batcher.submit(submission)
    except ServerError:
        settled()
        raise
    try:
        queued()
        await done
    finally:
        if submission.remaining:
            batcher.cancel(submission)
    if submission.error is not None:
        raise submission.error from None
    return submission
