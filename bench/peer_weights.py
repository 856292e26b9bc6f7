"""What each side serves: the same encoder as Hugging Face folders for peers, adapters for labelmux.

Heads and adapters are random but fixed by a seed: a rate does not depend on what was learned, and
a comparison of answers does not either.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from labelmux_adapters.ytuning import expected_tensors
from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.weights import (
    LoadedEncoder,
    bundled_folder,
    expected_shapes,
    read_checkpoint,
)
from labelmux_training.assemble import Assembly
from labelmux_training.canary_texts import CanaryChooser
from labelmux_training.sizes import choose_sizes

_WEIGHTS = "model.safetensors"
#: v3-base, but for the vocabulary: a lookup costs the same in a small table.
_BASE_SHAPE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
_INITIALIZER_RANGE = 0.02


@dataclass(frozen=True)
class Head:
    """A sequence classification head as Hugging Face has it: pooler, then classifier."""

    pooler: Tensor  # [H, H]
    classifier: Tensor  # [K, H]

    @classmethod
    def seeded(cls, hidden: int, labels: int, seed: int) -> Head:
        source = torch.Generator().manual_seed(seed)
        return cls(
            torch.randn(hidden, hidden, generator=source) / hidden**0.5,
            torch.randn(labels, hidden, generator=source) / hidden**0.5,
        )

    def scores(self, first_states: Tensor) -> Tensor:
        """Probabilities from the last layer's state of each row's first token. [B, H] -> [B, K]"""
        pooled = functional.gelu(functional.linear(first_states.float(), self.pooler))
        scores: Tensor = functional.linear(pooled, self.classifier).softmax(-1)
        return scores


def labels_of(count: int) -> tuple[str, ...]:
    """Names for ``count`` labels."""
    return tuple(f"label-{index}" for index in range(count))


def export_classifier(folder: Path, head: Head, source: str = "bundled") -> Path:
    """Write an encoder and a head as a ``DebertaV2ForSequenceClassification`` folder."""
    _, state = read_checkpoint(source)
    origin = bundled_folder() if source == "bundled" else Path(source)
    config = json.loads((origin / "config.json").read_text())
    names = labels_of(len(head.classifier))
    config |= {
        "architectures": ["DebertaV2ForSequenceClassification"],
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
        "pooler_hidden_size": config["hidden_size"],
        "pooler_hidden_act": "gelu",
        "pooler_dropout": 0,
    }
    tensors = {f"deberta.{name}": tensor.float().contiguous() for name, tensor in state.items()}
    tensors |= {
        "pooler.dense.weight": head.pooler,
        "pooler.dense.bias": torch.zeros(len(head.pooler)),
        "classifier.weight": head.classifier,
        "classifier.bias": torch.zeros(len(names)),
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    _copy_tokenizer(origin, folder)
    return folder


def write_base_encoder(folder: Path, seed: int = 0) -> Path:
    """Write an encoder of v3-base's shape with random weights, and the bundled tokenizer."""
    config = json.loads((bundled_folder() / "config.json").read_text()) | _BASE_SHAPE
    source = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in expected_shapes(EncoderConfig.from_checkpoint(config)).items():
        if name.endswith("LayerNorm.weight"):
            state[name] = torch.ones(shape)
        else:
            state[name] = _INITIALIZER_RANGE * torch.randn(shape, generator=source)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / _WEIGHTS)
    _copy_tokenizer(bundled_folder(), folder)
    return folder


def make_adapter(loaded: LoadedEncoder, labels: int, seed: int, texts: Sequence[str]) -> bytes:
    """A whole adapter file of the size that training chooses, with random tensors."""
    sizes = choose_sizes(loaded, labels)
    source = torch.Generator().manual_seed(seed)
    tensors = {
        name: _random(name, shape, source)
        for name, shape in expected_tensors(sizes, labels).items()
    }
    return Assembly(
        loaded=loaded,
        method="ytuning",
        sizes=sizes.to_mapping(),
        labels=labels_of(labels),
        tensors=tensors,
        max_tokens=256,
        pair=False,
        data_digest="sha256:" + "0" * 64,
        canaries=CanaryChooser(loaded, "single_label", labels, 256).choose(texts, Path("bench")),
    ).file({}, {})


def _random(name: str, shape: tuple[int, ...], source: torch.Generator) -> Tensor:
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    return torch.randn(shape, generator=source).div(shape[-1] ** 0.5)


def _copy_tokenizer(origin: Path, folder: Path) -> None:
    shutil.copy(origin / "tokenizer.json", folder)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512,
        "model_input_names": ["input_ids", "attention_mask"],
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
