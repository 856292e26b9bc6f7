"""Methods whose gradients pass through the encoder: what they learn, and what they leave alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labelmux_adapters.canaries import check_canaries
from labelmux_adapters.files import read_adapter
from labelmux_adapters.methods import METHODS
from labelmux_encoder.batch import pack_rows
from labelmux_encoder.edits import Placed
from labelmux_encoder.model import State, run_pass
from labelmux_encoder.weights import LoadedEncoder, read_checkpoint
from labelmux_training.edited_trainer import (
    AdapterForm,
    Constants,
    EditedLearner,
    LabelledTokens,
    fit_edited,
)
from labelmux_training.errors import DivergedError, OptionsError, RunFolderError
from labelmux_training.evaluate import evaluate
from labelmux_training.kinds import KINDS
from labelmux_training.loop import Fit
from labelmux_training.options import TrainOptions
from labelmux_training.progress import NoProgress
from labelmux_training.run_folder import Checkpoint
from labelmux_training.settings import TrainerSettings, settings_for
from labelmux_training.sizes import choose_edit_sizes
from labelmux_training.train import train
from labelmux_training.tuned import TunedTensors

LABELS = ("a", "b", "c")
EDITED = [name for name, method in METHODS.items() if method.edited and name != "linear"]
#: Each label has words of its own.
WORDS = {0: "train bus coast river", 1: "soup bread cold stale", 2: "film heart slow good"}


def settings(method: str, **asked: Any) -> TrainerSettings:
    """Enough to learn what is clear from any word, in float32."""
    quick = {"epochs": 6, "least_steps": 0, "batch_rows": 8, "precision": "float32"}
    return settings_for(method, **{**quick, "learning_rate": 1e-2, **asked})


@pytest.fixture(scope="module")
def checkpoint(tiny_encoder_folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    return read_checkpoint(str(tiny_encoder_folder))


@pytest.fixture(scope="module")
def constants(checkpoint: tuple[Any, State], tiny_encoder: LoadedEncoder) -> Constants:
    return Constants.of(*checkpoint, tiny_encoder.encoder)


@pytest.fixture(scope="module")
def rows(tiny_encoder: LoadedEncoder) -> Callable[[int, int], LabelledTokens]:
    """Makes rows whose labels are clear from any of their words."""

    def make(count: int, seed: int) -> LabelledTokens:
        random = np.random.default_rng(seed)
        gold = np.arange(count) % len(LABELS)
        texts = [
            " ".join(random.choice(WORDS[label].split(), random.integers(4, 9)))
            for label in gold.tolist()
        ]
        encoded = tiny_encoder.tokenizer.encode(texts, 64)
        return LabelledTokens(tuple(encoded), gold, KINDS["single_label"])

    return make


def form_of(method: str, loaded: LoadedEncoder, **sizes: int) -> AdapterForm:
    declared = METHODS[method].edited
    assert declared is not None
    return AdapterForm(
        declared, choose_edit_sizes(declared, loaded, sizes, pair=False), LABELS, "mean"
    )


Rows = Callable[[int, int], LabelledTokens]


@pytest.mark.parametrize("method", EDITED)
def test_it_learns_and_leaves_the_encoder_alone(
    tiny_encoder: LoadedEncoder, checkpoint: tuple[Any, State], rows: Rows, method: str
) -> None:
    config, state = checkpoint
    before = {name: tensor.clone() for name, tensor in state.items()}
    constants = Constants.of(config, state, tiny_encoder.encoder)
    form = form_of(method, tiny_encoder)
    found = fit_edited(form, constants, rows(96, 1), rows(24, 2), settings(method, epochs=20))
    assert found.history[found.best].dev.score >= 0.9
    assert found.history[-1].train_loss < found.history[0].train_loss
    for name, tensor in state.items():
        assert torch.equal(tensor, before[name]), name
        assert tensor.grad is None
        assert not tensor.requires_grad
    specs = METHODS[method].expected_tensors(form.sizes, len(LABELS))
    assert {name: tuple(tensor.shape) for name, tensor in found.tensors.items()} == {
        name: spec.shape for name, spec in specs.items()
    }


@pytest.mark.parametrize("method", EDITED)
def test_every_tensor_is_trained(
    tiny_encoder: LoadedEncoder, constants: Constants, rows: Rows, method: str
) -> None:
    form = form_of(method, tiny_encoder)
    torch.manual_seed(1)
    tuned = TunedTensors(form.method, form.sizes, len(LABELS), 0.0)
    train = rows(12, 1)
    learner = EditedLearner(tuned, form, constants, train, train, settings(method, dropout=0.0))
    torch.optim.SGD(tuned.parameters(), lr=0.1).zero_grad()
    for parameter in tuned.parameters():  # so that what starts at zero hides nothing
        parameter.data += 0.01 * torch.randn_like(parameter)
    learner.logits(np.arange(12)).sum(1).exp().sum().backward()
    for name, parameter in tuned.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("method", EDITED)
def test_what_a_row_teaches_does_not_depend_on_its_neighbours(
    tiny_encoder: LoadedEncoder, constants: Constants, rows: Rows, method: str
) -> None:
    form = form_of(method, tiny_encoder)
    torch.manual_seed(1)
    tuned = TunedTensors(form.method, form.sizes, len(LABELS), 0.0)
    train = rows(12, 1)
    learner = EditedLearner(tuned, form, constants, train, train, settings(method, dropout=0.0))

    def gradients(batches: list[list[int]]) -> list[torch.Tensor]:
        tuned.zero_grad()
        for batch in batches:
            logits = learner.logits(np.array(batch))
            train.kind.loss(logits, train.gold, batch, settings(method)).mul(len(batch)).backward()
        return [parameter.grad.clone() for parameter in tuned.parameters()]

    for one, other in zip(
        gradients([[row] for row in range(12)]), gradients([list(range(12))]), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-4, rtol=1e-3)


def test_a_prefix_is_learned_through_a_network_that_is_not_stored(
    tiny_encoder: LoadedEncoder,
) -> None:
    form = form_of("unipelt", tiny_encoder)
    tuned = TunedTensors(form.method, form.sizes, len(LABELS), 0.0)
    assert {"prefix.inner.weight", "prefix.outer.weight"} <= dict(tuned.named_parameters()).keys()
    stored = tuned.tensors()
    assert stored["prefix.keys"].shape == (2, 10, 32)
    assert not any("inner" in name or "outer" in name or "table" in name for name in stored)


def test_only_matrices_are_decayed(
    tiny_encoder: LoadedEncoder, constants: Constants, rows: Rows
) -> None:
    form = form_of("unipelt", tiny_encoder)
    tuned = TunedTensors(form.method, form.sizes, len(LABELS), 0.0)
    train = rows(3, 1)
    learner = EditedLearner(tuned, form, constants, train, train, settings("unipelt"))
    decayed = {name for name, p in tuned.named_parameters() if learner.decays(name, p)}
    assert {"bottleneck:down", "lora_query:up", "head:weight", "prefix.outer.weight"} <= decayed
    spared = {"bottleneck:down_bias", "bottleneck:gate_weight", "head:bias", "prefix.outer.bias"}
    assert not spared & decayed


@pytest.mark.parametrize("method", ("pasta", "unipelt"))
def test_equal_seeds_give_equal_tensors_and_leave_the_random_state(
    tiny_encoder: LoadedEncoder, constants: Constants, rows: Rows, method: str
) -> None:
    def run(seed: int) -> Fit:
        form = form_of(method, tiny_encoder)
        short = settings(method, epochs=2, seed=seed)
        return fit_edited(form, constants, rows(24, 1), rows(12, 2), short)

    state = torch.get_rng_state()
    first = run(1)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(5)
    again, other = run(1), run(2)
    assert all(torch.equal(first.tensors[name], again.tensors[name]) for name in first.tensors)
    assert not torch.equal(first.tensors["head.weight"], other.tensors["head.weight"])


class _Stop(NoProgress):
    """Stops a run after so many epochs."""

    def __init__(self, epochs: int) -> None:
        self._left = epochs
        self.said: list[str] = []

    def note(self, **values: float | str) -> None:
        self._left -= 1

    def advance(self, steps: int = 1) -> None:
        if self._left == 0:
            raise KeyboardInterrupt

    def say(self, message: str) -> None:
        self.said.append(message)


def test_a_run_that_was_stopped_goes_on_to_the_same_adapter(
    tiny_encoder: LoadedEncoder, constants: Constants, rows: Rows, tmp_path: Path
) -> None:
    form, train, dev = form_of("unipelt", tiny_encoder), rows(24, 1), rows(12, 2)
    whole = fit_edited(form, constants, train, dev, settings("unipelt"))

    def go_on(progress: NoProgress, run: str = "a") -> Fit:
        kept = Checkpoint(tmp_path / "run", run)
        return fit_edited(form, constants, train, dev, settings("unipelt"), progress, kept)

    with pytest.raises(KeyboardInterrupt):
        go_on(_Stop(2))
    second = _Stop(2)
    with pytest.raises(KeyboardInterrupt):
        go_on(second)
    assert "after epoch 2" in second.said[0]
    finished = go_on(_Stop(99))
    assert finished.history == whole.history
    assert finished.best == whole.best
    assert all(torch.equal(whole.tensors[name], finished.tensors[name]) for name in whole.tensors)
    of_another = _Stop(99)
    go_on(of_another, run="b")
    assert of_another.said == []


@pytest.fixture
def options(
    topics_train: Path, topics_dev: Path, tiny_encoder_folder: Path, tmp_path: Path
) -> TrainOptions:
    return TrainOptions(
        task="topics",
        train=topics_train,
        dev=topics_dev,
        out=tmp_path / "topics.safetensors",
        encoder=str(tiny_encoder_folder),
        cache_dir=tmp_path / "cache",
    )


@pytest.mark.parametrize("method", EDITED)
def test_what_is_trained_is_what_is_served(
    options: TrainOptions, tiny_encoder: LoadedEncoder, topics_dev: Path, method: str
) -> None:
    asked = replace(options, method=method, settings=settings(method, epochs=3), test=topics_dev)
    result = train(asked, tiny_encoder)
    adapter = read_adapter(result.path.read_bytes())
    check_canaries(adapter, tiny_encoder)
    manifest = adapter.manifest
    assert (manifest.method, manifest.pooling) == (method, "mean")
    assert (
        result.test == result.dev == evaluate(result.path, topics_dev, loaded=tiny_encoder).metrics
    )
    assert manifest.parameters == sum(tensor.numel() for tensor in adapter.tensors.values())
    assert method in result.report.read_text()
    assert not list(result.path.parent.glob("*.run"))


def test_a_command_that_was_stopped_goes_on_to_the_same_file(
    options: TrainOptions, tiny_encoder: LoadedEncoder
) -> None:
    asked = replace(options, method="pasta", settings=settings("pasta"))
    whole = train(asked, tiny_encoder).adapter
    with pytest.raises(KeyboardInterrupt):
        train(asked, tiny_encoder, _Stop(3))
    assert asked.out.with_suffix(".run").is_dir()
    other = replace(asked, settings=settings("pasta", seed=2))
    told = _Stop(99)
    train(other, tiny_encoder, told)
    assert told.said == []
    with pytest.raises(KeyboardInterrupt):
        train(asked, tiny_encoder, _Stop(3))
    told = _Stop(99)
    finished = train(asked, tiny_encoder, told).adapter
    assert "after epoch 3" in told.said[0]
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, finished.tensors[name])


def test_a_run_through_the_pass_that_diverged_is_an_error(
    options: TrainOptions, tiny_encoder: LoadedEncoder
) -> None:
    rough = settings("lora", learning_rate=1e38)
    with pytest.raises(DivergedError, match="lower the learning rate"):
        train(replace(options, method="lora", settings=rough), loaded=tiny_encoder)
    assert not options.out.exists()


def test_pairs_have_a_third_special_token(
    options: TrainOptions, tiny_encoder: LoadedEncoder, pairs_train: Path
) -> None:
    asked = replace(options, method="pasta", settings=settings("pasta", epochs=1), pooling="first")
    assert train(asked, tiny_encoder).adapter.manifest.sizes["slots"] == 2
    pairs = replace(asked, train=pairs_train, dev=pairs_train)
    manifest = train(pairs, tiny_encoder).adapter.manifest
    assert (manifest.sizes["slots"], manifest.pooling) == (3, "first")


@pytest.mark.parametrize("kind", ("multi_label", "token"))
@pytest.mark.parametrize("method", ("pasta", "unipelt"))
def test_other_kinds_of_task_are_learned_and_served(
    options: TrainOptions, tiny_encoder: LoadedEncoder, tmp_path: Path, kind: str, method: str
) -> None:
    tags = {"train": "B-trip", "coast": "B-trip", "soup": "B-food", "milk": "B-food"}
    lines = {
        "multi_label": lambda a, b: {"text": f"{a} and {b} today", "labels": [a, b]},
        "token": lambda a, b: {
            "tokens": ["the", a, "and", b],
            "tags": ["O", tags[a], "O", tags[b]],
        },
    }
    data = tmp_path / "rows.jsonl"
    found = [json.dumps(lines[kind](a, b)) for a in tags for b in tags if a != b]
    data.write_text("\n".join(found))
    asked = replace(options, train=data, dev=data, method=method)
    result = train(replace(asked, settings=settings(method, epochs=30)), tiny_encoder)
    assert result.adapter.manifest.task_kind == kind
    assert result.adapter.manifest.pooling == (None if kind == "token" else "mean")
    assert result.dev.score > 0.9
    check_canaries(result.adapter, tiny_encoder)
    assert evaluate(result.path, data, loaded=tiny_encoder).metrics == result.dev


def test_sizes_are_the_papers_or_as_asked_for(tiny_encoder: LoadedEncoder) -> None:
    def sizes(method: str, **asked: int) -> dict[str, int]:
        found = dict(form_of(method, tiny_encoder, **asked).sizes)
        assert [found.pop(name) for name in ("layers", "hidden", "intermediate")] == [2, 32, 48]
        return found

    assert sizes("unipelt") == {"prefix": 10, "bottleneck": 48, "rank": 8}
    assert sizes("unipelt", rank=0, prefix=5) == {"prefix": 5, "bottleneck": 48}
    assert sizes("lora", rank=4) == {"query": 4, "value": 4}
    with pytest.raises(OptionsError, match="width: the method pasta has no such size"):
        sizes("pasta", width=8)
    with pytest.raises(OptionsError, match="prefix: 0"):
        sizes("prefix", prefix=0)


def test_another_encoder_than_the_loaded_one_is_refused(
    options: TrainOptions, tiny_encoder: LoadedEncoder
) -> None:
    asked = replace(options, encoder="bundled", method="pasta")
    with pytest.raises(OptionsError, match="not the encoder that is loaded"):
        train(asked, tiny_encoder)


def test_few_rows_are_seen_more_often(
    tiny_encoder: LoadedEncoder, constants: Constants, rows: Rows
) -> None:
    class Steps(NoProgress):
        def __init__(self) -> None:
            self.steps = 0

        def advance(self, steps: int = 1) -> None:
            self.steps += steps

    told = Steps()
    often = settings("ia3", epochs=2, patience=0, least_steps=30)
    fit_edited(form_of("ia3", tiny_encoder), constants, rows(9, 1), rows(9, 2), often, told)
    assert told.steps == 2 * 2 * 8  # two batches a pass: eight passes make 32 steps


@pytest.mark.parametrize("method", EDITED)
def test_dev_is_scored_by_the_pass_that_serves_what_training_computes(
    tiny_encoder: LoadedEncoder, constants: Constants, rows: Rows, method: str
) -> None:
    form = form_of(method, tiny_encoder)
    torch.manual_seed(1)
    tuned = TunedTensors(form.method, form.sizes, len(LABELS), 0.0)
    for parameter in tuned.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    both = rows(12, 1)
    learner = EditedLearner(tuned, form, constants, both, both, settings(method, dropout=0.0))
    with torch.no_grad():
        trained = learner.logits(np.arange(12)).numpy()
    assert np.abs(np.stack(learner.dev_logits()) - trained).max() < 1e-4


@pytest.mark.parametrize("method", EDITED)
def test_weights_rounded_once_give_what_rounding_at_every_step_gives(
    tiny_encoder: LoadedEncoder, constants: Constants, rows: Rows, method: str
) -> None:
    form = form_of(method, tiny_encoder)
    torch.manual_seed(1)
    tuned = TunedTensors(form.method, form.sizes, len(LABELS), 0.0)
    packed = pack_rows(rows(12, 1).rows)
    placed = [Placed(edit, (0,) * 12) for edit in tuned.edits(tuned.tensors())]
    with torch.autocast("cpu", torch.bfloat16):
        each_time, once = (
            run_pass(constants.config, found.tensors, packed, placed)[-1]
            for found in (constants, constants.rounded())
        )
    assert torch.equal(once, each_time)


def test_a_folder_of_the_users_own_is_neither_a_run_nor_removed(
    options: TrainOptions, tiny_encoder: LoadedEncoder
) -> None:
    mine = options.out.with_suffix(".run") / "my.csv"
    mine.parent.mkdir()
    mine.write_text("precious")
    asked = replace(options, method="pasta", settings=settings("pasta", epochs=1))
    with pytest.raises(RunFolderError, match=r"my\.csv"):
        train(asked, tiny_encoder)
    assert mine.read_text() == "precious"
