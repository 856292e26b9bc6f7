"""What is in the bank: within the budget, least recently used out, nothing that is held."""

from __future__ import annotations

import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from labelmux_server.errors import BankFullError, InternalError
from labelmux_server.metrics import Metrics
from labelmux_server.registry import Version
from labelmux_server.residency import Residency

SIZE = 10
LIMIT_S = 20


class Bank:
    """As much of a bank as residency uses."""

    def __init__(self) -> None:
        self._slots: dict[int, str] = {}
        self._added = itertools.count()
        self.most = 0

    @property
    def resident(self) -> set[str]:
        return set(self._slots.values())

    def bytes_of(self, _manifest) -> int:
        return SIZE

    def add(self, adapter) -> tuple[int, str]:
        slot = next(self._added)
        self._slots[slot] = adapter.digest
        self.most = max(self.most, len(self._slots))
        return slot, adapter.digest

    def remove(self, slot: tuple[int, str]) -> None:
        del self._slots[slot[0]]

    def holds(self, slot: tuple[int, str]) -> bool:
        return self._slots.get(slot[0]) == slot[1]


class Disk:
    """Adapters by version; a gate may hold reads back."""

    def __init__(self) -> None:
        self.reads: list[str] = []
        self.gates: dict[str, threading.Event] = {}
        self.damaged: set[str] = set()

    def read(self, version: Version):
        self.reads.append(version.digest)
        if version.digest in self.gates:
            assert self.gates[version.digest].wait(LIMIT_S)
        if version.digest in self.damaged:
            raise OSError("damaged")
        return adapter(version.digest)


def adapter(digest: str):
    return SimpleNamespace(digest=digest, manifest=None)


def version(digest: str) -> Version:
    when = datetime(2026, 1, 1, tzinfo=UTC)
    return Version(digest, 1, digest, 1, when, False, lambda _: None)


class World:
    def __init__(self, places: int) -> None:
        self.bank, self.disk, self.metrics = Bank(), Disk(), Metrics(8)
        self.residency = Residency(self.bank, self.disk.read, places * SIZE, self.metrics)

    def hold(self, digest: str):
        hold = self.residency.hold(version(digest))
        hold.slot.exception(LIMIT_S)
        return hold

    def use(self, *digests: str) -> None:
        for digest in digests:
            self.hold(digest).release()

    def settle(self) -> None:
        """Return once no load runs; there may be no more after it."""
        self.residency.close()


@pytest.fixture
def world():
    made = World(3)
    yield made
    for gate in made.disk.gates.values():
        gate.set()
    made.settle()


def test_the_least_recently_used_leaves_first(world):
    world.use("a", "b", "c", "a", "d", "e")
    world.settle()
    assert world.bank.resident == {"a", "d", "e"}
    assert world.disk.reads == ["a", "b", "c", "d", "e"]
    assert b"labelmux_adapter_evictions_total 2.0" in world.metrics.render()
    assert b"labelmux_adapter_load_seconds_count 5.0" in world.metrics.render()
    assert b"labelmux_resident_adapters 3.0" in world.metrics.render()
    assert b"labelmux_resident_bytes 30.0" in world.metrics.render()


def test_what_is_held_never_leaves(world):
    held = world.hold("a")
    world.use(*"bcdefg")
    assert "a" in world.bank.resident
    held.release()
    held.release()
    world.use("h", "i", "j")
    world.settle()
    assert world.bank.resident == {"h", "i", "j"}


def test_a_held_bank_refuses_another_and_keeps_what_is_idle(world):
    holds = [world.hold(digest) for digest in "ab"]
    world.use("idle")
    with pytest.raises(BankFullError):
        for digest in ("c", "d"):
            holds.append(world.hold(digest))
    assert set("abc") == world.bank.resident
    for hold in holds:
        hold.release()
    world.use("d")


def test_a_small_budget_holds_under_any_use():
    world = World(4)
    chooser = random.Random(3)

    def use(seed: int) -> None:
        mine = random.Random(seed)
        for _ in range(200):
            digest = str(mine.randrange(9))
            try:
                hold = world.hold(digest)
            except BankFullError:
                continue
            assert world.bank.holds(hold.slot.result())
            hold.release()
            if mine.random() < 0.05:
                world.residency.forget(digest)

    with ThreadPoolExecutor(6) as users:
        list(users.map(use, [chooser.random() for _ in range(6)]))
    world.settle()
    assert world.bank.most <= 4
    assert world.residency.resident_bytes == len(world.bank.resident) * SIZE


def test_those_who_want_one_cold_adapter_share_its_load(world):
    gate = world.disk.gates["a"] = threading.Event()
    holds = [world.residency.hold(version("a")) for _ in range(5)]
    assert not any(hold.slot.done() for hold in holds)
    holds[0].release()
    gate.set()
    assert {hold.slot.result(LIMIT_S) for hold in holds} == {(0, "a")}
    assert world.disk.reads == ["a"]


def test_a_load_holds_nobody_up(world):
    gate = world.disk.gates["slow"] = threading.Event()
    slow = world.residency.hold(version("slow"))
    world.use("quick")
    assert not slow.slot.done()
    gate.set()
    assert world.bank.holds(slow.slot.result(LIMIT_S))


def test_a_load_that_fails_fails_its_holds_alone_and_gives_its_room_back(world):
    world.disk.damaged = {"bad"}
    world.use("a", "b")
    hold = world.hold("bad")
    assert isinstance(hold.slot.exception(), InternalError)
    hold.release()
    world.use("c", "a", "b")
    assert world.residency.resident_bytes == 3 * SIZE
    world.disk.damaged = set()
    world.use("bad")
    assert "bad" in world.bank.resident


def test_what_is_forgotten_leaves_with_its_last_hold(world):
    held, again = world.hold("a"), world.hold("a")
    world.use("b")
    world.residency.forget("a")
    world.residency.forget("b")
    held.release()
    assert world.bank.resident == {"a"}
    again.release()
    assert world.bank.resident == set()
    assert world.residency.resident_bytes == 0


def test_what_is_at_hand_is_resident_at_once_and_read_no_more(world):
    world.residency.put(adapter("a"))
    world.residency.put(adapter("a"))
    assert world.hold("a").slot.done()
    assert world.disk.reads == []
