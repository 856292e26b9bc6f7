"""Plain text as an endless stream of batches, for training an encoder."""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

#: Longest row of the short batches, and of the long ones, in tokens.
SHORT_TOKENS, LONG_TOKENS = 128, 512
#: Share of the short rows that are pairs, so that the encoder has seen two texts in one row.
PAIR_SHARE = 0.15
_POOL_LINES = 4000
_LONG_LIMITS = (256, 320, 384, LONG_TOKENS, LONG_TOKENS)


def read_lines(files: list[Path]) -> list[str]:
    """The passages of text files, one a line, gzipped or not; blank lines are dropped."""
    lines: list[str] = []
    for file in files:
        with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as text:
            lines += [line.strip() for line in text if line.strip()]
    return lines


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right."""

    token_ids: Tensor  # [B, T]
    mask: Tensor  # [B, T]


class Corpus:
    """Passages in batches of rows of near-equal length.

    ``long_share`` of the passages are joined into rows of 256 to ``LONG_TOKENS`` tokens.
    """

    def __init__(
        self,
        lines: list[str],
        tokenizer: Tokenizer,
        batch_tokens: int,
        seed: int,
        long_share: float = 0.0,
        pair_share: float = PAIR_SHARE,
    ) -> None:
        self._lines = lines
        self._tokenizer = tokenizer
        self._batch_tokens = batch_tokens
        self._long_share = long_share
        self._pair_share = pair_share
        self._random = random.Random(seed)

    def batches(self) -> Iterator[Batch]:
        """Yield batches for ever; each pool of lines is used once before any comes again."""
        while True:
            lines = self._lines[:]
            self._random.shuffle(lines)
            for start in range(0, len(lines), _POOL_LINES):
                yield from self._pool(lines[start : start + _POOL_LINES])

    def _pool(self, lines: list[str]) -> Iterator[Batch]:
        cut = int(len(lines) * self._long_share)
        batches = self.short_batches(lines[cut:]) + self.long_batches(lines[:cut])
        self._random.shuffle(batches)
        yield from batches

    def short_batches(self, lines: list[str], pairs: bool = True) -> list[Batch]:
        """Single passages, and pairs of them, cut at ``SHORT_TOKENS``."""
        self._tokenizer.enable_truncation(SHORT_TOKENS)
        inputs: list[Any] = []
        share = self._pair_share if pairs else 0.0
        rest = iter(lines)
        for line in rest:
            partner = next(rest, None) if self._random.random() < share else None
            inputs.append(line if partner is None else (line, partner))
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(inputs)]
        return self._by_length(rows)

    def long_batches(self, lines: list[str]) -> list[Batch]:
        """Passages joined into rows of 256 to ``LONG_TOKENS`` tokens."""
        self._tokenizer.no_truncation()
        encoded = self._tokenizer.encode_batch(lines, add_special_tokens=False)
        vocabulary = self._tokenizer.get_vocab()
        first, last = vocabulary["[CLS]"], vocabulary["[SEP]"]
        rows: list[list[int]] = []
        row, limit = [first], LONG_TOKENS
        for encoding in encoded:
            row += encoding.ids
            if len(row) >= limit - 1:
                rows.append([*row[: limit - 1], last])
                row, limit = [first], self._random.choice(_LONG_LIMITS)
        return self._by_length(rows)

    def _by_length(self, rows: list[list[int]]) -> list[Batch]:
        rows.sort(key=len)
        batches, current = [], list[list[int]]()
        for row in rows:
            if current and len(row) * (len(current) + 1) > self._batch_tokens:
                batches.append(pad(current))
                current = []
            current.append(row)
        return batches + ([pad(current)] if current else [])


def pad(rows: list[list[int]]) -> Batch:
    """Pad token ids on the right to the longest row."""
    longest = max(map(len, rows))
    token_ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return Batch(token_ids, torch.arange(longest)[None] < lengths[:, None])
