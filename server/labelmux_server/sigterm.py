"""SIGTERM before the server can drain: there is nothing to finish, so the process just ends.

The first process of a container has no default action for a signal. Without a handler, SIGTERM
would be lost while the encoder loads, and the container be killed once its grace period is over.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def ends_on_sigterm() -> Iterator[None]:
    """End the process with code 0 on SIGTERM, unless somebody else handles it. Main thread only."""
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(_number: int, _frame: FrameType | None) -> None:
    # No clean end: it would wait for the thread that reads the state folder and preloads its tasks.
    os._exit(0)
