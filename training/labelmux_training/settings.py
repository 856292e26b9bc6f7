"""How an adapter is trained, as values; no torch, so that a command line can read the defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from labelmux_training.errors import OptionsError

Loss = Literal["cross_entropy", "margin"]
Schedule = Literal["linear", "cosine"]
LabelStart = Literal["class_means", "label_names", "random"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """How an adapter is trained. The defaults are those of Y-Tuning, chosen on dev splits."""

    epochs: int = 10
    #: Where rows are few, an epoch sees them more than once, to make so many steps in all.
    least_steps: int = 500
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
    #: Of the encoder's products in training; ``auto`` is bfloat16 where that is faster.
    precision: Precision = "auto"
    #: Epochs without a better dev score after which training stops; 0: never.
    patience: int = 5
    seed: int = 13

    def __post_init__(self) -> None:
        for option, low, high in (
            ("epochs", 1, math.inf),
            ("least_steps", 0, math.inf),
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
            ("precision", get_args(Precision)),
        ):
            if getattr(self, option) not in allowed:
                raise OptionsError(
                    option, f"{getattr(self, option)!r} is unknown", f"give {', '.join(allowed)}"
                )


#: Settings of the methods that train the encoder's features alone.
_OF_FEATURES = frozenset({"token_dropout", "label_start"})
#: Settings of those whose gradients pass through the encoder.
_OF_PASS = frozenset({"precision"})
#: Where these methods differ from Y-Tuning; the papers' values where they state any and those do
#: not fall short here. Rates were chosen on dev splits with the bundled encoder (docs/methods.md).
_EDITED: Mapping[str, Any] = {"weight_decay": 0.0, "learning_rate": 1e-3}
_BY_METHOD: Mapping[str, Mapping[str, Any]] = {
    "ytuning": {},
    "pasta": {**_EDITED, "learning_rate": 3e-3},
    "unipelt": {**_EDITED, "learning_rate": 1e-3},
    "lora": {**_EDITED, "learning_rate": 1e-3},
    "prefix": {**_EDITED, "learning_rate": 1e-3},
    "bottleneck": {**_EDITED, "learning_rate": 1e-3},
    "bitfit": {**_EDITED, "learning_rate": 3e-3},
    "ia3": {**_EDITED, "learning_rate": 1e-2},
    "linear": {},
}
METHOD_NAMES = tuple(_BY_METHOD)


def settings_for(method: str, **asked: Any) -> TrainerSettings:
    """The method's settings; what is asked for counts, None is left to the method.

    Raises:
        OptionsError: a setting is not one of the method.
    """
    chosen = {name: value for name, value in asked.items() if value is not None}
    for name in sorted(chosen.keys() & unused_settings(method)):
        problem = f"{chosen[name]!r} means nothing to the method {method}"
        raise OptionsError(name, problem, "leave it out")
    return TrainerSettings(**{**_BY_METHOD.get(method, _EDITED), **chosen})


def unused_settings(method: str) -> frozenset[str]:
    """Settings that mean nothing to a method."""
    if method == "linear":  # it is solved, not trained in steps
        return frozenset(item.name for item in fields(TrainerSettings)) - {"seed"}
    return _OF_PASS if method == "ytuning" else _OF_FEATURES
