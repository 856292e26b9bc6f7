"""How long the turns of the event loop take, and how much of a core it does.

Short requests fill the loop before they fill the queue. A request needs several turns of the loop,
and a turn is as long as all that has piled up in it: a caller is refused where that is too long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_EVERY_S = 0.02
#: On a request's way: it is read, called, handed to a tokenizer, queued, answered, written.
_TURNS = 6
#: Of the longest wait, and of the mean share of a core, how much is left after another.
_KEPT = 0.8


class Turns:
    """Tells every 20 ms how long a request that comes now waits for turns of the loop."""

    def __init__(self, tell: Callable[[float, float], None]) -> None:
        """``tell`` is called on the loop, with seconds, and with the loop's share of a core."""
        self._tell = tell
        self._last_s = self._wait_s = self._share = 0.0
        self._next: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, on the running loop."""
        self._schedule()

    def stop(self) -> None:
        """Tell no more."""
        if self._next is not None:
            self._next.cancel()

    def observe(self, turn_s: float, share: float = 0.0) -> None:
        """A turn took so long, and the loop had so much of a core since the last.

        A long turn alone says nothing: the whole process may have been held up. Work that piles
        up makes long turns one after the other.
        """
        both_s = min(turn_s, self._last_s)
        self._last_s = turn_s
        self._wait_s = max(_TURNS * both_s, _KEPT * self._wait_s)
        self._share += (1 - _KEPT) * (share - self._share)
        self._tell(self._wait_s, self._share)

    def _schedule(self) -> None:
        loop, began_s, cpu_s = asyncio.get_running_loop(), time.monotonic(), time.thread_time()
        self._next = loop.call_later(_EVERY_S, self._tick, began_s, cpu_s)

    def _tick(self, began_s: float, began_cpu_s: float) -> None:
        passed_s = time.monotonic() - began_s
        share = (time.thread_time() - began_cpu_s) / passed_s
        self.observe(max(passed_s - _EVERY_S, 0.0), share)
        self._schedule()
