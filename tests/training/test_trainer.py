from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
import torch

from labelmux_adapters.ytuning import YTuningSizes, expected_tensors, from_tensors
from labelmux_training.errors import DivergedError, OptionsError
from labelmux_training.features import Features
from labelmux_training.linear import fit_probe
from labelmux_training.progress import NoProgress
from labelmux_training.settings import TrainerSettings
from labelmux_training.trainer import Labelled, fit, predict

SIZES = YTuningSizes(hidden=32, states=3, width=16, heads=2, ffn=32)
LABELS = ("a", "b", "c")


class Saying(NoProgress):
    """Keeps what the user would be told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture(scope="module")
def rows() -> tuple[Labelled, Labelled]:
    """Train and dev rows whose labels are clear from any of their tokens.

    Features of a random encoder would make what is learned depend on the machine's rounding.
    """
    random = np.random.default_rng(13)
    centres = random.normal(size=(3, SIZES.states * SIZES.hidden))
    return _labelled(random, centres, 36), _labelled(random, centres, 12)


def _labelled(
    random: np.random.Generator, centres: npt.NDArray[np.float64], count: int
) -> Labelled:
    gold = np.arange(count) % len(centres)
    lengths = random.integers(3, 9, size=count)
    values = np.repeat(centres[gold], lengths, axis=0)
    values = values + random.normal(scale=0.7, size=values.shape)
    features = Features(
        values=torch.from_numpy(values).half(),
        starts=torch.from_numpy(np.cumsum(lengths) - lengths),
        lengths=torch.from_numpy(lengths),
        states=SIZES.states,
        truncated=torch.zeros(count, dtype=torch.bool),
    )
    return Labelled(features, gold)


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_it_learns(
    rows: tuple[Labelled, Labelled], settings: TrainerSettings, loss: str, schedule: str
) -> None:
    longer = replace(settings, epochs=40, patience=0, loss=loss, schedule=schedule)
    found = fit(SIZES, LABELS, *rows, longer)
    kept = found.history[found.best]
    assert kept.dev.accuracy >= 0.9
    assert found.history[-1].train_loss < found.history[0].train_loss
    assert {name: tuple(t.shape) for name, t in found.tensors.items()} == expected_tensors(SIZES, 3)


def test_the_kept_tensors_are_the_best_epoch_s(
    rows: tuple[Labelled, Labelled], settings: TrainerSettings
) -> None:
    found = fit(SIZES, LABELS, *rows, settings)
    dev = rows[1]
    logits = np.stack(predict(from_tensors(SIZES, 3, found.tensors), dev.features))
    accuracy = float((logits.argmax(axis=1) == dev.gold).mean())
    assert accuracy == found.history[found.best].dev.accuracy
    assert accuracy == max(epoch.dev.accuracy for epoch in found.history)


def test_equal_seeds_give_equal_tensors_and_leave_the_random_state(
    rows: tuple[Labelled, Labelled], settings: TrainerSettings
) -> None:
    short = replace(settings, epochs=2, token_dropout=0.1)
    state = torch.get_rng_state()
    first = fit(SIZES, LABELS, *rows, short)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(5)
    second = fit(SIZES, LABELS, *rows, short)
    third = fit(SIZES, LABELS, *rows, replace(short, seed=14))
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
    assert not torch.equal(first.tensors["label_vectors"], third.tensors["label_vectors"])


def test_it_stops_when_dev_stops_improving(
    rows: tuple[Labelled, Labelled], settings: TrainerSettings
) -> None:
    train, dev = rows
    unlearnable = Labelled(dev.features, np.roll(dev.gold, 1))
    found = fit(SIZES, LABELS, train, unlearnable, replace(settings, epochs=60, patience=3))
    assert len(found.history) == found.best + 1 + 3
    assert len(found.history) < 60


def test_labels_features_alone_are_kept_where_no_epoch_comes_up_to_them(
    rows: tuple[Labelled, Labelled], settings: TrainerSettings
) -> None:
    train, dev = rows
    means = partial(train.class_means, len(LABELS))
    told = Saying()
    rough = replace(settings, learning_rate=100.0)
    found = fit(SIZES, LABELS, train, dev, rough, means, told)
    assert found.untrained is not None
    assert len(told.said) == 1 and "those are kept, untrained" in told.said[0]
    assert found.kept.dev.accuracy == 1 > found.history[found.best].dev.accuracy
    logits = np.stack(predict(from_tensors(SIZES, 3, found.tensors), dev.features))
    assert (logits.argmax(axis=1) == dev.gold).all()


def test_training_is_kept_where_labels_features_alone_mislead(
    rows: tuple[Labelled, Labelled], settings: TrainerSettings
) -> None:
    train, dev = rows

    def misleading(mix: torch.Tensor) -> torch.Tensor:
        return train.class_means(len(LABELS), mix).roll(1, 0)

    told = Saying()
    longer = replace(settings, epochs=40, patience=0)
    found = fit(SIZES, LABELS, train, dev, longer, misleading, told)
    assert found.untrained is None and not told.said
    assert found.kept == found.history[found.best]


def test_a_run_that_diverged_is_an_error(
    rows: tuple[Labelled, Labelled], settings: TrainerSettings
) -> None:
    means = partial(rows[0].class_means, len(LABELS))
    for start in (means, None):
        with pytest.raises(DivergedError, match=r"epoch \d+ is not finite; lower .* 1e\+38"):
            fit(SIZES, LABELS, *rows, replace(settings, learning_rate=1e38), start)


def test_a_last_step_that_ruins_the_adapter_is_an_error(
    rows: tuple[Labelled, Labelled], settings: TrainerSettings
) -> None:
    one = replace(settings, learning_rate=1e38, epochs=1, batch_rows=36)
    with pytest.raises(DivergedError, match="an answer on dev after epoch 1 is not finite"):
        fit(SIZES, LABELS, *rows, one)


def test_a_linear_head_of_features_that_are_no_numbers_is_an_error(
    rows: tuple[Labelled, Labelled],
) -> None:
    train, dev = rows
    broken = replace(train.features, values=torch.full_like(train.features.values, torch.nan))
    with pytest.raises(DivergedError, match="linear head on 36 rows is not finite"):
        fit_probe(LABELS, replace(train, features=broken), dev)


def test_progress_hears_every_step(
    rows: tuple[Labelled, Labelled], settings: TrainerSettings
) -> None:
    class Counting(NoProgress):
        total = steps = epochs = 0

        def start(self, stage: str, total: int, unit: str) -> None:
            self.total = total

        def advance(self, steps: int = 1) -> None:
            self.steps += steps

        def note(self, **values: float | str) -> None:
            self.epochs += 1

    progress = Counting()
    fit(SIZES, LABELS, *rows, replace(settings, epochs=2, patience=0), progress=progress)
    assert (progress.total, progress.steps, progress.epochs) == (2 * 5, 2 * 5, 2)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("epochs", 0),
        ("batch_rows", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("dropout", 1.0),
        ("loss", "hinge"),
        ("label_start", "zeros"),
        ("schedule", "step"),
    ],
)
def test_impossible_settings_are_named(option: str, value: object) -> None:
    with pytest.raises(OptionsError, match=option):
        TrainerSettings(**{option: value})
