"""The shape of a DeBERTa-v2/v3 encoder, read from a checkpoint's ``config.json``.

A configuration that asks for something the forward pass does not implement is refused here, by
name, before any weight is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from labelmux_encoder.errors import UnsupportedEncoderError

#: Activations that published checkpoints use, in the spelling of ``config.json``.
SUPPORTED_ACTIVATIONS = ("gelu", "gelu_new", "relu", "tanh")


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Everything that decides an encoder's arithmetic; two equal configs compute the same pass."""

    vocab_size: int
    hidden_size: int
    embedding_size: int
    num_layers: int
    num_heads: int
    head_size: int
    intermediate_size: int
    hidden_act: str
    layer_norm_eps: float
    #: Longest row in tokens, special tokens counted.
    max_tokens: int
    #: Rows of the absolute position table; 0 where positions are relative only.
    position_embeddings: int
    type_vocab_size: int
    relative_attention: bool
    #: Buckets on each side of zero; distances beyond half of them are logarithmic. 0: no buckets.
    position_buckets: int
    #: Largest distance in tokens that the relative table tells apart.
    max_relative_positions: int
    c2p: bool
    p2c: bool
    share_att_key: bool
    normalise_relative_table: bool
    #: Kernel width of the convolution after layer 0; 0: no convolution.
    conv_kernel_size: int
    conv_groups: int
    conv_act: str
    pad_token_id: int

    @property
    def relative_span(self) -> int:
        """Rows of the relative table on each side of zero."""
        return self.position_buckets or self.max_relative_positions

    @property
    def score_terms(self) -> int:
        """Terms summed into an attention logit: content, and one per position term.

        The published code counts ``pos_att_type`` even where relative attention is off.
        """
        return 1 + int(self.c2p) + int(self.p2c)

    @property
    def query_scale(self) -> float:
        """What queries are multiplied by; the pass folds it into their projection."""
        return 1.0 / math.sqrt(self.head_size * self.score_terms)

    def canonical_json(self) -> str:
        """The config as JSON with sorted keys: equal configs give equal text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_checkpoint(cls, raw: Mapping[str, Any]) -> EncoderConfig:
        """Read a Hugging Face ``config.json``.

        Raises:
            UnsupportedEncoderError: another model type, or a field with a value that the pass
                does not implement; the error names the field and what is supported.
        """
        _refuse_other_models(raw)
        hidden_size = _positive(raw, "hidden_size", 1536)
        num_heads = _positive(raw, "num_attention_heads", 24)
        if hidden_size % num_heads:
            raise UnsupportedEncoderError(
                "hidden_size", hidden_size, f"a multiple of num_attention_heads ({num_heads})"
            )
        head_size = _whole(raw, "attention_head_size", 0) or hidden_size // num_heads
        if head_size * num_heads != hidden_size:
            raise UnsupportedEncoderError(
                "attention_head_size",
                head_size,
                f"hidden_size / heads = {hidden_size // num_heads}",
            )
        max_tokens = _positive(raw, "max_position_embeddings", 512)
        max_relative = _whole(raw, "max_relative_positions", -1)
        terms = _position_terms(raw.get("pos_att_type"))
        biased = bool(raw.get("position_biased_input", True))
        return cls(
            vocab_size=_positive(raw, "vocab_size", 128100),
            hidden_size=hidden_size,
            embedding_size=_whole(raw, "embedding_size", 0) or hidden_size,
            num_layers=_positive(raw, "num_hidden_layers", 24),
            num_heads=num_heads,
            head_size=head_size,
            intermediate_size=_positive(raw, "intermediate_size", 6144),
            hidden_act=_activation(raw, "hidden_act", "gelu"),
            layer_norm_eps=_small(raw, "layer_norm_eps", 1e-7),
            max_tokens=max_tokens,
            position_embeddings=max_tokens if biased else 0,
            type_vocab_size=_whole(raw, "type_vocab_size", 0),
            relative_attention=bool(raw.get("relative_attention", False)),
            position_buckets=_buckets(raw),
            max_relative_positions=max_relative if max_relative >= 1 else max_tokens,
            c2p="c2p" in terms,
            p2c="p2c" in terms,
            share_att_key=bool(raw.get("share_att_key", False)),
            normalise_relative_table="layer_norm" in str(raw.get("norm_rel_ebd", "none")).lower(),
            conv_kernel_size=_convolution_width(raw),
            conv_groups=_whole(raw, "conv_groups", 1),
            conv_act=_activation(raw, "conv_act", "tanh"),
            pad_token_id=_whole(raw, "pad_token_id", 0),
        )


def _refuse_other_models(raw: Mapping[str, Any]) -> None:
    model_type = raw.get("model_type")
    if model_type == "deberta":
        raise UnsupportedEncoderError(
            "model_type", "deberta", "'deberta-v2' (DeBERTa v2 and v3); DeBERTa v1 is not"
        )
    if model_type != "deberta-v2":
        raise UnsupportedEncoderError("model_type", model_type, "'deberta-v2' (DeBERTa v2 and v3)")


def _position_terms(raw: object) -> frozenset[str]:
    if raw is None:
        return frozenset()
    parts = raw.split("|") if isinstance(raw, str) else raw
    if not isinstance(parts, (list, tuple)):
        raise UnsupportedEncoderError("pos_att_type", raw, "a list of, or 'c2p|p2c'")
    terms = frozenset(str(part).strip().lower() for part in parts if str(part).strip())
    unknown = terms - {"c2p", "p2c"}
    if unknown:
        raise UnsupportedEncoderError("pos_att_type", sorted(unknown)[0], "'c2p' and 'p2c'")
    return terms


def _convolution_width(raw: Mapping[str, Any]) -> int:
    width = max(0, _whole(raw, "conv_kernel_size", 0))
    if width and width % 2 == 0:
        raise UnsupportedEncoderError("conv_kernel_size", width, "an odd width")
    if width and _whole(raw, "conv_groups", 1) < 1:
        raise UnsupportedEncoderError("conv_groups", raw["conv_groups"], "a whole number above 0")
    return width


def _buckets(raw: Mapping[str, Any]) -> int:
    buckets = max(0, _whole(raw, "position_buckets", -1))
    if buckets == 1:
        raise UnsupportedEncoderError("position_buckets", buckets, "2 or more, or none (-1)")
    return buckets


def _positive(raw: Mapping[str, Any], field: str, default: int) -> int:
    value = raw.get(field, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedEncoderError(field, value, "a whole number above 0")
    return value


def _whole(raw: Mapping[str, Any], field: str, default: int) -> int:
    """Null is as good as absent: the numbers that mean nothing to most checkpoints may be it."""
    value = raw.get(field)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool):
        raise UnsupportedEncoderError(field, value, "a whole number")
    return value


def _small(raw: Mapping[str, Any], field: str, default: float) -> float:
    value = raw.get(field)
    if value is None:
        return default
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise UnsupportedEncoderError(field, value, "a number from 0 to 1")
    return float(value)


def _activation(raw: Mapping[str, Any], field: str, default: str) -> str:
    name = raw.get(field, default)
    if name not in SUPPORTED_ACTIVATIONS:
        raise UnsupportedEncoderError(field, name, ", ".join(SUPPORTED_ACTIVATIONS))
    return str(name)
