"""The pictures of docs/quality.md, as SVG on white, so that they read on any page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quality_methods import METHODS
from quality_plan import TABLES
from quality_summary import EDITS, FEW, SIZE, Results, columns, largest_block

_INK, _GRID = "#1f2933", "#dde3e9"
_COLOURS = (
    *("#2563a8", "#c2410c", "#15803d", "#7e22ce", "#b91c1c", "#0f766e"),
    *("#a16207", "#be185d", "#4d7c0f", "#4338ca", "#57534e", "#0369a1"),
)
#: Labels keep this far apart, in points of text.
_LINE_HEIGHT = 15.0


def draw(found: Results, folder: Path) -> None:
    """Write each picture that there are results for."""
    # The salt makes equal results give equal files.
    with rc_context({"svg.hashsalt": "labelmux", "svg.fonttype": "path", "font.size": 12}):
        for name, figure in (
            ("quality-share.svg", score_by_share(found)),
            ("quality-rows.svg", score_by_rows(found)),
        ):
            if figure is not None:
                figure.savefig(folder / name, metadata={"Date": None}, facecolor="white")


def score_by_share(found: Results) -> Figure | None:
    """Mean score against the share of values that are trained, a point for each method.

    Of the methods that change the pass, once enough of them are measured; else of the others.
    """
    name = max((EDITS, SIZE), key=lambda name: _compared(found, name))
    made = columns(found, name, TABLES[name].rows[-1])
    sets = largest_block(made.values())
    if not sets:
        return None
    points = {
        method: (100 * column.mean("share", sets), column.points(sets))
        for method, column in made.items()
        if column.covers(sets)
    }
    figure, axes = _axes(
        f"test score, mean of {_named(sets)}; up to {TABLES[name].rows[-1]:,} rows"
    )
    axes.set_xscale("log")
    axes.set_xlabel("trained values, % of the encoder's")
    for method, (share, score) in points.items():
        axes.plot(share, score, "o", color=_colour(method), markersize=8)
    axes.margins(y=0.15)
    shares = [share for share, _ in points.values()]
    axes.set_xlim(min(shares) / 2, 4 * max(shares))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _name_points(figure, axes, points)
    return figure


def score_by_rows(found: Results) -> Figure | None:
    """Mean score against the number of training rows, a line for each method."""
    name = FEW
    by_rows = {rows: columns(found, name, rows) for rows in TABLES[name].rows}
    sets = largest_block(column for made in by_rows.values() for column in made.values())
    if not sets:
        return None
    figure, axes = _axes(f"test score, mean of {_named(sets)}")
    axes.set_xscale("log")
    axes.set_xlabel("training rows")
    axes.set_xticks(list(by_rows), [f"{rows:,}" for rows in by_rows])
    axes.minorticks_off()
    ends = {}
    for method in TABLES[name].methods:
        line = [
            (rows, made[method].points(sets))
            for rows, made in by_rows.items()
            if method in made and made[method].covers(sets)
        ]
        if line:
            axes.plot(*zip(*line, strict=True), "o-", color=_colour(method), linewidth=2)
            ends[method] = line[-1]
    axes.margins(x=0.05, y=0.1)
    _name_points(figure, axes, ends)
    return figure


def _compared(found: Results, name: str) -> int:
    """How many results of a table can be compared."""
    made = columns(found, name, TABLES[name].rows[-1]).values()
    sets = largest_block(made)
    return len(sets) * sum(column.covers(sets) for column in made)


def _named(sets: Sequence[str]) -> str:
    return f"{len(sets)} sets" if len(sets) > 4 else " and ".join(sets)


def _axes(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.4, 5.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", color=_INK, fontsize=13)
    axes.grid(color=_GRID)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _name_points(figure: Figure, axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Each method's name to the right of its point, moved up or down where two would touch."""
    figure.draw_without_rendering()
    to_points = 72.0 / figure.dpi
    heights = {
        method: float(axes.transData.transform(point)[1]) * to_points
        for method, point in points.items()
    }
    for method, height in _apart(heights).items():
        axes.annotate(
            METHODS[method].title,
            points[method],
            xytext=(9, height - heights[method]),
            textcoords="offset points",
            va="center",
            color=_colour(method),
            annotation_clip=False,
        )


def _apart(heights: Mapping[str, float]) -> dict[str, float]:
    """The same heights, each at least a line above the one below it."""
    placed: dict[str, float] = {}
    lowest = float("-inf")
    for method in sorted(heights, key=lambda method: heights[method]):
        lowest = max(heights[method], lowest + _LINE_HEIGHT)
        placed[method] = lowest
    shift = sum(placed[m] - heights[m] for m in heights) / max(1, len(heights))
    return {method: height - shift for method, height in placed.items()}


def _colour(method: str) -> str:
    return _COLOURS[list(METHODS).index(method) % len(_COLOURS)]
