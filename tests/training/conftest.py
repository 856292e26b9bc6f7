"""Labelled rows of our own, and one trained adapter that several tests look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from labelmux_encoder.weights import LoadedEncoder
from labelmux_training.settings import TrainerSettings
from labelmux_training.train import TrainOptions, TrainResult, train

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
    return TrainerSettings(epochs=8, batch_rows=8, learning_rate=3e-3)


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
        width=16,
        probe=True,
        card={"data": "our own"},
    )
    return train(options, tiny_encoder)
