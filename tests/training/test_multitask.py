"""Phase 2 of the bundled encoder: it learns the sets, keeps near the teacher, stops and goes on."""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from labelmux_encoder.weights import load_encoder
from labelmux_training.bundle import write_bundle
from labelmux_training.distil import Distillation
from labelmux_training.multitask import MultiTask

PLACES = ("the harbour", "a village", "the old station", "the market")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    moods = [
        {"text": f"{place} is {word} today", "label": label}
        for place in PLACES * 8
        for word, label in (("lovely", "good"), ("awful", "bad"))
    ]
    links = [
        {
            "text": f"the bus is at {one}",
            "pair": f"it stopped at {other}",
            "label": str(one == other),
        }
        for one in PLACES * 2
        for other in PLACES
    ]
    for name, rows in (("moods", moods), ("links", links)):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


@pytest.fixture
def phase_1(teacher: Path, corpus_file: Path, tmp_path: Path) -> Path:
    out = tmp_path / "phase-1"
    asked = argparse.Namespace(
        teacher=teacher,
        corpus=[corpus_file],
        out=out,
        tokens=500,
        batch_tokens=512,
        learning_rate=1e-3,
        save_every_s=1e9,
        long_share=0.2,
        start_from=None,
        seed=13,
    )
    Distillation(asked).run()
    return out / "checkpoint.pt"


@pytest.fixture
def asked(teacher: Path, corpus_file: Path, source: Path, phase_1: Path, tmp_path: Path) -> Any:
    return argparse.Namespace(
        teacher=teacher,
        corpus=[corpus_file],
        source=source,
        sets=None,
        start_from=phase_1,
        out=tmp_path / "phase-2",
        tokens=150_000,
        batch_tokens=256,
        plain_tokens=128,
        threads=2,
        bfloat16=False,
        learning_rate=1e-3,
        temper=0.5,
        pair_weight=1.5,
        distillation_weight=1.0,
        long_share=0.1,
        linear_only=False,
        save_every_s=1e9,
        seed=13,
    )


def log_lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_it_learns_the_sets_and_stays_near_the_teacher(asked: Any) -> None:
    MultiTask(asked).run()
    losses = [line for line in log_lines(asked.out) if "linear" in line]
    assert losses[-1]["linear"] < 0.9 * losses[0]["linear"]
    assert losses[-1]["decoder"] < 0.9 * losses[0]["decoder"]
    assert log_lines(asked.out)[-1]["short_token"] > 0.8


def test_a_stopped_run_goes_on_with_its_weights_and_heads(asked: Any) -> None:
    asked.tokens = 1500
    MultiTask(asked).run()
    first = torch.load(asked.out / "checkpoint.pt", weights_only=True)
    asked.tokens = first["tokens_seen"]
    MultiTask(asked).run()
    again = torch.load(asked.out / "checkpoint.pt", weights_only=True)
    assert again["tokens_seen"] == first["tokens_seen"]
    for part in ("state", "heads"):
        assert first[part].keys() == again[part].keys()
        assert all(torch.equal(first[part][name], again[part][name]) for name in first[part])


@pytest.mark.parametrize("bfloat16", [False, True])
def test_what_it_leaves_is_an_encoder(
    asked: Any, teacher: Path, tmp_path: Path, bfloat16: bool
) -> None:
    asked.tokens, asked.bfloat16 = 600, bfloat16
    MultiTask(asked).run()
    stored = write_bundle(asked.out / "checkpoint.pt", teacher, tmp_path / "bundle")
    loaded = load_encoder(str(tmp_path / "bundle"))
    assert loaded.encoder.parameter_count == sum(tensor.numel() for tensor in stored.values())
