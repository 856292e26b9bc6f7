"""How fast each key may be used: requests and tokens per minute, by token buckets."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Literal

from labelmux_server.errors import RateLimitedError
from labelmux_server.metrics import Metrics

Clock = Callable[[], float]
#: What is counted.
Unit = Literal["requests", "tokens"]


class Bucket:
    """Fills evenly, up to what a minute brings; may be overdrawn by what is taken at once."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._per_s = per_minute / 60
        self._full = float(per_minute)
        self._clock = clock
        self._level = self._full
        self._at_s = clock()

    def wait_s(self, least: float) -> float:
        """Seconds until it holds at least so much; 0 where it does."""
        now_s = self._clock()
        self._level = min(self._full, self._level + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        return max(least - self._level, 0.0) / self._per_s

    def take(self, amount: int) -> None:
        """Take so much, whether it is there or not."""
        self._level -= amount


class Rates:
    """The buckets of every key, by name. For the event loop alone."""

    def __init__(self, metrics: Metrics, clock: Clock = time.monotonic) -> None:
        self._metrics = metrics
        self._clock = clock
        self._buckets: dict[tuple[str, Unit, int], Bucket] = {}

    def spend(self, key: str, unit: Unit, amount: int, per_minute: int) -> None:
        """Count what a key uses, and hold it to so much a minute; 0 is no limit.

        A request waits for a whole one. A call passes while any tokens are left, however many it
        has, or a long one never would; those that follow pay for it.

        Raises:
            RateLimitedError: it has to wait.
        """
        self.check(key, unit, per_minute)
        self.count(key, unit, amount, per_minute)

    def check(self, key: str, unit: Unit, per_minute: int) -> None:
        """Return if a key may use anything now.

        Raises:
            RateLimitedError: it has to wait.
        """
        if not per_minute:
            return
        wait_s = self._bucket(key, unit, per_minute).wait_s(1.0)
        if wait_s > 0:
            self._metrics.record_limited(key, unit)
            raise RateLimitedError(unit, per_minute, math.ceil(wait_s))

    def count(self, key: str, unit: Unit, amount: int, per_minute: int) -> None:
        """Count what a key uses, whether it may or not."""
        if per_minute:
            self._bucket(key, unit, per_minute).take(amount)
        self._metrics.record_use(key, unit, amount)

    def _bucket(self, key: str, unit: Unit, per_minute: int) -> Bucket:
        found = self._buckets.get((key, unit, per_minute))
        if found is None:
            found = self._buckets[key, unit, per_minute] = Bucket(per_minute, self._clock)
        return found
