"""The report of a training run: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from labelmux_adapters.iob2 import Run, runs_of, words_of
from labelmux_adapters.kinds import TaskKind
from labelmux_adapters.manifest import Calibration
from labelmux_adapters.quality import label_counts
from labelmux_adapters.scores import DEFAULT_THRESHOLD, scores_of
from labelmux_training.data import Dataset
from labelmux_training.kinds import Kind, Tokens
from labelmux_training.loop import Fit
from labelmux_training.metrics import (
    BINS,
    AnyMetrics,
    Flags,
    Scores,
    confusion,
    f1_by_label,
    reliability,
    type_counts,
)
from labelmux_training.rows import Row

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
    kind: Kind
    #: What dev says, and what the adapter does, as ``kind`` has them.
    gold: Any
    logits: Any
    labels: tuple[str, ...]
    calibration: Calibration
    fit: Fit
    #: Metrics by what they were measured on.
    numbers: Mapping[str, AnyMetrics]
    settings: Mapping[str, str]

    @property
    def scores(self) -> Scores:
        """Calibrated, of texts that have labels. [rows, K]"""
        return scores_of(self.logits, self.kind.name, self.calibration.temperature)


def render_report(report: Report) -> str:
    """The page. Whatever came from a file is escaped."""
    summary = (
        f"{len(report.labels)} labels, {report.numbers['dev'].rows} dev rows; {_kept(report.fit)}."
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
            *_SECTIONS[report.kind.name](report),
            _section("Settings", _table(("setting", "value"), list(report.settings.items()))),
            "</main></body></html>\n",
        ]
    )


def _single_label(report: Report) -> list[str]:
    scores = report.scores
    found = confusion(report.gold, scores.argmax(axis=1), len(report.labels))
    return [
        '<div class="two">',
        _section("Training", _image(_training_plot(report), "training curve")),
        _section("Reliability on dev", _image(_reliability_plot(report), "reliability plot")),
        "</div>",
        _section("Confusion on dev", _image(_confusion_plot(report, found), "confusion")),
        _section("Most confused", _confused(report.labels, found)),
        _section("By label", _by_label(report.labels, found)),
        _section("Hardest dev rows", _hardest(report)),
    ]


def _multi_label(report: Report) -> list[str]:
    scores = report.scores
    thresholds = report.calibration.thresholds or (DEFAULT_THRESHOLD,) * len(report.labels)
    found = scores >= np.asarray(thresholds, np.float32)
    counts = zip(report.labels, *label_counts(report.gold, found), strict=True)
    rows = [
        (*_counted(label, int(right), int(said), int(there)), f"{threshold:.3f}")
        for (label, right, said, there), threshold in zip(counts, thresholds, strict=True)
    ]
    header = ("label", "rows", "precision", "recall", "F1", "threshold")
    return [
        _section("Training", _image(_training_plot(report), "training curve")),
        _section("By label", _table(header, rows, numeric=(1, 2, 3, 4, 5))),
        _section("Dev rows with most wrong labels", _most_wrong(report, found)),
    ]


def _token(report: Report) -> list[str]:
    wanted, found = Tokens().tags_of(report.gold, report.logits, report.labels)
    rows = [_counted(name, *counts) for name, counts in type_counts(wanted, found).items()]
    header = ("type", "spans", "precision", "recall", "F1")
    return [
        _section("Training", _image(_training_plot(report), "training curve")),
        _section("By type", _table(header, rows, numeric=(1, 2, 3, 4))),
        _section("Dev rows with most wrong spans", _wrong_spans(report, wanted, found)),
    ]


_SECTIONS: Mapping[TaskKind, Callable[[Report], list[str]]] = {
    "single_label": _single_label,
    "multi_label": _multi_label,
    "token": _token,
}


def _counted(name: str, right: int, said: int, there: int) -> tuple[object, ...]:
    """A line of a table: how many there are, precision, recall, F1."""
    f1 = 2 * right / (said + there) if said + there else 0.0
    return (name, there, _share(right, said), _share(right, there), f"{f1:.1%}")


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _most_wrong(report: Report, found: Flags) -> str:
    wrong = (report.gold != found).sum(axis=1)

    def named(flags: npt.NDArray[np.bool_]) -> str:
        return ", ".join(report.labels[at] for at in np.flatnonzero(flags)) or "-"

    rows = [
        (_shown(report.dev.rows[at]), named(report.gold[at]), named(found[at]))
        for at in np.argsort(-wrong, kind="stable")[:_HARDEST]
        if wrong[at]
    ]
    return _table(("text", "labels", "answered"), rows)


def _wrong_spans(
    report: Report, wanted: Sequence[Sequence[str]], found: Sequence[Sequence[str]]
) -> str:
    spans = [(set(runs_of(a)), set(runs_of(b))) for a, b in zip(wanted, found, strict=True)]
    order = sorted(range(len(spans)), key=lambda at: -len(spans[at][0] ^ spans[at][1]))

    def named(row: Row, runs: set[Run]) -> str:
        words = [row.text[slice(*place)] for place in words_of(row.text)]
        ends = [*row.firsts, len(words)]
        parts = [
            f"{run.label}: {' '.join(words[ends[run.first] : ends[run.end]])}"
            for run in sorted(runs, key=lambda run: run.first)
        ]
        return "; ".join(parts) or "-"

    rows = [
        (_shown(row), named(row, spans[at][0]), named(row, spans[at][1]))
        for at in order[:_HARDEST]
        if spans[at][0] != spans[at][1]
        for row in (report.dev.rows[at],)
    ]
    return _table(("text", "spans", "answered"), rows)


def _shown(row: Row) -> str:
    text = row.text if row.pair is None else f"{row.text}  |  {row.pair}"
    return text if len(text) <= _TEXT_CHARS else f"{text[:_TEXT_CHARS]}..."


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


def _numbers(numbers: Mapping[str, AnyMetrics]) -> str:
    shown = {name: metrics.shown() for name, metrics in numbers.items()}
    header = ("measured on", *shown["dev"])
    rows = [(name, *values.values()) for name, values in shown.items()]
    return _table(header, rows, numeric=range(1, len(header)))


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

    rows = [
        (
            label,
            there[k],
            _share(right[k], said[k]),
            _share(right[k], there[k]),
            "-" if np.isnan(f1[k]) else f"{f1[k]:.1%}",
        )
        for k, label in enumerate(labels)
    ]
    return _table(("label", "rows", "precision", "recall", "F1"), rows, numeric=(1, 2, 3, 4))


def _hardest(report: Report) -> str:
    """The rows whose own label got the lowest score."""
    scores = report.scores
    of_gold = scores[np.arange(len(report.gold)), report.gold]
    rows = []
    for index in np.argsort(of_gold, kind="stable")[:_HARDEST]:
        row = report.dev.rows[index]
        best = int(scores[index].argmax())
        score = float(scores[index, best])
        rows.append(
            (_shown(row), row.label, f"{of_gold[index]:.3f}", report.labels[best], f"{score:.3f}")
        )
    header = ("text", "label", "its score", "answered", "with score")
    return _table(header, rows, numeric=(2, 4))


def _kept(fit: Fit) -> str:
    if fit.untrained is None:
        return f"epoch {fit.best + 1} of {len(fit.history)} was kept"
    return (
        f"none of {len(fit.history)} epochs came up to a readout of the labels' features alone "
        f"(dev score {fit.untrained.dev.score:.3f}), which was kept"
    )


def _image(figure: Figure, description: str) -> str:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Labels of scripts that matplotlib's own font lacks; the tables beside the plot have them.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{data}">'


def _training_plot(report: Report) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5.2, 3.8))
    history = report.fit.history
    epochs = range(1, len(history) + 1)
    losses = figure.add_subplot()
    losses.plot(epochs, [e.train_loss for e in history], color=_PALE, label="train loss")
    losses.plot(epochs, [e.dev_loss for e in history], color=_INK, label="dev loss")
    losses.set_xlabel("epoch")
    losses.set_ylabel("loss")
    losses.xaxis.set_major_locator(MaxNLocator(integer=True))
    scores = losses.twinx()
    dev = [e.dev.score for e in history]
    scores.plot(epochs, dev, color=_ACCENT, marker="o", markersize=3, label="dev score")
    if report.fit.untrained is None:
        scores.axvline(report.fit.best + 1, color=_ACCENT, linewidth=0.8, linestyle=":")
    scores.set_ylabel("dev score", color=_ACCENT)
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
