"""Which adapters are in the bank: loaded when first asked for, least recently used out.

Adapters are counted by digest, so tasks with equal files share one place. The bytes in the bank
never exceed the budget, and an adapter that a hold names never leaves. Finding one that is resident
is a dictionary's lookup; a load runs on a thread of its own, once for all who wait for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

from labelmux_adapters.bank import Bank, Slot
from labelmux_adapters.errors import AdapterError
from labelmux_adapters.files import Adapter
from labelmux_server.errors import (
    BankFullError,
    InternalError,
    OutOfMemoryError,
    ServerError,
)
from labelmux_server.metrics import Metrics, Reading
from labelmux_server.registry import Version
from labelmux_server.replica import is_out_of_memory
from labelmux_server.statuses import answer_for

_LOADERS = 2

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Place:
    """One adapter's claim on the budget, from the start of its load until it is out."""

    digest: str
    size_bytes: int
    slot: Future[Slot] = field(default_factory=Future)
    holds: int = 0
    loaded: bool = False
    #: Nothing names the adapter any more; it goes with its last hold.
    forgotten: bool = False


class Hold:
    """One request's hold on a resident adapter; ``release`` works once, however often called."""

    __slots__ = ("_release", "slot")

    def __init__(self, slot: Future[Slot], release: Callable[[], None]) -> None:
        #: Done at once where the adapter is resident; else when its load is.
        self.slot = slot
        self._release: Callable[[], None] | None = release

    @property
    def at_hand(self) -> bool:
        """Whether the adapter is in the bank now."""
        return self.slot.done() and self.slot.exception() is None

    def release(self) -> None:
        """The adapter may leave the bank now."""
        release, self._release = self._release, None
        if release is not None:
            release()


