"""Work beside the caller's thread that nothing ever waits for unless it wants the result."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import TypeVar

import httpx2

__all__: list[str] = []

T = TypeVar("T")


def started(work: Callable[[], T], name: str) -> Future[T]:
    """What ``work`` gives or raises, in a thread of its own.

    The threads of a ``ThreadPoolExecutor`` are waited for when the interpreter ends, however long
    a server keeps them; this one is not.
    """
    future: Future[T] = Future()
    threading.Thread(target=_run, args=(work, future), name=name, daemon=True).start()
    return future


class Until(httpx2.SyncByteStream):
    """The pieces of an answer until nobody wants them any more; what a server sends wakes it."""

    def __init__(self, stream: httpx2.SyncByteStream, ended: threading.Event) -> None:
        self._stream = stream
        self._ended = ended

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._stream:
            check(self._ended)
            yield piece

    def close(self) -> None:
        """Close the answer, and its connection where the answer is not whole."""
        self._stream.close()


def check(ended: threading.Event) -> None:
    """Go no further for nobody.

    Raises:
        CancelledError: nobody waits.
    """
    if ended.is_set():
        raise CancelledError


def _run(work: Callable[[], T], future: Future[T]) -> None:
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001 - raised where the result is taken
        future.set_exception(error)
    else:
        future.set_result(result)
