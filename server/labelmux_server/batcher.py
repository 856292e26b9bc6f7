"""Waiting rows to batches, by token budget. No torch, no event loop.

A ``Submission`` is what one request waits for: rows, each one text for one task. Rows that the
encoder would read alike, of any request or task, wait as one ``EncoderRow``. The event loop calls
``submit`` and ``cancel``, the replica's thread calls ``take``; one lock covers both.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from labelmux_server.errors import OverloadedError, TimedOutError

Clock = Callable[[], float]

_LONGEST_RETRY_S = 60


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a batch and the queue."""

    max_batch_tokens: int
    max_batch_rows: int
    max_queue_tokens: int
    max_queue_rows: int
    max_wait_ms: float


@dataclass(frozen=True, slots=True)
class Row:
    """One text for one task, tokenised."""

    token_ids: tuple[int, ...]
    type_ids: tuple[int, ...]
    #: Where the answer's adapter is; the batcher never looks inside.
    slot: Any
    #: What besides the tokens decides the pass: None for adapters that read plain features.
    edit: Hashable = None

    @property
    def key(self) -> Hashable:
        """Equal for rows that one encoder row can serve."""
        return (self.edit, self.token_ids, self.type_ids)


@dataclass(slots=True, eq=False)
class Submission:
    """What one request waits for. Its answers are touched on the event loop only."""

    rows: Sequence[Row]
    #: From ``submit`` on; rows that still wait then are dropped.
    timeout_s: float
    #: Called once, when no row of it waits or runs any more.
    settled: Callable[[Submission], None]
    answers: list[Any] = field(init=False)
    error: BaseException | None = None
    remaining: int = field(init=False)
    #: On the batcher's clock; set by ``submit``.
    deadline_s: float = math.inf

    def __post_init__(self) -> None:
        self.answers = [None] * len(self.rows)
        self.remaining = len(self.rows)

    def answer(self, place: int, value: Any) -> None:
        """Row ``place`` is done."""
        self.answers[place] = value
        self._count(1)

    def fail(self, rows: int, error: BaseException | None) -> None:
        """That many rows will have no answer; the first error stands for the request."""
        self.error = self.error or error
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

    @property
    def tokens(self) -> int:
        """Real tokens."""
        return sum(row.tokens for row in self.rows)

    @property
    def padded_tokens(self) -> int:
        """Tokens that the pass computes."""
        return len(self.rows) * max((row.tokens for row in self.rows), default=0)

    def deliver(self, answers: Sequence[Sequence[Any]] | BaseException) -> None:
        """Give every reader its answer, or every reader the error. On the event loop.

        Args:
            answers: one per reader, for each of ``rows``; or what went wrong.
        """
        for row in self.expired:
            for submission, _ in row.readers:
                submission.fail(1, TimedOutError(submission.timeout_s))
        if isinstance(answers, BaseException):
            for row in self.rows:
                for submission, _ in row.readers:
                    submission.fail(1, answers)
            return
        for row, values in zip(self.rows, answers, strict=True):
            for (submission, place), value in zip(row.readers, values, strict=True):
                submission.answer(place, value)


