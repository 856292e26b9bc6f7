"""Logits to the scores that a caller sees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labelmux_adapters.kinds import TaskKind
from labelmux_adapters.manifest import Manifest

#: From which score on a label is given where the manifest says nothing.
DEFAULT_THRESHOLD = 0.5
#: Of logits divided by their temperature: the difference of two such is finite in float32.
_LARGEST = 1e38


def to_scores(logits: NDArray[np.float32], manifest: Manifest) -> NDArray[np.float32]:
    """Calibrated probabilities in label order. [..., K]

    Those of one text, or of one token of a token task, add up to 1, ``softmax(logits /
    temperature)``; those of a multi_label task are each label's own, ``sigmoid(logits /
    temperature)``.
    """
    return scores_of(logits, manifest.task_kind, manifest.calibration.temperature)


def scores_of(
    logits: NDArray[np.float32], kind: TaskKind, temperature: float = 1.0
) -> NDArray[np.float32]:
    """The same, without a manifest; finite where the logits are."""
    limit = np.float32(_LARGEST * min(1.0, temperature))
    scaled = np.clip(logits, -limit, limit) / np.float32(temperature)
    return _sigmoid(scaled) if kind == "multi_label" else _softmax(scaled)


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    # By tanh: exp overflows at logits that a file may well give.
    half = np.float32(0.5)
    scores: NDArray[np.float32] = half + half * np.tanh(half * logits)
    return scores


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores: NDArray[np.float32] = exponents / exponents.sum(axis=-1, keepdims=True)
    return scores


def thresholds_of(manifest: Manifest) -> NDArray[np.float32]:
    """From which score on each label of a multi_label task is given. [K]"""
    thresholds = manifest.calibration.thresholds or [DEFAULT_THRESHOLD] * len(manifest.labels)
    return np.asarray(thresholds, np.float32)
