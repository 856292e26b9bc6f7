"""The server under stress: arrivals that do not wait for answers, and swaps while it serves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from driver import Shape, awake
from figures import Bar, Cell, Run, median, paired_ratio, percentile
from in_process import MAX_TOKENS
from servers import Server
from targets import LABELMUX, Running
from workbench import Measurement, Workbench, busiest, interleave

T = TypeVar("T")

#: Requests a second in the open loop, over what the closed loop reached.
SHARES = (0.5, 0.8, 1.1)
_OVERLOAD = SHARES[-1]
#: The queue in the overload: a fraction of a second, so that it fills in one.
_BATCH_TOKENS, _QUEUE_TOKENS, _WAIT_MS = 8192, 8192, 50
_CLOSED = (Shape(64, 1), Shape(256, 1))
#: Longest time to a refusal that we call "at once".
_AT_ONCE_MS = 50.0
SWAPS_PER_S = 10.0
_SWAP_WARM_UP_S = 1.0
#: Swaps that fall behind by this share are not the load that was asked for.
_ALMOST = 0.95


def open_loop(bench: Workbench) -> None:
    """Poisson arrivals at shares of each server's own capacity; ours refuses what is too much."""
    section = "open loop"
    flags = {
        "--max-batch-tokens": _BATCH_TOKENS,
        "--max-queue-tokens": _QUEUE_TOKENS,
        "--max-wait-ms": _WAIT_MS,
    }
    ours = bench.labelmux(
        bench.adapters(1),
        lambda _: [{"task": "task-0"}],
        *(str(part) for flag in flags.items() for part in flag),
    )
    names = ("infinity", "plain", "litserve") if bench.plan.full else ()
    peers = [target for name in names for target in bench.peer(name)]
    with bench.serving(ours, *peers) as ready:
        closed = [bench.load(section, found, shape) for shape in _CLOSED for found in ready]
        interleave(closed, bench.plan.repeats)
        offered: dict[tuple[str, float], Cell] = {}
        plans: list[Measurement] = []
        for share in SHARES:
            for found in ready:
                name = found.target.name
                capacity = _capacity([cell for cell, _ in closed], name)
                shape = Shape(8, 1, share * capacity)
                plans.append(bench.load(section, found, shape, bench.plan.open_s))
                offered[name, share] = plans[-1][0]
        interleave(plans, bench.plan.repeats if bench.plan.full else 2)
    overload = offered.get((LABELMUX, _OVERLOAD))
    if overload is not None:
        _overload_bars(bench, overload, _capacity([cell for cell, _ in closed], LABELMUX))


def swaps(bench: Workbench) -> None:
    """Uploads to one task, ten a second, while another is asked."""
    section = "swaps"
    adapters = bench.adapters(5)
    # Of one shape, as versions of a task are; tasks 0 and 4 have two labels each.
    versions = (adapters["task-0"], adapters["task-4"])
    ours = bench.labelmux({"asked": adapters["task-2"]}, lambda _: [{"task": "asked"}])
    with bench.serving(ours) as ready:
        for found in ready:
            _swap_runs(bench, section, found, versions)


def _capacity(cells: Sequence[Cell], name: str) -> float:
    best = busiest(cells, name, 1)
    assert best is not None
    return best.median("texts_per_s")


def _overload_bars(bench: Workbench, overload: Cell, capacity: float) -> None:
    texts = bench.texts(600)
    tokens = sum(len(row.token_ids) for row in bench.loaded.tokenizer.encode(texts, MAX_TOKENS))
    tokens_per_s = capacity * tokens / len(texts)
    # Before an admitted row stand a full queue and the batch that runs; lengths may cost the wait.
    limit_ms = 1000 * (_QUEUE_TOKENS + _BATCH_TOKENS) / tokens_per_s + _WAIT_MS
    at = f"at {100 * _OVERLOAD:.0f} %"
    peak = max(capacity, overload.median("texts_per_s"))
    for bar in (
        Bar(f"{at}: goodput over peak", overload.median("texts_per_s") / peak, "at least", 0.95),
        Bar(
            f"{at}: p99 of the admitted over the queue's limit of {limit_ms:.0f} ms",
            overload.median("p99_ms") / limit_ms,
            "at most",
            1.0,
        ),
        Bar(f"{at}: p99 ms of refusals", overload.median("refusal_p99_ms"), "at most", _AT_ONCE_MS),
        Bar(f"{at}: neither 200 nor 429", float(overload.median("failed")), "at most", 0.0),
        Bar(f"{at}: refused share", _refused_share(overload), "at least", None),
    ):
        bench.bar(bar)


