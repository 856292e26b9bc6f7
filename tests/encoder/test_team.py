"""The threads that compute a pass together, and nobody waits for those that do not come."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from tests.encoder.test_cpu_pass import random_rows

from labelmux_encoder import kernels
from labelmux_encoder.weights import LoadedEncoder

Result = TypeVar("Result")

LENGTHS = ((5,), (40,), (17, 3, 30), (20,) * 8, (64,) * 12)
LIMIT_S = 30

pytestmark = pytest.mark.skipif(not kernels.load(), reason="no kernels here")


@pytest.fixture(autouse=True)
def a_team() -> Iterator[None]:
    kernels.share_cores(0)
    yield
    kernels.share_cores(None)


def alone(work: Callable[[], Result], threads: int) -> Result:
    """What ``work`` gives on a thread of its own, with so many threads for its passes."""

    def run() -> Result:
        kernels.use_threads(threads)
        return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def encode_all(loaded: LoadedEncoder) -> list[torch.Tensor]:
    encoder = loaded.encoder
    return [encoder(random_rows(encoder.config, lengths)) for lengths in LENGTHS]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, one, other))


@pytest.mark.parametrize("niceness", [None, 0], ids=["OpenMP", "a team"])
@pytest.mark.parametrize("threads", [2, 3, 7])
def test_any_number_of_threads_gives_the_same_bits(
    tiny_encoder: LoadedEncoder, threads: int, niceness: int | None
) -> None:
    kernels.share_cores(niceness)
    expected = alone(lambda: encode_all(tiny_encoder), 1)
    for _ in range(10):
        assert equal(alone(lambda: encode_all(tiny_encoder), threads), expected)


def test_callers_at_the_same_time_do_not_meet(tiny_encoder: LoadedEncoder) -> None:
    expected = alone(lambda: encode_all(tiny_encoder), 1)
    begin = threading.Barrier(6)

    def call(threads: int) -> bool:
        kernels.use_threads(threads)
        begin.wait(LIMIT_S)
        return all(equal(encode_all(tiny_encoder), expected) for _ in range(30))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(call, [1, 2, 3, 4, 4, 5]))


def of_threads(file: str) -> dict[str, list[str]]:
    """By thread of this process, what the kernel says of it; some may end meanwhile."""
    found = {}
    for path in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            found[path.name] = (path / file).read_text().rpartition(")")[2].split()
    return found


def runtimes() -> dict[str, int]:
    """By thread, its nanoseconds on a core."""
    return {name: int(fields[0]) for name, fields in of_threads("schedstat").items()}


@pytest.mark.skipif(sys.platform != "linux", reason="threads are looked up in /proc")
def test_the_threads_that_help_give_way(tiny_encoder: LoadedEncoder) -> None:
    def niceness() -> list[int]:
        return [int(fields[16]) for fields in of_threads("stat").values()]

    tiny_encoder.encoder.share_cores(2)
    until = time.monotonic() + LIMIT_S
    while niceness().count(2) < 2:
        assert time.monotonic() < until, "no thread gave way"
        alone(lambda: encode_all(tiny_encoder), 3)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are looked up in /proc")
def test_a_thread_that_passes_have_no_use_for_leaves_its_core(tiny_encoder: LoadedEncoder) -> None:
    alone(lambda: encode_all(tiny_encoder), 4)

    def by_two() -> int:
        encode_all(tiny_encoder)
        before, until = runtimes(), time.monotonic() + 0.5
        while time.monotonic() < until:
            encode_all(tiny_encoder)
        after = runtimes()
        return sum(after[name] - before.get(name, 0) > 5e7 for name in after)

    assert alone(by_two, 2) <= 2


@pytest.mark.skipif(sys.platform != "linux", reason="threads are looked up in /proc")
def test_a_rehearsal_is_run_by_every_thread(tiny_encoder: LoadedEncoder) -> None:
    def rehearse() -> int:
        encode_all(tiny_encoder)
        before = runtimes()
        with kernels.each_thread():
            for _ in range(20):
                encode_all(tiny_encoder)
        after = runtimes()
        return sum(after[name] > before.get(name, 0) for name in after)

    assert alone(rehearse, 4) >= 4
