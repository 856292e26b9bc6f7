"""The methods that the quality benchmark compares: each learns from the same rows and is scored on
the same rows.

A method is an entry of ``METHODS``: the learning rates that are tried, and a function of the rows
and the settings of one run.
"""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from full_finetuning import EVALUATIONS, MAX_TOKENS, FullSettings, epochs_for, fit_full, steps_for
from labelmux_adapters.files import Adapter
from labelmux_encoder.weights import LoadedEncoder, read_checkpoint
from labelmux_training.data import Dataset
from labelmux_training.features import FeatureCache, Features
from labelmux_training.kinds import KINDS, Kind, Logits
from labelmux_training.linear import fit_probe
from labelmux_training.options import TrainOptions
from labelmux_training.serving import serve_texts
from labelmux_training.settings import TrainerSettings, settings_for
from labelmux_training.train import train
from labelmux_training.trainer import Labelled
from meter import Meter

_FP32_BYTES = 4


@dataclass(frozen=True)
class Problem:
    """What one run learns, and from which rows."""

    labels: tuple[str, ...]
    train: Dataset
    dev: Dataset
    test: Dataset
    loaded: LoadedEncoder
    #: What it was loaded from.
    encoder: str = "bundled"

    @property
    def kind(self) -> Kind:
        return KINDS[self.train.kind]

    def gold(self, split: Dataset) -> Any:
        """What the rows say, as the kind of task has it."""
        return self.kind.gold(split, self.labels, self.loaded.tokenizer, MAX_TOKENS)


@dataclass(frozen=True)
class Outcome:
    """What one run gave."""

    #: Logits, or any scores that rank alike, of each row. Each [K], or [T, K] of a token task
    dev: Sequence[Logits]
    test: Sequence[Logits]
    #: Values that were trained, and as a share of the encoder's.
    parameters: int
    share: float
    #: What has to be kept for the task.
    file_bytes: int
    #: Of the training alone, extraction of features and choice of the epoch counted.
    meter: Meter
    #: What the method says of the encoder's hidden states, the embeddings first: the dev accuracy
    #: of a probe on each, or how much of each it reads.
    by_layer: tuple[float, ...] = ()


@dataclass(frozen=True)
class Method:
    """How a method is called, and how it is run."""

    title: str
    #: The first is used where only one is tried; empty where there is none to choose.
    learning_rates: tuple[float, ...]
    #: Of the problem, a learning rate (0 where there is none) and a seed.
    run: Callable[[Problem, float, int], Outcome]


def _full(problem: Problem, learning_rate: float, seed: int) -> Outcome:
    _, state = read_checkpoint(problem.encoder)
    rows, dev = ((split.texts, problem.gold(split)) for split in (problem.train, problem.dev))
    settings = FullSettings(learning_rate, seed)
    with Meter() as meter:
        fit = fit_full(problem.loaded, state, rows, dev, problem.labels, problem.kind, settings)
    return Outcome(
        dev=fit.answers(problem.dev.texts),
        test=fit.answers(problem.test.texts),
        parameters=fit.parameter_count,
        share=fit.parameter_count / problem.loaded.encoder.parameter_count,
        file_bytes=_FP32_BYTES * fit.parameter_count,
        meter=meter,
    )


def _probe(problem: Problem, _learning_rate: float, _seed: int) -> Outcome:
    return _probe_layers(problem, lambda states: [states - 1])


def _best_layer(problem: Problem, _learning_rate: float, _seed: int) -> Outcome:
    return _probe_layers(problem, lambda states: list(range(states)))


def _probe_layers(problem: Problem, choose: Callable[[int], list[int]]) -> Outcome:
    """A probe on each of these hidden states, given how many there are; the best by dev."""
    loaded = problem.loaded
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder))
        with Meter() as meter:
            train, dev = (
                cache.features(loaded, split.texts, MAX_TOKENS)
                for split in (problem.train, problem.dev)
            )
            probes = {
                layer: fit_probe(
                    problem.labels,
                    _labelled(problem, train, layer, problem.train),
                    _labelled(problem, dev, layer, problem.dev),
                )
                for layer in choose(train.states)
            }
            best = max(probes, key=lambda layer: probes[layer].dev.score)
        test = cache.features(loaded, problem.test.texts, MAX_TOKENS)
        parameters = len(problem.labels) * (loaded.encoder.config.hidden_size + 1)
        return Outcome(
            dev=list(probes[best].logits(_layer(dev, best))),
            test=list(probes[best].logits(_layer(test, best))),
            parameters=parameters,
            share=parameters / loaded.encoder.parameter_count,
            file_bytes=_FP32_BYTES * parameters,
            meter=meter,
            by_layer=tuple(probe.dev.score for probe in probes.values()),
        )


