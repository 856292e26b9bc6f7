"""What a training took: seconds, seconds of a core, and the most memory at once."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType

_EVERY_S = 0.02
_STATUS = Path("/proc/self/status")


class Meter:
    """Measures what runs inside it; the process should do nothing else meanwhile.

    Memory is what the process itself holds (``RssAnon``), looked at fifty times a second. Mapped
    files, such as cached features, are left out: the system drops their pages when it needs room.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        #: Of all threads together: what a busy machine does not change much.
        self.core_seconds = 0.0
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Meter:
        self._started, self._core_started = time.monotonic(), time.process_time()
        self._watch.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds = time.monotonic() - self._started
        self.core_seconds = time.process_time() - self._core_started
        self._stop.set()
        self._watch.join()

    def _look(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, _held_bytes())
            if self._stop.wait(_EVERY_S):
                return


def _held_bytes() -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
