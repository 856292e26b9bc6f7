"""What a request waits for, and what the replica runs for it. No torch, no threads.

A ``Submission`` is what one request waits for: rows, each one text for one task. Rows that the
encoder would read alike, of any request or task, are one ``EncoderRow``; a ``Batch`` is some of
those.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from labelmux_server.errors import ServerError, TimedOutError

#: What went wrong, made anew for each who is told: to raise an exception adds to its traceback, so
#: one that many callers raise grows with each.
Fault = Callable[[], ServerError]


def row_key(
    token_ids: Sequence[int], type_ids: Sequence[int], edit: Hashable = None
) -> tuple[Hashable, ...]:
    """Equal for rows that one encoder row can serve.

    Made of bytes, which keep their hash: a key is looked up ten times on a row's way.

    Args:
        token_ids, type_ids: of the row.
        edit: what besides them decides the pass: None for adapters that read plain features.
    """
    return (edit, array("i", token_ids).tobytes(), bytes(type_ids))


def edited_key(key: tuple[Hashable, ...], edit: Hashable) -> Hashable:
    """The key of the same row where an adapter changes the pass."""
    return (edit, *key[1:])


class Row(NamedTuple):
    """One text for one task, tokenised."""

    key: Hashable
    token_ids: tuple[int, ...]
    type_ids: tuple[int, ...]
    #: Where the answer's adapter is; the batcher never looks inside.
    slot: Any
    #: Places of its special tokens.
    special: tuple[int, ...] = ()
    #: Where the adapter's edits of the pass are; None: it reads plain features.
    edit: Hashable = None


@dataclass(frozen=True, slots=True)
class Times:
    """When a batch ran and for how long, on the batcher's clock."""

    started_s: float
    encode_s: float
    readout_s: float


@dataclass(slots=True, eq=False)
class Submission:
    """What one request waits for. Its answers are touched on the event loop only."""

    rows: Sequence[Row]
    #: From ``submit`` on; rows that still wait then are dropped.
    timeout_s: float
    #: Called once, when no row of it waits or runs any more.
    settled: Callable[[Submission], None]
    answers: list[Any] = field(init=False)
    #: Rows that the encoder read for it so far, each distinct text once.
    encoder_rows: int = 0
    error: ServerError | None = None
    remaining: int = field(init=False)
    #: On the batcher's clock; set by ``submit``.
    submitted_s: float = math.inf
    #: How long its rows waited, beside what the batches with rows of it took.
    queue_s: float = 0.0
    encode_s: float = 0.0
    readout_s: float = 0.0
    #: When the last of these batches was done.
    ran_until_s: float = -math.inf

    def __post_init__(self) -> None:
        self.answers = [None] * len(self.rows)
        self.remaining = len(self.rows)

    @property
    def deadline_s(self) -> float:
        """When rows that still wait are given up, on the batcher's clock."""
        return self.submitted_s + self.timeout_s

    def ran(self, times: Times, encoder_rows: int) -> None:
        """A batch ran in which the encoder read so many rows for it."""
        self.encoder_rows += encoder_rows
        encoded_s = times.started_s + times.encode_s
        done_s = encoded_s + times.readout_s
        # Batches of one request may run side by side: no moment counts twice.
        self.encode_s += max(encoded_s - max(times.started_s, self.ran_until_s), 0.0)
        self.readout_s += max(done_s - max(encoded_s, self.ran_until_s), 0.0)
        self.ran_until_s = max(self.ran_until_s, done_s)
        self.queue_s = self.ran_until_s - self.submitted_s - self.encode_s - self.readout_s

    def answer(self, place: int, value: Any) -> None:
        """Row ``place`` is done."""
        self.answers[place] = value
        self._count(1)

    def fail(self, rows: int, fault: Fault | None) -> None:
        """That many rows will have no answer; the first fault stands for the request."""
        if self.error is None and fault is not None:
            self.error = fault()
        self._count(rows)

    def _count(self, rows: int) -> None:
        self.remaining -= rows
        if rows and self.remaining == 0:
            self.settled(self)


@dataclass(slots=True, eq=False)
class EncoderRow:
    """One row of a pass, and every (submission, place) that its features answer."""

    token_ids: tuple[int, ...]
    type_ids: tuple[int, ...]
    key: Hashable
    waiting_since_s: float
    special: tuple[int, ...] = ()
    #: What the readers' adapter, which is one then, changes in the pass; None: nothing.
    edit: Any = None
    #: Whether its features were at hand, so that the encoder did not read it; the replica says.
    cached: bool = False
    readers: list[tuple[Submission, int]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What the replica runs next."""

    rows: Sequence[EncoderRow]
    #: Rows whose deadline has passed: to be failed, not run.
    expired: Sequence[EncoderRow] = ()
    #: Whether rows were left waiting, so that its speed is what the replica can do.
    full: bool = False
    #: How many threads of the replica run it; None: all.
    threads: int | None = None

    @property
    def one_thread(self) -> bool:
        """Whether others may run beside it, each by a thread."""
        return self.threads == 1

    @property
    def tokens(self) -> int:
        """Tokens of its rows."""
        return sum(row.tokens for row in self.rows)

    @property
    def adapters(self) -> int:
        """How many different ones read its rows."""
        return len(
            {submission.rows[place].slot for row in self.rows for submission, place in row.readers}
        )

    @property
    def shared(self) -> bool:
        """Whether several requests are in it."""
        first = self.rows[0].readers[0][0] if self.rows else None
        return any(submission is not first for row in self.rows for submission, _ in row.readers)

    def halves(self) -> tuple[Batch, Batch]:
        """The same in two batches."""
        half = len(self.rows) // 2
        return (
            Batch(self.rows[:half], self.expired, threads=self.threads),
            Batch(self.rows[half:], threads=self.threads),
        )

    def deliver(self, answers: Sequence[Sequence[Any]] | Fault, times: Times | None = None) -> None:
        """Give every reader its answer, or every reader an error. On the event loop.

        Args:
            answers: one per reader, for each of ``rows``; or what went wrong.
            times: of the run, if there was one.
        """
        for row in self.expired:
            for submission, _ in row.readers:
                submission.fail(1, partial(TimedOutError, submission.timeout_s))
        if callable(answers):
            for row in self.rows:
                for submission, _ in row.readers:
                    submission.fail(1, answers)
            return
        if times is not None:
            self._account(times)
        for row, values in zip(self.rows, answers, strict=True):
            for (submission, place), value in zip(row.readers, values, strict=True):
                submission.answer(place, value)

    def _account(self, times: Times) -> None:
        read: dict[Submission, int] = {}
        for row in self.rows:
            for submission in {submission for submission, _ in row.readers}:
                read[submission] = read.get(submission, 0) + (not row.cached)
        for submission, encoder_rows in read.items():
            submission.ran(times, encoder_rows)
