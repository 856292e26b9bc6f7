"""The benchmark of frozen features: what it measures, and that a stopped run goes on."""

from __future__ import annotations

import functools
import gzip
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SUBJECTS = {"film": ("camera", "actor"), "food": ("soup", "bread"), "travel": ("train", "hotel")}


@pytest.fixture(scope="module")
def quality() -> ModuleType:
    return importlib.import_module("encoder_quality")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "trec"
    folder.mkdir(parents=True)
    for split, copies in (("train", 10), ("dev", 3)):
        rows = [
            {"text": f"the {word} of number {copy}", "label": label}
            for copy in range(copies)
            for label, words in SUBJECTS.items()
            for word in words
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "meta.json").write_text(json.dumps({"labels": list(SUBJECTS)}))
    return folder.parent


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_method_gives_a_line_and_a_second_run_adds_none(
    quality: ModuleType,
    tiny_encoder_folder: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large_steps = functools.partial(quality.FullSettings, learning_rate=5e-3)
    monkeypatch.setattr(quality, "FullSettings", large_steps)
    monkeypatch.setattr(sys.modules["full_finetuning"], "STEPS", 60)
    out = tmp_path / "out.jsonl"
    asked = ["--data", str(data), "--encoder", str(tiny_encoder_folder), "--out", str(out)]
    asked += ["--sets", "trec", "--rows", "12", "all", "--seeds", "13"]
    quality.main([*asked, "--methods", "ytuning", "probe"])
    assert [(line["method"], line["rows"]) for line in lines(out)] == [
        ("ytuning", "12"),
        ("probe", "12"),
        ("ytuning", "all"),
        ("probe", "all"),
    ]
    quality.main([*asked, "--methods", "ytuning", "probe", "full"])
    assert len(lines(out)) == 6
    for line in lines(out):
        assert line["train_rows"] == (12 if line["rows"] == "12" else 60)
        assert line["dev_rows"] == 18
        assert 0 <= line["accuracy"] <= 1
    (full,) = (line for line in lines(out) if line["method"] == "full" and line["rows"] == "all")
    assert full["accuracy"] >= 0.9  # the word alone tells the label


def test_compare_gives_the_change_of_each_group_and_the_ratio(
    quality: ModuleType, tmp_path: Path
) -> None:
    def write(name: str, methods: dict[str, float]) -> Path:
        path = tmp_path / name
        path.write_text(
            "".join(
                json.dumps(
                    {
                        "encoder": name,
                        "set": each,
                        "method": method,
                        "rows": "all",
                        "seed": seed,
                        "accuracy": accuracy + (0.01 if seed == 14 else 0.0),
                    }
                )
                + "\n"
                for each in quality.SETS
                for method, accuracy in methods.items()
                for seed in (13, 14)
            )
        )
        return path

    before = write("before", {"ytuning": 0.7, "probe": 0.6})
    after = write("after", {"ytuning": 0.755, "probe": 0.59, "full": 0.795})
    found = quality.compare(before, after)
    assert "| pairs | +5.50 | -1.00 |" in found
    assert "| mrpc | 70.5 | 76.0 | 60.5 | 59.5 | 80.0 |" in found
    assert "Y-Tuning is at 0.950 of full fine-tuning, mean of 15 sets" in found
