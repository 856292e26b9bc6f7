"""The temperature that makes scores mean what they say."""

from __future__ import annotations

import math

from scipy.optimize import minimize_scalar

from labelmux_training.metrics import Ids, Scores, negative_log_likelihood

#: Temperatures that are searched.
_LOWEST, _HIGHEST = 0.05, 20.0
#: How far from 1 a temperature is expected to lie before any row is seen, in its logarithm.
_PRIOR_SPREAD = 1.0


def fit_temperature(gold: Ids, logits: Scores) -> float:
    """The most likely temperature, given these rows and a weak belief that it is near 1.

    The belief weighs as much as a few rows, so it decides nothing where there are hundreds. It
    keeps a handful of rows that are all answered rightly from making every score 1. On these rows
    the temperature is never worse than 1 by negative log-likelihood.
    """

    def cost(log_t: float) -> float:
        fit = negative_log_likelihood(gold, logits, math.exp(log_t))
        return fit + 0.5 * (log_t / _PRIOR_SPREAD) ** 2 / len(gold)

    found = minimize_scalar(
        cost,
        bounds=(math.log(_LOWEST), math.log(_HIGHEST)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    better = cost(found.x) < cost(0.0)
    return round(math.exp(found.x), 6) if better else 1.0
