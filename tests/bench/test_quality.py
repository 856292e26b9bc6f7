"""The quality benchmark: what it runs next, how it chooses, what it says of the results."""

from __future__ import annotations

import gzip
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
SUBJECTS = {"film": ("camera", "actor"), "food": ("soup", "bread"), "travel": ("train", "hotel")}


@pytest.fixture(scope="module")
def quality(bench_on_path: None) -> ModuleType:
    return importlib.import_module("quality")


@pytest.fixture(scope="module")
def plan(bench_on_path: None) -> ModuleType:
    return importlib.import_module("quality_plan")


@pytest.fixture(scope="module")
def summary(bench_on_path: None) -> ModuleType:
    return importlib.import_module("quality_summary")


@pytest.fixture(scope="module")
def render(bench_on_path: None) -> ModuleType:
    return importlib.import_module("quality_render")


Rows = dict[str, Any]


def write_set(folder: Path, labels: list[str], metric: str, rows: dict[str, list[Rows]]) -> Path:
    folder.mkdir(parents=True)
    for split, found in rows.items():
        lines = "".join(json.dumps(row) + "\n" for row in found)
        (folder / f"{split}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "meta.json").write_text(json.dumps({"labels": labels, "metric": metric}))
    return folder.parent


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = {
        split: [
            {"text": f"the {word} of number {copy}", "label": label}
            for copy in range(copies)
            for label, words in SUBJECTS.items()
            for word in words
        ]
        for split, copies in (("train", 40), ("dev", 3), ("test", 2))
    }
    return write_set(tmp_path / "data" / "trec", list(SUBJECTS), "accuracy", rows)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """Tags of words, by what stands there."""
    rows = [
        {"tokens": ["the", word, "at", "ten"], "tags": ["O", f"B-{label}", "O", "O"]}
        for label, words in SUBJECTS.items()
        for word in words
    ]
    labels = ["O", *(f"B-{label}" for label in SUBJECTS)]
    splits = {"train": rows * 20, "dev": rows, "test": rows}
    return write_set(tmp_path / "words" / "wnut17", labels, "span_f1", splits)


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Texts about one or two things."""
    first = [(label, word) for label, words in SUBJECTS.items() for word in words]
    rows = [
        {"text": f"{one} and {other}", "labels": sorted({label, also})}
        for label, one in first
        for also, other in first
    ]
    splits = {"train": rows * 4, "dev": rows, "test": rows}
    return write_set(tmp_path / "several" / "go_emotions", list(SUBJECTS), "macro_f1", splits)


@pytest.fixture
def few_steps(quality: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STEPS", "FEW_STEPS"):
        monkeypatch.setattr(sys.modules["full_finetuning"], name, 120)


def line(cell: Any, seed: int = 13, rate: float = 0.0, **figures: float) -> dict[str, Any]:
    values: dict[str, Any] = {
        "dev": 0.5,
        "test": 0.5,
        "share": 0.01,
        "parameters": 1000,
        "core_seconds": 10.0,
        "peak_bytes": 2**20,
        "file_bytes": 4000,
        "by_layer": [],
    }
    return {**cell._asdict(), "seed": seed, "learning_rate": rate, **values, **figures}


def test_the_first_rate_of_every_cell_comes_before_any_other_run(plan: ModuleType) -> None:
    methods = ("probe", "ytuning", "full")
    asked = plan.Asked(tables=("full-size",), sets=("trec", "rte"), methods=methods)
    cells = list(plan.cells("full-size", asked))
    assert [(c.set, c.method) for c in cells] == [(s, m) for s in ("trec", "rte") for m in methods]
    runs = list(plan.plan(asked, []))
    assert runs[:6] == [plan.Run(cell, 13, plan.learning_rates(cell)[0]) for cell in cells]
    rates = sum(len(plan.learning_rates(cell)) for cell in cells)
    assert len(runs) == rates  # no further seed before a rate is chosen
    assert {run.seed for run in runs} == {13}


def test_other_seeds_run_the_best_rate_on_dev_and_then_the_first(plan: ModuleType) -> None:
    asked = plan.Asked(tables=("full-size",), sets=("trec",), methods=("full",))
    (cell,) = plan.cells("full-size", asked)
    first, second = plan.learning_rates(cell)[:2]
    lines = [
        line(cell, 13, first, dev=0.6, test=0.9),
        line(cell, 13, second, dev=0.7, test=0.1),
    ]
    others = [run.learning_rate for run in plan.plan(asked, lines) if run.seed != 13]
    assert others == [second] * 2 + [first] * 2
    assert plan.chosen_rate(lines, cell).rate == second
    tie = [line(cell, 13, first, dev=0.7), line(cell, 13, second, dev=0.7)]
    assert plan.chosen_rate(tie, cell).rate == first
    assert plan.chosen_rate([line(cell, 14, first)], cell) is None
    once = plan.Asked(tables=("full-size",), sets=("trec",), methods=("full",), rates=1)
    assert [run.learning_rate for run in plan.plan(once, lines[:1])] == [first] * 3


def test_a_stopped_run_goes_on_where_it_was(
    quality: ModuleType, plan: ModuleType, data: Path, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    asked = ["--data", str(data), "--out", str(out), "--encoder", str(tiny_encoder_folder)]
    asked += ["--tables", "few-rows", "--sets", "trec", "--methods", "probe", "--rows", "100"]
    quality.main([*asked, "--seeds", "13"])
    (made,) = quality.read_lines(out)
    assert plan.Run.of(made) == plan.Run(plan.Cell("few-rows", "trec", "probe", 100), 13, 0.0)
    assert (made["train_rows"], made["dev_rows"], made["test_rows"]) == (100, 18, 12)
    assert made["core_seconds"] > 0 and made["peak_bytes"] > 2**20
    before = out.read_bytes()
    quality.main([*asked, "--seeds", "13"])
    assert out.read_bytes() == before


@pytest.mark.parametrize("method", ["ytuning", "full"])
def test_a_method_learns_what_a_word_tells(
    quality: ModuleType,
    plan: ModuleType,
    data: Path,
    tiny_encoder_folder: Path,
    few_steps: None,
    method: str,
) -> None:
    rate = 1e-2  # the tiny encoder is random and needs large steps
    run = plan.Run(plan.Cell("few-rows", "trec", method, 1000), 13, rate)
    made = quality.measured(run, data, str(tiny_encoder_folder))
    assert made["test"] >= 0.6  # chance is a third
    assert made["share"] == pytest.approx(1.0, abs=0.02) if method == "full" else made["share"] < 1
    assert made["file_bytes"] >= 2 * made["parameters"]


@pytest.mark.parametrize("method", ["ytuning", "pasta", "full"])
def test_words_have_tags_and_texts_several_labels(
    quality: ModuleType,
    plan: ModuleType,
    words: Path,
    several: Path,
    tiny_encoder_folder: Path,
    few_steps: None,
    method: str,
) -> None:
    for table_name, folder in (("entities", words), ("several-labels", several)):
        (cell,) = (
            cell
            for cell in plan.cells(table_name)
            if cell.method == method and (folder / cell.set).exists()
        )
        made = quality.measured(plan.Run(cell, 13, 1e-2), folder, str(tiny_encoder_folder))
        assert made["test"] == made["dev"] >= 0.5  # the same rows, and the word alone tells


def test_a_result_is_the_mean_over_seeds_each_with_the_rate_that_its_dev_score_chose(
    plan: ModuleType, summary: ModuleType
) -> None:
    cell = plan.Cell("full-size", "trec", "full", 7000)
    first, second = plan.learning_rates(cell)[:2]
    lines = [
        line(cell, 13, first, dev=0.6, test=0.99),
        line(cell, 13, second, dev=0.7, test=0.80),
        line(cell, 14, second, dev=0.4, test=0.99),
        line(cell, 14, first, dev=0.5, test=0.82),
    ]
    found = summary.results(lines)[cell]
    assert found.points == pytest.approx(81.0)
    assert found.deviation == pytest.approx(2**0.5)
    assert (found.tried, found.rates) == (2, len(plan.learning_rates(cell)))


def table(plan: ModuleType, name: str, rows: int, **test: float) -> list[dict[str, Any]]:
    return [
        line(
            cell,
            seed,
            plan.learning_rates(cell)[0],
            test=test[cell.method],
            core_seconds=30.0 if cell.method == "full" else 6.0,
        )
        for cell in plan.cells(name)
        for seed in plan.SEEDS
        if cell.method in test and cell.rows == rows
    ]


def full_size(plan: ModuleType, **test: float) -> list[dict[str, Any]]:
    return table(plan, "full-size", 7000, **test)


def test_the_bars_say_whether_a_claim_holds(plan: ModuleType, summary: ModuleType) -> None:
    lines = [
        *full_size(plan, probe=0.5, ytuning=0.76, full=0.8),
        *table(plan, "edits", 3000, pasta=0.775, full=0.8),
        *table(plan, "few-rows", 100, probe=0.5, ytuning=0.49, **{"unipelt-apl": 0.7}),
        *table(plan, "few-rows", 100, lora=0.65, prefix=0.71, full=0.6),
    ]
    score, _, others, share, time, pasta, few, part, full = summary.bars(summary.results(lines))
    assert (pasta.value, pasta.verdict) == (pytest.approx(2.5), "met")
    assert (few.value, few.verdict) == (pytest.approx(-1.0), "MISSED")
    assert (part.value, part.verdict) == (pytest.approx(-1.0), "MISSED")
    assert "prefix, its best part" in part.what
    assert (full.value, full.verdict) == (pytest.approx(10.0), "-")
    assert (others.value, others.verdict) == (pytest.approx(0.95), "-")
    assert (score.value, score.verdict) == (pytest.approx(0.95), "MISSED")
    assert (share.value, share.verdict) == (pytest.approx(0.01), "met")
    assert (time.value, time.verdict) == (pytest.approx(0.2), "met")


def test_methods_are_compared_on_the_sets_that_most_of_them_have(
    plan: ModuleType, summary: ModuleType
) -> None:
    lines = [
        *table(plan, "edits", 3000, pasta=0.7, full=0.8),
        *(each for each in table(plan, "edits", 3000, lora=0.7) if each["set"] == "trec"),
    ]
    made = summary.columns(summary.results(lines), "edits", 3000)
    block = summary.largest_block(made.values())
    assert block == list(plan.SIX_SETS)
    assert [method for method, column in made.items() if column.covers(block)] == ["pasta", "full"]


def test_a_table_says_what_is_missing_in_it(plan: ModuleType, render: ModuleType) -> None:
    lines = [each for each in full_size(plan, ytuning=0.7, full=0.8) if each["set"] != "rte"]
    lines = [each for each in lines if each["seed"] == 13 or each["set"] != "trec"]
    text = render.table_text(render.results(lines), "full-size")
    assert "| Y-Tuning | 70.0 (1) | 70.0 ± 0.0 |" in text
    assert "- linear probe: no run on any of them" in text
    rates = "one learning rate on 9 of 10"
    assert f"- full fine-tuning: no run on rte; {rates}; fewer than 3 seeds on trec" in text
    assert "0.875" in text  # of full fine-tuning


def test_the_number_of_seeds_is_said_once_where_it_is_the_same(
    plan: ModuleType, render: ModuleType
) -> None:
    lines = [each for each in full_size(plan, ytuning=0.7, full=0.8) if each["seed"] == 13]
    text = render.table_text(render.results(lines), "full-size")
    assert "| points, 1 of 3 seeds | trec |" in text
    assert "| Y-Tuning | 70.0 | 70.0 |" in text


def test_the_layers_are_shown_with_the_best_for_a_probe(
    plan: ModuleType, summary: ModuleType, render: ModuleType
) -> None:
    by_method = {"best-layer": [0.5, 0.75, 0.625], "ytuning": [0.2, 0.3, 0.5]}
    lines = [
        line(cell, 13, plan.learning_rates(cell)[0], by_layer=by_method[cell.method])
        for cell in plan.cells("full-size")
        if cell.method in by_method and cell.set == "trec"
    ]
    text = render.layers_text(summary.results(lines))
    assert "| trec, probe on dev | 50.0 | **75.0** | 62.5 |" in text
    assert "| trec, share in Y-Tuning | 20.0 | 30.0 | 50.0 |" in text


def test_rendering_fills_the_pages_marks_and_draws(
    quality: ModuleType, plan: ModuleType, tmp_path: Path
) -> None:
    out, folder = tmp_path / "out.jsonl", tmp_path / "docs"
    folder.mkdir()
    few = [line(cell, 13, plan.learning_rates(cell)[0]) for cell in plan.cells("few-rows")]
    lines = [*full_size(plan, probe=0.5, ytuning=0.7, full=0.8), *few]
    out.write_text("".join(json.dumps(each) + "\n" for each in lines))
    page = folder / "quality.md"
    page.write_text((ROOT / "docs" / "quality.md").read_text())
    quality.main(["--out", str(out), "--render", str(folder)])
    once = page.read_text()
    assert "| Y-Tuning | 70.0 ± 0.0 |" in once
    pictures = {path.name: path.read_text() for path in folder.glob("*.svg")}
    assert set(pictures) == {"quality-share.svg", "quality-rows.svg"}
    quality.main(["--out", str(out), "--render", str(folder)])
    assert page.read_text() == once
    assert {path.name: path.read_text() for path in folder.glob("*.svg")} == pictures
    page.write_text("no marks")
    with pytest.raises(ValueError, match="the page lacks <!-- bars"):
        quality.main(["--out", str(out), "--render", str(folder)])


def test_scores_are_what_their_names_say(bench_on_path: None) -> None:
    sets = importlib.import_module("labelled_sets")
    gold, found = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0])
    assert sets.accuracy(gold, found) == pytest.approx(0.6)
    assert sets.f1_of_the_second_label(gold, found) == pytest.approx(2 / 3)
    assert sets.matthews(gold, found) == pytest.approx((1 * 2 - 1 * 1) / 36**0.5)
    assert sets.matthews(gold, np.ones(5, dtype=np.int64)) == 0.0


def test_a_sample_has_every_label_and_depends_on_the_seed_alone(
    bench_on_path: None, data: Path
) -> None:
    sets = importlib.import_module("labelled_sets")
    train = sets.LabelledSet.open(data / "trec").train
    assert sorted(row.label for row in sets.sample(train, 3, 13).rows) == list(SUBJECTS)
    assert sets.sample(train, 20, 13) == sets.sample(train, 20, 13) != sets.sample(train, 20, 14)
    assert len({row.line for row in sets.sample(train, 20, 13).rows}) == 20
    assert sets.sample(train, 1000, 13) == train
