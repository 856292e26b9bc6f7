"""A LoRA or (IA)3 adapter of PEFT, with its head, to an adapter file.

Its logits are PEFT's: what cannot be carried over exactly is refused by its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from labelmux_adapters.edited import ENCODER_SIZES, POOLER_SIZE
from labelmux_adapters.errors import printable
from labelmux_adapters.files import Adapter, read_adapter
from labelmux_adapters.kinds import TaskKind
from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.tokenizer import TextInput
from labelmux_encoder.weights import BUNDLED, LoadedEncoder, load_encoder
from labelmux_training.assemble import Assembly
from labelmux_training.canary_texts import CanaryChooser
from labelmux_training.errors import OptionsError
from labelmux_training.options import DEFAULT_MAX_TOKENS
from labelmux_training.peft_edits import POOLER, PeftEdits, check_targets, read_changes, to_edits
from labelmux_training.peft_folder import read_peft_folder
from labelmux_training.peft_head import BaseModel, head_tensors, kind_of_task, labels_of
from labelmux_training.peft_settings import PeftSettings

#: Canaries where no texts are given.
_NEUTRAL = (
    "The train leaves at nine.",
    "It was a quiet evening by the sea.",
    "Please send me the report by Friday.",
    "I have never seen anything like it!",
    "Prices in Berlin rose again last month.",
    "She asked whether the shop was open.",
)


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What the folder does not say. None: as the folder, or the encoder's checkpoint, says."""

    folder: Path
    #: What the adapter was trained on, and what will serve it.
    encoder: str = BUNDLED
    #: In logit order.
    labels: tuple[str, ...] | None = None
    task_kind: TaskKind | None = None
    pair: bool = False
    max_tokens: int | None = None
    #: Texts, or pairs of them, that prove the file where it is uploaded.
    texts: tuple[TextInput, ...] = ()
    #: The file that they are from.
    texts_path: Path | None = None


@dataclass(frozen=True, slots=True)
class ImportResult:
    """The file, and what a person should know of it."""

    data: bytes
    adapter: Adapter
    #: Where the labels are from, for people.
    labels_from: str
    #: What may be wrong, in sentences.
    doubts: tuple[str, ...]


def import_peft(options: ImportOptions) -> ImportResult:
    """The adapter file of a PEFT folder.

    Raises:
        PeftError: the folder is damaged, or holds what cannot be carried over.
        OptionsError: something has to be given, or does not fit.
        TooFewRowsError: too few texts that differ.
        EncoderError: the encoder cannot be loaded.
        AdapterError: labels or sizes are none of an adapter file.
    """
    folder = read_peft_folder(options.folder)
    settings = folder.settings
    changes, whole = read_changes(folder.tensors, settings)
    loaded, base = load_encoder(options.encoder), BaseModel.read(options.encoder)
    config = loaded.encoder.config
    edits = to_edits(changes, settings, config)
    check_targets(changes, settings, config.num_layers)
    kind = kind_of_task(options.task_kind, settings, folder, base)
    head = head_tensors(whole, kind, base, changes.get(POOLER), config.hidden_size)
    labels, labels_from = labels_of(options.labels, folder, base, len(head["head.bias"]))
    parts = {**edits.tensors, **head}
    max_tokens = _max_tokens(options.max_tokens, config.max_tokens)
    chooser = CanaryChooser(loaded, kind, len(labels), max_tokens)
    assembly = Assembly(
        loaded=loaded,
        method=edits.method,
        sizes=_sizes(config, edits, head),
        labels=labels,
        tensors={name: tensor.contiguous() for name, tensor in parts.items()},
        max_tokens=max_tokens,
        pair=options.pair,
        data_digest=folder.digest,
        canaries=chooser.choose(_texts(options), options.texts_path or options.folder),
        kind=kind,
        pooling=None if kind == "token" else "first",
        stored_as=torch.float32,
    )
    data = assembly.file({}, _card(settings))
    doubts = tuple(_doubts(settings, loaded))
    return ImportResult(data, read_adapter(data), labels_from, doubts)


def _sizes(config: EncoderConfig, edits: PeftEdits, head: Mapping[str, Tensor]) -> dict[str, int]:
    widths = (config.num_layers, config.hidden_size, config.intermediate_size)
    sizes = dict(zip(ENCODER_SIZES, widths, strict=True)) | dict(edits.sizes)
    return sizes | ({POOLER_SIZE: config.hidden_size} if "pooler.weight" in head else {})


def _max_tokens(asked: int | None, limit: int) -> int:
    if asked is not None and not 4 <= asked <= limit:
        raise OptionsError("max-tokens", f"{asked}, not 4 to {limit}", "give one of these")
    return min(DEFAULT_MAX_TOKENS, limit) if asked is None else asked


def _texts(options: ImportOptions) -> Sequence[TextInput]:
    if options.texts or options.texts_path is not None:  # a file may have none
        return options.texts
    return _neutral(options.pair)


def _neutral(pair: bool) -> Sequence[TextInput]:
    if pair:
        return list(zip(_NEUTRAL, (*_NEUTRAL[1:], _NEUTRAL[0]), strict=True))
    return _NEUTRAL


def _card(settings: PeftSettings) -> dict[str, str]:
    known = {
        "imported from": f"PEFT {settings.peft_type}",
        "PEFT version": settings.peft_version,
        "base model": settings.base_model_name_or_path,
    }
    return {name: printable(value) for name, value in known.items() if value}


def _doubts(settings: PeftSettings, loaded: LoadedEncoder) -> Iterator[str]:
    trained_on = settings.base_model_name_or_path
    if trained_on and Path(trained_on).name != Path(loaded.name).name:
        yield (
            f"the adapter was trained on {printable(trained_on)}, the encoder is {loaded.name}: "
            "its answers mean nothing unless both have the same weights"
        )
