"""The linear probe: the simplest classifier on the same features, to compare with.

Logistic regression on the mean of the last layer's features, as they are (not standardised); its
strength of regularisation is chosen on dev. It cannot be served; it is a yardstick.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from labelmux_training.features import Features
from labelmux_training.metrics import Ids, Metrics, Scores, measure

#: Inverse strengths of regularisation that are tried.
STRENGTHS = (0.3, 1.0, 10.0)
_ITERATIONS = 1000


@dataclass(frozen=True)
class Probe:
    """A fitted probe."""

    strength: float
    dev: Metrics
    _model: Any

    def scores(self, features: Features) -> Scores:
        """Probabilities of other rows. [rows, K]"""
        return _scores(self._model, features.means().numpy())

    def measure(self, features: Features, gold: Ids) -> Metrics:
        """Its metrics on other rows with the same labels."""
        return measure(gold, self.scores(features))


def fit_probe(train: Features, train_gold: Ids, dev: Features, dev_gold: Ids) -> Probe:
    """Fit one probe for each of ``STRENGTHS`` and keep the one with the best dev accuracy.

    Every label must occur in ``train_gold``.
    """
    inputs, dev_inputs = train.means().numpy(), dev.means().numpy()
    probes = [_fit(strength, inputs, train_gold, dev_inputs, dev_gold) for strength in STRENGTHS]
    return max(probes, key=lambda probe: probe.dev.accuracy)


def _fit(
    strength: float,
    inputs: npt.NDArray[np.float32],
    gold: Ids,
    dev_inputs: npt.NDArray[np.float32],
    dev_gold: Ids,
) -> Probe:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # dev decides which fit is good
        model.fit(inputs, gold)
    return Probe(strength, measure(dev_gold, _scores(model, dev_inputs)), model)


def _scores(model: Any, inputs: npt.NDArray[np.float32]) -> Scores:
    scores: Scores = model.predict_proba(inputs)
    return scores
