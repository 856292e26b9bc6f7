"""Labelled rows of our own, a trained adapter that several tests look at, a small teacher."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from labelmux_encoder.weights import LoadedEncoder
from labelmux_training.options import TrainOptions
from labelmux_training.settings import TrainerSettings
from labelmux_training.train import TrainResult, train

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors: a second thread costs more than it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def topics_train() -> Path:
    """36 sentences about travel, food and film."""
    return DATA / "topics_train.jsonl"


@pytest.fixture(scope="session")
def topics_dev() -> Path:
    """12 more."""
    return DATA / "topics_dev.jsonl"


@pytest.fixture(scope="session")
def pairs_train() -> Path:
    """12 pairs that say the same or not."""
    return DATA / "pairs_train.jsonl"


@pytest.fixture(scope="session")
def settings() -> TrainerSettings:
    """Enough to learn the topics on the tiny encoder."""
    return TrainerSettings(epochs=8, least_steps=0, batch_rows=8, learning_rate=3e-3)


@pytest.fixture(scope="session")
def topics(
    tiny_encoder: LoadedEncoder,
    topics_train: Path,
    topics_dev: Path,
    settings: TrainerSettings,
    tmp_path_factory: pytest.TempPathFactory,
) -> TrainResult:
    """The topics task, trained once with everything that a run can be asked for."""
    folder = tmp_path_factory.mktemp("topics")
    options = TrainOptions(
        task="topics",
        train=topics_train,
        dev=topics_dev,
        test=topics_dev,
        out=folder / "topics.safetensors",
        cache_dir=folder / "cache",
        settings=settings,
        sizes={"width": 16},
        probe=True,
        card={"data": "our own"},
    )
    return train(options, tiny_encoder)


@pytest.fixture
def teacher(tiny_encoder_folder: Path, tmp_path: Path) -> Path:
    """A small random BERT whose positions all have one embedding, in the teacher's layout."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    shutil.copy(tiny_encoder_folder / "tokenizer.json", folder)
    vocab_size = json.loads((tiny_encoder_folder / "config.json").read_text())["vocab_size"]
    torch.manual_seed(1)
    model = BertModel(
        BertConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
        ),
        add_pooling_layer=False,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        positions = model.embeddings.position_embeddings.weight
        positions.copy_(positions[:1].expand_as(positions))
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    lines = [f"the train to the coast leaves at nine and the bus at {n} today" for n in range(1500)]
    path.write_text("\n".join(lines))
    return path
