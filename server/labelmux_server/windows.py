"""A long text read in windows: what they say, put together.

The logits are put together, not the probabilities: so scores of single labels still add up to 1,
temperature, thresholds and abstaining apply as they were fitted, and one window is no windows.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import itemgetter
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
    # Window by window, since windows times words of a long text are too many.
    around = np.full(len(words), -1)
    places = np.zeros(len(words), np.int64)
    start = 0
    for row in rows:
        near = _words_near(words, row)
        tokens = word_tokens(words[near], row.offsets, row.special)
        shown = np.minimum(tokens, len(row.token_ids) - 1 - tokens)
        better = shown > around[near]
        around[near][better] = shown[better]
        places[near][better] = start + tokens[better]
        start += len(row.token_ids)
    return around >= 0, np.concatenate(windows)[places]


def _words_near(words: Sequence[tuple[int, int]], row: TokenRow) -> slice:
    """The words that a window's tokens can cover."""
    special = set(row.special)
    own = [offsets for at, offsets in enumerate(row.offsets) if at not in special] or [(0, 0)]
    first = bisect_right(words, own[0][0], key=itemgetter(1))
    return slice(first, bisect_left(words, own[-1][1], first, key=itemgetter(0)))