class Residency:
    """The adapters in one bank, within a budget. Any thread may call any method."""

    def __init__(
        self,
        bank: Bank,
        read: Callable[[Version], Adapter],
        max_bytes: int,
        metrics: Metrics,
        begin: Callable[[], None] | None = None,
    ) -> None:
        """``read`` gives a version's adapter, on a loader's thread; a ServerError that it raises is
        the error of every hold on it. ``begin`` is called first on each loader's thread."""
        self._bank = bank
        self._read = read
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._lock = threading.Lock()
        self._places: dict[str, _Place] = {}
        #: Resident and held by nobody, least recently used first.
        self._idle: OrderedDict[str, _Place] = OrderedDict()
        self._bytes = 0
        self._idle_bytes = 0
        self._pool = ThreadPoolExecutor(_LOADERS, "labelmux-loader", begin)
        self._lookups = self._found = 0
        metrics.watch(
            Reading("resident_adapters", "Adapters in the bank.", lambda: len(self._places)),
            Reading("resident_bytes", "Bytes of adapters in the bank.", lambda: self._bytes),
            Reading("resident_limit_bytes", "Most bytes that may be.", lambda: self._max_bytes),
            Reading("adapter_lookups", "Adapters asked for.", lambda: self._lookups, counts=True),
            Reading(
                "adapter_hits", "Of these, adapters in the bank.", lambda: self._found, counts=True
            ),
        )

    def close(self) -> None:
        """Wait for running loads."""
        self._pool.shutdown(cancel_futures=True)

    def __contains__(self, digest: str) -> bool:
        return digest in self._places

    @property
    def resident_bytes(self) -> int:
        """Bytes in the bank, those being loaded counted."""
        return self._bytes

    @property
    def strained(self) -> bool:
        """Whether holds take so much that what nobody waits for had better stay out."""
        return 2 * (self._bytes - self._idle_bytes) > self._max_bytes

    def hold(self, version: Version) -> Hold:
        """Keep a version's adapter in the bank, or bring it there, until the hold is released.

        Raises:
            BankFullError: what is held already leaves no room for it.
        """
        with self._lock:
            self._lookups += 1
            place = self._places.get(version.digest)
            if place is not None:
                self._found += 1
                return self._hold(place)
        size_bytes = self._bank.bytes_of(version.manifest)
        with self._lock:
            place = self._places.get(version.digest)
            if place is None:
                place = self._admit(version.digest, size_bytes)
                self._pool.submit(self._load, place, lambda: self._bank.add(self._read(version)))
            return self._hold(place)

    def put(self, adapter: Adapter, slot: Slot | None = None) -> None:
        """Make an adapter that is at hand resident.

        Args:
            slot: its own in the bank, where it has one. It is taken over, or given back.

        Raises:
            BankFullError: what is held already leaves no room for it.
        """
        size_bytes = self._bank.bytes_of(adapter.manifest)
        with ExitStack() as undo:
            if slot is not None:
                undo.callback(self._bank.remove, slot)
            while True:
                with self._lock:
                    known = self._places.get(adapter.digest)
                    place = known or self._admit(adapter.digest, size_bytes)
                if known is None:
                    undo.pop_all()
                    self._load(place, lambda: slot or self._bank.add(adapter))
                    place.slot.result()
                    return
                # A load that is under way reads the file, which may be what this upload replaces.
                if place.slot.exception() is None:
                    return

    def forget(self, digest: str) -> None:
        """Nothing names this adapter any more: it leaves when its last hold does."""
        with self._lock:
            place = self._places.pop(digest, None)
            if place is None:
                return
            place.forgotten = True
            if self._idle.pop(digest, None) is not None:
                self._idle_bytes -= place.size_bytes
                self._leave(place)

    def _hold(self, place: _Place) -> Hold:
        place.holds += 1
        if self._idle.pop(place.digest, None) is not None:
            self._idle_bytes -= place.size_bytes
        return Hold(place.slot, lambda: self._give_back(place))

    def _give_back(self, place: _Place) -> None:
        with self._lock:
            place.holds -= 1
            self._rest(place)

    def _rest(self, place: _Place) -> None:
        """What nobody holds is idle, or leaves if nothing names it."""
        if place.holds or not place.loaded:
            return
        if place.forgotten:
            self._leave(place)
        else:
            self._idle[place.digest] = place
            self._idle_bytes += place.size_bytes

    def _leave(self, place: _Place) -> None:
        self._bank.remove(place.slot.result())
        self._bytes -= place.size_bytes

    def _admit(self, digest: str, size_bytes: int) -> _Place:
        """A place for an adapter; the least recently used leave for it."""
        held = self._bytes - self._idle_bytes
        if held + size_bytes > self._max_bytes:
            raise BankFullError(held, size_bytes, self._max_bytes)
        while self._bytes + size_bytes > self._max_bytes:
            _, oldest = self._idle.popitem(last=False)
            del self._places[oldest.digest]
            self._idle_bytes -= oldest.size_bytes
            self._leave(oldest)
            self._metrics.record_eviction()
        place = _Place(digest, size_bytes)
        # A caller that gives up must not cancel the load for the others.
        place.slot.set_running_or_notify_cancel()
        self._places[digest] = place
        self._bytes += size_bytes
        return place

    def _load(self, place: _Place, add: Callable[[], Slot]) -> None:
        started = time.monotonic()
        try:
            slot = add()
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            self._fail(place, _told(error))
            return
        self._metrics.record_load(time.monotonic() - started)
        with self._lock:
            place.loaded = True
            # Whoever is told now may release, but gets the lock only when the place is settled.
            place.slot.set_result(slot)
            self._rest(place)

    def _fail(self, place: _Place, error: Exception) -> None:
        _log.error("adapter %s was not loaded: %s", place.digest, error)
        self._metrics.record_load_failure(answer_for(type(error)).code)
        with self._lock:
            self._bytes -= place.size_bytes
            if self._places.get(place.digest) is place:
                del self._places[place.digest]
        place.slot.set_exception(error)


def _told(error: Exception) -> Exception:
    """What everyone who waits for a load is told: an error of one task, never of a whole call."""
    if isinstance(error, ServerError | AdapterError):
        return error
    _log.error("a load failed", exc_info=error)
    if is_out_of_memory(error):
        return OutOfMemoryError("the adapter; lower max_resident_bytes")
    return InternalError()
