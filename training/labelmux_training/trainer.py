"""Training a Y-Tuning adapter on cached features.

The process's random state is left as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import override

from labelmux_adapters.ytuning import Readout, TokenYTuning, YTuningSizes, to_tensors
from labelmux_training.features import Features, by_length
from labelmux_training.kinds import KINDS, Kind, Logits
from labelmux_training.loop import Epoch, Fit, Learner, Loop
from labelmux_training.progress import NoProgress, Progress
from labelmux_training.settings import TrainerSettings

#: Padded tokens in one readout of dev.
_DEV_TOKENS = 8192
#: By how much the last state leads the others, before the softmax, in a mix that is mostly it.
_LAST_STATE_LEAD = 3.0

#: Vectors that stand for the labels [K, H], of a mix over states [L+1].
LabelFeatures = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Labelled:
    """Features of rows and what their labels are."""

    features: Features
    gold: Any  # as ``kind`` has it
    kind: Kind = field(default=KINDS["single_label"])

    @property
    def token_counts(self) -> npt.NDArray[np.int64]:
        """Of each row. [rows]"""
        counts: npt.NDArray[np.int64] = self.features.lengths.numpy()
        return counts

    def class_means(self, labels: int, mix: Tensor) -> Tensor:
        """Features that stand for each label; one without rows gives NaN. [L+1] -> [K, H]"""
        return self.kind.class_means(self.features, self.gold, labels, mix)


def fit(
    sizes: YTuningSizes,
    labels: Sequence[str],
    train: Labelled,
    dev: Labelled,
    settings: TrainerSettings,
    label_features: LabelFeatures | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Train an adapter and keep the epoch with the best dev score, ties by dev loss.

    Where labels have features of their own, texts can be told apart by those alone, and with a row
    or two a label no epoch may come up to that: then this is what is kept.

    Args:
        sizes: the adapter's; ``hidden`` and ``states`` must be those of the features.
        labels: in logit order.
        train: rows to learn from.
        dev: rows that decide which epoch is kept and when to stop.
        settings: see there.
        label_features: what the label vectors start from; None starts them at random.
        progress: told of each step and epoch.

    Raises:
        DivergedError: a loss, or an answer on dev, is not finite.
    """
    progress = progress or NoProgress()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        module = train.kind.module(sizes, len(labels), settings.dropout)
        starts = [] if label_features is None else _starts(sizes, label_features)
        if starts:
            module.start_labels(starts[0].label_features)
        learner = _YTuningLearner(module, train, dev, settings)
        found = Loop(learner, labels, settings, progress).run()
        fits = [found, *(_untrained(sizes, labels, dev, start, found) for start in starts)]
    best = max(fits, key=lambda fit: fit.kept.rank)
    if best.untrained is not None:
        progress.say(
            f"no epoch was better on dev ({found.kept.dev.score:.4f}) than the labels' features "
            f"alone ({best.kept.dev.score:.4f}): those are kept, untrained"
        )
    return best


class _Start(NamedTuple):
    """A mix over states before its softmax [L+1], and what stands for the labels in it [K, H]."""

    mix: Tensor
    label_features: Tensor


def _starts(sizes: YTuningSizes, label_features: LabelFeatures) -> list[_Start]:
    """The even mix, from which training starts, and one that is mostly the last state."""
    even = torch.zeros(sizes.states)
    last = even.clone()
    last[-1] = _LAST_STATE_LEAD
    return [_Start(mix, label_features(mix.softmax(0))) for mix in (even, last)]


def _untrained(
    sizes: YTuningSizes, labels: Sequence[str], dev: Labelled, start: _Start, found: Fit
) -> Fit:
    """What training found, with a readout of labels' features alone in place of its best."""
    module = dev.kind.module(sizes, len(labels), dropout=0.0)
    module.mix.data.copy_(start.mix)
    module.start_labels(start.label_features)
    module.silence()
    epoch = Epoch.of(math.nan, dev, predict(module, dev.features), labels)
    return replace(found, tensors=to_tensors(module), untrained=epoch)


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


class _YTuningLearner(Learner):
    def __init__(
        self, module: Readout, train: Labelled, dev: Labelled, settings: TrainerSettings
    ) -> None:
        super().__init__(module, train, dev)
        self._readout = module
        self._train_features = train.features
        self._dev_features = dev.features
        self._token_dropout = settings.token_dropout

    @override
    def logits(self, batch: npt.NDArray[np.int64]) -> Tensor:
        features, mask = self._train_features.batch(batch)
        if self._token_dropout:
            mask = _drop_tokens(mask, self._token_dropout)
        return _read(self._readout, features, mask)

    @override
    def dev_logits(self) -> list[Logits]:
        return predict(self._readout, self._dev_features)

    @override
    def tensors(self) -> dict[str, Tensor]:
        return to_tensors(self._readout)

    @override
    def decays(self, name: str, parameter: Tensor) -> bool:
        """Vectors (biases, norms, the layer mix) are not decayed, matrices are."""
        return parameter.ndim > 1


def _drop_tokens(mask: Tensor, share: float) -> Tensor:
    """The mask without a random share of its tokens; the first of each row always stays."""
    kept = mask & (torch.rand(mask.shape) >= share)
    kept[:, 0] = True
    return kept