def _refused_share(cell: Cell) -> float:
    return median(run.refused / max(1, run.refused + run.answered) for run in cell.runs)


def _swap_runs(bench: Workbench, section: str, found: Running, versions: Sequence[bytes]) -> None:
    closed = Shape(8, 1)
    measured = bench.load(f"{section}, capacity", found, closed)
    interleave([measured], bench.plan.repeats)
    half = Shape(8, 1, 0.5 * measured[0].median("texts_per_s"))
    repeats = bench.plan.repeats if bench.plan.full else 2
    swapper = Swapper(found, "swapped", versions)
    swapper.during(lambda: time.sleep(_SWAP_WARM_UP_S))
    before_bytes = found.server.rss_bytes()
    swapper.forget()
    for shape in (closed, half):
        without = bench.load(section, found, shape, bench.plan.swap_s)
        cell, measure = bench.load(section, found, shape, bench.plan.swap_s)
        cell.load += ", with swaps"
        interleave([without, (cell, _with_swaps(swapper, measure))], repeats)
        what = f"p99 with {SWAPS_PER_S:.0f} swaps/s over p99 without, {shape.words}"
        bench.bar(Bar(what, paired_ratio(cell, without[0], "p99_ms"), "at most", 1.5))
    grown = found.server.rss_bytes() / before_bytes
    done = f"after {len(swapper.times_ms)} swaps"
    bench.bar(Bar(f"swaps a second, {done}", swapper.per_s, "at least", _ALMOST * SWAPS_PER_S))
    bench.bar(Bar(f"p50 ms of a swap, {done}", percentile(swapper.times_ms, 50), "at most", None))
    bench.bar(Bar(f"memory {done} over before", grown, "at most", 1.05))


def _with_swaps(swapper: Swapper, measure: Callable[[int], Run]) -> Callable[[int], Run]:
    return lambda repeat: swapper.during(lambda: measure(repeat))


class Swapper:
    """Uploads versions of a task in turn, and deletes the one before, so that each is new."""

    def __init__(self, found: Running, task: str, versions: Sequence[bytes]) -> None:
        self._found = found
        self._task = task
        self._versions = versions
        self._active: int | None = None
        self._stopped = threading.Event()
        self.forget()

    @property
    def per_s(self) -> float:
        """Swaps done in a second."""
        return len(self.times_ms) / self._spent_s if self._spent_s else 0.0

    def forget(self) -> None:
        """Begin to count anew."""
        #: From the upload's first byte to its acknowledgement.
        self.times_ms: list[float] = []
        self._spent_s = 0.0

    def during(self, work: Callable[[], T]) -> T:
        """Swap while ``work`` runs."""
        self._stopped.clear()
        failures: list[Exception] = []
        with awake(self._found):
            swapping = threading.Thread(target=self._swap, args=(failures,))
            swapping.start()
            try:
                return work()
            finally:
                self._stopped.set()
                swapping.join()
                if failures:
                    raise failures[0]

    def _swap(self, failures: list[Exception]) -> None:
        server = self._found.server
        started = time.monotonic()
        for number in range(1_000_000):
            if self._stopped.wait(max(0.0, started + number / SWAPS_PER_S - time.monotonic())):
                break
            try:
                self._swap_once(server)
            except (OSError, RuntimeError) as error:
                failures.append(error)
                break
        self._spent_s += time.monotonic() - started

    def _swap_once(self, server: Server) -> None:
        data = self._versions[len(self.times_ms) % len(self._versions)]
        asked = time.monotonic()
        answer = server.put_file(f"/v1/tasks/{self._task}/adapter", data)
        self.times_ms.append(1000 * (time.monotonic() - asked))
        before, self._active = self._active, answer["version"]
        if before is not None and before != self._active:
            server.delete(f"/v1/tasks/{self._task}/versions/{before}")
