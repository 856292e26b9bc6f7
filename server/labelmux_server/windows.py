"""A long text read in windows: what they say, put together.

The logits are put together, not the probabilities: so scores of single labels still add up to 1,
temperature, thresholds and abstaining apply as they were fitted, and one window is no windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from labelmux_adapters.iob2 import word_tokens
from labelmux_encoder.tokenizer import TokenRow

Aggregation = Literal["mean", "max"]

Logits = NDArray[np.float32]


def aggregate(windows: Sequence[Logits], how: Aggregation) -> Logits:
    """One text's logits from those of its windows, label by label. Each [K] -> [K]"""
    if len(windows) == 1:
        return windows[0]
    together: Logits = np.mean(windows, 0) if how == "mean" else np.max(windows, 0)
    return together


def of_words(
    words: Sequence[tuple[int, int]], rows: Sequence[TokenRow], windows: Sequence[Logits]
) -> tuple[NDArray[np.bool_], Logits]:
    """Whether each word was read, and its logits, from the window that shows most around it.

    What a window shows around a word is the tokens on that side where there are fewer; of equal
    windows the first counts. [words], [words, K]

    Args:
        words: where they lie in the text.
        rows: the windows' tokens.
        windows: their logits. Each [T of the row, K]
    """
    if len(rows) == 1:
        alone = word_tokens(words, rows[0].offsets, rows[0].special)
        return alone >= 0, windows[0][np.maximum(alone, 0)]
    tokens = np.stack([word_tokens(words, row.offsets, row.special) for row in rows])
    lengths = np.array([len(row.token_ids) for row in rows])
    around = np.minimum(tokens, lengths[:, None] - 1 - tokens)  # [windows, words]
    best = np.where(tokens < 0, -1, around).argmax(0)
    token = tokens[best, np.arange(len(words))]
    starts = np.cumsum(lengths) - lengths
    logits = np.concatenate(windows)[starts[best] + np.maximum(token, 0)]
    return token >= 0, logits
