"""The loop that trains an adapter, whatever its method: steps, epochs, and which epoch is kept.

Repeatable: on one machine, equal settings and rows give equal tensors, also where a run stopped and
went on.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from labelmux_training.errors import DivergedError
from labelmux_training.kinds import Kind, Logits
from labelmux_training.metrics import AnyMetrics
from labelmux_training.progress import Progress
from labelmux_training.run_folder import Checkpoint
from labelmux_training.settings import TrainerSettings

#: Batches whose rows are sorted by length together.
_BUCKET_BATCHES = 32
_CLIP_NORM = 1.0
_METRICS = {found.__name__: found for found in get_args(AnyMetrics)}


class LabelledRows(Protocol):
    """Rows and what their labels are."""

    @property
    def kind(self) -> Kind:
        """Which kind of task they are of."""

    @property
    def gold(self) -> Any:
        """As ``kind`` has it."""

    @property
    def token_counts(self) -> npt.NDArray[np.int64]:
        """Of each row. [rows]"""


class Learner(ABC):
    """What is trained, on which rows."""

    def __init__(self, module: nn.Module, train: LabelledRows, dev: LabelledRows) -> None:
        self.module = module
        self.train = train
        self.dev = dev

    @abstractmethod
    def logits(self, batch: npt.NDArray[np.int64]) -> Tensor:
        """Of these rows of ``train``, as a step sees them; differentiable.

        [rows, K], or [rows, T, K] of a token task.
        """

    @abstractmethod
    def dev_logits(self) -> list[Logits]:
        """Of all rows of ``dev``, as they are served. Each [K], or [T, K] of a token task."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """A copy of what the adapter is by now."""

    @abstractmethod
    def decays(self, name: str, parameter: Tensor) -> bool:
        """Whether weight decay pulls this parameter of the module towards 0."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch came to."""

    #: NaN where nothing was trained.
    train_loss: float
    dev_loss: float
    #: At the calibration that fits this epoch.
    dev: AnyMetrics

    @classmethod
    def of(
        cls, train_loss: float, dev: LabelledRows, found: Sequence[Logits], labels: Sequence[str]
    ) -> Epoch:
        """What these logits of dev's rows come to."""
        logits = dev.kind.logits(found)
        calibration = dev.kind.calibrate(dev.gold, logits)
        return cls(
            train_loss=train_loss,
            dev_loss=dev.kind.dev_loss(dev.gold, logits),
            dev=dev.kind.measure(dev.gold, logits, labels, calibration),
        )

    @property
    def rank(self) -> tuple[float, float]:
        """The higher, the better: the dev score, and between equals the dev loss."""
        return self.dev.score, -self.dev_loss


@dataclass(frozen=True, slots=True)
class Fit:
    """The best epoch's adapter, and how training went."""

    tensors: dict[str, Tensor]
    history: tuple[Epoch, ...]
    #: Index into ``history``.
    best: int
    #: What the tensors come to where they are no epoch's: untrained, they were better on dev.
    untrained: Epoch | None = None

    @property
    def kept(self) -> Epoch:
        """What the tensors come to."""
        return self.untrained or self.history[self.best]


