"""The report of a training run: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from labelmux_training.data import Dataset
from labelmux_training.metrics import (
    BINS,
    Ids,
    Metrics,
    Scores,
    confusion,
    f1_by_label,
    reliability,
)
from labelmux_training.trainer import Epoch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HARDEST = 30
_MOST_CONFUSED = 20
_TEXT_CHARS = 400
#: Above this many labels the confusion matrix has colours only, and small names.
_LABELS_WITH_COUNTS = 20
_INK, _ACCENT, _PALE = "#1f2933", "#2563a8", "#b9c6d3"

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1f2933;background:#f5f7f9;margin:0}
main{max-width:1080px;margin:0 auto;padding:32px 24px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:36px 0 10px}
p{margin:4px 0 12px;color:#52606d}
table{border-collapse:collapse;background:#fff;width:100%}
th,td{padding:6px 10px;text-align:left;border-bottom:1px solid #e4e9ee;vertical-align:top}
th{font-weight:600;background:#eef2f6;position:sticky;top:0}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
td.t{overflow-wrap:anywhere}.scroll{max-height:440px;overflow:auto;border:1px solid #e4e9ee}
img{max-width:100%;background:#fff;border:1px solid #e4e9ee}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(380px,1fr));gap:16px}
"""


@dataclass(frozen=True)
class Report:
    """What the page shows."""

    task: str
    dev: Dataset
    gold: Ids  # [rows]
    #: Calibrated. [rows, K]
    scores: Scores
    labels: tuple[str, ...]
    history: tuple[Epoch, ...]
    #: The epoch that was kept, as an index into ``history``.
    best: int
    #: Metrics by what they were measured on.
    numbers: Mapping[str, Metrics]
    settings: Mapping[str, str]


