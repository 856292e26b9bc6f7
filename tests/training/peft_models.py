"""Classifiers with PEFT adapters, made on the spot: what PEFT itself answers is the oracle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tests.conftest import TINY_CONFIG, write_wordpiece
from torch import Tensor
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DebertaV2ForTokenClassification,
)

from labelmux_encoder.weights import LoadedEncoder

CLASSES = {
    "SEQ_CLS": DebertaV2ForSequenceClassification,
    "TOKEN_CLS": DebertaV2ForTokenClassification,
}


def write_base(folder: Path, task_type: str, labels: Sequence[str], **fields: Any) -> Path:
    """A whole classifier in the Hugging Face layout, head and tokenizer too, random but seeded."""
    torch.manual_seed(5)
    config = TINY_CONFIG | {"vocab_size": write_wordpiece(folder), **fields}
    model = CLASSES[task_type](
        DebertaV2Config(**config, id2label=dict(enumerate(labels)), num_labels=len(labels))
    )
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "LayerNorm" not in name:
                tensor.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


def adapted(base: Path, method: str, task_type: str | None, seed: int = 3, **settings: Any) -> Any:
    """A PEFT model of a base with an adapter of random values."""
    import peft

    torch.manual_seed(seed)
    kind = {"lora": peft.LoraConfig, "ia3": peft.IA3Config}[method]
    model = CLASSES[task_type or "SEQ_CLS"].from_pretrained(base)
    settings = {f"init_{method}_weights": False, **settings}
    wrapped = peft.get_peft_model(model, kind(task_type=task_type, **settings))
    with torch.no_grad():
        for name, tensor in wrapped.named_parameters():
            if "modules_to_save" in name:
                tensor.normal_(0, 0.2)
            elif "ia3_l" in name:
                tensor.normal_(1, 0.3)
            elif "lora_" in name:
                tensor.normal_(0, 0.15)
    return wrapped.eval()


def answers(model: Any, loaded: LoadedEncoder, texts: Sequence[Any]) -> list[Tensor]:
    """PEFT's logits of each text, alone. Each [K] or [T, K]"""
    found = []
    for row in loaded.tokenizer.encode(texts, 64):
        with torch.no_grad():
            found.append(model(input_ids=torch.tensor([row.token_ids])).logits[0])
    return found


def rewrite(folder: Path, **changes: Any) -> None:
    """Change settings of a saved adapter."""
    path = folder / "adapter_config.json"
    config: Mapping[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **changes}))
