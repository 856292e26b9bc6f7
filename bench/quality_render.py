"""The tables of docs/quality.md from the lines of the quality benchmark."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from figures import bar_table, table
from quality_methods import METHODS
from quality_pictures import draw
from quality_plan import SEEDS, TABLES, Line
from quality_summary import (
    BEST_LAYER,
    FULL,
    SIZE,
    YTUNING,
    Column,
    Result,
    Results,
    bars,
    columns,
    gaps,
    largest_block,
    ratio,
    results,
)

PAGE = "quality.md"
_MIB = 2**20
#: The table and the rows whose layers are shown.
_LAYERS_OF = (SIZE, TABLES[SIZE].rows[0])


def render(lines: Sequence[Line], folder: Path) -> None:
    """Write the tables into the page of ``folder``, and the pictures beside it.

    Raises:
        ValueError: the page lacks a table's marks.
    """
    found = results(lines)
    page = folder / PAGE
    text = page.read_text()
    parts = {"bars": bar_table(bars(found)), "layers": layers_text(found)}
    parts |= {name: table_text(found, name) for name in TABLES}
    for name, part in parts.items():
        text = between_marks(text, name, part)
    page.write_text(text)
    draw(found, folder)


def between_marks(page: str, name: str, part: str) -> str:
    """The page with the text between a part's marks replaced."""
    begin, end = f"<!-- {name}: made by bench/quality.py -->", f"<!-- /{name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page lacks {begin} ... {end}")
    return f"{before}{begin}\n\n{part}\n\n{end}{after}"


def table_text(found: Results, name: str) -> str:
    """Scores and costs of one table, and what is missing in it."""
    parts = []
    for rows in TABLES[name].rows:
        made = columns(found, name, rows)
        if made:
            parts += [f"Up to {rows:,} training rows:", _scores(made, name), _costs(made)]
    missing = gaps(found, name)
    if missing:
        parts.append("Not measured:\n\n" + "\n".join(f"- {line}" for line in missing))
    return "\n\n".join(parts) or "Nothing is measured yet."


def layers_text(found: Results) -> str:
    """By hidden state: a probe's dev accuracy, the best in bold, and how much Y-Tuning takes."""
    made = columns(found, *_LAYERS_OF)
    rows = []
    for each in TABLES[_LAYERS_OF[0]].sets:
        for method, what in ((BEST_LAYER, "probe on dev"), (YTUNING, "share in Y-Tuning")):
            result = made[method].by_set.get(each) if method in made else None
            if result is not None:
                rows.append((f"{each}, {what}", *_percents(result, bold=method == BEST_LAYER)))
    states = max((len(row) - 1 for row in rows), default=0)
    header = ("%", "embeddings", *(f"layer {layer}" for layer in range(1, states)))
    return table(header, rows) if rows else "Nothing is measured yet."


def _percents(result: Result, bold: bool) -> list[str]:
    values: list[float] = result.lines[0]["by_layer"]
    best = max(values, default=0.0)
    return [
        f"**{100 * value:.1f}**" if bold and value == best else f"{100 * value:.1f}"
        for value in values
    ]


def _scores(made: dict[str, Column], name: str) -> str:
    sets = [each for each in TABLES[name].sets if any(each in c.by_set for c in made.values())]
    block = largest_block(made.values())
    mean = "mean" if len(block) == len(sets) else f"mean of {', '.join(block)}"
    seeds = {len(result.lines) for column in made.values() for result in column.by_set.values()}
    few = len(seeds) == 1 and f", {min(seeds)} of {len(SEEDS)} seeds"
    rows = (
        (
            METHODS[column.method].title,
            *(_shown(column.by_set.get(each), not few) for each in sets),
            f"{column.points(block):.1f}" if column.covers(block) else "",
        )
        for column in made.values()
    )
    return table((f"points{few or ''}", *sets, mean), rows)


def _shown(result: Result | None, with_seeds: bool) -> str:
    if result is None:
        return ""
    spread = "" if math.isnan(result.deviation) else f" ± {result.deviation:.1f}"
    fewer = with_seeds and len(result.lines) < len(SEEDS)
    return f"{result.points:.1f}{spread}{f' ({len(result.lines)})' if fewer else ''}"


def _costs(made: dict[str, Column]) -> str:
    """Means over the sets of the table's means; ratios over those shared with full fine-tuning."""
    header = (
        "method",
        *("tunable values", "share", "training, core-seconds", "peak MiB", "file MB"),
        *("score over full", "training over full"),
    )
    sets, full = largest_block(made.values()), made.get(FULL)
    covering = [column for column in made.values() if column.covers(sets)]
    return table(header, (list(_cost(column, full, sets)) for column in covering))


def _cost(column: Column, full: Column | None, sets: Sequence[str]) -> Iterator[object]:
    yield METHODS[column.method].title
    yield f"{column.mean('parameters', sets):,.0f}"
    yield f"{column.mean('share', sets):.3%}"
    yield column.mean("core_seconds", sets)
    yield column.mean("peak_bytes", sets) / _MIB
    yield f"{column.mean('file_bytes', sets) / 1e6:.2f}"
    yield f"{ratio(column, full):.3f}" if full else ""
    yield f"{ratio(column, full, 'core_seconds'):.3f}" if full else ""
