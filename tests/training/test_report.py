from __future__ import annotations

from pathlib import Path

import numpy as np

from labelmux_training.data import Dataset, Row
from labelmux_training.metrics import measure
from labelmux_training.report import Report, render_report
from labelmux_training.trainer import Epoch


def page(labels: tuple[str, ...], texts: list[str]) -> str:
    generator = np.random.default_rng(0)
    gold = generator.integers(0, len(labels), len(texts))
    scores = generator.dirichlet(np.ones(len(labels)), len(texts))
    rows = tuple(Row(t, None, labels[g], 1) for t, g in zip(texts, gold, strict=True))
    return render_report(
        Report(
            task="<task>",
            dev=Dataset(Path("dev.csv"), rows, pair=False),
            gold=gold,
            scores=scores,
            labels=labels,
            history=(Epoch(1.0, 0.5, 0.4, 0.9), Epoch(0.5, 0.6, 0.5, 0.8)),
            best=1,
            numbers={"dev": measure(gold, scores)},
            settings={"<setting>": "<value>"},
        )
    )


def test_what_comes_from_files_is_escaped() -> None:
    found = page(("<b>", "$x_{$", "plain"), ["<script>alert(1)</script>"] * 8)
    for raw in ("<script>", "<b>", "<task>", "<setting>", "<value>"):
        assert raw not in found
    assert "&lt;script&gt;" in found


def test_many_labels_make_a_page_too() -> None:
    labels = tuple(f"a rather long label name {index}" for index in range(77))
    found = page(labels, [f"text {index}" for index in range(300)])
    assert all(label in found for label in labels)
    assert len(found) < 1_500_000
