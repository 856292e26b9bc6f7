"""Training an adapter that changes the pass, by gradients through the frozen encoder.

The encoder's own dropout is off: frozen, it is what will serve. The process's random state is left
as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from labelmux_adapters.edited import EditMethod
from labelmux_adapters.heads import head_logits
from labelmux_adapters.kinds import Pooling
from labelmux_adapters.texts import TextBatch
from labelmux_encoder.batch import PackedRows, pack_rows, unpack
from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.edits import Edit, Placed
from labelmux_encoder.frozen import FrozenEncoder, bfloat16_is_faster
from labelmux_encoder.model import EncoderTensors, State, cast_products, derive, run_pass
from labelmux_encoder.tokenizer import TokenRow
from labelmux_training.features import by_length
from labelmux_training.kinds import Kind, Logits
from labelmux_training.loop import Fit, Learner, Loop
from labelmux_training.progress import NoProgress, Progress
from labelmux_training.run_folder import Checkpoint
from labelmux_training.settings import TrainerSettings
from labelmux_training.tuned import TunedTensors

#: Padded tokens in one pass over dev.
_DEV_TOKENS = 8192


@dataclass(frozen=True)
class LabelledTokens:
    """The tokens of rows and what their labels are."""

    rows: tuple[TokenRow, ...]
    gold: Any  # as ``kind`` has it
    kind: Kind

    @cached_property
    def token_counts(self) -> npt.NDArray[np.int64]:
        """Of each row. [rows]"""
        return np.array([len(row.token_ids) for row in self.rows], dtype=np.int64)


@dataclass(frozen=True)
class Constants:
    """A frozen encoder in the form that gives gradients, on the device where it trains."""

    config: EncoderConfig
    tensors: EncoderTensors
    #: The same encoder as it serves, for what needs no gradient: several times as fast.
    served: FrozenEncoder

    @classmethod
    def of(cls, config: EncoderConfig, state: State, served: FrozenEncoder) -> Constants:
        """From a checkpoint's config and tensors."""
        resident = {name: tensor.to(served.device) for name, tensor in state.items()}
        return cls(config, derive(config, resident), served)

    @property
    def device(self) -> torch.device:
        """Where all of it is."""
        return self.served.device

    def rounded(self) -> Constants:
        """With products' weights in bfloat16, which a step would otherwise round again."""
        layers = tuple(cast_products(layer, torch.bfloat16) for layer in self.tensors.layers)
        return replace(self, tensors=replace(self.tensors, layers=layers))


@dataclass(frozen=True)
class AdapterForm:
    """What kind of adapter is trained."""

    method: EditMethod
    sizes: Mapping[str, int]
    #: In logit order.
    labels: Sequence[str]
    #: None: every token has logits.
    pooling: Pooling | None


def fit_edited(
    form: AdapterForm,
    constants: Constants,
    train: LabelledTokens,
    dev: LabelledTokens,
    settings: TrainerSettings,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> Fit:
    """Train an adapter and keep the epoch with the best dev score, ties by dev loss.

    Args:
        form: what is trained.
        constants: the encoder.
        train: rows to learn from.
        dev: rows that decide which epoch is kept and when to stop.
        settings: see there.
        progress: told of each step and epoch.
        checkpoint: where the run is kept after each epoch, and goes on from if it is there.

    Raises:
        DivergedError: a loss, or an answer on dev, is not finite.
    """
    device = constants.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        tuned = TunedTensors(form.method, form.sizes, len(form.labels), settings.dropout)
        tuned.start_at(train.kind.start_logits(train.gold, len(form.labels)))
        learner = EditedLearner(tuned.to(device), form, constants, train, dev, settings)
        return Loop(learner, form.labels, settings, progress or NoProgress(), checkpoint).run()


class EditedLearner(Learner):
    """An adapter's tensors, and the pass that they change."""

    def __init__(
        self,
        tuned: TunedTensors,
        form: AdapterForm,
        constants: Constants,
        train: LabelledTokens,
        dev: LabelledTokens,
        settings: TrainerSettings,
    ) -> None:
        super().__init__(tuned, train, dev)
        self._tuned = tuned
        self._pooling = form.pooling
        self._train_rows = train.rows
        self._dev_rows = dev.rows
        self._dropout = settings.dropout
        self._bfloat16 = settings.precision == "bfloat16" or (
            settings.precision == "auto" and bfloat16_is_faster(constants.config, constants.device)
        )
        self._constants = constants.rounded() if self._bfloat16 else constants

    @override
    def logits(self, batch: npt.NDArray[np.int64]) -> Tensor:
        return self._logits([self._train_rows[row] for row in batch], self._hidden)

    @override
    def dev_logits(self) -> list[Logits]:
        counts = [len(row.token_ids) for row in self._dev_rows]
        found: list[Logits] = [np.empty(0, np.float32)] * len(counts)
        with torch.no_grad():
            for batch in by_length(np.array(counts), _DEV_TOKENS):
                rows = [self._dev_rows[row] for row in batch]
                logits = self._logits(rows, self._served_hidden).numpy()
                for row, own in zip(batch, logits, strict=True):
                    found[row] = own if self._pooling else own[: counts[row]]
        return found

    @override
    def tensors(self) -> dict[str, Tensor]:
        with torch.no_grad():
            return {name: tensor.clone().cpu() for name, tensor in self._tuned.tensors().items()}

    @override
    def decays(self, name: str, parameter: Tensor) -> bool:
        """Matrices are decayed, vectors are not, of one layer or of all."""
        return parameter.ndim > (2 if self._tuned.has_layers(name) else 1)

    def _logits(
        self, rows: Sequence[TokenRow], run: Callable[[PackedRows, Sequence[Edit]], Tensor]
    ) -> Tensor:
        """``run`` gives the last layer's states. [rows, K], or [rows, T, K] of a token task"""
        tensors = self._tuned.tensors()
        packed = pack_rows(rows)
        hidden = run(packed, self._tuned.edits(tensors))
        batch = TextBatch(hidden.unsqueeze(0), packed.lengths)
        read = batch.last if self._pooling is None else getattr(batch, self._pooling)
        read = functional.dropout(read, self._dropout, self._tuned.training)
        logits = head_logits(tensors, read).cpu()
        return logits if self._pooling else unpack(logits, packed.lengths)[0]

    def _served_hidden(self, packed: PackedRows, edits: Sequence[Edit]) -> Tensor:
        """By the pass that serves. [N, H]"""
        served, entries = self._constants.served, (0,) * len(packed.lengths)
        return served(packed, [Placed(served.lay_out(edit), entries) for edit in edits])[-1].float()

    def _hidden(self, packed: PackedRows, edits: Sequence[Edit]) -> Tensor:
        """By the pass that gives gradients. [N, H]"""
        device = self._constants.device
        rows = packed._replace(
            token_ids=packed.token_ids.to(device), type_ids=packed.type_ids.to(device)
        )
        entries = (0,) * len(packed.lengths)
        placed = [Placed(edit, entries) for edit in edits]
        with torch.autocast(device.type, torch.bfloat16, enabled=self._bfloat16):
            states = run_pass(self._constants.config, self._constants.tensors, rows, placed)
        return states[-1].float()
