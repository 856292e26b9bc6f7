"""How an adapter is trained, as values; no torch, so that a command line can read the defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from labelmux_training.errors import OptionsError

Loss = Literal["cross_entropy", "margin"]
Schedule = Literal["linear", "cosine"]
LabelStart = Literal["class_means", "label_names", "random"]


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """How an adapter is trained. The defaults were chosen on dev splits."""

    epochs: int = 10
    batch_rows: int = 32
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    #: Share of all steps in which the rate climbs from 0.
    warmup: float = 0.06
    schedule: Schedule = "linear"
    loss: Loss = "cross_entropy"
    #: By how much the gold label's logit should lead, in logits; for the margin loss only.
    margin: float = 1.0
    #: Share of the target spread over all labels; for cross-entropy only.
    label_smoothing: float = 0.0
    dropout: float = 0.1
    #: Share of each text's tokens that a training step does not see.
    token_dropout: float = 0.0
    label_start: LabelStart = "class_means"
    #: Epochs without a better dev score after which training stops; 0: never.
    patience: int = 5
    seed: int = 13

    def __post_init__(self) -> None:
        for option, low, high in (
            ("epochs", 1, math.inf),
            ("batch_rows", 1, math.inf),
            ("weight_decay", 0, math.inf),
            ("warmup", 0, 1),
            ("margin", 0, math.inf),
            ("label_smoothing", 0, 0.9),
            ("dropout", 0, 0.9),
            ("token_dropout", 0, 0.9),
            ("patience", 0, math.inf),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, option)
            if not low <= value <= high:
                raise OptionsError(option, f"{value!r} is out of range", f"give {low} to {high}")
        if not 0 < self.learning_rate < math.inf:
            raise OptionsError("learning_rate", f"{self.learning_rate!r}", "give a rate above 0")
        for option, allowed in (
            ("schedule", get_args(Schedule)),
            ("loss", get_args(Loss)),
            ("label_start", get_args(LabelStart)),
        ):
            if getattr(self, option) not in allowed:
                raise OptionsError(
                    option, f"{getattr(self, option)!r} is unknown", f"give {', '.join(allowed)}"
                )
