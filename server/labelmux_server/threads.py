"""How the server's threads share the cores."""

from __future__ import annotations

import os
import sys
import threading

#: How much other threads give way to the event loop, which feeds all of them. With the encoder's
#: threads at 3, 256 clients of one text got 13 to 27 % more answers than at 0, others as many.
NICENESS = 3
#: How much changes give way to all of that. Ten uploads a second were done in the same time as at
#: 3, and the p99 of others beside them was lower in three of four turns.
CHANGE_NICENESS = 10


def give_way(niceness: int) -> None:
    """Let others go before the calling thread where there are too few cores for all."""
    if sys.platform == "linux":  # elsewhere the priority is the whole process's
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
