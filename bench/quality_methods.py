"""The methods that the quality benchmark compares: each learns from the same rows and is scored on
the same rows.

A method is an entry of ``METHODS``: the learning rates that are tried, and a function of the rows
and the settings of one run.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from full_finetuning import MAX_TOKENS, FullSettings, fit_full
from labelled_sets import Split
from labelmux_adapters.files import Adapter
from labelmux_encoder.weights import LoadedEncoder, load_encoder, read_checkpoint
from labelmux_training.features import FeatureCache
from labelmux_training.metrics import Ids
from labelmux_training.probe import fit_probe
from labelmux_training.serving import serve_texts
from labelmux_training.settings import TrainerSettings
from labelmux_training.train import TrainOptions, train
from meter import Meter

_FP32_BYTES = 4


@dataclass(frozen=True)
class Problem:
    """What one run learns, and from which rows."""

    labels: tuple[str, ...]
    train: Split
    dev: Split
    test: Split
    #: Bundled, a folder or a hub id.
    encoder: str = "bundled"


@dataclass(frozen=True)
class Outcome:
    """What one run gave."""

    #: Best labels. [rows]
    dev: Ids
    test: Ids
    #: Values that were trained, and as a share of the encoder's.
    parameters: int
    share: float
    #: What has to be kept for the task.
    file_bytes: int
    #: Of the training alone, extraction of features and choice of the epoch counted.
    meter: Meter


@dataclass(frozen=True)
class Method:
    """How a method is called, and how it is run."""

    title: str
    #: The first is used where only one is tried; empty where there is none to choose.
    learning_rates: tuple[float, ...]
    #: Of the problem, a learning rate (0 where there is none) and a seed.
    run: Callable[[Problem, float, int], Outcome]


def _full(problem: Problem, learning_rate: float, seed: int) -> Outcome:
    loaded = load_encoder(problem.encoder)
    _, state = read_checkpoint(problem.encoder)
    settings = FullSettings(learning_rate, seed)
    with Meter() as meter:
        fit = fit_full(
            loaded,
            state,
            (problem.train.rows.texts, problem.train.gold),
            (problem.dev.rows.texts, problem.dev.gold),
            len(problem.labels),
            settings,
        )
    return Outcome(
        dev=fit.predict(problem.dev.rows.texts),
        test=fit.predict(problem.test.rows.texts),
        parameters=fit.parameter_count,
        share=fit.parameter_count / loaded.encoder.parameter_count,
        file_bytes=_FP32_BYTES * fit.parameter_count,
        meter=meter,
    )


def _probe(problem: Problem, _learning_rate: float, _seed: int) -> Outcome:
    loaded = load_encoder(problem.encoder)
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder))
        with Meter() as meter:
            features, dev = (
                cache.features(loaded, split.rows.texts, MAX_TOKENS)
                for split in (problem.train, problem.dev)
            )
            probe = fit_probe(features, problem.train.gold, dev, problem.dev.gold)
        test = cache.features(loaded, problem.test.rows.texts, MAX_TOKENS)
        parameters = len(problem.labels) * (loaded.encoder.config.hidden_size + 1)
        return Outcome(
            dev=probe.scores(dev).argmax(1),
            test=probe.scores(test).argmax(1),
            parameters=parameters,
            share=parameters / loaded.encoder.parameter_count,
            file_bytes=_FP32_BYTES * parameters,
            meter=meter,
        )


def _ytuning(problem: Problem, learning_rate: float, seed: int) -> Outcome:
    return _adapter(problem, TrainerSettings(learning_rate=learning_rate, seed=seed))


def _adapter(problem: Problem, settings: TrainerSettings) -> Outcome:
    """As ``labelmux train`` makes it, scored from its file by the path that serves requests."""
    loaded = load_encoder(problem.encoder)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = TrainOptions(
            task="quality",
            train=_written(problem.train, folder / "train.jsonl"),
            dev=_written(problem.dev, folder / "dev.jsonl"),
            out=folder / "adapter.safetensors",
            labels=problem.labels,
            encoder=problem.encoder,
            max_tokens=min(MAX_TOKENS, loaded.encoder.config.max_tokens),
            settings=settings,
            cache_dir=folder,
        )
        with Meter() as meter:
            made = train(options, loaded)
        manifest = made.adapter.manifest
        return Outcome(
            dev=_served(made.adapter, loaded, problem.dev),
            test=_served(made.adapter, loaded, problem.test),
            parameters=manifest.parameters,
            share=manifest.parameter_share,
            file_bytes=made.size_bytes,
            meter=meter,
        )


def _served(adapter: Adapter, loaded: LoadedEncoder, split: Split) -> Ids:
    found: Ids = serve_texts(adapter, loaded, split.rows.texts).logits.argmax(1)
    return found


def _written(split: Split, path: Path) -> Path:
    with path.open("w") as out:
        for row in split.rows.rows:
            fields = {"text": row.text, "pair": row.pair, "label": row.label}
            found = {name: value for name, value in fields.items() if value is not None}
            out.write(json.dumps(found) + "\n")
    return path


METHODS: Mapping[str, Method] = {
    "full": Method("full fine-tuning", (1e-4, 5e-5), _full),
    "ytuning": Method("Y-Tuning", (5e-4, 1e-3), _ytuning),
    "probe": Method("linear probe", (), _probe),
}
