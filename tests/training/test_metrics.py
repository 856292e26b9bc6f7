from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss

from labelmux_training.calibration import fit_temperature
from labelmux_training.evaluate import score_predictions
from labelmux_training.metrics import (
    BINS,
    confusion,
    expected_calibration_error,
    measure,
    negative_log_likelihood,
    reliability,
)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


@pytest.fixture
def noisy() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    gold = generator.integers(0, 5, 400)
    logits = generator.normal(size=(400, 5)) + 1.5 * np.eye(5)[gold]
    return gold, logits


def test_metrics_agree_with_scikit_learn(noisy: tuple[np.ndarray, np.ndarray]) -> None:
    gold, logits = noisy
    scores, answers = softmax(logits), logits.argmax(axis=1)
    found = measure(gold, scores)
    assert found.rows == 400
    assert found.accuracy == pytest.approx(accuracy_score(gold, answers))
    assert found.macro_f1 == pytest.approx(f1_score(gold, answers, average="macro"))
    assert (confusion(gold, answers, 5) == confusion_matrix(gold, answers)).all()
    assert negative_log_likelihood(gold, logits) == pytest.approx(log_loss(gold, scores))


def test_macro_f1_leaves_out_labels_that_play_no_part() -> None:
    gold, answers = np.array([0, 0, 1]), np.array([0, 2, 1])
    scores = np.eye(4)[answers]
    assert measure(gold, scores).macro_f1 == pytest.approx(f1_score(gold, answers, average="macro"))


def test_calibration_error_by_hand() -> None:
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    gold = np.array([0, 1, 0, 1])
    # Bin of 0.9: accuracy 0.5; bin of 0.6: accuracy 1.
    expected = (2 * abs(0.5 - 0.9) + 2 * abs(1 - 0.6)) / 4
    assert expected_calibration_error(gold, scores) == pytest.approx(expected)
    assert expected_calibration_error(gold, np.eye(2)[gold]) == 0


def test_bins_hold_every_row_once(noisy: tuple[np.ndarray, np.ndarray]) -> None:
    gold, logits = noisy
    bins = reliability(gold, softmax(logits))
    assert bins.counts.sum() == 400
    assert bins.counts.shape == (BINS,)


@pytest.mark.parametrize("scale", [0.25, 1.0, 6.0])
def test_temperature_undoes_a_wrong_scale(
    noisy: tuple[np.ndarray, np.ndarray], scale: float
) -> None:
    gold, logits = noisy
    right = fit_temperature(gold, logits)
    found = fit_temperature(gold, logits * scale)
    assert found == pytest.approx(right * scale, rel=1e-2)
    assert negative_log_likelihood(gold, logits * scale, found) <= negative_log_likelihood(
        gold, logits * scale
    )


def test_a_handful_of_right_answers_is_no_proof_of_certainty() -> None:
    gold = np.zeros(8, dtype=np.int64)
    logits = np.tile(np.array([5.0, 0.0, 0.0], dtype=np.float32), (8, 1))
    assert 0.7 < fit_temperature(gold, logits) <= 1
    many = np.tile(logits, (1000, 1))
    assert fit_temperature(np.zeros(8000, dtype=np.int64), many) < 0.7


def test_temperature_is_finite_where_all_or_nothing_is_right() -> None:
    gold = np.array([0, 1, 0, 1])
    right = 4.0 * np.eye(2)[gold]
    assert 0 < fit_temperature(gold, right) <= 1
    assert 1 <= fit_temperature(gold, -right) < 100


def test_predictions_from_elsewhere_are_scored_the_same(
    noisy: tuple[np.ndarray, np.ndarray],
) -> None:
    gold, logits = noisy
    labels = ["a", "b", "c", "d", "e"]
    named = [labels[index] for index in gold]
    assert score_predictions(named, softmax(logits), labels) == measure(gold, softmax(logits))
