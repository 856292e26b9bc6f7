"""The benchmark of methods measures what it says, on a small encoder."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from labelmux_adapters.methods import METHODS
from labelmux_encoder.weights import LoadedEncoder


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return importlib.import_module("methods")


def test_every_method_that_changes_the_pass_is_measured(bench: ModuleType) -> None:
    assert set(bench.BARS) == {
        name for name, method in METHODS.items() if method.edited and name != "linear"
    }


def test_each_contender_runs_in_turn_after_an_untimed_run_and_ratios_are_within_a_round(
    bench: ModuleType,
) -> None:
    turns: list[str] = []

    def run(name: str, seconds: list[float]) -> float:
        turns.append(name)
        return seconds[turns.count(name) - 1]

    runs = {
        "plain": lambda: run("plain", [9, 9, 9, 1.0, 9, 2.0, 9, 4.0]),
        "lora": lambda: run("lora", [9, 9, 9, 1.5, 9, 2.0, 9, 8.0]),
        "peft float32 plain": lambda: run("peft float32 plain", [9, 9, 9, 2.0, 9, 2.0, 9, 2.0]),
        "peft float32 mixed": lambda: run("peft float32 mixed", [9, 9, 9, 3.0, 9, 8.0, 9, 40.0]),
    }
    figures = bench.measure("some rows", runs, rounds=3)
    assert turns == [name for name in runs for _ in range(2)] * 4
    assert figures.ratio("lora", "plain") == 1.5
    found = figures.to_json()
    assert found["rows_per_second_over_peft_float32"] == 4.0
    assert found["peft_float32_over_its_plain"] == 4.0
    assert "| lora | 2000.0 | 1.50x |  |" in bench.table(figures)


def test_a_run_of_every_method_serves_its_rows(
    bench: ModuleType, tiny_encoder: LoadedEncoder
) -> None:
    rows = bench.rows_of(tiny_encoder, (5, 9, 3))
    for name, run in bench.ours(tiny_encoder, rows).items():
        assert run() > 0, name


def test_a_peer_that_cannot_start_is_an_error(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "ends.py"
    script.write_text("raise SystemExit(3)")
    monkeypatch.setattr(bench, "_PEER", script)
    with pytest.raises(RuntimeError, match=r"ends\.py ended"):
        bench.Peer(sys.executable, tmp_path, tmp_path, "float32", 1, 2)
