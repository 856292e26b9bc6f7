"""Waiting rows to batches, by token budget. No torch, no event loop.

The event loop calls ``submit`` and ``cancel``, the replica's thread calls ``take``; one lock covers
both, so each holds it for about as long as its own rows need, however many wait.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from labelmux_server.errors import NotReadyError, OverloadedError
from labelmux_server.submission import Batch, EncoderRow, Submission

Clock = Callable[[], float]

_LONGEST_RETRY_S = 60
#: How many of the last batch's rows are worth a pause until their callers ask again, and how much
#: of its time that may take. On four cores, against none: 8 clients of one text got 24 % more
#: answers, 4 clients 32 %; Poisson arrivals at half of the capacity waited no longer.
_RETURNING_SHARE = 0.75
_PAUSE_SHARE = 0.5
_LONGEST_PAUSE_S = 0.02
#: Where the event loop takes longer than that for a request, a core is left to it: else it gets
#: slower by the encoder's threads than they get faster, and everything comes through the loop.
_LOOP_BEHIND_S = 0.05
#: Where it takes more of a core than that, as with many requests of one text, a pass of all threads
#: leaves one core to it, since the slowest of them ends the pass; and of what waits half is taken,
#: so that the loop reads and answers one half while the other is computed. On four cores, against
#: neither: 8, 16 and 64 clients of one text got 18, 15 and 10 % more answers.
_BUSY_LOOP = 0.25
_CORES_WITH_ONE_TO_SPARE = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a batch and the queue."""

    max_batch_tokens: int
    max_batch_rows: int
    max_queue_tokens: int
    max_queue_rows: int
    max_queue_s: float
    max_wait_ms: float
    #: Batches that may run at once, each by one thread.
    max_shares: int = 1
    #: What such a batch has of tokens, unless one row has more.
    min_share_tokens: int = 1
    max_share_tokens: int = 1


