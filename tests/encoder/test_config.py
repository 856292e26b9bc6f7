"""What a config.json may ask for, and how the rest is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.errors import UnsupportedEncoderError

V3_BASE: dict[str, Any] = {
    "model_type": "deberta-v2",
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "layer_norm_eps": 1e-7,
    "max_relative_positions": -1,
    "position_biased_input": False,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "type_vocab_size": 0,
    "vocab_size": 128100,
}


def test_the_published_v3_base_config_is_read() -> None:
    config = EncoderConfig.from_checkpoint(V3_BASE)
    assert (config.hidden_size, config.num_layers, config.head_size) == (768, 12, 64)
    assert config.c2p and config.p2c and config.score_terms == 3
    assert config.relative_span == 256 and config.max_relative_positions == 512
    assert config.conv_kernel_size == 0 and config.position_embeddings == 0


def test_terms_as_a_list_or_a_string_give_equal_configs() -> None:
    listed = EncoderConfig.from_checkpoint(V3_BASE | {"pos_att_type": ["c2p", "p2c"]})
    assert listed == EncoderConfig.from_checkpoint(V3_BASE)
    assert listed.canonical_json() == EncoderConfig.from_checkpoint(V3_BASE).canonical_json()


@pytest.mark.parametrize(
    ("change", "field", "hint"),
    [
        ({"model_type": "deberta"}, "model_type", "v1 is not"),
        ({"model_type": "bert"}, "model_type", "deberta-v2"),
        ({"model_type": None}, "model_type", "deberta-v2"),
        ({"pos_att_type": ["p2p"]}, "pos_att_type", "c2p"),
        ({"pos_att_type": 3}, "pos_att_type", "list"),
        ({"hidden_act": "swish"}, "hidden_act", "gelu"),
        ({"conv_kernel_size": 3, "conv_act": "mish"}, "conv_act", "gelu"),
        ({"conv_kernel_size": 4}, "conv_kernel_size", "odd"),
        ({"hidden_size": 770}, "hidden_size", "multiple"),
        ({"attention_head_size": 32}, "attention_head_size", "64"),
        ({"num_hidden_layers": 0}, "num_hidden_layers", "above 0"),
        ({"vocab_size": "many"}, "vocab_size", "whole number"),
        ({"type_vocab_size": "two"}, "type_vocab_size", "whole number"),
        ({"max_relative_positions": [512]}, "max_relative_positions", "whole number"),
        ({"position_buckets": float("inf")}, "position_buckets", "whole number"),
        ({"position_buckets": 1}, "position_buckets", "2 or more"),
        ({"conv_kernel_size": 3, "conv_groups": 0}, "conv_groups", "above 0"),
        ({"layer_norm_eps": "tiny"}, "layer_norm_eps", "number"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps", "number"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(
    change: dict[str, Any], field: str, hint: str
) -> None:
    with pytest.raises(UnsupportedEncoderError) as caught:
        EncoderConfig.from_checkpoint(V3_BASE | change)
    assert caught.value.field == field
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    "field",
    [
        *("attention_head_size", "embedding_size", "layer_norm_eps", "max_relative_positions"),
        *("position_buckets", "type_vocab_size", "conv_kernel_size", "pad_token_id"),
    ],
)
def test_a_null_is_as_good_as_nothing(field: str) -> None:
    absent = {name: value for name, value in V3_BASE.items() if name != field}
    config = EncoderConfig.from_checkpoint(absent)
    assert EncoderConfig.from_checkpoint(absent | {field: None}) == config
