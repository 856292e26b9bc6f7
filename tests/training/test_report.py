from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from labelmux_adapters.manifest import Calibration
from labelmux_training.data import Dataset
from labelmux_training.kinds import KINDS
from labelmux_training.loop import Epoch, Fit
from labelmux_training.report import Report, render_report
from labelmux_training.rows import Row


def page(labels: tuple[str, ...], texts: list[str], *, untrained: bool = False) -> str:
    generator = np.random.default_rng(0)
    gold = generator.integers(0, len(labels), len(texts))
    logits = generator.normal(size=(len(texts), len(labels))).astype(np.float32)
    kind, calibration = KINDS["single_label"], Calibration(temperature=2.0)
    metrics = kind.measure(gold, logits, labels, calibration)
    rows = tuple(Row(t, None, (labels[g],), 1) for t, g in zip(texts, gold, strict=True))
    epochs = Epoch(1.0, 0.5, metrics), Epoch(0.5, 0.6, metrics)
    return render_report(
        Report(
            task="<task>",
            dev=Dataset(Path("dev.csv"), rows, pair=False),
            kind=kind,
            gold=gold,
            logits=logits,
            labels=labels,
            calibration=calibration,
            fit=Fit({}, epochs, 1, untrained=Epoch(math.nan, 0.4, metrics) if untrained else None),
            numbers={"dev": metrics},
            settings={"<setting>": "<value>"},
        )
    )


def test_what_comes_from_files_is_escaped() -> None:
    found = page(("<b>", "$x_{$", "plain"), ["<script>alert(1)</script>"] * 8)
    for raw in ("<script>", "<b>", "<task>", "<setting>", "<value>"):
        assert raw not in found
    assert "&lt;script&gt;" in found


def test_what_was_kept_is_said() -> None:
    texts = [f"text {index}" for index in range(8)]
    assert "epoch 2 of 2 was kept" in page(("a", "b"), texts)
    found = page(("a", "b"), texts, untrained=True)
    assert "none of 2 epochs came up to a readout of the labels' features alone" in found


def test_many_labels_make_a_page_too() -> None:
    labels = tuple(f"a rather long label name {index}" for index in range(77))
    found = page(labels, [f"text {index}" for index in range(300)])
    assert all(label in found for label in labels)
    assert len(found) < 1_500_000


def test_labels_in_any_script_make_a_page_without_a_warning() -> None:
    found = page(("漢字", "🙂"), [f"text {index}" for index in range(8)])
    assert "漢字" in found
