"""Training a Y-Tuning adapter on cached features.

Repeatable: on one machine, equal settings, features and labels give equal tensors. The process's
random state is left as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelmux_adapters.ytuning import Readout, TokenYTuning, YTuningSizes, to_tensors
from labelmux_training.features import Features, by_length
from labelmux_training.kinds import KINDS, Kind, Logits
from labelmux_training.metrics import AnyMetrics
from labelmux_training.progress import NoProgress, Progress
from labelmux_training.settings import TrainerSettings

#: Padded tokens in one readout of dev.
_DEV_TOKENS = 8192
#: Batches whose rows are sorted by length together.
_BUCKET_BATCHES = 32
_CLIP_NORM = 1.0


@dataclass(frozen=True, slots=True)
class Labelled:
    """Features of rows and what their labels are."""

    features: Features
    gold: Any  # as ``kind`` has it
    kind: Kind = field(default=KINDS["single_label"])

    def class_means(self, labels: int) -> Tensor:
        """Features that stand for each label; one without rows gives NaN. [K, H]"""
        return self.kind.class_means(self.features, self.gold, labels)


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch came to."""

    train_loss: float
    dev_loss: float
    #: At the calibration that fits this epoch.
    dev: AnyMetrics


@dataclass(frozen=True, slots=True)
class Fit:
    """The best epoch's adapter, and how training went."""

    tensors: dict[str, Tensor]
    history: tuple[Epoch, ...]
    #: Index into ``history``.
    best: int


def fit(
    sizes: YTuningSizes,
    labels: Sequence[str],
    train: Labelled,
    dev: Labelled,
    settings: TrainerSettings,
    label_features: Tensor | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Train an adapter and keep the epoch with the best dev score, ties by dev loss.

    Args:
        sizes: the adapter's; ``hidden`` and ``states`` must be those of the features.
        labels: in logit order.
        train: rows to learn from.
        dev: rows that decide which epoch is kept and when to stop.
        settings: see there.
        label_features: vectors for ``start_labels``; None starts the labels at random. [K, H]
        progress: told of each step and epoch.
    """
    progress = progress or NoProgress()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        module = train.kind.module(sizes, len(labels), settings.dropout)
        if label_features is not None:
            module.start_labels(label_features)
        return _Run(module, labels, train, dev, settings, progress).run()


def predict(module: Readout, features: Features) -> list[Logits]:
    """The module's logits for all rows, in their order; leaves it in eval mode.

    Each [K], or [T, K] of a token task.
    """
    module.eval()
    lengths = features.lengths.numpy()
    logits: list[Logits] = [np.empty(0, np.float32)] * len(lengths)
    with torch.inference_mode():
        for batch in by_length(lengths, _DEV_TOKENS):
            states, mask = features.batch(batch)
            found = _read(module, states, mask).numpy()
            for row, own in zip(batch, found, strict=True):
                logits[row] = own[: lengths[row]] if found.ndim == 3 else own
    return logits


def _read(module: Readout, features: Tensor, mask: Tensor) -> Tensor:
    """The module's logits; a token's do not depend on which others are real."""
    logits: Tensor = (
        module(features) if isinstance(module, TokenYTuning) else module(features, mask)
    )
    return logits


class _Run:
    """One training run; ``run`` may be called once."""

    def __init__(
        self,
        module: Readout,
        labels: Sequence[str],
        train: Labelled,
        dev: Labelled,
        settings: TrainerSettings,
        progress: Progress,
    ) -> None:
        self._module = module
        self._labels = labels
        self._kind = train.kind
        self._train = train
        self._dev = dev
        self._settings = settings
        self._progress = progress
        self._order = np.random.default_rng(settings.seed)
        self._rows = len(train.features.lengths)
        self._steps = settings.epochs * math.ceil(self._rows / settings.batch_rows)
        self._optimiser = _optimiser(module, settings)
        self._rate = torch.optim.lr_scheduler.LambdaLR(self._optimiser, self._rate_at)

    def run(self) -> Fit:
        history: list[Epoch] = []
        best, tensors = 0, to_tensors(self._module)
        self._progress.start("train", total=self._steps, unit="steps")
        for number in range(self._settings.epochs):
            history.append(self._epoch())
            if number == 0 or _rank(history[number]) > _rank(history[best]):
                best, tensors = number, to_tensors(self._module)
            self._progress.note(
                epoch=number + 1,
                loss=history[number].train_loss,
                dev_score=history[number].dev.score,
                best=history[best].dev.score,
            )
            if self._settings.patience and number - best >= self._settings.patience:
                break
        self._progress.done()
        return Fit(tensors, tuple(history), best)

    def _epoch(self) -> Epoch:
        self._module.train()
        total = 0.0
        for batch in self._batches():
            total += self._step(batch) * len(batch)
            self._progress.advance()
        gold = self._dev.gold
        logits = self._kind.logits(predict(self._module, self._dev.features))
        calibration = self._kind.calibrate(gold, logits)
        return Epoch(
            train_loss=total / self._rows,
            dev_loss=self._kind.dev_loss(gold, logits),
            dev=self._kind.measure(gold, logits, self._labels, calibration),
        )

    def _step(self, batch: npt.NDArray[np.int64]) -> float:
        features, mask = self._train.features.batch(batch)
        if self._settings.token_dropout:
            mask = _drop_tokens(mask, self._settings.token_dropout)
        logits = _read(self._module, features, mask)
        loss = self._kind.loss(logits, self._train.gold, batch, self._settings)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._module.parameters(), _CLIP_NORM)
        self._optimiser.step()
        self._rate.step()
        return float(loss.detach())

    def _batches(self) -> Iterator[npt.NDArray[np.int64]]:
        """All rows once, in batches of near-equal length and random order."""
        rows = self._order.permutation(self._rows)
        lengths = self._train.features.lengths.numpy()
        size = self._settings.batch_rows
        batches: list[npt.NDArray[np.int64]] = []
        for first in range(0, len(rows), size * _BUCKET_BATCHES):
            bucket = rows[first : first + size * _BUCKET_BATCHES]
            bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
            batches += [bucket[start : start + size] for start in range(0, len(bucket), size)]
        for index in self._order.permutation(len(batches)):
            yield batches[index]

    def _rate_at(self, step: int) -> float:
        warmup = max(1, round(self._steps * self._settings.warmup))
        if step < warmup:
            return (step + 1) / warmup
        left = max(0.0, (self._steps - step) / max(1, self._steps - warmup))
        return left if self._settings.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)


def _rank(epoch: Epoch) -> tuple[float, float]:
    return epoch.dev.score, -epoch.dev_loss


def _optimiser(module: Readout, settings: TrainerSettings) -> torch.optim.Optimizer:
    """AdamW; vectors (biases, norms, the layer mix) are not decayed, matrices are."""
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def _drop_tokens(mask: Tensor, share: float) -> Tensor:
    """The mask without a random share of its tokens; the first of each row always stays."""
    kept = mask & (torch.rand(mask.shape) >= share)
    kept[:, 0] = True
    return kept
