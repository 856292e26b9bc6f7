"""The student before training: a DeBERTa-v2 that starts as its BERT teacher.

Every content weight is the teacher's. What BERT lacks, the disentangled position terms, starts near
zero over a sinusoidal table, to be learned.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

#: Positions of the teacher whose mean is folded into the words: the length of most rows.
_USUAL_TOKENS = 128


def student_config(teacher: dict[str, Any]) -> dict[str, Any]:
    """The student's ``config.json``: the teacher's shape, DeBERTa-v2's attention."""
    return {
        "model_type": "deberta-v2",
        "architectures": ["DebertaV2Model"],
        "vocab_size": teacher["vocab_size"],
        "hidden_size": teacher["hidden_size"],
        "num_hidden_layers": teacher["num_hidden_layers"],
        "num_attention_heads": teacher["num_attention_heads"],
        "intermediate_size": teacher["intermediate_size"],
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "layer_norm_eps": 1e-7,
        "max_position_embeddings": 512,
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 256,
        "max_relative_positions": -1,
        "position_biased_input": False,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "share_att_key": False,
        "pad_token_id": 0,
        "initializer_range": 0.02,
    }


def warm_start(config: dict[str, Any], teacher: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The student's tensors before training, by the names of a DeBERTa-v2 checkpoint.

    The query projection grows by sqrt(3) since the three-term score divides by sqrt(3 * head_size)
    where BERT divides by sqrt(head_size). Token type 0 and the mean position are folded into words.
    """
    generator = torch.Generator().manual_seed(seed)
    hidden = config["hidden_size"]
    constant = teacher["embeddings.token_type_embeddings.weight"][0] + teacher[
        "embeddings.position_embeddings.weight"
    ][:_USUAL_TOKENS].mean(0)
    state = {
        "embeddings.word_embeddings.weight": teacher["embeddings.word_embeddings.weight"]
        + constant,
        "embeddings.LayerNorm.weight": teacher["embeddings.LayerNorm.weight"],
        "embeddings.LayerNorm.bias": teacher["embeddings.LayerNorm.bias"],
        "encoder.rel_embeddings.weight": _sinusoids(2 * config["position_buckets"], hidden),
        "encoder.LayerNorm.weight": torch.ones(hidden),
        "encoder.LayerNorm.bias": torch.zeros(hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"encoder.layer.{layer}."
        attention = f"{prefix}attention.self."
        for ours, theirs, scale in (
            (f"{attention}query_proj", f"{attention}query", math.sqrt(3)),
            (f"{attention}key_proj", f"{attention}key", 1.0),
            (f"{attention}value_proj", f"{attention}value", 1.0),
            *((f"{prefix}{part}", f"{prefix}{part}", 1.0) for part in _SAME_NAME_PARTS),
        ):
            for kind in ("weight", "bias"):
                state[f"{ours}.{kind}"] = teacher[f"{theirs}.{kind}"] * scale
        for name in ("pos_key_proj", "pos_query_proj"):
            weight = torch.empty(hidden, hidden).normal_(0, 0.002, generator=generator)
            state[f"{attention}{name}.weight"] = weight
            state[f"{attention}{name}.bias"] = torch.zeros(hidden)
    return {name: tensor.detach().clone().float() for name, tensor in state.items()}


_SAME_NAME_PARTS = (
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)


def _sinusoids(rows: int, width: int) -> Tensor:
    position = torch.arange(rows).float()[:, None] - rows / 2
    frequency = torch.exp(torch.arange(0, width, 2).float() * (-math.log(10000.0) / width))
    return torch.cat([torch.sin(position * frequency), torch.cos(position * frequency)], dim=1)
