"""The head of a PEFT classifier: its tensors, its kind of task, and its labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from labelmux_adapters.errors import printable, shown
from labelmux_adapters.kinds import TaskKind
from labelmux_encoder.weights import read_rest
from labelmux_training.errors import OptionsError, PeftRefusedError
from labelmux_training.peft_edits import POOLER, Change
from labelmux_training.peft_folder import PeftFolder, read_json
from labelmux_training.peft_settings import PeftSettings

_HEAD = "classifier"
#: What a pooler applies; the one activation that an adapter's head has.
_POOLER_ACTIVATION = "gelu"
_TRAIN_WITH = "name it in modules_to_save and train again"


@dataclass(frozen=True, slots=True)
class BaseModel:
    """What a checkpoint holds besides its encoder."""

    #: ``config.json``.
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @classmethod
    def read(cls, source: str) -> BaseModel:
        """That of a folder, a hub id or ``bundled``."""
        return cls(*read_rest(source))


def kind_of_task(
    asked: TaskKind | None, settings: PeftSettings, folder: PeftFolder, base: BaseModel
) -> TaskKind:
    """What is asked of a text.

    Raises:
        OptionsError: the folder does not say, or says something else than what was asked for.
        PeftRefusedError: its outputs are numbers, and nobody asked for it as a classifier.
    """
    said = settings.task_kind()
    if said is None and asked is None:
        raise OptionsError("task-kind", f"{folder.path} does not say", "give it")
    if asked is not None and said is not None and (asked == "token") != (said == "token"):
        raise OptionsError("task-kind", f"{asked}, the adapter is of {said}", "leave it out")
    if asked is None and said == "single_label":
        problem = _of_configs("problem_type", folder, base)
        if problem == "regression":
            raise PeftRefusedError(
                "problem_type",
                f"{shown(problem)}: its outputs are numbers and no labels",
                "train a classifier, or say by --task-kind that it is one",
            )
        return "multi_label" if problem == "multi_label_classification" else said
    kind = asked or said
    assert kind is not None
    return kind


def head_tensors(
    whole: Mapping[str, Tensor],
    kind: TaskKind,
    base: BaseModel,
    pooler_change: Change | None,
    hidden: int,
) -> dict[str, Tensor]:
    """The tensors of the adapter's head, as the file has them.

    Args:
        whole: the tensors of the modules that PEFT saved whole.
        kind: texts are pooled by a trained layer, tokens are not.
        base: where the pooler is taken from, if it was not saved.
        pooler_change: of the pooler.
        hidden: the encoder's width.

    Raises:
        PeftRefusedError: a module is missing, or no part of the head.
    """
    weight, bias = _linear(whole, _HEAD)
    found = {"head.weight": weight, "head.bias": bias}
    used = {f"{_HEAD}.weight", f"{_HEAD}.bias"}
    if kind != "token":
        weight, bias = _pooler(whole, base, hidden)
        if pooler_change is not None:
            weight, bias = pooler_change.merged(weight, bias)
        found |= {"pooler.weight": weight, "pooler.bias": bias}
        used |= {f"{POOLER}.weight", f"{POOLER}.bias"}
    for name in sorted(whole.keys() - used):
        raise PeftRefusedError(
            f"tensor {printable(name)}", "no part of the head", "train without saving its module"
        )
    for name, width in (("head.weight", hidden), ("pooler.weight", hidden)):
        tensor = found.get(name)
        if tensor is not None and (tensor.ndim != 2 or tensor.shape[1] != width):
            raise PeftRefusedError(
                name, f"shape {tuple(tensor.shape)}, {width} columns are needed", "name its encoder"
            )
    return found


def labels_of(
    asked: tuple[str, ...] | None, folder: PeftFolder, base: BaseModel, count: int
) -> tuple[tuple[str, ...], str]:
    """The labels in logit order, and where they are from.

    Raises:
        OptionsError: there are none, or not as many as logits, or one is no text.
    """
    found, source = _named(asked, folder, base, count)
    for label in found:
        if any("\ud800" <= character <= "\udfff" for character in label):
            problem = f"{shown(label)} of {source} holds half a character"
            raise OptionsError("labels", problem, "give the names in logit order")
    return found, source


def _named(
    asked: tuple[str, ...] | None, folder: PeftFolder, base: BaseModel, count: int
) -> tuple[tuple[str, ...], str]:
    if asked is not None:
        if len(asked) != count:
            raise OptionsError("labels", f"{len(asked)} names for {count} logits", "name each one")
        return asked, "--labels"
    for name, config in _configs(folder, base).items():
        named = config.get("id2label")
        if isinstance(named, dict) and named.keys() == {str(index) for index in range(count)}:
            return tuple(str(named[str(index)]) for index in range(count)), name
    raise OptionsError(
        "labels", f"nothing names the head's {count} logits", "give the names in logit order"
    )


def _pooler(whole: Mapping[str, Tensor], base: BaseModel, hidden: int) -> tuple[Tensor, Tensor]:
    activation = base.config.get("pooler_hidden_act", _POOLER_ACTIVATION)
    if activation != _POOLER_ACTIVATION:
        problem = f"{shown(activation)}, an adapter's head has {_POOLER_ACTIVATION}"
        raise PeftRefusedError("pooler_hidden_act", problem, "train with that one")
    source = whole if any(name.startswith(f"{POOLER}.") for name in whole) else base.tensors
    if f"{POOLER}.weight" not in source or f"{POOLER}.bias" not in source:
        raise PeftRefusedError(
            POOLER,
            "neither the adapter nor its encoder's checkpoint holds it: PEFT saves the classifier "
            "alone, so the pooler that it was trained behind is lost",
            f"{_TRAIN_WITH}, or name as encoder a checkpoint that holds the pooler",
        )
    weight, bias = source[f"{POOLER}.weight"].float(), source[f"{POOLER}.bias"].float()
    if weight.shape != (hidden, hidden) or bias.shape != (hidden,):
        raise PeftRefusedError(
            POOLER, f"shape {tuple(weight.shape)}, {(hidden, hidden)} is needed", "name its encoder"
        )
    return weight, bias


def _linear(tensors: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    for part in ("weight", "bias"):
        if f"{name}.{part}" not in tensors:
            raise PeftRefusedError(f"{name}.{part}", "not in the adapter's file", _TRAIN_WITH)
    weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        problem = f"shapes {tuple(weight.shape)} and {tuple(bias.shape)} are no linear map's"
        raise PeftRefusedError(name, problem, "save the adapter again")
    return weight, bias


def _configs(folder: PeftFolder, base: BaseModel) -> dict[str, Mapping[str, Any]]:
    own = folder.path / "config.json"
    found: dict[str, Mapping[str, Any]] = {str(own): read_json(own)} if own.is_file() else {}
    return found | {"the encoder's config.json": base.config}


def _of_configs(field: str, folder: PeftFolder, base: BaseModel) -> object:
    values = (config.get(field) for config in _configs(folder, base).values())
    return next((value for value in values if value is not None), None)