def _labelled(problem: Problem, features: Features, layer: int, split: Dataset) -> Labelled:
    return Labelled(_layer(features, layer), problem.gold(split), problem.kind)


def _layer(features: Features, layer: int) -> Features:
    """The features of one hidden state alone, as if it were the last."""
    hidden = features.values.shape[1] // features.states
    values = features.values[:, layer * hidden : (layer + 1) * hidden]
    return replace(features, values=values, states=1)


@dataclass(frozen=True)
class _Adapter:
    """What ``labelmux train`` makes, scored from its file by the path that serves requests."""

    method: str
    #: What is not among them is chosen.
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, problem: Problem, learning_rate: float, seed: int) -> Outcome:
        asked: dict[str, Any] = {"learning_rate": learning_rate, "seed": seed}
        if self.method != "ytuning":  # steps as in full fine-tuning, which cost about as much
            rows = len(problem.train.rows)
            epochs = min(EVALUATIONS, epochs_for(rows))
            asked |= {"epochs": epochs, "patience": 0, "least_steps": steps_for(rows)}
        return _train(problem, self.method, self.sizes, settings_for(self.method, **asked))


def _train(
    problem: Problem, method: str, sizes: Mapping[str, int], settings: TrainerSettings
) -> Outcome:
    loaded = problem.loaded
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = TrainOptions(
            task="quality",
            train=_written(problem.train, folder / "train.jsonl"),
            dev=_written(problem.dev, folder / "dev.jsonl"),
            out=folder / "adapter.safetensors",
            labels=problem.labels,
            encoder=problem.encoder,
            method=method,
            sizes=sizes,
            max_tokens=min(MAX_TOKENS, loaded.encoder.config.max_tokens),
            settings=settings,
            cache_dir=folder,
        )
        with Meter() as meter:
            made = train(options, loaded)
        manifest = made.adapter.manifest
        return Outcome(
            dev=serve_texts(made.adapter, loaded, problem.dev.texts).logits,
            test=serve_texts(made.adapter, loaded, problem.test.texts).logits,
            parameters=manifest.parameters,
            share=manifest.parameter_share,
            file_bytes=made.size_bytes,
            meter=meter,
            by_layer=_mix(made.adapter),
        )


def _mix(adapter: Adapter) -> tuple[float, ...]:
    """How much of each hidden state a readout takes; empty where it does not mix them."""
    mix = adapter.tensors.get("mix")
    return () if mix is None else tuple(mix.float().softmax(0).tolist())


def _written(split: Dataset, path: Path) -> Path:
    """The rows as their own file has them."""
    lines = gzip.decompress(split.path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(b"".join(lines[row.line - 1] for row in split.rows))
    return path


METHODS: Mapping[str, Method] = {
    "full": Method("full fine-tuning", (1e-4, 5e-5), _full),
    "ytuning": Method("Y-Tuning", (5e-4, 1e-3), _Adapter("ytuning")),
    "probe": Method("linear probe", (), _probe),
    "best-layer": Method("probe of the best layer", (), _best_layer),
    "pasta": Method("PASTA", (1e-2, 3e-2, 3e-3), _Adapter("pasta")),
    "unipelt-apl": Method("UniPELT APL", (1e-3, 3e-3), _Adapter("unipelt")),
    "unipelt-ap": Method("UniPELT AP", (1e-3, 3e-3), _Adapter("unipelt", {"rank": 0})),
    "lora": Method("LoRA", (1e-3, 3e-3), _Adapter("lora")),
    "prefix": Method("prefix", (1e-3, 3e-3), _Adapter("prefix")),
    "bottleneck": Method("bottleneck", (1e-3, 3e-3), _Adapter("bottleneck")),
    "bitfit": Method("BitFit", (3e-3, 1e-2), _Adapter("bitfit")),
    "ia3": Method("(IA)³", (1e-2, 3e-2), _Adapter("ia3")),
}
