from __future__ import annotations

import json
import re
from pathlib import Path

from labelmux_adapters.files import read_adapter
from labelmux_encoder.weights import LoadedEncoder
from labelmux_training.demo import CANARIES, DEMOS, PAIR_CANARIES, Demo, cards, train_demo


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
    tiny_encoder_folder: Path,
    tmp_path: Path,
) -> None:
    write_set(tmp_path / "data" / "topics", topics_train, "single", ["travel", "food", "film"])
    write_set(tmp_path / "data" / "pairs", pairs_train, "pair", ["same", "other"])
    for name, method in (("topics", "ytuning"), ("pairs", "pasta")):
        train_demo(
            Demo(name, name, "what it is about", method, {"epochs": 2, "least_steps": 0}),
            tmp_path / "data",
            tmp_path / "out",
            tmp_path / "reports",
            tiny_encoder,
            tmp_path / "cache",
            encoder=str(tiny_encoder_folder),
        )
    files = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in files] == ["pairs.safetensors", "topics.safetensors"]
    made = {path.stem: read_adapter(path.read_bytes()) for path in files}
    manifest = made["topics"].manifest
    assert manifest.labels == ("travel", "food", "film")
    assert tuple(canary.text for canary in manifest.canaries) == CANARIES
    assert manifest.card["licence of the data"] == "Apache-2.0"
    assert made["pairs"].manifest.method == "pasta"
    text = cards(made, "tiny")
    assert re.search(r"\| topics \| ytuning \| topics \| 3 \| accuracy 0\.\d{4} \| accuracy", text)
    assert "## pairs" in text
    assert "Apache-2.0" in text


def test_the_table_of_demos_is_sound() -> None:
    assert len(DEMOS) == len({demo.task for demo in DEMOS}) == 10
    assert 4 <= len(CANARIES) <= 8
    assert 4 <= len(PAIR_CANARIES) <= 8
