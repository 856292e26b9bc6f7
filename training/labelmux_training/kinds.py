"""What training needs to know of each kind of task, in one place.

``gold`` is what a dataset's rows say, as its kind has it, and ``logits`` what a module or a server
says of them: [rows, K] where a text has labels, one [T, K] per row where its words have.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from labelmux_adapters.iob2 import OUTSIDE, as_iob2, word_tokens, words_of
from labelmux_adapters.kinds import TaskKind
from labelmux_adapters.manifest import Calibration
from labelmux_adapters.scores import DEFAULT_THRESHOLD, scores_of
from labelmux_adapters.ytuning import (
    Readout,
    TokenYTuning,
    YTuning,
    YTuningSizes,
    margin_loss,
)
from labelmux_encoder.tokenizer import Tokenizer
from labelmux_training.calibration import (
    fit_label_temperature,
    fit_temperature,
    fit_thresholds,
)
from labelmux_training.data import Dataset
from labelmux_training.errors import OptionsError
from labelmux_training.features import Features, Indices
from labelmux_training.labels import label_flags, label_ids
from labelmux_training.metrics import (
    AnyMetrics,
    Flags,
    Ids,
    label_loss,
    measure,
    measure_labels,
    measure_spans,
    negative_log_likelihood,
)
from labelmux_training.settings import TrainerSettings

Logits = npt.NDArray[np.float32]

#: Tokens of no word's tag.
_NO_TAG = -100


class Kind(ABC):
    """One kind of task."""

    name: TaskKind
    #: Settings that mean nothing to it, each with the value that leaves it alone.
    unused: Mapping[str, object] = MappingProxyType({})

    def check(self, settings: TrainerSettings) -> None:
        """Raises OptionsError where a setting is not one of this kind of task."""
        for option, idle in self.unused.items():
            if (found := getattr(settings, option)) != idle:
                problem = f"{found!r} means nothing to a {self.name} task"
                raise OptionsError(option, problem, "leave it out")

    @abstractmethod
    def gold(
        self, dataset: Dataset, labels: Sequence[str], tokenizer: Tokenizer, max_tokens: int
    ) -> Any:
        """What the rows say."""

    def module(self, sizes: YTuningSizes, labels: int, dropout: float) -> Readout:
        """The trainable form."""
        return YTuning(sizes, labels, dropout)

    @abstractmethod
    def loss(self, logits: Tensor, gold: Any, rows: Indices, settings: TrainerSettings) -> Tensor:
        """Of a batch: the module's logits and the rows that they are of."""

    @abstractmethod
    def start_logits(self, gold: Any, labels: int) -> Tensor:
        """What a head answers before it has learned anything. [K]

        Where most labels are rare, steps from zero first drive all logits down together, and what
        lies beneath the head with them, until it no longer tells rows apart.
        """

    @abstractmethod
    def dev_loss(self, gold: Any, logits: Any) -> float:
        """What decides between epochs of equal score."""

    @abstractmethod
    def calibrate(self, gold: Any, logits: Any) -> Calibration:
        """The calibration that fits dev best."""

    @abstractmethod
    def measure(
        self, gold: Any, logits: Any, labels: Sequence[str], calibration: Calibration
    ) -> AnyMetrics:
        """How good calibrated answers are."""

    @abstractmethod
    def class_means(self, features: Features, gold: Any, labels: int, mix: Tensor) -> Tensor:
        """Features that stand for each label, of this mix of states. [K, H]"""

    def logits(self, found: Sequence[Logits]) -> Any:
        """One array per row, as this kind has them."""
        return np.stack(found)


