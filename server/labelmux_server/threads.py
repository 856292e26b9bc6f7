"""How the server's threads share the cores."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

#: How much other threads give way to the event loop, which feeds all of them. With the encoder's
#: threads at 3, 256 clients of one text got 13 to 27 % more answers than at 0, others as many.
_NICENESS = 3


def give_way() -> None:
    """Let the event loop go before the calling thread where there are too few cores for both."""
    if sys.platform == "linux":  # elsewhere the priority is the whole process's
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


async def in_own_thread(work: Callable[[], Result]) -> Result:
    """What ``work`` gives, in a thread that ends with it.

    OpenMP's threads live as long as the one that they worked for, and once there are more of them
    than processors, none waits actively: a pass over one text then takes three to four times as
    long, most of it the waking of threads. A pool would keep its thread.
    """
    with ThreadPoolExecutor(1, "labelmux-start") as own:
        return await asyncio.get_running_loop().run_in_executor(own, work)
