"""Arithmetic on what was measured: percentiles, medians, paired ratios, bars. And its tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from load import OK, Outcome

_REFUSED = 429


@dataclass(frozen=True)
class Run:
    """One measurement of a cell."""

    texts_per_s: float
    p50_ms: float = math.nan
    p99_ms: float = math.nan
    #: Requests; nan in process, where there are none.
    answered: float = math.nan
    refused: float = math.nan
    #: Neither answered nor refused: wrong statuses and broken connections.
    failed: float = math.nan
    #: How quickly a refusal came.
    refusal_p99_ms: float = math.nan
    #: How late the client sent, in an open loop.
    lateness_p99_ms: float = math.nan
    #: Processor time of the client processes over the time that passed, in cores.
    client_cores: float = math.nan


@dataclass
class Cell:
    """One server under one load, measured more than once."""

    section: str
    server: str
    #: What is asked for, in words.
    load: str
    texts_per_request: int
    runs: list[Run] = field(default_factory=list)

    def median(self, name: str) -> float:
        """Median of one of the runs' figures; nan where there is none."""
        return median([getattr(run, name) for run in self.runs])


@dataclass(frozen=True)
class Bar:
    """A figure, and what it should be."""

    what: str
    value: float
    kind: Literal["at least", "at most"]
    #: None: shown for comparison, nothing is asked of it.
    wanted: float | None

    @property
    def verdict(self) -> str:
        """Whether the figure is what it should be."""
        if math.isnan(self.value):
            return "not measured"
        if self.wanted is None:
            return "-"
        met = self.value >= self.wanted if self.kind == "at least" else self.value <= self.wanted
        return "met" if met else "MISSED"


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile; nan of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent * len(ordered) / 100) - 1)]


def median(values: Iterable[float]) -> float:
    """Median of the numbers among ``values``; nan of nothing."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def paired_ratio(ours: Cell | None, theirs: Cell | None, name: str = "texts_per_s") -> float:
    """Median of the ratios of runs that were measured one after the other; nan without both."""
    if ours is None or theirs is None:
        return math.nan
    return median(
        getattr(mine, name) / other if (other := getattr(yours, name)) else math.nan
        for mine, yours in zip(ours.runs, theirs.runs, strict=False)
    )


def merge(outcomes: Sequence[Outcome], seconds: float, requests_per_texts: int) -> Run:
    """One run from what its client processes saw.

    The time is until the last answer was in, so a server that finishes late gains nothing by it.
    """
    elapsed_s = max(o.ended_s for o in outcomes) - min(o.started_s for o in outcomes)
    # A closed loop counts its last answers too; an open loop lasts as long as its arrivals do.
    elapsed_s = max(elapsed_s, seconds) if any(o.lateness_ms for o in outcomes) else elapsed_s
    counts: dict[int, int] = {}
    for outcome in outcomes:
        for status, count in outcome.statuses.items():
            counts[int(status)] = counts.get(int(status), 0) + count
    latencies, refusals, lateness = (
        [value for outcome in outcomes for value in getattr(outcome, name)]
        for name in ("latencies_ms", "refusals_ms", "lateness_ms")
    )
    texts = sum(outcome.texts_ok for outcome in outcomes) / requests_per_texts
    return Run(
        texts_per_s=texts / elapsed_s if elapsed_s > 0 else 0.0,
        p50_ms=percentile(latencies, 50),
        p99_ms=percentile(latencies, 99),
        answered=counts.get(OK, 0),
        refused=counts.get(_REFUSED, 0),
        failed=sum(n for status, n in counts.items() if status not in (OK, _REFUSED)),
        refusal_p99_ms=percentile(refusals, 99),
        lateness_p99_ms=percentile(lateness, 99),
        client_cores=sum(outcome.cpu_s for outcome in outcomes) / max(elapsed_s, 1e-9),
    )


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the first column is text, numbers stand to the right."""
    marks = ["---"] + ["---:"] * (len(header) - 1)
    lines = [header, marks, *([show(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def show(value: object) -> str:
    """A figure with as many digits as it deserves."""
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cell_table(cells: Iterable[Cell]) -> str:
    """Medians, a line per cell."""
    header = (
        *("server", "load", "texts/s", "p50 ms", "p99 ms"),
        *("answered", "refused", "failed", "client cores"),
    )
    names = (
        *("texts_per_s", "p50_ms", "p99_ms"),
        *("answered", "refused", "failed", "client_cores"),
    )
    return table(
        header, ([c.server, c.load, *(float(c.median(name)) for name in names)] for c in cells)
    )


def bar_table(bars: Iterable[Bar]) -> str:
    """What was asked, what was found."""
    rows = (
        (b.what, "" if b.wanted is None else f"{b.kind} {b.wanted:g}", float(b.value), b.verdict)
        for b in bars
    )
    return table(("figure", "wanted", "measured", ""), rows)