class Batcher:
    """The queue before one replica.

    A replica may have several threads. While little waits, the lead runs all of it, and the encoder
    takes all cores for that. Once there is enough for every thread, each takes a share whenever it
    is free, and none waits for another.
    """

    def __init__(self, limits: Limits, clock: Clock = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._lock = threading.RLock()
        self._lead, self._helpers = (threading.Condition(self._lock) for _ in range(2))
        self._lead_waits = False
        #: In order of arrival: dicts keep it.
        self._waiting: dict[Hashable, EncoderRow] = {}
        #: The same rows by their length.
        self._by_length: dict[int, dict[Hashable, EncoderRow]] = {}
        self._tokens = 0
        self._rows = 0
        self._running: set[Batch] = set()
        self._running_tokens = 0
        #: About what is being tokenised. On the event loop alone.
        self._expected_tokens = self._expected_rows = 0
        #: How long a request waits for the event loop, and how much of a core that takes; it tells.
        self.loop_s = self.loop_share = 0.0
        #: Of full batches lately; 0 before the first.
        self._token_s = 0.0
        #: Rows that those whom the last batch answered may ask for next, and until when.
        self._returning_rows = 0
        self._pause_ends_s = 0.0
        self._closed = False

    @property
    def queued_tokens(self) -> int:
        """Tokens waiting, one encoder row counted once."""
        return self._tokens

    @property
    def queued_rows(self) -> int:
        """Rows waiting: one text for one task each."""
        return self._rows

    def has_slack(self, rows: int) -> bool:
        """Whether work that nobody waits for may come along: less than a batch waits."""
        return (
            self._tokens < self._limits.max_batch_tokens
            and 2 * (self._rows + rows) <= self._limits.max_queue_rows
        )

    def submit(self, submission: Submission) -> None:
        """Queue a request's rows; those that wait already are shared.

        Raises:
            OverloadedError: too much waits already; nothing was queued.
            NotReadyError: nobody takes batches any more.
        """
        needed = {row.key: len(row.token_ids) for row in submission.rows}
        with self._lock:
            added = sum(tokens for key, tokens in needed.items() if key not in self._waiting)
            self._admit(added, len(submission.rows), self._queue_s)
            now = self._clock()
            submission.submitted_s = now
            for place, row in enumerate(submission.rows):
                waiting = self._waiting.get(row.key)
                if waiting is None:
                    waiting = EncoderRow(
                        row.token_ids, row.type_ids, row.key, now, row.special, row.edit
                    )
                    self._waiting[row.key] = waiting
                    self._by_length.setdefault(waiting.tokens, {})[row.key] = waiting
                waiting.readers.append((submission, place))
            self._tokens += added
            self._rows += len(submission.rows)
            self._wake()

    def check_room(self) -> None:
        """Return if a short text might be queued; a call that cannot be is refused unread.

        What will be queued soon is counted, and how long the event loop takes: where that is what
        limits the server, calls wait for it and not here.

        Raises:
            OverloadedError: too much waits already.
        """
        self._admit(self._expected_tokens + 1, self._expected_rows + 1, self.wait_s)

    @contextmanager
    def expecting(self, tokens: int, rows: int) -> Iterator[None]:
        """While a call's texts become rows to ``submit``, hold a place for them.

        Raises:
            OverloadedError: too much waits already.
        """
        self.check_room()
        self._expected_tokens += tokens
        self._expected_rows += rows
        try:
            yield
        finally:
            self._expected_tokens -= tokens
            self._expected_rows -= rows

    def cancel(self, submission: Submission) -> None:
        """Take a request's waiting rows out; those in a running batch settle with it."""
        dropped = 0
        with self._lock:
            for key in {row.key for row in submission.rows}:
                waiting = self._waiting.get(key)
                if waiting is None:
                    continue
                kept = [reader for reader in waiting.readers if reader[0] is not submission]
                dropped += len(waiting.readers) - len(kept)
                waiting.readers = kept
                if not kept:
                    self._remove([waiting])
            self._rows -= dropped
        submission.fail(dropped, None)

    def take(self, *, helper: bool = False) -> Batch | None:
        """Wait for the next batch; None once closed. Each batch ends with ``done``.

        Those who were answered together ask again within moments. A batch begun for the first of
        them alone would make all others wait for it, time after time.

        Args:
            helper: take shares only, never all that waits; for all threads but one, the lead.
        """
        with self._lock:
            while not self._closed:
                pause_s = self._pause_s()
                if pause_s == 0 and (self._share_tokens() or not helper):
                    return self._next()
                if helper:
                    self._helpers.wait()
                    continue
                self._lead_waits = True
                self._lead.wait(pause_s)
                self._lead_waits = False
            return None

    def take_now(self) -> Batch | None:
        """The next batch if anything waits; never blocks."""
        with self._lock:
            return self._next() if self._waiting else None

    def close(self) -> list[EncoderRow]:
        """No more batches; the rows that still wait, to be failed."""
        with self._lock:
            self._closed = True
            left = list(self._waiting.values())
            self._waiting.clear()
            self._by_length.clear()
            self._tokens = self._rows = 0
            self._lead.notify_all()
            self._helpers.notify_all()
        return left

    def done(self, batch: Batch, seconds: float) -> None:
        """A batch that was taken ran, and took so long. On the thread that took it.

        Only a full batch tells how fast the queue can drain: one text alone is the slowest of all.
        """
        rows = len(batch.rows) if batch.shared else 0
        with self._lock:
            if batch in self._running:
                self._running.remove(batch)
                self._running_tokens -= batch.tokens
            self._returning_rows = round(_RETURNING_SHARE * rows)
            self._pause_ends_s = self._clock() + min(_PAUSE_SHARE * seconds, _LONGEST_PAUSE_S)
            if batch.full:
                shares = self._limits.max_shares if batch.one_thread else 1
                token_s = seconds / batch.tokens / shares
                self._token_s = 0.8 * self._token_s + 0.2 * token_s if self._token_s else token_s
            self._wake()

    @property
    def wait_s(self) -> float:
        """How long a text that comes now may expect to wait, by what was measured so far."""
        return self._queue_s + self.loop_s

    @property
    def _queue_s(self) -> float:
        """The queue's part of it; 0 before any batch was full."""
        return (self._running_tokens + self._tokens + self._expected_tokens) * self._token_s

    @property
    def _room(self) -> bool:
        """Whether what waits may run beside what runs."""
        if not self._running:
            return True
        loop_is_behind = self.loop_s > _LOOP_BEHIND_S
        return (
            self._tokens >= self._limits.min_share_tokens
            and len(self._running) < self._limits.max_shares - loop_is_behind
            and all(batch.one_thread for batch in self._running)
        )

    def _pause_s(self) -> float | None:
        """How long to wait for more; 0: not at all; None: until something changes.

        For more of those who were answered last, where that is too little for all threads.
        """
        if not self._waiting or not self._room:
            return None
        if (
            self._share_tokens()
            or len(self._waiting) >= self._returning_rows
            or self._tokens >= self._limits.max_batch_tokens
        ):
            return 0.0
        return max(self._pause_ends_s - self._clock(), 0.0)

    def _wake(self) -> None:
        """Have an idle thread look at the queue, if there is a batch for it now or soon."""
        if self._pause_s() is None:
            return
        if self._lead_waits:
            self._lead.notify()
        elif self._share_tokens():
            self._helpers.notify()

    def _admit(self, tokens: int, rows: int, wait_s: float) -> None:
        if self._closed:
            raise NotReadyError
        limits = self._limits
        if self._tokens + tokens > limits.max_queue_tokens:
            what = f"{self._tokens} tokens wait, at most {limits.max_queue_tokens} may"
        elif self._rows + rows > limits.max_queue_rows:
            what = f"{self._rows} rows wait, at most {limits.max_queue_rows} may"
        elif wait_s > limits.max_queue_s and (self._tokens or self.loop_s > limits.max_queue_s):
            what = f"a text would wait {wait_s:.1f} s, at most {limits.max_queue_s:g} s is allowed"
        else:
            return
        raise OverloadedError(what, min(max(math.ceil(wait_s), 1), _LONGEST_RETRY_S))

    def _next(self) -> Batch:
        now = self._clock()
        expired = self._expired(now)
        self._remove(expired)
        tokens, threads = self._portion()
        chosen = self._choose(now, tokens) if self._waiting else []
        self._rows -= sum(len(row.readers) for row in (*expired, *chosen))
        batch = Batch(chosen, expired, full=bool(self._waiting), threads=threads)
        self._running.add(batch)
        self._running_tokens += batch.tokens
        self._wake()
        return batch

    def _portion(self) -> tuple[int, int | None]:
        """Tokens for the next batch, and how many threads run it; None: all."""
        limits = self._limits
        share = self._share_tokens()
        if share is not None:
            return share, 1
        if self.loop_share < _BUSY_LOOP or limits.max_shares < _CORES_WITH_ONE_TO_SPARE:
            return limits.max_batch_tokens, None
        by_turns = self._tokens // 2 if self._tokens >= limits.min_share_tokens else self._tokens
        return min(by_turns, limits.max_batch_tokens), limits.max_shares - 1

    def _share_tokens(self) -> int | None:
        """Tokens for one thread; None: all threads run what waits, together."""
        limits = self._limits
        enough = self._tokens >= limits.max_shares * limits.min_share_tokens
        if limits.max_shares == 1 or not (self._running or enough):
            return None
        share = max(self._tokens // limits.max_shares, limits.min_share_tokens)
        if self._tokens - share < limits.min_share_tokens:
            share = self._tokens
        return min(share, limits.max_share_tokens, limits.max_batch_tokens)

    def _expired(self, now: float) -> list[EncoderRow]:
        """Rows at the head whose every reader's time is up; deadlines follow arrival."""
        expired = []
        for row in self._waiting.values():
            if row.readers[0][0].deadline_s > now:
                break
            if all(submission.deadline_s <= now for submission, _ in row.readers):
                expired.append(row)
        return expired

    def _choose(self, now: float, room: int) -> list[EncoderRow]:
        """The oldest row, those that waited too long in order of arrival, then nearest lengths.

        Removes what it chooses.
        """
        overdue_before = now - self._limits.max_wait_ms / 1000
        chosen = list[EncoderRow]()
        for row in islice(self._waiting.values(), self._limits.max_batch_rows):
            if chosen and (row.tokens > room or row.waiting_since_s > overdue_before):
                break
            chosen.append(row)
            room -= row.tokens
        self._remove(chosen)
        oldest = chosen[0].tokens
        for length in sorted(self._by_length, key=lambda length: abs(length - oldest)):
            places = min(room // length, self._limits.max_batch_rows - len(chosen))
            near = list(islice(self._by_length[length].values(), max(places, 0)))
            self._remove(near)
            chosen += near
            room -= length * len(near)
        return chosen

    def _remove(self, rows: list[EncoderRow]) -> None:
        for row in rows:
            del self._waiting[row.key]
            alike = self._by_length[row.tokens]
            del alike[row.key]
            if not alike:
                del self._by_length[row.tokens]
            self._tokens -= row.tokens
