"""The benchmark of readouts runs, and says what it measured."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return importlib.import_module("readouts")


def test_label_counts_run_from_the_fewest_to_the_most_in_even_ratios(bench: ModuleType) -> None:
    counts = bench.label_counts(64)
    assert (counts[0], counts[-1], len(counts)) == (2, 150, 64)
    assert counts == sorted(counts)


@pytest.mark.slow
def test_it_measures_many_tasks_and_many_adapters(bench: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "readouts.json"
    bench.main(["--runs", "1", "--out", str(out)])
    figures = json.loads(out.read_text())["figures"]
    assert [figure["what"] for figure in figures] == [
        "64 tasks on 1 texts",
        "64 tasks on 32 texts",
        "32 texts over 1000 tasks",
    ]
    assert all(figure["pass_s"] > 0 and figure["many_s"] > 0 for figure in figures)
