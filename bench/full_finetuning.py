"""Full fine-tuning of a copy of an encoder: what its frozen features are compared with.

Every weight is trained, with a linear layer on the mean of the last layer's real tokens, or on each
of them where words have tags. Epochs and batches are the usual ones for encoders of this size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from labelmux_encoder.batch import PackedRows, pack_rows, unpack
from labelmux_encoder.frozen import Pass, cpu_pass
from labelmux_encoder.model import derive, run_pass
from labelmux_encoder.tokenizer import TextInput, TokenRow
from labelmux_encoder.weights import LoadedEncoder
from labelmux_training.features import by_length
from labelmux_training.kinds import Kind, Logits
from labelmux_training.settings import TrainerSettings

MAX_TOKENS = 128
BATCH_ROWS = 32
#: As many epochs as make so many steps; half as many for few rows, which those see 8 times or more.
STEPS, FEWEST_EPOCHS = 500, 3
FEW_ROWS, FEW_STEPS = 1000, 250
#: How often dev is looked at, about, where epochs are many.
EVALUATIONS = 10
HEAD_RATE = 1e-3
WARM_UP = 0.1
DROPOUT = 0.1
WEIGHT_DECAY = 0.01
_POOL_BATCHES = 32
_PREDICTED_TOKENS = 8192

#: Texts, and what their labels are as the kind of task has it.
Rows = tuple[Sequence[TextInput], Any]


@dataclass(frozen=True)
class FullSettings:
    """How a copy is trained."""

    #: Of the encoder; the head's is ``HEAD_RATE``.
    learning_rate: float = 1e-4
    seed: int = 13
    #: Products in bfloat16; weights and their updates stay in fp32.
    bfloat16: bool = True


def epochs_for(rows: int) -> int:
    """How often so many rows are seen."""
    return max(FEWEST_EPOCHS, math.ceil(steps_for(rows) / math.ceil(rows / BATCH_ROWS)))


def steps_for(rows: int) -> int:
    """Steps that so many rows make, at least."""
    return FEW_STEPS if rows <= FEW_ROWS else STEPS


def fit_full(
    loaded: LoadedEncoder,
    state: dict[str, Tensor],
    train: Rows,
    dev: Rows,
    labels: Sequence[str],
    kind: Kind,
    settings: FullSettings,
) -> FullFit:
    """Fine-tune a copy of ``state`` and keep the epoch with the best dev score."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        fit = FullFit(loaded, state, labels, kind, settings)
        fit.head.bias.data.copy_(kind.start_logits(train[1], len(labels)))
        _Run(fit, train, settings).run(dev)
    return fit


class FullFit:
    """A fine-tuned copy."""

    def __init__(
        self,
        loaded: LoadedEncoder,
        state: dict[str, Tensor],
        labels: Sequence[str],
        kind: Kind,
        settings: FullSettings,
    ) -> None:
        self.labels = labels
        self.kind = kind
        self._config = loaded.encoder.config
        self._tokenizer = loaded.tokenizer
        self._bfloat16 = settings.bfloat16
        self.state = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
        self.head = nn.Linear(self._config.hidden_size, len(labels))

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.state.values(), *self.head.parameters()]

    @property
    def parameter_count(self) -> int:
        return sum(tensor.numel() for tensor in self.parameters)

    def tokenise(self, texts: Sequence[TextInput]) -> list[TokenRow]:
        return self._tokenizer.encode(texts, MAX_TOKENS)

    def answers(self, texts: Sequence[TextInput]) -> list[Logits]:
        """Logits of each text. Each [K], or [T, K] of a token task"""
        return self.answer_rows(self.tokenise(texts))

    @torch.no_grad()
    def answer_rows(self, rows: Sequence[TokenRow]) -> list[Logits]:
        """Logits of each row, by the pass that serves. Each [K], or [T, K] of a token task"""
        lengths = np.array([len(row.token_ids) for row in rows])
        found: list[Logits] = [np.empty(0, np.float32)] * len(rows)
        served = self._served()
        for batch in by_length(lengths, _PREDICTED_TOKENS):
            packed = pack_rows([rows[i] for i in batch])
            logits = self._read(served(packed)[-1], packed, 0.0).numpy()
            for row, own in zip(batch, logits, strict=True):
                found[row] = own[: lengths[row]] if self._reads_tokens else own
        return found

    def logits(self, rows: Sequence[TokenRow], dropout: float) -> Tensor:
        """With gradients. [rows, K], or [rows, T, K] of a token task"""
        packed = pack_rows(rows)
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
            tensors = derive(self._config, self.state, max_tokens=max(packed.lengths))
            last = run_pass(self._config, tensors, packed)[-1]
        return self._read(last, packed, dropout)

    def _served(self) -> Pass:
        dtype = torch.bfloat16 if self._bfloat16 else torch.float32
        return cpu_pass(self._config, derive(self._config, self.state), dtype)

    def _read(self, last: Tensor, packed: PackedRows, dropout: float) -> Tensor:
        """[N, H] -> [rows, K], or [rows, T, K] of a token task"""
        read, mask = unpack(last.float(), packed.lengths)
        if not self._reads_tokens:
            read = read.sum(1) / mask.sum(1, keepdim=True)
        logits: Tensor = self.head(functional.dropout(read, dropout))
        return logits

    @property
    def _reads_tokens(self) -> bool:
        return self.kind.name == "token"


class _Run:
    def __init__(self, fit: FullFit, train: Rows, settings: FullSettings) -> None:
        self._fit = fit
        self._train = fit.tokenise(train[0])
        self._gold = train[1]
        self._random = np.random.default_rng(settings.seed)
        steps = math.ceil(len(self._train) / BATCH_ROWS)
        self._epochs = epochs_for(len(self._train))
        self._steps = self._epochs * steps
        self._optimiser = torch.optim.AdamW(
            [
                {"params": list(fit.state.values()), "lr": settings.learning_rate},
                {"params": list(fit.head.parameters()), "lr": HEAD_RATE},
            ],
            weight_decay=WEIGHT_DECAY,
            fused=True,
        )
        self._rate = torch.optim.lr_scheduler.LambdaLR(self._optimiser, self._rate_at)

    def run(self, dev: Rows) -> None:
        dev_rows = self._fit.tokenise(dev[0])
        best = -1.0
        kept = [tensor.detach().clone() for tensor in self._fit.parameters]
        every = math.ceil(self._epochs / EVALUATIONS)
        for epoch in range(self._epochs):
            for batch in self._batches():
                self._step(batch)
            if (self._epochs - 1 - epoch) % every:
                continue
            found = self._score(dev_rows, dev[1])
            if found > best:
                best = found
                _copy(self._fit.parameters, kept)
        _copy(kept, self._fit.parameters)

    def _score(self, rows: Sequence[TokenRow], gold: Any) -> float:
        kind = self._fit.kind
        logits = kind.logits(self._fit.answer_rows(rows))
        calibration = kind.calibrate(gold, logits)
        return kind.measure(gold, logits, self._fit.labels, calibration).score

    def _step(self, batch: Sequence[int]) -> None:
        logits = self._fit.logits([self._train[index] for index in batch], DROPOUT)
        loss = self._fit.kind.loss(logits, self._gold, batch, TrainerSettings())
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._fit.parameters, 1.0)
        self._optimiser.step()
        self._rate.step()

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


@torch.no_grad()
def _copy(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    for one, other in zip(source, target, strict=True):
        other.copy_(one)