class Loop:
    """One training run; ``run`` may be called once."""

    def __init__(
        self,
        learner: Learner,
        labels: Sequence[str],
        settings: TrainerSettings,
        progress: Progress,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """
        Args:
            learner: what is trained.
            labels: in logit order.
            settings: see there.
            progress: told of each step and epoch.
            checkpoint: where the run is kept after each epoch, and goes on from if it is there.
        """
        self._learner = learner
        self._labels = labels
        self._settings = settings
        self._progress = progress
        self._checkpoint = checkpoint
        batches = math.ceil(len(learner.train.token_counts) / settings.batch_rows)
        self._passes = math.ceil(settings.least_steps / (settings.epochs * batches)) or 1
        self._epoch_steps = self._passes * batches
        self._optimiser = _optimiser(learner, settings)
        self._history: list[Epoch] = []
        self._best = 0
        self._kept: dict[str, Tensor] = {}

    def run(self) -> Fit:
        """Train until the last epoch, or until dev has not improved for long enough.

        Raises:
            DivergedError: a loss, or an answer on dev, is not finite.
        """
        self._restore()
        self._progress.start("train", self._settings.epochs * self._epoch_steps, "steps")
        self._progress.advance(len(self._history) * self._epoch_steps)
        while not self._ended():
            self._history.append(self._epoch(len(self._history)))
            newest = self._history[-1]
            if not self._kept or newest.rank > self._history[self._best].rank:
                self._best, self._kept = len(self._history) - 1, self._learner.tensors()
            self._progress.note(
                epoch=len(self._history),
                loss=newest.train_loss,
                dev_score=newest.dev.score,
                best=self._history[self._best].dev.score,
            )
            self._save()
        self._progress.done()
        return Fit(self._kept, tuple(self._history), self._best)

    def _ended(self) -> bool:
        done, patience = len(self._history), self._settings.patience
        return done == self._settings.epochs or 0 < patience < done - self._best

    def _epoch(self, number: int) -> Epoch:
        """Its random numbers depend on the seed and its number alone."""
        order = np.random.default_rng((self._settings.seed, number))
        torch.manual_seed(int(order.integers(2**63)))
        self._learner.module.train()
        total = 0.0
        for place, batch in enumerate(self._batches(order)):
            total += self._step(batch, number * self._epoch_steps + place) * len(batch)
            if not math.isfinite(total):
                raise self._diverged(f"the training loss of epoch {number + 1}")
            self._progress.advance()
        self._learner.module.eval()
        seen = self._passes * len(self._learner.train.token_counts)
        found = self._learner.dev_logits()
        if not all(np.isfinite(row).all() for row in found):
            raise self._diverged(f"an answer on dev after epoch {number + 1}")
        return Epoch.of(total / seen, self._learner.dev, found, self._labels)

    def _diverged(self, what: str) -> DivergedError:
        rate = self._settings.learning_rate
        return DivergedError(what, f"lower the learning rate, which is {rate:g}")

    def _step(self, batch: npt.NDArray[np.int64], step: int) -> float:
        train = self._learner.train
        loss = train.kind.loss(self._learner.logits(batch), train.gold, batch, self._settings)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._learner.module.parameters(), _CLIP_NORM)
        for group in self._optimiser.param_groups:
            group["lr"] = self._settings.learning_rate * self._rate_at(step)
        self._optimiser.step()
        return float(loss.detach())

    def _batches(self, order: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
        """All rows, as often as an epoch sees them, in batches of near-equal length."""
        counts, size = self._learner.train.token_counts, self._settings.batch_rows
        for _ in range(self._passes):
            rows = order.permutation(len(counts))
            batches: list[npt.NDArray[np.int64]] = []
            for first in range(0, len(rows), size * _BUCKET_BATCHES):
                bucket = rows[first : first + size * _BUCKET_BATCHES]
                bucket = bucket[np.argsort(counts[bucket], kind="stable")]
                batches += [bucket[start : start + size] for start in range(0, len(bucket), size)]
            for index in order.permutation(len(batches)):
                yield batches[index]

    def _rate_at(self, step: int) -> float:
        """Share of the peak rate."""
        steps = self._settings.epochs * self._epoch_steps
        warmup = max(1, round(steps * self._settings.warmup))
        if step < warmup:
            return (step + 1) / warmup
        left = max(0.0, (steps - step) / max(1, steps - warmup))
        return left if self._settings.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)

    def _save(self) -> None:
        if self._checkpoint is None:
            return
        self._checkpoint.save(
            module=self._learner.module.state_dict(),
            optimiser=self._optimiser.state_dict(),
            history=[
                (epoch.train_loss, epoch.dev_loss, type(epoch.dev).__name__, asdict(epoch.dev))
                for epoch in self._history
            ],
            best=self._best,
            kept=self._kept,
        )

    def _restore(self) -> None:
        saved = self._checkpoint and self._checkpoint.saved()
        if not saved:
            return
        self._learner.module.load_state_dict(saved["module"])
        self._optimiser.load_state_dict(saved["optimiser"])
        self._history = [
            Epoch(train_loss, dev_loss, _METRICS[name](**values))
            for train_loss, dev_loss, name, values in saved["history"]
        ]
        self._best, self._kept = saved["best"], saved["kept"]
        self._progress.say(f"going on after epoch {len(self._history)}, where the run stopped")


def _optimiser(learner: Learner, settings: TrainerSettings) -> torch.optim.Optimizer:
    """AdamW."""
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, parameter in learner.module.named_parameters():
        (decayed if learner.decays(name, parameter) else free).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
