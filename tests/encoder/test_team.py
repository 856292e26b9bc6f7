"""The threads that compute a pass together, and nobody waits for those that do not come."""

from __future__ import annotations

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


@pytest.mark.skipif(sys.platform != "linux", reason="threads are looked up in /proc")
def test_the_threads_that_help_give_way(tiny_encoder: LoadedEncoder) -> None:
    def niceness() -> list[int]:
        stats = [path.read_text() for path in Path("/proc/self/task").glob("*/stat")]
        return [int(stat.rpartition(")")[2].split()[16]) for stat in stats]

    tiny_encoder.encoder.share_cores(2)
    until = time.monotonic() + LIMIT_S
    while niceness().count(2) < 2:
        assert time.monotonic() < until, "no thread gave way"
        alone(lambda: encode_all(tiny_encoder), 3)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are looked up in /proc")
def test_a_rehearsal_is_run_by_every_thread(tiny_encoder: LoadedEncoder) -> None:
    def runtimes() -> dict[str, int]:
        found = {}
        for path in Path("/proc/self/task").iterdir():
            runtime, _, _ = (path / "schedstat").read_text().split()
            found[path.name] = int(runtime)
        return found

    def rehearse() -> int:
        encode_all(tiny_encoder)
        before = runtimes()
        with kernels.each_thread():
            for _ in range(20):
                encode_all(tiny_encoder)
        after = runtimes()
        return sum(after[name] > before.get(name, 0) for name in after)

    assert alone(rehearse, 4) >= 4
