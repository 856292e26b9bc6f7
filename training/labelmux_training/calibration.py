"""What makes scores mean what they say, and what is answered at which score."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from labelmux_adapters.scores import DEFAULT_THRESHOLD
from labelmux_training.errors import OptionsError
from labelmux_training.metrics import Flags, Ids, Scores, label_loss, negative_log_likelihood

#: Temperatures that are searched.
_LOWEST, _HIGHEST = 0.05, 20.0
#: How far from 1 a temperature is expected to lie before any row is seen, in its logarithm.
_PRIOR_SPREAD = 1.0
#: An accuracy of fewer rows says nothing.
FEWEST_ANSWERED = 10


def fit_temperature(gold: Ids, logits: Scores) -> float:
    """The most likely temperature, given these rows and a weak belief that it is near 1.

    The belief weighs as much as a few rows, so it decides nothing where there are hundreds. It
    keeps a handful of rows that are all answered rightly from making every score 1. On these rows
    the temperature is never worse than 1 by negative log-likelihood.
    """
    return _likeliest(lambda t: negative_log_likelihood(gold, logits, t), len(gold))


def fit_label_temperature(gold: Flags, logits: Scores) -> float:
    """The same of a multi_label task, one temperature for all labels. Each [rows, K]"""
    return _likeliest(lambda t: label_loss(gold, logits, t), gold.size)


def fit_thresholds(gold: Flags, scores: Scores) -> tuple[float, ...]:
    """From which score on each label is given, for the best F1 of that label on these rows.

    A threshold lies halfway between the last row that it gives the label and the first that it
    does not; a label that no row has keeps the default.
    """
    return tuple(
        _best_threshold(gold[:, label], scores[:, label]) for label in range(gold.shape[1])
    )


def _best_threshold(gold: npt.NDArray[np.bool_], scores: Scores) -> float:
    if not gold.any():
        return DEFAULT_THRESHOLD
    order = np.argsort(-scores, kind="stable")
    ranked = np.append(scores[order].astype(np.float64), 0.0)
    right = np.cumsum(gold[order])
    f1 = 2 * right / (np.arange(1, len(gold) + 1) + gold.sum())
    f1[ranked[:-1] == ranked[1:]] = -1.0  # no threshold lies between equal scores
    at = int(f1.argmax())
    return _within((ranked[at] + ranked[at + 1]) / 2)


def fit_abstain(gold: Ids, scores: Scores, accuracy: float) -> float | None:
    """The lowest best score to answer at, so that the rows answered are right that often.

    None: all may be answered. There are at least ``FEWEST_ANSWERED`` rows.

    Raises:
        OptionsError: not even the surest rows are right that often.
    """
    best = scores.max(axis=1).astype(np.float64)
    order = np.argsort(-best, kind="stable")
    ranked = np.append(best[order], 0.0)
    right = np.cumsum(scores.argmax(axis=1)[order] == gold[order])
    shares = right / np.arange(1, len(gold) + 1)
    # Between equal scores no threshold lies.
    shares[: FEWEST_ANSWERED - 1] = -1.0
    shares[ranked[:-1] <= ranked[1:]] = -1.0
    reached = shares >= accuracy
    if not reached.any():
        most = int(shares.argmax())
        raise OptionsError(
            "abstain_at_accuracy",
            f"{accuracy:g} is reached on dev by no {FEWEST_ANSWERED} or more surest rows; the "
            f"surest {most + 1} of {len(gold)} reach {math.floor(shares[most] * 1000) / 1000:g}",
            "ask for no more than that, or train on more rows",
        )
    last = int(np.flatnonzero(reached)[-1])
    return None if last == len(gold) - 1 else _within((ranked[last] + ranked[last + 1]) / 2)


def _within(score: float) -> float:
    """Inside of what a manifest takes."""
    return round(min(max(float(score), 0.001), 0.999999), 6)


def _likeliest(loss: Callable[[float], float], rows: int) -> float:
    def cost(log_t: float) -> float:
        return loss(math.exp(log_t)) + 0.5 * (log_t / _PRIOR_SPREAD) ** 2 / rows

    found = minimize_scalar(
        cost,
        bounds=(math.log(_LOWEST), math.log(_HIGHEST)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    better = cost(found.x) < cost(0.0)
    return round(math.exp(found.x), 6) if better else 1.0