class Batcher:
    """The queue before one replica."""

    def __init__(self, limits: Limits, clock: Clock = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._changed = threading.Condition()
        #: In order of arrival: dicts keep it.
        self._waiting: dict[Hashable, EncoderRow] = {}
        self._tokens = 0
        self._rows = 0
        self._tokens_per_s = 0.0
        self._closed = False

    @property
    def queued_tokens(self) -> int:
        """Tokens waiting, one encoder row counted once."""
        return self._tokens

    @property
    def queued_rows(self) -> int:
        """Rows waiting: one text for one task each."""
        return self._rows

    def submit(self, submission: Submission) -> int:
        """Queue a request's rows; how many encoder rows it needs, shared ones counted.

        Raises:
            OverloadedError: too much waits already; nothing was queued.
        """
        needed = {row.key: len(row.token_ids) for row in submission.rows}
        with self._changed:
            added = sum(tokens for key, tokens in needed.items() if key not in self._waiting)
            self._admit(added, len(submission.rows))
            now = self._clock()
            submission.deadline_s = now + submission.timeout_s
            for place, row in enumerate(submission.rows):
                waiting = self._waiting.get(row.key)
                if waiting is None:
                    waiting = EncoderRow(row.token_ids, row.type_ids, row.key, now)
                    self._waiting[row.key] = waiting
                waiting.readers.append((submission, place))
            self._tokens += added
            self._rows += len(submission.rows)
            self._changed.notify()
        return len(needed)

    def cancel(self, submission: Submission) -> None:
        """Take a request's waiting rows out; those in a running batch settle with it."""
        dropped = 0
        with self._changed:
            for key in {row.key for row in submission.rows}:
                waiting = self._waiting.get(key)
                if waiting is None:
                    continue
                kept = [reader for reader in waiting.readers if reader[0] is not submission]
                dropped += len(waiting.readers) - len(kept)
                waiting.readers = kept
                if not kept:
                    self._remove(waiting)
            self._rows -= dropped
        submission.fail(dropped, None)

    def take(self) -> Batch | None:
        """Wait for the next batch; None once closed."""
        with self._changed:
            while not (self._waiting or self._closed):
                self._changed.wait()
            return self._next() if self._waiting and not self._closed else None

    def take_now(self) -> Batch | None:
        """The next batch if anything waits; never blocks."""
        with self._changed:
            return self._next() if self._waiting else None

    def close(self) -> list[EncoderRow]:
        """No more batches; the rows that still wait, to be failed."""
        with self._changed:
            self._closed = True
            left = list(self._waiting.values())
            self._waiting.clear()
            self._tokens = self._rows = 0
            self._changed.notify_all()
        return left

    def note_speed(self, tokens: int, seconds: float) -> None:
        """How long a batch took, for an honest Retry-After."""
        speed = tokens / max(seconds, 1e-6)
        self._tokens_per_s = 0.8 * self._tokens_per_s + 0.2 * speed if self._tokens_per_s else speed

    def _admit(self, tokens: int, rows: int) -> None:
        limits = self._limits
        if self._tokens + tokens > limits.max_queue_tokens:
            what = f"{self._tokens} tokens wait, at most {limits.max_queue_tokens} may"
        elif self._rows + rows > limits.max_queue_rows:
            what = f"{self._rows} rows wait, at most {limits.max_queue_rows} may"
        else:
            return
        seconds = self._tokens / self._tokens_per_s if self._tokens_per_s else 1.0
        raise OverloadedError(what, min(max(math.ceil(seconds), 1), _LONGEST_RETRY_S))

    def _next(self) -> Batch:
        now = self._clock()
        expired = [row for row in self._waiting.values() if _expired(row, now)]
        for row in expired:
            self._remove(row)
            self._rows -= len(row.readers)
        chosen = self._choose(now) if self._waiting else []
        for row in chosen:
            self._remove(row)
            self._rows -= len(row.readers)
        return Batch(chosen, expired)

    def _choose(self, now: float) -> list[EncoderRow]:
        """The oldest row, then those that waited too long, then the nearest lengths.

        The oldest always goes, so nobody waits for ever.
        """
        waiting = iter(self._waiting.values())
        oldest = next(waiting)
        overdue_before = now - self._limits.max_wait_ms / 1000

        def rank(row: EncoderRow) -> tuple[bool, int]:
            return (row.waiting_since_s > overdue_before, abs(row.tokens - oldest.tokens))

        chosen, longest = [oldest], oldest.tokens
        for row in sorted(waiting, key=rank):
            if len(chosen) == self._limits.max_batch_rows:
                break
            padded = max(longest, row.tokens) * (len(chosen) + 1)
            if padded <= self._limits.max_batch_tokens:
                chosen.append(row)
                longest = max(longest, row.tokens)
        return chosen

    def _remove(self, row: EncoderRow) -> None:
        del self._waiting[row.key]
        self._tokens -= row.tokens


def _expired(row: EncoderRow, now: float) -> bool:
    return all(submission.deadline_s <= now for submission, _ in row.readers)
