"""Labelled sets that an encoder is trained on, and batches drawn from them.

A set is a file ``NAME.jsonl.gz`` with ``text``, ``label`` and, for pairs, ``pair``. None of the
sets that an encoder is judged on may be among them.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

from labelmux_training.corpus import SHORT_TOKENS, Batch, pad
from labelmux_training.errors import OptionsError

#: Left out unless asked for: it drew on sentences of RTE, a set that encoders are judged on.
LEFT_OUT = ("help_and_or",)
_POOL_BATCHES = 16
_SUFFIX = ".jsonl.gz"


@dataclass(frozen=True)
class SourceTask:
    """One labelled set, tokenised."""

    name: str
    labels: tuple[str, ...]
    pair: bool
    rows: tuple[npt.NDArray[np.int32], ...]  # token ids of each row
    gold: npt.NDArray[np.int64]  # [rows]


@dataclass(frozen=True)
class TaskBatch:
    """Rows of one set."""

    task: str
    batch: Batch
    gold: Tensor  # [B]


def choose_sets(folder: Path, asked: Sequence[str] | None) -> list[str]:
    """Names of the sets in ``folder``, or those of ``asked``, sorted.

    Raises:
        OptionsError: a set that is asked for is not there, or there is none.
    """
    there = {path.name.removesuffix(_SUFFIX) for path in folder.glob(f"*{_SUFFIX}")}
    names = sorted(there - set(LEFT_OUT) if asked is None else set(asked))
    absent = sorted(set(names) - there)
    if absent or not names:
        shown = ", ".join(sorted(there)) or "nothing"
        raise OptionsError("sets", f"{folder} has no {', '.join(absent) or 'set'}", f"has {shown}")
    return names


def read_task(path: Path, tokenizer: Tokenizer) -> SourceTask:
    """Read and tokenise a set; rows are cut to ``SHORT_TOKENS``."""
    with gzip.open(path, "rt") as lines:
        raw: list[dict[str, Any]] = [json.loads(line) for line in lines]
    labels = tuple(sorted({str(row["label"]) for row in raw}))
    index = {label: number for number, label in enumerate(labels)}
    pair = "pair" in raw[0]
    tokenizer.enable_truncation(SHORT_TOKENS)
    inputs = [(row["text"], row["pair"]) if pair else row["text"] for row in raw]
    return SourceTask(
        name=path.name.removesuffix(_SUFFIX),
        labels=labels,
        pair=pair,
        rows=tuple(np.array(found.ids, np.int32) for found in tokenizer.encode_batch(inputs)),
        gold=np.array([index[str(row["label"])] for row in raw]),
    )


class TaskSampler:
    """An endless stream of batches, each of one set.

    A set is drawn with a chance of its size to the power ``temper``, times ``pair_weight`` if its
    rows are pairs. Its rows come in random order, each once before any comes again, batched by
    length.
    """

    def __init__(
        self,
        tasks: Sequence[SourceTask],
        batch_tokens: int,
        temper: float,
        pair_weight: float,
        seed: int,
    ) -> None:
        self._tasks = tasks
        self._batch_tokens = batch_tokens
        self._random = random.Random(seed)
        self.weights = [
            len(task.rows) ** temper * (pair_weight if task.pair else 1.0) for task in tasks
        ]
        self._streams = [self._stream(task) for task in tasks]

    def draw(self) -> TaskBatch:
        """The next batch."""
        return next(self._random.choices(self._streams, self.weights)[0])

    def _stream(self, task: SourceTask) -> Iterator[TaskBatch]:
        lengths = np.array([len(row) for row in task.rows])
        pool = max(1, _POOL_BATCHES * self._batch_tokens // int(lengths.mean()))
        while True:
            order = list(range(len(lengths)))
            self._random.shuffle(order)
            for start in range(0, len(order), pool):
                batches = self._by_length(order[start : start + pool], lengths)
                self._random.shuffle(batches)
                for chosen in batches:
                    batch = pad([task.rows[index].tolist() for index in chosen])
                    yield TaskBatch(task.name, batch, torch.from_numpy(task.gold[chosen]))

    def _by_length(self, pool: list[int], lengths: npt.NDArray[np.int64]) -> list[list[int]]:
        batches, current = [], list[int]()
        for index in sorted(pool, key=lambda row: int(lengths[row])):
            if current and int(lengths[index]) * (len(current) + 1) > self._batch_tokens:
                batches.append(current)
                current = []
            current.append(index)
        return [*batches, current]