def render_report(report: Report) -> str:
    """The page. Whatever came from a file is escaped."""
    found = confusion(report.gold, report.scores.argmax(axis=1), len(report.labels))
    summary = (
        f"{len(report.labels)} labels, {report.numbers['dev'].rows} dev rows; "
        f"epoch {report.best + 1} of {len(report.history)} was kept."
    )
    title = f"labelmux: {escape(report.task)}"
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
            f"<style>{_STYLE}</style></head><body><main>",
            f"<h1>{escape(report.task)}</h1>",
            f"<p>{summary}</p>",
            _numbers(report.numbers),
            '<div class="two">',
            _section("Training", _image(_training_plot(report), "training curve")),
            _section("Reliability on dev", _image(_reliability_plot(report), "reliability plot")),
            "</div>",
            _section("Confusion on dev", _image(_confusion_plot(report, found), "confusion")),
            _section("Most confused", _confused(report.labels, found)),
            _section("By label", _by_label(report.labels, found)),
            _section("Hardest dev rows", _hardest(report)),
            _section("Settings", _table(("setting", "value"), list(report.settings.items()))),
            "</main></body></html>\n",
        ]
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _table(
    header: Sequence[str], rows: Sequence[Sequence[object]], numeric: Sequence[int] = ()
) -> str:
    """Rows of values, escaped; ``numeric`` columns are aligned to the right."""

    def cells(values: Sequence[object], tag: str) -> str:
        kinds = ("n" if index in numeric else "t" for index in range(len(values)))
        return "".join(
            f'<{tag} class="{kind}">{escape(str(value))}</{tag}>'
            for kind, value in zip(kinds, values, strict=True)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    head = f"<thead><tr>{cells(header, 'th')}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _numbers(numbers: Mapping[str, Metrics]) -> str:
    rows = [
        (name, f"{m.accuracy:.2%}", f"{m.macro_f1:.2%}", f"{m.ece:.3f}", m.rows)
        for name, m in numbers.items()
    ]
    header = ("measured on", "accuracy", "macro F1", "expected calibration error", "rows")
    return _table(header, rows, numeric=(1, 2, 3, 4))


def _confused(labels: Sequence[str], found: npt.NDArray[np.int64]) -> str:
    wrong = found.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSED]
    pairs = [(int(cell) // len(labels), int(cell) % len(labels)) for cell in order]
    rows = [
        (labels[gold], labels[taken], wrong[gold, taken], found[gold].sum())
        for gold, taken in pairs
        if wrong[gold, taken]
    ]
    if not rows:
        return "<p>Every dev row was answered rightly.</p>"
    return _table(("label", "taken for", "rows", "of"), rows, numeric=(2, 3))


def _by_label(labels: Sequence[str], found: npt.NDArray[np.int64]) -> str:
    right, said, there = np.diag(found), found.sum(axis=0), found.sum(axis=1)
    f1 = f1_by_label(found)

    def share(part: int, whole: int) -> str:
        return f"{part / whole:.1%}" if whole else "-"

    rows = [
        (
            label,
            there[k],
            share(right[k], said[k]),
            share(right[k], there[k]),
            "-" if np.isnan(f1[k]) else f"{f1[k]:.1%}",
        )
        for k, label in enumerate(labels)
    ]
    return _table(("label", "rows", "precision", "recall", "F1"), rows, numeric=(1, 2, 3, 4))


def _hardest(report: Report) -> str:
    """The rows whose own label got the lowest score."""
    of_gold = report.scores[np.arange(len(report.gold)), report.gold]
    rows = []
    for index in np.argsort(of_gold, kind="stable")[:_HARDEST]:
        row = report.dev.rows[index]
        text = row.text if row.pair is None else f"{row.text}  |  {row.pair}"
        shown = text if len(text) <= _TEXT_CHARS else f"{text[:_TEXT_CHARS]}..."
        best = int(report.scores[index].argmax())
        score = float(report.scores[index, best])
        rows.append(
            (shown, row.label, f"{of_gold[index]:.3f}", report.labels[best], f"{score:.3f}")
        )
    header = ("text", "label", "its score", "answered", "with score")
    return _table(header, rows, numeric=(2, 4))


def _image(figure: Figure, description: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{data}">'


def _training_plot(report: Report) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5.2, 3.8))
    epochs = range(1, len(report.history) + 1)
    losses = figure.add_subplot()
    losses.plot(epochs, [e.train_loss for e in report.history], color=_PALE, label="train loss")
    losses.plot(epochs, [e.dev_loss for e in report.history], color=_INK, label="dev loss")
    losses.set_xlabel("epoch")
    losses.set_ylabel("loss")
    losses.xaxis.set_major_locator(MaxNLocator(integer=True))
    accuracies = losses.twinx()
    accuracies.plot(
        epochs,
        [e.dev_accuracy for e in report.history],
        color=_ACCENT,
        marker="o",
        markersize=3,
        label="dev accuracy",
    )
    accuracies.axvline(report.best + 1, color=_ACCENT, linewidth=0.8, linestyle=":")
    accuracies.set_ylabel("dev accuracy", color=_ACCENT)
    figure.legend(loc="upper center", ncol=3, frameon=False, fontsize=8)
    return figure


def _reliability_plot(report: Report) -> Figure:
    from matplotlib.figure import Figure

    bins = reliability(report.gold, report.scores)
    figure = Figure(figsize=(5.2, 3.8))
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 1)})
    middles = (np.arange(BINS) + 0.5) / BINS
    there = bins.counts > 0
    above.plot((0, 1), (0, 1), color=_PALE, linestyle="--", linewidth=1)
    above.bar(middles[there], bins.accuracy[there], width=0.9 / BINS, color=_ACCENT, alpha=0.75)
    above.plot(bins.confidence[there], bins.accuracy[there], "o", color=_INK, markersize=3)
    above.set_ylabel("accuracy")
    above.set_ylim(0, 1.02)
    below.bar(middles, bins.counts, width=0.9 / BINS, color=_PALE)
    below.set_ylabel("rows")
    below.set_xlabel("score of the best label")
    below.set_xlim(0, 1)
    return figure


def _confusion_plot(report: Report, found: npt.NDArray[np.int64]) -> Figure:
    from matplotlib.figure import Figure

    count = len(report.labels)
    side = min(5 + 0.16 * count, 26)
    figure = Figure(figsize=(side + 1, side))
    axes = figure.add_subplot()
    shares = found / np.maximum(found.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = max(3.0, 9 - 0.06 * count)
    names = [name if len(name) <= 40 else f"{name[:37]}..." for name in report.labels]
    axes.set_xticks(range(count), names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(count), names, fontsize=size, parse_math=False)
    axes.set_xlabel("answered")
    axes.set_ylabel("label")
    if count <= _LABELS_WITH_COUNTS:
        for (gold, taken), rows in np.ndenumerate(found):
            color = "white" if shares[gold, taken] > 0.5 else _INK
            axes.text(taken, gold, str(rows), ha="center", va="center", color=color, fontsize=size)
    figure.colorbar(image, ax=axes, shrink=0.6, label="share of the label's rows")
    return figure
