"""How good scores are, against the labels that the rows have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from labelmux_adapters.iob2 import runs_of
from labelmux_adapters.quality import (
    accuracy,
    counts_f1,
    label_counts,
    labels_macro_f1,
    span_counts,
    span_f1,
)

Scores = npt.NDArray[np.floating]
Ids = npt.NDArray[np.int64]
#: Which labels each row has. [rows, K]
Flags = npt.NDArray[np.bool_]

#: Bins of the expected calibration error and of the reliability plot.
BINS = 15


@dataclass(frozen=True, slots=True)
class Metrics:
    """The numbers that every evaluation reports."""

    accuracy: float
    macro_f1: float
    ece: float
    rows: int

    @property
    def score(self) -> float:
        """The one that decides which epoch is kept."""
        return self.accuracy

    def to_json(self) -> dict[str, float]:
        """As the manifest and ``--json`` carry them."""
        return asdict(self)

    def shown(self) -> dict[str, str]:
        """For people, by name."""
        return {
            "Accuracy": f"{self.accuracy:.4f}",
            "Macro F1": f"{self.macro_f1:.4f}",
            "Calibration error": f"{self.ece:.4f}",
            "Rows": f"{self.rows}",
        }


@dataclass(frozen=True, slots=True)
class LabelMetrics:
    """The numbers of a multi_label task."""

    #: Over the labels that occur in the rows or in the answers.
    macro_f1: float
    #: Over all decisions.
    micro_f1: float
    #: Share of the rows whose labels are all right.
    subset_accuracy: float
    rows: int

    @property
    def score(self) -> float:
        """The one that decides which epoch is kept."""
        return self.macro_f1

    def to_json(self) -> dict[str, float]:
        """As the manifest and ``--json`` carry them."""
        return asdict(self)

    def shown(self) -> dict[str, str]:
        """For people, by name."""
        return {
            "Macro F1": f"{self.macro_f1:.4f}",
            "Micro F1": f"{self.micro_f1:.4f}",
            "All labels right": f"{self.subset_accuracy:.4f}",
            "Rows": f"{self.rows}",
        }


@dataclass(frozen=True, slots=True)
class SpanMetrics:
    """The numbers of a token task: a span is right if type and both ends are."""

    f1: float
    precision: float
    recall: float
    rows: int

    @property
    def score(self) -> float:
        """The one that decides which epoch is kept."""
        return self.f1

    def to_json(self) -> dict[str, float]:
        """As the manifest and ``--json`` carry them."""
        return asdict(self)

    def shown(self) -> dict[str, str]:
        """For people, by name."""
        return {
            "Span F1": f"{self.f1:.4f}",
            "Precision": f"{self.precision:.4f}",
            "Recall": f"{self.recall:.4f}",
            "Rows": f"{self.rows}",
        }


AnyMetrics = Metrics | LabelMetrics | SpanMetrics


@dataclass(frozen=True, slots=True)
class Reliability:
    """The rows by the score of their best label, in ``BINS`` equal bins. Each [BINS]"""

    counts: npt.NDArray[np.int64]
    #: Mean best score of the bin's rows; 0 where there is none.
    confidence: npt.NDArray[np.float64]
    #: Share of the bin's rows whose best label is right; 0 where there is none.
    accuracy: npt.NDArray[np.float64]


def measure(gold: Ids, scores: Scores) -> Metrics:
    """All metrics of ``scores`` (probabilities) [rows, K] against ``gold`` [rows]; rows > 0."""
    best = scores.argmax(axis=1)
    return Metrics(
        accuracy=accuracy(gold, best),
        macro_f1=macro_f1(confusion(gold, best, scores.shape[1])),
        ece=expected_calibration_error(gold, scores),
        rows=int(gold.shape[0]),
    )


def confusion(gold: Ids, found: Ids, labels: int) -> npt.NDArray[np.int64]:
    """How many rows of label i (down) were taken for label j (across). [K, K]"""
    return np.bincount(gold * labels + found, minlength=labels * labels).reshape(labels, labels)


def f1_by_label(found: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """F1 of each label from a confusion matrix; NaN where a label neither occurs nor is said."""
    either = found.sum(axis=0) + found.sum(axis=1)
    with np.errstate(invalid="ignore"):
        f1: npt.NDArray[np.float64] = 2 * np.diag(found) / either
    return f1


def macro_f1(found: npt.NDArray[np.int64]) -> float:
    """Mean F1 over the labels that occur in the rows or in the answers."""
    return float(np.nanmean(f1_by_label(found)))


def reliability(gold: Ids, scores: Scores) -> Reliability:
    """The rows sorted into bins of equal width by the score of their best label."""
    best = scores.max(axis=1)
    right = scores.argmax(axis=1) == gold
    bins = np.clip(np.ceil(best * BINS).astype(np.int64) - 1, 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    divisor = np.maximum(counts, 1)
    return Reliability(
        counts=counts,
        confidence=np.bincount(bins, weights=best, minlength=BINS) / divisor,
        accuracy=np.bincount(bins, weights=right, minlength=BINS) / divisor,
    )


def expected_calibration_error(gold: Ids, scores: Scores) -> float:
    """How far confidence is from accuracy, from 0 (good) to 1.

    Rows are binned by the score of their best label into 15 bins of equal width, (0, 1/15] to
    (14/15, 1]; the error is the mean over rows of their bin's |accuracy - mean best score|.
    """
    found = reliability(gold, scores)
    gap = np.abs(found.accuracy - found.confidence)
    return float((gap * found.counts).sum() / found.counts.sum())


def negative_log_likelihood(gold: Ids, logits: Scores, temperature: float = 1.0) -> float:
    """Mean of -log softmax(logits / temperature) at the gold label."""
    scaled = logits.astype(np.float64) / temperature
    peak = scaled.max(axis=1, keepdims=True)
    total = np.log(np.exp(scaled - peak).sum(axis=1)) + peak[:, 0]
    return float((total - scaled[np.arange(len(gold)), gold]).mean())


def measure_labels(gold: Flags, found: Flags) -> LabelMetrics:
    """All metrics of answers with any number of labels. Each [rows, K]; rows > 0"""
    counts = label_counts(gold, found)
    return LabelMetrics(
        macro_f1=labels_macro_f1(gold, found),
        micro_f1=_or_zero(counts_f1(*(count.sum() for count in counts))),
        subset_accuracy=float((gold == found).all(axis=1).mean()),
        rows=len(gold),
    )


def measure_spans(gold: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> SpanMetrics:
    """All metrics of tags, as conlleval and seqeval have them. One sequence a row"""
    wanted, given = ([set(runs_of(tags)) for tags in rows] for rows in (gold, found))
    right, said, there = span_counts(wanted, given)
    return SpanMetrics(
        f1=span_f1(wanted, given),
        precision=right / said if said else 0.0,
        recall=right / there if there else 0.0,
        rows=len(gold),
    )


def type_counts(
    gold: Sequence[Sequence[str]], found: Sequence[Sequence[str]]
) -> dict[str, tuple[int, int, int]]:
    """Of each type of span: how many are right, said, and there."""
    right, said, there = Counter[str](), Counter[str](), Counter[str]()
    for wanted, tags in zip(gold, found, strict=True):
        expected, given = set(runs_of(wanted)), set(runs_of(tags))
        right.update(run.label for run in expected & given)
        said.update(run.label for run in given)
        there.update(run.label for run in expected)
    return {name: (right[name], said[name], there[name]) for name in sorted({*said, *there})}


def label_loss(gold: Flags, logits: Scores, temperature: float = 1.0) -> float:
    """Mean over rows and labels of -log of what sigmoid(logits / temperature) says is so."""
    scaled = logits.astype(np.float64) / temperature
    return float(np.logaddexp(0, np.where(gold, -scaled, scaled)).mean())


def _or_zero(value: npt.NDArray[np.float64]) -> float:
    return 0.0 if np.isnan(value) else float(value)
