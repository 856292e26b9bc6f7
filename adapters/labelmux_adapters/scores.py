"""Logits to the scores that a caller sees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labelmux_adapters.manifest import Manifest


def to_scores(logits: NDArray[np.float32], manifest: Manifest) -> NDArray[np.float32]:
    """Calibrated probabilities in label order: softmax(logits / temperature). [..., K]"""
    scaled = logits / np.float32(manifest.calibration.temperature)
    exponents = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    scores: NDArray[np.float32] = exponents / exponents.sum(axis=-1, keepdims=True)
    return scores
