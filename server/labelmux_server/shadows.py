"""What shadows read, and how far they agree with the versions that answer. On the event loop.

Nobody waits for a shadow. Where the encoder reads a text for it anyway, its readout rides along
with the call's rows; any other text is read once the caller has its answer, and only while nothing
waits. Verdicts are compared on a thread of their own.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Collection, Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from labelmux_encoder.tokenizer import TextInput, TokenRow
from labelmux_server.batcher import Batcher
from labelmux_server.errors import ServerError
from labelmux_server.outcomes import Outcome
from labelmux_server.readings import readings
from labelmux_server.registry import Version
from labelmux_server.residency import Residency
from labelmux_server.submission import Row
from labelmux_server.trial import Shadow
from labelmux_server.waiting import answered

#: Calls that shadows read late at once, and comparisons that wait; beyond, shadows are dropped.
_MOST_LATE = 4
_MOST_COMPARISONS = 64

_log = logging.getLogger(__name__)

#: A text's tokens, and its first row's place among a submission's.
_Read = tuple[Sequence[TokenRow], int]


@dataclass(frozen=True, slots=True)
class _Sight:
    """One text that both versions read."""

    text: TextInput
    by_active: _Read
    tokens: Sequence[TokenRow]
    rows: Sequence[Row]


class Glance:
    """What one shadow reads of one call."""

    def __init__(self, shadow: Shadow, active: Version) -> None:
        self.shadow = shadow
        self.active = active
        self._riding: list[tuple[_Sight, int]] = []
        self.late: list[_Sight] = []

    def add(
        self,
        text: TextInput,
        by_active: _Read,
        tokens: Sequence[TokenRow],
        rows: Sequence[Row],
    ) -> None:
        """A text, where the active version's rows of it lie, and the shadow's own."""
        self.late.append(_Sight(text, by_active, tokens, rows))

    def ride(self, rows: list[Row], known: Collection[Hashable]) -> None:
        """Put those texts behind ``rows`` that the encoder reads for these anyway."""
        sights, self.late = self.late, []
        for sight in sights:
            if all(row.key in known for row in sight.rows):
                self._riding.append((sight, len(rows)))
                rows += sight.rows
            else:
                self.late.append(sight)

    def pairs(self, answers: Sequence[Any]) -> list[_Pair]:
        """What both said of the texts that rode along."""
        return [self._pair(sight, answers, first, answers) for sight, first in self._riding]

    def late_pairs(self, answers: Sequence[Any], late_answers: Sequence[Any]) -> list[_Pair]:
        """What both said of the texts that were read late, in order."""
        pairs, first = [], 0
        for sight in self.late:
            pairs.append(self._pair(sight, answers, first, late_answers))
            first += len(sight.rows)
        return pairs

    def _pair(self, sight: _Sight, answers: Sequence[Any], first: int, own: Sequence[Any]) -> _Pair:
        return (
            sight.text,
            Outcome.of(self.active, *sight.by_active, answers),
            Outcome.of(self.shadow.version, sight.tokens, first, own),
        )


#: A text, what the active version says of it, and what the shadow does.
_Pair = tuple[TextInput, Outcome, Outcome]


class Shadows:
    """Lets shadows finish what they read, and counts how far they agree."""

    def __init__(self, batcher: Batcher, residency: Residency, timeout_s: float) -> None:
        self._batcher = batcher
        self._residency = residency
        self._timeout_s = timeout_s
        self._late: set[asyncio.Task[None]] = set()
        self._room = threading.BoundedSemaphore(_MOST_COMPARISONS)
        self._pool = ThreadPoolExecutor(1, "labelmux-shadows")

    def close(self) -> None:
        """Leave what is not compared yet; wait for the comparison that runs."""
        self._pool.shutdown(cancel_futures=True)

    def follow(self, glances: Iterable[Glance], answers: Sequence[Any]) -> None:
        """A call has its answers: compare, and read what is left to read."""
        for glance in glances:
            self._compare(glance, glance.pairs(answers))
            if not glance.late:
                continue
            if len(self._late) >= _MOST_LATE or self._batcher.queued_rows:
                glance.shadow.dropped += len(glance.late)
                continue
            task = asyncio.create_task(self._read_late(glance, answers))
            self._late.add(task)
            task.add_done_callback(self._late.discard)

    async def _read_late(self, glance: Glance, answers: Sequence[Any]) -> None:
        shadow, rows = glance.shadow, [row for sight in glance.late for row in sight.rows]
        try:
            hold = self._residency.hold(shadow.version)
            if not hold.at_hand or hold.slot.result() is not rows[0].slot:
                hold.release()
                shadow.unloaded += len(glance.late)
                return
            submission = await answered(self._batcher, rows, self._timeout_s, hold.release)
        except ServerError:
            shadow.dropped += len(glance.late)
            return
        self._compare(glance, glance.late_pairs(answers, submission.answers))

    def _compare(self, glance: Glance, pairs: Sequence[_Pair]) -> None:
        if not pairs:
            return
        if not self._room.acquire(blocking=False):
            glance.shadow.dropped += len(pairs)
            return
        self._pool.submit(_compare, glance.shadow, glance.active, pairs).add_done_callback(
            self._compared
        )

    def _compared(self, done: Future[None]) -> None:
        self._room.release()
        if not done.cancelled() and (error := done.exception()) is not None:
            _log.error("a shadow was not compared", exc_info=error)


def _compare(shadow: Shadow, active: Version, pairs: Sequence[_Pair]) -> None:
    ours = readings(active, [(text, outcome) for text, outcome, _ in pairs])
    theirs = readings(shadow.version, [(text, outcome) for text, _, outcome in pairs])
    for one, other in zip(ours, theirs, strict=True):
        shadow.compared += 1
        shadow.agreed += one.verdict == other.verdict
        shadow.score_difference += one.distance(other)
