"""The linear probe: regression from plain features to labels, solved rather than trained in steps.

It reads the last layer's features as they are (not standardised); its strength of regularisation is
chosen on dev. It is the method ``linear``, and what other methods are compared with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor

from labelmux_adapters.heads import head_logits
from labelmux_adapters.kinds import Pooling
from labelmux_encoder.batch import unpack
from labelmux_training.errors import DivergedError
from labelmux_training.features import Features
from labelmux_training.kinds import Kind, Logits
from labelmux_training.loop import Epoch, Fit
from labelmux_training.metrics import AnyMetrics
from labelmux_training.settings import TrainerSettings
from labelmux_training.trainer import Labelled

#: Inverse strengths of regularisation that are tried.
STRENGTHS = (0.3, 1.0, 10.0)
_ITERATIONS = 1000
#: Where a solution is good enough: largest slope, and least gain of an iteration.
_SLOPE, _GAIN = 1e-4, 1e-14


@dataclass(frozen=True)
class Probe:
    """A fitted probe."""

    strength: float
    #: As an adapter of the method has them.
    tensors: dict[str, Tensor]
    #: What it comes to, as an epoch of training would.
    epoch: Epoch
    _kind: Kind
    _pooling: Pooling | None

    @property
    def dev(self) -> AnyMetrics:
        """Its metrics on dev, which chose its strength."""
        return self.epoch.dev

    def logits(self, features: Features) -> Any:
        """Of other rows, as their kind has them."""
        return self._kind.logits(_read(_Inputs(features, self._pooling), self.tensors))

    def fit(self) -> Fit:
        """The same, as training gives it."""
        return Fit(self.tensors, (self.epoch,), 0)


def fit_probe(
    labels: Sequence[str], train: Labelled, dev: Labelled, pooling: Pooling = "mean"
) -> Probe:
    """Solve for each of ``STRENGTHS`` and keep the best by dev score, ties by dev loss.

    Args:
        labels: in logit order.
        train: rows to learn from.
        dev: rows that decide.
        pooling: what of a text's last states it reads; a token task's probe reads each.

    Raises:
        DivergedError: a loss is not finite.
    """
    read = None if train.kind.name == "token" else pooling
    inputs, dev_inputs = _Inputs(train.features, read), _Inputs(dev.features, read)
    probes = []
    for strength in STRENGTHS:
        tensors, loss = _solve(inputs, train, len(labels), strength)
        epoch = Epoch.of(loss, dev, _read(dev_inputs, tensors), labels)
        probes.append(Probe(strength, tensors, epoch, train.kind, read))
    return max(probes, key=lambda probe: probe.epoch.rank)


class _Inputs:
    """What a head reads of rows."""

    def __init__(self, features: Features, pooling: Pooling | None) -> None:
        """``pooling``: None reads every token."""
        #: [rows, H], or [N, H] where every token is read.
        self.values = features.pooled(pooling)
        #: Tokens of each row; None where it is pooled.
        self.lengths = None if pooling else features.lengths.tolist()

    def logits(self, tensors: dict[str, Tensor]) -> Tensor:
        """[rows, K], or [rows, T, K] where every token is read"""
        logits = head_logits(tensors, self.values)
        return logits if self.lengths is None else unpack(logits, self.lengths)[0]


def _read(inputs: _Inputs, tensors: dict[str, Tensor]) -> list[Logits]:
    logits = head_logits(tensors, inputs.values)
    rows = logits if inputs.lengths is None else logits.split(inputs.lengths)
    return [row.numpy() for row in rows]


def _solve(
    inputs: _Inputs, train: Labelled, labels: int, strength: float
) -> tuple[dict[str, Tensor], float]:
    """The head with the least regularised loss, and its loss."""
    hidden, rows = inputs.values.shape[1], np.arange(len(train.token_counts))
    decay = 1 / (strength * len(inputs.values))
    settings = TrainerSettings()

    def head(flat: npt.NDArray[np.float64]) -> dict[str, Tensor]:
        values = torch.from_numpy(flat).float().view(labels, hidden + 1)
        return {"head.weight": values[:, :-1], "head.bias": values[:, -1]}

    def cost(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        tensors = {name: tensor.requires_grad_() for name, tensor in head(flat).items()}
        loss = train.kind.loss(inputs.logits(tensors), train.gold, rows, settings)
        loss = loss + decay / 2 * tensors["head.weight"].square().sum()
        weight, bias = torch.autograd.grad(loss, list(tensors.values()))
        return float(loss.detach()), torch.cat([weight, bias[:, None]], 1).double().numpy().ravel()

    found = minimize(
        cost,
        np.zeros(labels * (hidden + 1)),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": _ITERATIONS, "gtol": _SLOPE, "ftol": _GAIN},
    )
    if not math.isfinite(found.fun):
        what = f"the loss of a linear head on {len(rows)} rows"
        raise DivergedError(what, "check the features that the encoder gives")
    tensors = {name: tensor.contiguous() for name, tensor in head(found.x).items()}
    return tensors, float(found.fun)
