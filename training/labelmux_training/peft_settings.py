"""What ``adapter_config.json`` asks for: a setting is understood, without effect, or refused."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from labelmux_adapters.errors import printable, shown
from labelmux_adapters.kinds import TaskKind
from labelmux_training.errors import PeftRefusedError

#: Settings of training, of starting weights that leave the base as it is, or of other formats.
_WITHOUT_EFFECT = frozenset(
    (
        *("revision", "inference_mode", "lora_dropout", "init_ia3_weights", "eva_config"),
        *("megatron_core", "qalora_group_size", "ensure_weight_tying"),
    )
)
#: Values of all other settings that ask for nothing.
_OFF: tuple[Any, ...] = (None, False, "none", {}, [])
#: Starting weights that leave the base as it is; the others change it.
_STARTS = (True, False, "gaussian", "eva", "orthogonal")
_HEADS = ("classifier", "score", "pooler", "pooler.dense")
_KINDS: Mapping[str, TaskKind] = {"SEQ_CLS": "single_label", "TOKEN_CLS": "token"}
_CLASSES = {"ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS"}
_LAYER = re.compile(r"deberta\.encoder\.layer\.(\d+)\.")
_TRAIN_WITHOUT = "train it without, or merge it into the encoder and train a labelmux adapter"

Patterns = Sequence[str] | str
Positive = Annotated[int, Field(ge=1, le=1 << 16)]
Alpha = Annotated[float, Field(allow_inf_nan=False)]


class PeftSettings(BaseModel):
    """The settings that decide what a LoRA or (IA)3 adapter computes."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    peft_type: Literal["LORA", "IA3"]
    task_type: str | None = None
    auto_mapping: dict[str, Any] | None = None
    base_model_name_or_path: str | None = None
    peft_version: str | None = None
    target_modules: list[str] | str
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    r: Positive = 8
    rank_pattern: dict[str, Positive] = {}
    lora_alpha: Alpha = 8
    alpha_pattern: dict[str, Alpha] = {}
    use_rslora: bool = False
    init_lora_weights: bool | str = True
    feedforward_modules: list[str] | str | None = None

    def task_kind(self) -> TaskKind | None:
        """What kind of task the adapter was trained for; None if the settings do not say.

        Raises:
            PeftRefusedError: for a task that is no classification.
        """
        task = self.task_type
        if task is None:
            name = str((self.auto_mapping or {}).get("base_model_class", ""))
            task = next((of for ending, of in _CLASSES.items() if name.endswith(ending)), None)
        if task is None:
            return None
        if task not in _KINDS:
            raise PeftRefusedError(
                "task_type", f"{shown(task)} is none of {', '.join(_KINDS)}", "give a classifier"
            )
        return _KINDS[task]

    def targets(self, module: str) -> bool:
        """Whether PEFT adapts a linear module of this name, by PEFT's rule."""
        if self.exclude_modules and _matches(self.exclude_modules, module):
            return False
        if any(f".{name}." in f".{module}." for name in self.modules_to_save or ()):
            return False
        if self.target_modules == "all-linear":
            return True
        found = _matches(self.target_modules, module)
        if isinstance(self.target_modules, str) or self.layers_to_transform in (None, []):
            return found
        return found and self._transforms(module)

    def feeds_forward(self, module: str) -> bool:
        """Whether (IA)3 rescales what such a module reads, and not what it gives."""
        patterns = self.feedforward_modules or ()
        if isinstance(patterns, str):
            return _full_match(patterns, module, "feedforward_modules")
        return any(module.endswith(pattern) for pattern in patterns)

    def low_rank_scale(self, module: str, rank: int) -> float:
        """What PEFT multiplies a low-rank map of a module by.

        Raises:
            PeftRefusedError: the rank is not one that the settings give.
        """
        if not self.rank_pattern and rank != self.r:
            raise PeftRefusedError(
                "r", f"{self.r}, the tensors of {printable(module)} have {rank}", "save it again"
            )
        alpha = self.lora_alpha
        for pattern, value in self.alpha_pattern.items():
            if _full_match(rf"(.*\.)?({pattern})", module, "alpha_pattern"):
                alpha = value
                break
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def _transforms(self, module: str) -> bool:
        layer = _LAYER.match(module)
        patterns = [self.layers_pattern or "layer"]
        if isinstance(self.layers_pattern, list):
            patterns = list(self.layers_pattern) or ["layer"]
        named = any(
            _full_match(rf"(?:.*?\.)?{pattern}\.\d+\..*", module, "layers_pattern")
            for pattern in patterns
        )
        wanted = self.layers_to_transform
        numbers = [wanted] if isinstance(wanted, int) else wanted or []
        return layer is not None and named and int(layer[1]) in numbers


def read_settings(config: Mapping[str, Any]) -> PeftSettings:
    """The settings of an ``adapter_config.json``.

    Raises:
        PeftRefusedError: a setting has a value that an adapter file cannot carry, or none that
            PEFT would write.
    """
    kind = config.get("peft_type")
    if kind not in ("LORA", "IA3"):
        raise PeftRefusedError("peft_type", f"{shown(kind)} is neither LORA nor IA3", "train one")
    try:
        settings = PeftSettings.model_validate(dict(config))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        name = ".".join(str(part) for part in fault["loc"])
        problem = f"{shown(fault['input'])}: {fault['msg'].lower()}"
        raise PeftRefusedError(printable(name), problem, "save the adapter again") from error
    for name, value in (settings.model_extra or {}).items():
        if name not in _WITHOUT_EFFECT and not any(value is off or value == off for off in _OFF):
            problem = f"{shown(value)} cannot be carried over"
            raise PeftRefusedError(printable(name), problem, _TRAIN_WITHOUT)
    if settings.init_lora_weights not in _STARTS:
        raise PeftRefusedError(
            "init_lora_weights",
            f"{shown(settings.init_lora_weights)} changes the base model too",
            "convert it with save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )
    for name in set(settings.modules_to_save or ()) - set(_HEADS):
        raise PeftRefusedError(
            "modules_to_save", f"{printable(name)!r} is no part of a head", _TRAIN_WITHOUT
        )
    return settings


def _matches(patterns: Patterns, module: str) -> bool:
    if isinstance(patterns, str):
        return _full_match(patterns, module, "target_modules")
    return _ends_with(patterns, module)


def _ends_with(names: Iterable[str], module: str) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _full_match(pattern: str, module: str, setting: str) -> bool:
    try:
        return re.fullmatch(pattern, module) is not None
    except re.error as error:
        raise PeftRefusedError(
            setting, f"{shown(pattern)} is no regular expression ({error})", "save it again"
        ) from error
