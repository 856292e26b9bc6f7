"""Full fine-tuning of a copy of an encoder: what its frozen features are compared with.

Every weight is trained, with a linear layer on the mean of the last layer's real tokens. Rates,
epochs and batches are the usual ones for encoders of this size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from labelmux_encoder.batch import pack_rows, unpack
from labelmux_encoder.model import derive, run_pass
from labelmux_encoder.tokenizer import TextInput, TokenRow
from labelmux_encoder.weights import LoadedEncoder
from labelmux_training.features import by_length
from labelmux_training.metrics import Ids

MAX_TOKENS = 128
#: Epochs by how many rows there are: small sets need more.
SMALL_ROWS, SMALL_EPOCHS, EPOCHS = 5000, 5, 3
BATCH_ROWS = 32
ENCODER_RATE, HEAD_RATE = 1e-4, 1e-3
WARM_UP = 0.1
DROPOUT = 0.1
WEIGHT_DECAY = 0.01
_POOL_BATCHES = 32
_DEV_TOKENS = 8192

Rows = tuple[Sequence[TextInput], Ids]


def fit_full(
    loaded: LoadedEncoder, state: dict[str, Tensor], train: Rows, dev: Rows, labels: int, seed: int
) -> Ids:
    """Fine-tune a copy of ``state`` and return dev labels of the epoch with the best accuracy."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _FullRun(loaded, state, train, dev, labels, seed).run()


class _FullRun:
    def __init__(
        self,
        loaded: LoadedEncoder,
        state: dict[str, Tensor],
        train: Rows,
        dev: Rows,
        labels: int,
        seed: int,
    ) -> None:
        self._config = loaded.encoder.config
        self._train, self._dev = (loaded.tokenizer.encode(r[0], MAX_TOKENS) for r in (train, dev))
        self._gold, self._dev_gold = torch.from_numpy(train[1]), dev[1]
        self._state = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
        self._head = nn.Linear(self._config.hidden_size, labels)
        self._random = np.random.default_rng(seed)
        self._epochs = SMALL_EPOCHS if len(self._train) < SMALL_ROWS else EPOCHS
        self._steps = self._epochs * math.ceil(len(self._train) / BATCH_ROWS)
        self._optimiser = torch.optim.AdamW(
            [
                {"params": list(self._state.values()), "lr": ENCODER_RATE},
                {"params": list(self._head.parameters()), "lr": HEAD_RATE},
            ],
            weight_decay=WEIGHT_DECAY,
            fused=True,
        )
        self._rate = torch.optim.lr_scheduler.LambdaLR(self._optimiser, self._rate_at)

    def run(self) -> Ids:
        best, kept = -1.0, np.zeros(0, dtype=np.int64)
        for _ in range(self._epochs):
            for batch in self._batches():
                self._step(batch)
            predicted = self._predict()
            accuracy = float((predicted == self._dev_gold).mean())
            if accuracy > best:
                best, kept = accuracy, predicted
        return kept

    def _step(self, batch: Sequence[int]) -> None:
        logits = self._logits([self._train[index] for index in batch], DROPOUT)
        loss = functional.cross_entropy(logits, self._gold[torch.as_tensor(batch)])
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([*self._state.values(), *self._head.parameters()], 1.0)
        self._optimiser.step()
        self._rate.step()

    def _logits(self, rows: Sequence[TokenRow], dropout: float) -> Tensor:
        packed = pack_rows(rows)
        tensors = derive(self._config, self._state, max_tokens=max(packed.lengths))
        hidden, mask = unpack(run_pass(self._config, tensors, packed)[-1], packed.lengths)
        mean = hidden.sum(1) / mask.sum(1, keepdim=True)
        logits: Tensor = self._head(functional.dropout(mean, dropout))
        return logits

    @torch.no_grad()
    def _predict(self) -> Ids:
        lengths = np.array([len(row.token_ids) for row in self._dev])
        predicted = np.zeros(len(lengths), dtype=np.int64)
        for batch in by_length(lengths, _DEV_TOKENS):
            predicted[batch] = self._logits([self._dev[i] for i in batch], 0.0).argmax(1).numpy()
        return predicted

    def _batches(self) -> Iterator[list[int]]:
        """All rows once, in batches of near-equal length and random order."""
        order = self._random.permutation(len(self._train))
        batches: list[list[int]] = []
        pool = BATCH_ROWS * _POOL_BATCHES
        for first in range(0, len(order), pool):
            rows = sorted(order[first : first + pool], key=lambda i: len(self._train[i].token_ids))
            batches += [
                [int(index) for index in rows[start : start + BATCH_ROWS]]
                for start in range(0, len(rows), BATCH_ROWS)
            ]
        for index in self._random.permutation(len(batches)):
            yield batches[index]

    def _rate_at(self, step: int) -> float:
        warm_up = max(1, round(self._steps * WARM_UP))
        if step < warm_up:
            return (step + 1) / warm_up
        return max(0.0, (self._steps - step) / max(1, self._steps - warm_up))
