"""Time limits for thousands of requests a second. For the event loop alone.

What is asked for with one delay is due in the order in which it was asked for, so one timer of the
loop serves all of it. A timer for each costs 5 us: the loop keeps them in a heap, which compares in
Python, and drops those that were cancelled late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType


class Timers:
    """Calls back after delays; there should be few different ones."""

    def __init__(self) -> None:
        self._lines: dict[float, _Line] = {}

    def after(self, delay_s: float, call: Callable[[], None]) -> Timer:
        """Call back so much later, unless that is cancelled."""
        line = self._lines.get(delay_s)
        if line is None:
            line = self._lines[delay_s] = _Line(delay_s)
        return Timer(line, call)

    def limit(self, delay_s: float) -> Limit:
        """The most time that the body of this ``with`` may take, or a part of it."""
        return Limit(self, delay_s)


class Timer:
    """One call that is due once. Lets go of what it calls when that is over."""

    __slots__ = ("_call", "_line", "due_s")

    def __init__(self, line: _Line, call: Callable[[], None]) -> None:
        self._line = line
        self._call: Callable[[], None] | None = call
        self.due_s = line.add(self)

    def cancel(self) -> None:
        """Do not call; as often as one likes."""
        self._call = None
        self._line.remove(self)

    def ring(self) -> None:
        """Call, if that was not cancelled."""
        call, self._call = self._call, None
        if call is not None:
            call()


class Limit:
    """Cancels the task at work when its time is up, and raises ``TimeoutError`` then."""

    __slots__ = ("_delay_s", "_expired", "_task", "_timer", "_timers")

    def __init__(self, timers: Timers, delay_s: float) -> None:
        self._timers = timers
        self._delay_s = delay_s
        self._expired = False

    def __enter__(self) -> Limit:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._timer = self._timers.after(self._delay_s, self._expire)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if self._expired and self._task.uncancel() <= 0 and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def restart(self) -> None:
        """The time begins anew."""
        self._timer.cancel()
        if not self._expired:
            self._timer = self._timers.after(self._delay_s, self._expire)

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()


class _Line:
    """Timers of one delay, the next one first."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        #: Dicts keep the order.
        self._waiting: dict[Timer, None] = {}
        self._armed = False

    def add(self, timer: Timer) -> float:
        """Put one last; when it is due, on the loop's clock."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + self._delay_s
        self._waiting[timer] = None
        if not self._armed:
            self._armed = True
            loop.call_at(due_s, self._ring)
        return due_s

    def remove(self, timer: Timer) -> None:
        self._waiting.pop(timer, None)

    def _ring(self) -> None:
        loop = asyncio.get_running_loop()
        # What is due within a millisecond goes along.
        now_s = loop.time() + 0.001
        due = []
        for timer in self._waiting:
            if timer.due_s > now_s:
                break
            due.append(timer)
        for timer in due:
            del self._waiting[timer]
        following = next(iter(self._waiting), None)
        self._armed = following is not None
        if following is not None:
            loop.call_at(following.due_s, self._ring)
        for timer in due:
            timer.ring()
