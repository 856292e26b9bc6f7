"""Training a Y-Tuning adapter on cached features.

Repeatable: on one machine, equal settings, features and labels give equal tensors. The process's
random state is left as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from labelmux_adapters.ytuning import YTuning, YTuningSizes, margin_loss, to_tensors
from labelmux_training.features import Features, by_length
from labelmux_training.metrics import Ids, confusion, macro_f1, negative_log_likelihood
from labelmux_training.progress import NoProgress, Progress
from labelmux_training.settings import TrainerSettings

#: Padded tokens in one readout of dev.
_DEV_TOKENS = 8192
#: Batches whose rows are sorted by length together.
_BUCKET_BATCHES = 32
_CLIP_NORM = 1.0


@dataclass(frozen=True, slots=True)
class Labelled:
    """Features of rows and their label ids."""

    features: Features
    gold: Ids  # [rows]

    def class_means(self, labels: int) -> Tensor:
        """Each label's mean over its rows' mixed means; a label without rows gives NaN. [K, H]"""
        means, gold = self.features.mixed_means(), torch.from_numpy(self.gold)
        sums = torch.zeros(labels, means.shape[1]).index_add_(0, gold, means)
        return sums / torch.bincount(gold, minlength=labels)[:, None]


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch came to."""

    train_loss: float
    dev_accuracy: float
    dev_macro_f1: float
    dev_loss: float


@dataclass(frozen=True, slots=True)
class Fit:
    """The best epoch's adapter, and how training went."""

    tensors: dict[str, Tensor]
    history: tuple[Epoch, ...]
    #: Index into ``history``.
    best: int


def fit(
    sizes: YTuningSizes,
    labels: int,
    train: Labelled,
    dev: Labelled,
    settings: TrainerSettings,
    label_features: Tensor | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Train an adapter and keep the epoch with the best dev accuracy, ties by dev loss.

    Args:
        sizes: the adapter's; ``hidden`` and ``states`` must be those of the features.
        labels: how many there are.
        train: rows to learn from.
        dev: rows that decide which epoch is kept and when to stop.
        settings: see there.
        label_features: vectors for ``start_labels``; None starts the labels at random. [K, H]
        progress: told of each step and epoch.
    """
    progress = progress or NoProgress()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        module = YTuning(sizes, labels, settings.dropout)
        if label_features is not None:
            module.start_labels(label_features)
        return _Run(module, train, dev, settings, progress).run()


def predict(module: YTuning, features: Features) -> npt.NDArray[np.float32]:
    """The module's logits for all rows, in their order; leaves it in eval mode. [rows, K]"""
    module.eval()
    lengths = features.lengths.numpy()
    logits = np.empty((len(lengths), module.label_vectors.shape[0]), dtype=np.float32)
    with torch.inference_mode():
        for batch in by_length(lengths, _DEV_TOKENS):
            logits[batch] = module(*features.batch(batch)).numpy()
    return logits


class _Run:
    """One training run; ``run`` may be called once."""

    def __init__(
        self,
        module: YTuning,
        train: Labelled,
        dev: Labelled,
        settings: TrainerSettings,
        progress: Progress,
    ) -> None:
        self._module = module
        self._train = train
        self._dev = dev
        self._settings = settings
        self._progress = progress
        self._order = np.random.default_rng(settings.seed)
        self._gold = torch.from_numpy(train.gold)
        self._steps = settings.epochs * math.ceil(len(train.gold) / settings.batch_rows)
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
                dev_accuracy=history[number].dev_accuracy,
                best=history[best].dev_accuracy,
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
        logits = predict(self._module, self._dev.features)
        found = confusion(self._dev.gold, logits.argmax(axis=1), logits.shape[1])
        return Epoch(
            train_loss=total / len(self._gold),
            dev_accuracy=float(np.trace(found) / found.sum()),
            dev_macro_f1=macro_f1(found),
            dev_loss=negative_log_likelihood(self._dev.gold, logits),
        )

    def _step(self, batch: npt.NDArray[np.int64]) -> float:
        features, mask = self._train.features.batch(batch)
        if self._settings.token_dropout:
            mask = _drop_tokens(mask, self._settings.token_dropout)
        loss = self._loss(self._module(features, mask), self._gold[torch.from_numpy(batch)])
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._module.parameters(), _CLIP_NORM)
        self._optimiser.step()
        self._rate.step()
        return float(loss.detach())

    def _loss(self, logits: Tensor, gold: Tensor) -> Tensor:
        if self._settings.loss == "margin":
            return margin_loss(logits, gold, self._settings.margin)
        smoothing = self._settings.label_smoothing
        return functional.cross_entropy(logits, gold, label_smoothing=smoothing)

    def _batches(self) -> Iterator[npt.NDArray[np.int64]]:
        """All rows once, in batches of near-equal length and random order."""
        rows = self._order.permutation(len(self._gold))
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
    return epoch.dev_accuracy, -epoch.dev_loss


def _optimiser(module: YTuning, settings: TrainerSettings) -> torch.optim.Optimizer:
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
