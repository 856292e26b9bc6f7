"""How good scores are, against the labels that the rows have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating]
Ids = npt.NDArray[np.int64]

#: Bins of the expected calibration error and of the reliability plot.
BINS = 15


@dataclass(frozen=True, slots=True)
class Metrics:
    """The numbers that every evaluation reports."""

    accuracy: float
    macro_f1: float
    ece: float
    rows: int

    def to_json(self) -> dict[str, float]:
        """As the manifest and ``--json`` carry them."""
        return {
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "ece": self.ece,
            "rows": self.rows,
        }


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
    found = confusion(gold, scores.argmax(axis=1), scores.shape[1])
    return Metrics(
        accuracy=float(np.trace(found) / found.sum()),
        macro_f1=macro_f1(found),
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
