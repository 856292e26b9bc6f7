"""What the quality benchmark runs, in which order, and how a learning rate is chosen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from quality_methods import METHODS

#: One measurement, as it lies in the results.
Line = Mapping[str, Any]

SEEDS = (13, 14, 15)
#: The quickest first.
TEN_SETS = (
    *("trec", "cola", "sst2", "emotion", "banking77"),
    *("sms_spam", "sick", "rte", "mrpc", "ag_news"),
)
SIX_SETS = ("trec", "sst2", "emotion", "banking77", "rte", "mrpc")


@dataclass(frozen=True)
class Table:
    """Which methods are compared on which sets, and by how many rows."""

    sets: tuple[str, ...]
    methods: tuple[str, ...]
    #: Training rows, at most.
    rows: tuple[int, ...]


#: The whole of it first.
UNIPELT = ("unipelt-apl", "unipelt-ap")
#: Of UniPELT, each on its own.
PARTS = ("lora", "bottleneck", "prefix")
_OTHER_KINDS = ("ytuning", "pasta", "unipelt-apl", "full")
TABLES: Mapping[str, Table] = {
    "full-size": Table(TEN_SETS, ("probe", "best-layer", "ytuning", "full"), (7000,)),
    "edits": Table(
        SIX_SETS,
        ("probe", "ytuning", "pasta", *UNIPELT, *PARTS, "bitfit", "ia3", "full"),
        (3000,),
    ),
    "few-rows": Table(SIX_SETS, ("probe", "ytuning", UNIPELT[0], *PARTS, "full"), (100, 500, 1000)),
    "entities": Table(("wnut17", "snips_slots"), _OTHER_KINDS, (3000,)),
    "several-labels": Table(("go_emotions",), _OTHER_KINDS, (3000,)),
}


class Cell(NamedTuple):
    """A method on a set, by so many rows: what seeds and rates are tried for."""

    table: str
    set: str
    method: str
    rows: int


class Run(NamedTuple):
    """One measurement."""

    cell: Cell
    seed: int
    #: 0 where the method has none.
    learning_rate: float

    @classmethod
    def of(cls, line: Line) -> Run:
        cell = Cell(*(line[name] for name in Cell._fields))
        return cls(cell, line["seed"], line["learning_rate"])


@dataclass(frozen=True)
class Asked:
    """Which part of the tables is wanted; all of it by default."""

    tables: Sequence[str] = tuple(TABLES)
    sets: Sequence[str] = tuple(sorted({name for t in TABLES.values() for name in t.sets}))
    methods: Sequence[str] = tuple(METHODS)
    rows: Sequence[int] = tuple(sorted({rows for t in TABLES.values() for rows in t.rows}))
    #: The first chooses the learning rate.
    seeds: Sequence[int] = SEEDS
    #: How many of a method's learning rates are tried.
    rates: int | None = None


def cells(name: str, asked: Asked = Asked()) -> Iterator[Cell]:
    """The cells of a table, in the order in which they are run."""
    table = TABLES[name]
    for rows in table.rows:
        for each in table.sets:
            for method in table.methods:
                if each in asked.sets and method in asked.methods and rows in asked.rows:
                    yield Cell(name, each, method, rows)


def learning_rates(cell: Cell, most: int | None = None) -> tuple[float, ...]:
    """The rates that are tried, the likeliest first."""
    return METHODS[cell.method].learning_rates[:most] or (0.0,)


def plan(asked: Asked, lines: Sequence[Line]) -> Iterator[Run]:
    """All runs that can be named by now: an early look at the results sees all of each table.

    First the first rate of every cell, then its other rates, then the other seeds with the rate
    that the first seed chose, once it has. At last they run the list's first rate too, where that
    is another: what suits one sample of rows may fail on the next, as dev tells.
    """
    found = [cell for name in asked.tables for cell in cells(name, asked)]
    tried = {cell: learning_rates(cell, asked.rates) for cell in found}
    for place in range(max(map(len, tried.values()), default=0)):
        for cell in found:
            for rate in tried[cell][place : place + 1]:
                yield Run(cell, asked.seeds[0], rate)
    complete = {
        cell: choice.rate
        for cell in found
        if (choice := chosen_rate(lines, cell, asked.seeds[0])) and choice.complete(tried[cell])
    }
    for seed in asked.seeds[1:]:
        yield from (Run(cell, seed, rate) for cell, rate in complete.items())
    for seed in asked.seeds[1:]:
        for cell, rate in complete.items():
            if rate != tried[cell][0]:
                yield Run(cell, seed, tried[cell][0])


class Choice(NamedTuple):
    """The rate with the best dev score, of those that were tried so far."""

    rate: float
    tried: frozenset[float]

    def complete(self, rates: Iterable[float]) -> bool:
        return self.tried >= set(rates)


def chosen_rate(lines: Iterable[Line], cell: Cell, seed: int = SEEDS[0]) -> Choice | None:
    """The choice of this seed, by dev scores alone, the first of equals; None without any line."""
    dev = {
        run.learning_rate: float(line["dev"])
        for line in lines
        if (run := Run.of(line)).cell == cell and run.seed == seed
    }
    rates = [rate for rate in learning_rates(cell) if rate in dev]
    if not rates:
        return None
    return Choice(max(rates, key=lambda rate: dev[rate]), frozenset(rates))
