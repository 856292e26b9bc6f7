"""What the lines of the quality benchmark come to: a result for every cell, means, bars."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from figures import Bar
from quality_methods import METHODS
from quality_plan import (
    PARTS,
    SEEDS,
    TABLES,
    UNIPELT,
    Cell,
    Line,
    Run,
    cells,
    chosen_rate,
    learning_rates,
)

FULL, YTUNING, PROBE, BEST_LAYER, PASTA = "full", "ytuning", "probe", "best-layer", "pasta"
#: Sets that are missing are named up to so many.
_NAMED = 5
SIZE, EDITS, FEW = "full-size", "edits", "few-rows"


@dataclass(frozen=True)
class Result:
    """A method on a set, each seed with the learning rate that its dev score chose."""

    cell: Cell
    #: One for each seed.
    lines: tuple[Line, ...]
    #: Learning rates that were tried, and that should be.
    tried: int
    rates: int

    def mean(self, name: str) -> float:
        """Mean of a figure over seeds."""
        return statistics.mean(float(line[name]) for line in self.lines)

    @property
    def points(self) -> float:
        """The test score, times 100."""
        return 100 * self.mean("test")

    @property
    def deviation(self) -> float:
        """Of the points over seeds; nan with one seed."""
        if len(self.lines) < 2:
            return math.nan
        return 100 * statistics.stdev(float(line["test"]) for line in self.lines)


Results = Mapping[Cell, Result]


def results(lines: Sequence[Line]) -> Results:
    """A result for every cell that has a line."""
    by_cell: dict[Cell, list[Line]] = {}
    for line in lines:
        by_cell.setdefault(Run.of(line).cell, []).append(line)
    found = (_result(cell, by_cell.get(cell, [])) for name in TABLES for cell in cells(name))
    return {result.cell: result for result in found if result is not None}


def _result(cell: Cell, lines: Sequence[Line]) -> Result | None:
    """None before the first seed, which tries all rates, has any."""
    choices = {seed: chosen_rate(lines, cell, seed) for seed in SEEDS}
    first = choices[SEEDS[0]]
    if first is None:
        return None
    rates = {seed: choice.rate for seed, choice in choices.items() if choice is not None}
    chosen = tuple(line for line in lines if line["learning_rate"] == rates[line["seed"]])
    return Result(cell, chosen, len(first.tried), len(learning_rates(cell)))


@dataclass(frozen=True)
class Column:
    """A method of a table by so many rows: its results by set."""

    method: str
    by_set: Mapping[str, Result]

    def covers(self, sets: Iterable[str]) -> bool:
        """Whether it has a result on each."""
        return all(each in self.by_set for each in sets)

    def mean(self, name: str, sets: Iterable[str]) -> float:
        """Mean over these sets of a figure; nan without any."""
        return _mean(self.by_set[each].mean(name) for each in sets)

    def points(self, sets: Iterable[str]) -> float:
        return _mean(self.by_set[each].points for each in sets)


def columns(found: Results, table: str, rows: int) -> dict[str, Column]:
    """The methods of a table that have any result by so many rows, in its order."""
    made = {}
    for method in TABLES[table].methods:
        by_set = {
            each: found[cell]
            for each in TABLES[table].sets
            if (cell := Cell(table, each, method, rows)) in found
        }
        if by_set:
            made[method] = Column(method, by_set)
    return made


def common_sets(*compared: Column) -> list[str]:
    """The sets on which all of them have a result."""
    first, *others = compared
    return [each for each in first.by_set if all(other.covers([each]) for other in others)]


def largest_block(compared: Iterable[Column]) -> list[str]:
    """The sets of one of them, so that sets times the columns that have them all is largest."""
    found = list(compared)

    def size(sets: Sequence[str]) -> int:
        return len(sets) * sum(column.covers(sets) for column in found)

    return max((list(column.by_set) for column in found), key=size, default=[])


def ratio(column: Column, full: Column, name: str = "test") -> float:
    """Mean over their common sets of the ratio of a figure."""
    return _mean(
        column.by_set[each].mean(name) / full.by_set[each].mean(name)
        for each in common_sets(column, full)
    )


def bars(found: Results) -> list[Bar]:
    """What the papers claim, as far as there are results to hold it against."""
    return [
        *_ytuning_bars(found),
        *_pasta_bars(found),
        *(bar for rows in TABLES[FEW].rows for bar in _few_rows_bars(found, rows)),
    ]


def _ytuning_bars(found: Results) -> list[Bar]:
    made = columns(found, SIZE, TABLES[SIZE].rows[0])
    if not {YTUNING, FULL} <= made.keys():
        return []
    ours, full = made[YTUNING], made[FULL]
    sets = common_sets(ours, full)
    of = f"Y-Tuning, {_counted(sets, SIZE)}:"
    largest = max(ours.by_set[each].mean("share") for each in sets)
    ratios = {each: ours.by_set[each].points / full.by_set[each].points for each in sets}
    worst = min(ratios, key=lambda each: ratios[each])
    others = _mean(value for each, value in ratios.items() if each != worst)
    return [
        Bar(f"{of} score over full fine-tuning's, mean", ratio(ours, full), "at least", 0.96),
        Bar(f"the same on {worst}, where it is least", ratios[worst], "at least", None),
        Bar(f"the same, mean of the others than {worst}", others, "at least", None),
        Bar(f"{of} share of the parameters, largest", largest, "at most", 0.02),
        Bar(
            f"{of} training time over full fine-tuning's, mean",
            ratio(ours, full, "core_seconds"),
            "at most",
            round(1 / 3, 3),
        ),
    ]


def _pasta_bars(found: Results) -> list[Bar]:
    made = columns(found, EDITS, TABLES[EDITS].rows[0])
    if not {PASTA, FULL} <= made.keys():
        return []
    behind, sets = _ahead(made[FULL], made[PASTA])
    what = f"PASTA, {_counted(sets, EDITS)}: points behind full fine-tuning, mean"
    return [Bar(what, behind, "at most", 3.0)]


def _few_rows_bars(found: Results, rows: int) -> list[Bar]:
    """The readout against the probe, and UniPELT against its parts and full fine-tuning."""
    made = columns(found, FEW, rows)
    bars = []
    if {YTUNING, PROBE} <= made.keys():
        ahead, sets = _ahead(made[YTUNING], made[PROBE])
        what = f"Y-Tuning, {rows} rows, {_counted(sets, FEW)}: points ahead of the probe, mean"
        bars.append(Bar(what, ahead, "at least", 0.0))
    parts = [made[method] for method in PARTS if method in made]
    for method in (method for method in UNIPELT if method in made and parts):
        of = f"{METHODS[method].title}, {rows} rows"
        sets = common_sets(made[method], *parts)
        best = max(parts, key=lambda part: part.points(sets))
        ahead = made[method].points(sets) - best.points(sets)
        name = METHODS[best.method].title
        what = f"{of}, {_counted(sets, FEW)}: points ahead of {name}, its best part"
        bars.append(Bar(what, ahead, "at least", 0.0))
        if FULL in made:
            ahead, sets = _ahead(made[method], made[FULL])
            what = f"{of}, {_counted(sets, FEW)}: points ahead of full fine-tuning, mean"
            bars.append(Bar(what, ahead, "at least", None))
    return bars


def _ahead(one: Column, other: Column) -> tuple[float, list[str]]:
    """Mean points by which one is ahead of the other, and on which sets."""
    sets = common_sets(one, other)
    return one.points(sets) - other.points(sets), sets


def _counted(sets: Sequence[str], table: str) -> str:
    every = len(TABLES[table].sets)
    return f"{every} sets" if len(sets) == every else f"{len(sets)} of {every} sets"


def gaps(found: Results, table: str) -> list[str]:
    """What is not measured yet, in words, a line for each method."""
    said = []
    for method in TABLES[table].methods:
        wanted = [cell for cell in cells(table) if cell.method == method]
        made = [found[cell] for cell in wanted if cell in found]
        parts = (
            ("no run on", [cell for cell in wanted if cell not in found]),
            ("one learning rate on", [each.cell for each in made if each.tried < each.rates]),
            (
                f"fewer than {len(SEEDS)} seeds on",
                [each.cell for each in made if len(each.lines) < len(SEEDS)],
            ),
        )
        missing = [f"{what} {_named(each, wanted)}" for what, each in parts if each]
        if missing:
            said.append(f"{METHODS[method].title}: {'; '.join(missing)}")
    return said


def _named(missing: Sequence[Cell], wanted: Sequence[Cell]) -> str:
    if len(missing) == len(wanted):
        return "any of them" if len(wanted) > 1 else "it"
    if len(missing) > _NAMED:
        return f"{len(missing)} of {len(wanted)}"
    several = len({cell.rows for cell in wanted}) > 1
    return ", ".join(f"{c.set} ({c.rows} rows)" if several else c.set for c in missing)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return statistics.mean(found) if found else math.nan