class SingleLabel(Kind):
    """Each text has one label: gold is ids [rows]."""

    name = "single_label"

    @override
    def gold(
        self, dataset: Dataset, labels: Sequence[str], tokenizer: Tokenizer, max_tokens: int
    ) -> Ids:
        """Each row's position in ``labels``."""
        return label_ids(dataset, labels)

    @override
    def loss(self, logits: Tensor, gold: Ids, rows: Indices, settings: TrainerSettings) -> Tensor:
        """Cross-entropy, or the paper's margin."""
        wanted = torch.from_numpy(gold[np.asarray(rows)])
        if settings.loss == "margin":
            return margin_loss(logits, wanted, settings.margin)
        return functional.cross_entropy(logits, wanted, label_smoothing=settings.label_smoothing)

    @override
    def start_logits(self, gold: Ids, labels: int) -> Tensor:
        """Zeros: labels of whole texts are seldom rare."""
        return torch.zeros(labels)

    @override
    def dev_loss(self, gold: Ids, logits: Logits) -> float:
        """Negative log-likelihood."""
        return negative_log_likelihood(gold, logits)

    @override
    def calibrate(self, gold: Ids, logits: Logits) -> Calibration:
        """A temperature."""
        return Calibration(temperature=fit_temperature(gold, logits))

    @override
    def measure(
        self, gold: Ids, logits: Logits, labels: Sequence[str], calibration: Calibration
    ) -> AnyMetrics:
        """Accuracy and what goes with it."""
        return measure(gold, scores_of(logits, self.name, calibration.temperature))

    @override
    def class_means(self, features: Features, gold: Ids, labels: int, mix: Tensor) -> Tensor:
        """Each label's mean over its rows' mixed means; a label without rows gives NaN."""
        means, ids = features.mixed_means(mix), torch.from_numpy(gold)
        sums = torch.zeros(labels, means.shape[1]).index_add_(0, ids, means)
        return sums / torch.bincount(ids, minlength=labels)[:, None]


class MultiLabel(Kind):
    """Each text has any number of labels: gold is flags [rows, K]."""

    name = "multi_label"
    unused: Mapping[str, object] = MappingProxyType(
        {"loss": "cross_entropy", "label_smoothing": 0.0}
    )

    @override
    def gold(
        self, dataset: Dataset, labels: Sequence[str], tokenizer: Tokenizer, max_tokens: int
    ) -> Flags:
        """Which labels each row has."""
        return label_flags(dataset, labels)

    @override
    def loss(self, logits: Tensor, gold: Flags, rows: Indices, settings: TrainerSettings) -> Tensor:
        """Binary cross-entropy, summed over labels: as strong per row as that of one label."""
        wanted = torch.from_numpy(gold[np.asarray(rows)]).to(logits.dtype)
        found = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        return found.sum(1).mean()

    @override
    def start_logits(self, gold: Flags, labels: int) -> Tensor:
        """The labels' log odds."""
        flags = torch.from_numpy(gold).float()
        return torch.logit((flags.sum(0) + 1) / (len(flags) + 2))

    @override
    def dev_loss(self, gold: Flags, logits: Logits) -> float:
        """Binary cross-entropy."""
        return label_loss(gold, logits)

    @override
    def calibrate(self, gold: Flags, logits: Logits) -> Calibration:
        """A temperature, and a threshold for each label."""
        temperature = fit_label_temperature(gold, logits)
        scores = scores_of(logits, self.name, temperature)
        return Calibration(temperature=temperature, thresholds=fit_thresholds(gold, scores))

    @override
    def measure(
        self, gold: Flags, logits: Logits, labels: Sequence[str], calibration: Calibration
    ) -> AnyMetrics:
        """F1 at the thresholds."""
        scores = scores_of(logits, self.name, calibration.temperature)
        thresholds = calibration.thresholds or (DEFAULT_THRESHOLD,) * len(labels)
        return measure_labels(gold, scores >= np.asarray(thresholds, np.float32))

    @override
    def class_means(self, features: Features, gold: Flags, labels: int, mix: Tensor) -> Tensor:
        """Each label's mean over the rows that have it; one without rows gives NaN."""
        flags = torch.from_numpy(gold).float()
        return flags.T @ features.mixed_means(mix) / flags.sum(0)[:, None]


@dataclass(frozen=True)
class WordTags:
    """What the words of each row say; one array a row."""

    #: The token at which each word's tag is read; -1 where it is cut off. [words]
    tokens: tuple[Ids, ...]
    #: Each word's position in the labels. [words]
    tags: tuple[Ids, ...]
    #: The first word of each token that the file has.
    firsts: tuple[Ids, ...]

    def targets(self, rows: Indices, tokens: int) -> Ids:
        """The tag that each token shall have, ``_NO_TAG`` for most. [rows, tokens]"""
        found = np.full((len(rows), tokens), _NO_TAG, np.int64)
        for at, row in enumerate(rows):
            # Backwards: of words that share a token the first counts.
            places, tags = self.tokens[row][::-1], self.tags[row][::-1]
            found[at, places[places >= 0]] = tags[places >= 0]
        return found

    def read(self, logits: Sequence[Logits]) -> tuple[Ids, Logits]:
        """Tags and logits of all words that are not cut off. [words], [words, K]"""
        tags = [tags[places >= 0] for tags, places in zip(self.tags, self.tokens, strict=True)]
        found = [row[places[places >= 0]] for row, places in zip(logits, self.tokens, strict=True)]
        return np.concatenate(tags), np.concatenate(found)


