"""Ends a process whose encoder does not answer any more.

Nothing inside can mend a thread that hangs in a driver, or that has ended. So the server says that
it is not live, waits until that was seen, and leaves the rest to whoever starts it again; what it
acknowledged is on disk.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
from collections.abc import Callable

#: As sysexits.h has it: an internal software error.
EXIT_CODE = 70
_EVERY_S = 1.0

_log = logging.getLogger(__name__)


async def watch(failed: Callable[[], bool], grace_s: float) -> None:
    """Look until cancelled; once ``failed`` has held for the grace period, the process ends."""
    while True:
        await asyncio.sleep(_EVERY_S)
        if not failed():
            continue
        _log.critical("the encoder does not answer any more; this process ends in %g s", grace_s)
        await asyncio.sleep(grace_s)
        if failed():
            faulthandler.dump_traceback(all_threads=True)
            # No clean end: it would wait for the thread that hangs.
            os._exit(EXIT_CODE)
        _log.warning("the encoder answers again; this process goes on")
