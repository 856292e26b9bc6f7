"""The linear probe: as others solve it, for every kind of task, and as a method that serves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from labelmux_adapters.canaries import check_canaries
from labelmux_encoder.weights import LoadedEncoder
from labelmux_training.errors import OptionsError
from labelmux_training.evaluate import evaluate
from labelmux_training.features import Features
from labelmux_training.linear import fit_probe
from labelmux_training.options import TrainOptions
from labelmux_training.settings import settings_for
from labelmux_training.train import train
from labelmux_training.trainer import Labelled

LABELS = ("a", "b", "c")


def noisy(count: int, seed: int) -> Labelled:
    """Rows whose labels their last states tell with some errors; two states of width 8."""
    random = np.random.default_rng(seed)
    gold = random.integers(len(LABELS), size=count)
    lengths = random.integers(3, 9, size=count)
    centres = np.random.default_rng(0).normal(size=(len(LABELS), 16))
    values = np.repeat(centres[gold], lengths, axis=0)
    values = values + random.normal(scale=3, size=values.shape)
    features = Features(
        values=torch.from_numpy(values).half(),
        starts=torch.from_numpy(np.cumsum(lengths) - lengths),
        lengths=torch.from_numpy(lengths),
        states=2,
        truncated=torch.zeros(count, dtype=torch.bool),
    )
    return Labelled(features, gold)


def test_it_is_solved_as_by_scikit_learn() -> None:
    rows, dev = noisy(300, 1), noisy(200, 2)
    probe = fit_probe(LABELS, rows, dev)
    peer = LogisticRegression(C=probe.strength, max_iter=1000, tol=1e-6)
    peer.fit(rows.features.means().numpy(), rows.gold)
    expected = peer.decision_function(dev.features.means().numpy())
    found = probe.logits(dev.features)
    centred = found - found.mean(1, keepdims=True)
    assert np.abs(centred - expected).max() < 0.02 * np.abs(expected).max()
    assert probe.dev == fit_probe(LABELS, rows, dev).dev


def test_pooled_features_are_means_first_tokens_or_all_tokens() -> None:
    features = noisy(9, 1).features.subset([4, 2, 7])
    last = features.packed([0, 1, 2])[-1]
    assert torch.equal(features.pooled(None), last)
    rows = last.split(features.lengths.tolist())
    assert torch.equal(features.pooled("first"), torch.stack([row[0] for row in rows]))
    means = torch.stack([row.mean(0) for row in rows])
    assert torch.allclose(features.pooled("mean"), means, atol=1e-5)


@pytest.fixture
def options(tiny_encoder_folder: Path, tmp_path: Path) -> TrainOptions:
    return TrainOptions(
        task="linear",
        train=tmp_path / "rows.jsonl",
        dev=tmp_path / "rows.jsonl",
        test=tmp_path / "rows.jsonl",
        out=tmp_path / "linear.safetensors",
        encoder=str(tiny_encoder_folder),
        cache_dir=tmp_path / "cache",
        method="linear",
        probe=True,
    )


@pytest.mark.parametrize("kind", ("single_label", "multi_label", "token"))
def test_it_serves_every_kind_of_task_and_is_its_own_yardstick(
    options: TrainOptions, tiny_encoder: LoadedEncoder, kind: str
) -> None:
    tags = {"train": "B-ride", "bus": "B-ride", "soup": "B-food", "bread": "B-food"}
    lines = {
        "single_label": lambda a, b: {"text": f"{a} and then {b}", "label": tags[a]},
        "multi_label": lambda a, b: {"text": f"{a} and {b} today", "labels": [a, b]},
        "token": lambda a, b: {
            "tokens": ["the", a, "and", b],
            "tags": ["O", tags[a], "O", tags[b]],
        },
    }
    options.train.write_text(
        "\n".join(json.dumps(lines[kind](a, b)) for a in tags for b in tags if a != b)
    )
    result = train(options, tiny_encoder)
    assert result.adapter.manifest.task_kind == kind
    assert result.dev.score > 0.9
    assert result.probe_dev == result.probe_test
    assert abs(result.probe_dev.score - result.dev.score) < 0.1
    check_canaries(result.adapter, tiny_encoder)
    assert (
        evaluate(result.path, options.train, loaded=tiny_encoder).metrics.score == result.dev.score
    )


def test_what_means_nothing_to_it_is_refused(
    options: TrainOptions, tiny_encoder: LoadedEncoder, topics_train: Path
) -> None:
    with pytest.raises(OptionsError, match="epochs: 3 means nothing to the method linear"):
        settings_for("linear", epochs=3)
    asked = replace(options, train=topics_train, dev=None, test=None)
    with pytest.raises(OptionsError, match="width: the method linear has no such size"):
        train(replace(asked, sizes={"width": 8}), tiny_encoder)
    first = train(replace(asked, pooling="first"), tiny_encoder)
    assert first.adapter.manifest.pooling == "first"