class Tokens(Kind):
    """Each word of a text has a tag: gold is ``WordTags``, logits one array a row."""

    name = "token"
    unused: Mapping[str, object] = MappingProxyType({"loss": "cross_entropy", "token_dropout": 0.0})

    @override
    def gold(
        self, dataset: Dataset, labels: Sequence[str], tokenizer: Tokenizer, max_tokens: int
    ) -> WordTags:
        """Where each word is read, and its tag."""
        index = {label: position for position, label in enumerate(labels)}
        encoded = tokenizer.encode(dataset.texts, max_tokens, offsets=True)
        return WordTags(
            tokens=tuple(
                word_tokens(words_of(row.text), found.offsets, found.special)
                for row, found in zip(dataset.rows, encoded, strict=True)
            ),
            tags=tuple(np.array([index[tag] for tag in row.labels]) for row in dataset.rows),
            firsts=tuple(np.asarray(row.firsts, np.int64) for row in dataset.rows),
        )

    @override
    def module(self, sizes: YTuningSizes, labels: int, dropout: float) -> Readout:
        """The trainable form."""
        return TokenYTuning(sizes, labels, dropout)

    @override
    def loss(
        self, logits: Tensor, gold: WordTags, rows: Indices, settings: TrainerSettings
    ) -> Tensor:
        """Cross-entropy over words; 0 where no word has a token."""
        wanted = torch.from_numpy(gold.targets(rows, logits.shape[1]))
        if bool((wanted == _NO_TAG).all()):
            return 0 * logits.sum()
        return functional.cross_entropy(
            logits.flatten(0, 1),
            wanted.flatten(),
            ignore_index=_NO_TAG,
            label_smoothing=settings.label_smoothing,
        )

    @override
    def start_logits(self, gold: WordTags, labels: int) -> Tensor:
        """The tags' log shares of the words."""
        counts = torch.from_numpy(np.bincount(np.concatenate(gold.tags), minlength=labels)) + 1.0
        return (counts / counts.sum()).log()

    @override
    def dev_loss(self, gold: WordTags, logits: Sequence[Logits]) -> float:
        """Negative log-likelihood of the words' tags."""
        return negative_log_likelihood(*gold.read(logits))

    @override
    def calibrate(self, gold: WordTags, logits: Sequence[Logits]) -> Calibration:
        """A temperature, by words."""
        return Calibration(temperature=fit_temperature(*gold.read(logits)))

    @override
    def measure(
        self,
        gold: WordTags,
        logits: Sequence[Logits],
        labels: Sequence[str],
        calibration: Calibration,
    ) -> AnyMetrics:
        """Spans found, by the tokens that the file has."""
        return measure_spans(*self.tags_of(gold, logits, labels))

    def tags_of(
        self, gold: WordTags, logits: Sequence[Logits], labels: Sequence[str]
    ) -> tuple[list[list[str]], list[list[str]]]:
        """Wanted and found tags of the tokens that the file has; what is cut off is outside.

        A span of an answer may begin or end within such a token: it covers those whose first word
        it covers.
        """
        wanted, found = [], []
        for row, firsts in enumerate(gold.firsts):
            wanted.append([labels[at] for at in gold.tags[row][firsts]])
            best = logits[row].argmax(axis=1)
            words = [labels[best[at]] if at >= 0 else OUTSIDE for at in gold.tokens[row]]
            spans = as_iob2(words)
            found.append([spans[at] for at in firsts])
        return wanted, found

    @override
    def class_means(self, features: Features, gold: WordTags, labels: int, mix: Tensor) -> Tensor:
        """Each tag's mean over the tokens at which it is read; one without any gives NaN."""
        starts = features.starts.numpy()
        places = [start + found for start, found in zip(starts, gold.tokens, strict=True)]
        read = np.concatenate(gold.tokens) >= 0
        tokens = torch.from_numpy(np.concatenate(places)[read])
        tags = torch.from_numpy(np.concatenate(gold.tags)[read])
        sums = features.mixed_sums(tokens, tags, labels, mix)
        return sums / torch.bincount(tags, minlength=labels)[:, None]

    @override
    def logits(self, found: Sequence[Logits]) -> Sequence[Logits]:
        """As they are: rows differ in length."""
        return found


KINDS: Mapping[TaskKind, Kind] = {
    kind.name: kind for kind in (SingleLabel(), MultiLabel(), Tokens())
}
