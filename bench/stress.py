"""The server under stress: arrivals that do not wait for answers, and swaps while it serves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from driver import Shape, awake
from figures import Bar, Cell, Run, median, paired_ratio, percentile
from in_process import MAX_TOKENS
from servers import Server
from targets import LABELMUX, Fields, Running
from workbench import Workbench, busiest, interleave

T = TypeVar("T")

#: Requests a second in the open loop, over what the closed loop reached.
SHARES = (0.5, 0.8, 1.1, 1.5)
#: Where there is too much to do. At the last, noise in the capacity no longer matters.
_OVERLOADS = (1.1, 1.5)
_CLOSED = (Shape(64, 1), Shape(256, 1))
#: The queue of the open loop, in time: short, so that a little overload fills it within a run.
_QUEUE_S = 0.2
_LEAST_QUEUE_TOKENS, _MOST_BATCH_TOKENS, _WAIT_MS = 1024, 8192, 50
#: Longest time to a refusal that we call "at once".
_AT_ONCE_MS = 50.0
#: The least share that must be refused for an overload to have been one.
_OVERLOADED = 0.01
SWAPS_PER_S = 10.0
#: Swaps that fall behind by this share are not the load that was asked for.
_ALMOST = 0.95


@dataclass(frozen=True)
class _Limits:
    """The queue of our server in the open loop."""

    batch_tokens: int
    queue_tokens: int
    tokens_per_s: float

    @classmethod
    def of(cls, tokens_per_s: float) -> _Limits:
        queue = max(_LEAST_QUEUE_TOKENS, round(_QUEUE_S * tokens_per_s))
        return cls(min(queue, _MOST_BATCH_TOKENS), queue, tokens_per_s)

    @property
    def longest_ms(self) -> float:
        """Before an admitted row: a full queue, the running batch, and the wait for its like."""
        return 1000 * (self.queue_tokens + self.batch_tokens) / self.tokens_per_s + _WAIT_MS

    @property
    def flags(self) -> list[str]:
        """For ``labelmux serve``."""
        return [
            *("--max-batch-tokens", str(self.batch_tokens)),
            *("--max-queue-tokens", str(self.queue_tokens)),
            *("--max-wait-ms", str(_WAIT_MS)),
        ]


def open_loop(bench: Workbench) -> None:
    """Poisson arrivals at shares of each server's own capacity; ours refuses what is too much."""
    section = "open loop"
    adapters = bench.adapters(1)
    names = ("infinity", "plain", "litserve") if bench.plan.full else ()
    targets = [target for name in names for target in bench.peer(name)]
    ours = bench.labelmux(adapters, _asks_one)
    with bench.serving(ours, *targets) as ready:
        closed = [bench.load(section, found, shape) for shape in _CLOSED for found in ready]
        interleave(closed, bench.plan.repeats)
    cells = [cell for cell, _ in closed]
    capacity = {name: _capacity(cells, name) for name in {cell.server for cell in cells}}
    if LABELMUX not in capacity:
        return
    limits = _Limits.of(capacity[LABELMUX] * _mean_tokens(bench))
    with bench.serving(bench.labelmux(adapters, _asks_one, *limits.flags), *targets) as ready:
        offered = [
            (share, bench.load(section, found, _offer(capacity, found, share), bench.plan.open_s))
            for share in SHARES
            for found in ready
            # What peers queue beyond their capacity, they work off for as long again.
            if share <= _OVERLOADS[0] or found.target.name == LABELMUX
        ]
        interleave([plan for _, plan in offered], bench.plan.long_repeats)
    for share, (cell, _) in offered:
        if cell.server == LABELMUX and share in _OVERLOADS:
            _overload_bars(bench, cell, share, capacity[LABELMUX], limits)


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


def _asks_one(_: int) -> list[Fields]:
    return [{"task": "task-0"}]


def _offer(capacity: Mapping[str, float], found: Running, share: float) -> Shape:
    return Shape(8, 1, share * capacity[found.target.name])


def _capacity(cells: Sequence[Cell], name: str) -> float:
    best = busiest(cells, name, 1)
    assert best is not None
    return best.median("texts_per_s")


def _mean_tokens(bench: Workbench) -> float:
    rows = bench.loaded.tokenizer.encode(bench.texts(600), MAX_TOKENS)
    return sum(len(row.token_ids) for row in rows) / len(rows)


def _overload_bars(
    bench: Workbench, cell: Cell, share: float, capacity: float, limits: _Limits
) -> None:
    at = f"at {100 * share:.0f} %"
    good = cell.median("texts_per_s")
    late = cell.median("p99_ms") / limits.longest_ms
    limit = f"{limits.longest_ms:.0f} ms of {limits.queue_tokens} tokens"
    for bar in (
        Bar(f"{at}: refused share", _refused_share(cell), "at least", _OVERLOADED),
        Bar(f"{at}: goodput over peak", good / max(capacity, good), "at least", 0.95),
        Bar(f"{at}: p99 of the admitted over the limit, {limit}", late, "at most", 1.0),
        Bar(f"{at}: p99 ms of refusals", cell.median("refusal_p99_ms"), "at most", _AT_ONCE_MS),
        Bar(f"{at}: neither 200 nor 429", cell.median("failed"), "at most", 0.0),
    ):
        bench.bar(bar)


def _refused_share(cell: Cell) -> float:
    return median(run.refused / max(1, run.refused + run.answered) for run in cell.runs)


def _swap_runs(bench: Workbench, section: str, found: Running, versions: Sequence[bytes]) -> None:
    closed = Shape(8, 1)
    measured = bench.load(f"{section}, capacity", found, closed)
    interleave([measured], bench.plan.repeats)
    half = Shape(8, 1, 0.5 * measured[0].median("texts_per_s"))
    swapper = Swapper(found, "swapped", versions)
    # Buffers of both kinds of work grow to their size before memory is read.
    swapper.during(lambda: measured[1](0))
    before_bytes = found.server.rss_bytes()
    swapper.forget()
    for shape in (closed, half):
        without = bench.load(section, found, shape, bench.plan.swap_s)
        cell, measure = bench.load(section, found, shape, bench.plan.swap_s)
        cell.load += ", with swaps"
        interleave([without, (cell, _with_swaps(swapper, measure))], bench.plan.long_repeats)
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
