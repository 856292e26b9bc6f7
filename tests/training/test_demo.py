from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from labelmux_encoder.weights import LoadedEncoder
from labelmux_training.demo import CANARIES, DEMOS, PAIR_CANARIES, Demo, cards, train_demo
from labelmux_training.settings import TrainerSettings


def write_set(folder: Path, train: Path, kind: str, labels: list[str]) -> None:
    import gzip

    folder.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        (folder / f"{split}.jsonl.gz").write_bytes(gzip.compress(train.read_bytes()))
    meta = {"kind": kind, "labels": labels, "source": "ours", "license": "Apache-2.0", "notes": ""}
    (folder / "meta.json").write_text(json.dumps(meta))


def test_demo_tasks_are_trained_scored_and_described(
    tiny_encoder: LoadedEncoder,
    topics_train: Path,
    pairs_train: Path,
    settings: TrainerSettings,
    tmp_path: Path,
) -> None:
    write_set(tmp_path / "data" / "topics", topics_train, "single", ["travel", "food", "film"])
    write_set(tmp_path / "data" / "pairs", pairs_train, "pair", ["same", "other"])
    short = replace(settings, epochs=2)
    trained = [
        train_demo(
            Demo(name, name, "what it is about", short),
            tmp_path / "data",
            tmp_path / "out",
            tmp_path / "reports",
            tiny_encoder,
            tmp_path / "cache",
        )
        for name in ("topics", "pairs")
    ]
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made == ["pairs.safetensors", "topics.safetensors"]
    manifest = trained[0].result.adapter.manifest
    assert manifest.labels == ("travel", "food", "film")
    assert tuple(canary.text for canary in manifest.canaries) == CANARIES
    assert manifest.card["licence of the data"] == "Apache-2.0"
    text = cards(trained, "tiny")
    assert "| topics | topics | 3 | 36 |" in text
    assert "## pairs" in text
    assert "Apache-2.0" in text


def test_the_table_of_demos_is_sound() -> None:
    assert len(DEMOS) == len({demo.task for demo in DEMOS}) == 6
    assert 4 <= len(CANARIES) <= 8
    assert 4 <= len(PAIR_CANARIES) <= 8
