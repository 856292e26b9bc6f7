"""The forward pass of a DeBERTa-v2/v3 encoder.

``derive`` turns a checkpoint's tensors into the constants that the pass reads: fused projections
with the attention scale folded in, and position tables by distance. ``run_pass`` is a pure function
of those constants: training derives them anew at every step and gets gradients. It is also what the
faster passes are held to (``labelmux_encoder.frozen``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from labelmux_encoder.attention import (
    LengthGroup,
    PositionTables,
    group_by_length,
    packed_attention,
    relative_rows,
)
from labelmux_encoder.batch import PackedRows, unpack
from labelmux_encoder.batch_edits import UNEDITED, BatchEdits, LayerEdits
from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.edits import Placed
from labelmux_encoder.errors import InputTooLongError

State = Mapping[str, Tensor]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True, slots=True)
class Affine:
    """A linear map's weight [out, in] and bias [out], or a LayerNorm's scale and shift [H]."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class LayerTensors:
    """The constants of one layer."""

    #: Query, key and value projections stacked; the query part carries the scale. [3H, H]
    qkv: Affine
    positions: PositionTables
    attention_out: Affine
    attention_norm: Affine
    ffn_in: Affine
    ffn_out: Affine
    ffn_norm: Affine


@dataclass(frozen=True, slots=True)
class EncoderTensors:
    """The constants of the whole pass."""

    words: Tensor  # [V, E]
    positions: Tensor | None  # [P, E]
    types: Tensor | None  # [types, E]
    embed_proj: Tensor | None  # [H, E]
    embed_norm: Affine
    convolution: Affine | None  # weight [H, H/groups, K]
    convolution_norm: Affine | None
    #: What every layer's position tables are projections of, distance rising from 1-M to M-1; for
    #: adapters that change those projections. [2M-1, H]
    relative: Tensor | None
    layers: tuple[LayerTensors, ...]


def derive(config: EncoderConfig, state: State, max_tokens: int | None = None) -> EncoderTensors:
    """Constants of the pass, from a checkpoint's tensors; differentiable in them.

    Args:
        config: the encoder's shape.
        state: tensors by the checkpoint's names, without the ``deberta.`` prefix.
        max_tokens: longest row that the position tables serve; the config's limit by default.
    """
    longest = max_tokens or config.max_tokens
    table = _relative_table(config, state)
    rows = relative_rows(
        longest, config.relative_span, config.position_buckets, config.max_relative_positions
    )
    return EncoderTensors(
        words=state["embeddings.word_embeddings.weight"],
        positions=state.get("embeddings.position_embeddings.weight"),
        types=state.get("embeddings.token_type_embeddings.weight"),
        embed_proj=state.get("embeddings.embed_proj.weight"),
        embed_norm=_affine(state, "embeddings.LayerNorm"),
        convolution=_affine(state, "encoder.conv.conv") if config.conv_kernel_size else None,
        convolution_norm=_affine(state, "encoder.conv.LayerNorm")
        if config.conv_kernel_size
        else None,
        relative=None if table is None else table[rows.to(table.device)],
        layers=tuple(
            _derive_layer(config, state, f"encoder.layer.{index}.", table, rows)
            for index in range(config.num_layers)
        ),
    )


def _relative_table(config: EncoderConfig, state: State) -> Tensor | None:
    if not config.relative_attention:
        return None
    table = state["encoder.rel_embeddings.weight"][: 2 * config.relative_span]
    if config.normalise_relative_table:
        table = _normalise(config, table, _affine(state, "encoder.LayerNorm"))
    return table


def _derive_layer(
    config: EncoderConfig, state: State, prefix: str, table: Tensor | None, rows: Tensor
) -> LayerTensors:
    scale = config.query_scale
    attention = f"{prefix}attention.self."
    query = _affine(state, f"{attention}query_proj")
    parts = [
        Affine(query.weight * scale, None if query.bias is None else query.bias * scale),
        _affine(state, f"{attention}key_proj"),
        _affine(state, f"{attention}value_proj"),
    ]
    return LayerTensors(
        qkv=Affine(
            torch.cat([part.weight for part in parts]),
            torch.cat([part.bias for part in parts if part.bias is not None]),
        ),
        positions=_derive_positions(config, state, attention, table, rows, scale),
        attention_out=_affine(state, f"{prefix}attention.output.dense"),
        attention_norm=_affine(state, f"{prefix}attention.output.LayerNorm"),
        ffn_in=_affine(state, f"{prefix}intermediate.dense"),
        ffn_out=_affine(state, f"{prefix}output.dense"),
        ffn_norm=_affine(state, f"{prefix}output.LayerNorm"),
    )


def _derive_positions(
    config: EncoderConfig,
    state: State,
    attention: str,
    table: Tensor | None,
    rows: Tensor,
    scale: float,
) -> PositionTables:
    if table is None:
        return PositionTables(None, None)
    key_name, query_name = ("key_proj", "query_proj")
    if not config.share_att_key:
        key_name, query_name = ("pos_key_proj", "pos_query_proj")
    rows = rows.to(table.device)

    def project(name: str, order: Tensor) -> Tensor:
        affine = _affine(state, attention + name)
        if len(order) < len(table):  # short rows, as in a training step: project what they read
            projected = functional.linear(table[order], affine.weight, affine.bias)
        else:
            projected = functional.linear(table, affine.weight, affine.bias)[order]
        return projected.view(-1, config.num_heads, config.head_size).transpose(0, 1)

    return PositionTables(
        key=project(key_name, rows.flip(0)).contiguous() if config.c2p else None,
        query=(project(query_name, rows) * scale).contiguous() if config.p2c else None,
    )


def _affine(state: State, name: str) -> Affine:
    return Affine(state[f"{name}.weight"], state.get(f"{name}.bias"))


def cast(tensors: EncoderTensors, dtype: torch.dtype) -> EncoderTensors:
    """The same constants in another dtype."""
    cast_tensors: EncoderTensors = _cast(tensors, dtype)
    return cast_tensors


def cast_products(layer: LayerTensors, dtype: torch.dtype) -> LayerTensors:
    """A layer whose products, norms aside, have another dtype."""
    cast_layer: LayerTensors = _cast(layer, dtype)
    return replace(cast_layer, attention_norm=layer.attention_norm, ffn_norm=layer.ffn_norm)


def _cast(part: Any, dtype: torch.dtype) -> Any:
    if part is None or isinstance(part, Tensor):
        return part if part is None else part.to(dtype)
    if isinstance(part, tuple):
        return tuple(_cast(item, dtype) for item in part)
    return replace(part, **{f.name: _cast(getattr(part, f.name), dtype) for f in fields(part)})


def run_pass(
    config: EncoderConfig,
    tensors: EncoderTensors,
    rows: PackedRows,
    edits: Sequence[Placed] = (),
) -> list[Tensor]:
    """Hidden states of every layer, the embedding output first. L+1 of [N, H]

    Raises:
        InputTooLongError: a row is longer than the encoder's limit.
    """
    if max(rows.lengths) > config.max_tokens:
        raise InputTooLongError(max(rows.lengths), config.max_tokens)
    embedded = embed(config, tensors, rows)
    device = embedded.device
    batch = BatchEdits(edits, rows.lengths, rows.special, config.query_scale, device)
    groups = group_by_length(rows.lengths, device, batch.attention_of_row)
    return run_layers(config, tensors, embedded, groups, rows.lengths, batch)


def run_layers(
    config: EncoderConfig,
    tensors: EncoderTensors,
    embedded: Tensor,
    groups: Sequence[LengthGroup],
    lengths: Sequence[int],
    edits: BatchEdits = UNEDITED,
) -> list[Tensor]:
    """The embedding output and every layer's states. L+1 of [N, H]"""
    states = [embedded]
    for index, layer in enumerate(tensors.layers):
        hidden = _run_layer(config, layer, tensors.relative, states[-1], groups, edits.layer(index))
        if index == 0 and tensors.convolution is not None:
            hidden = _convolve(config, tensors, embedded, hidden, lengths)
        states.append(hidden)
    return states


def run_padded(
    config: EncoderConfig,
    tensors: EncoderTensors,
    token_ids: Tensor,
    mask: Tensor,
    type_ids: Tensor | None = None,
) -> list[Tensor]:
    """``run_pass`` for a padded batch. L+1 of [B, T, H], zeros at padding

    Args:
        token_ids: [B, T]
        mask: True at real tokens, which fill each row from the left. [B, T]
        type_ids: which text of a pair a token is from; zeros by default. [B, T]

    Raises:
        InputTooLongError: as ``run_pass``.
    """
    ids = token_ids[mask]
    types = torch.zeros_like(ids) if type_ids is None else type_ids[mask]
    rows = PackedRows(ids, types, tuple(mask.sum(1).tolist()))
    padding = (0, 0, 0, token_ids.shape[1] - max(rows.lengths))
    return [
        functional.pad(unpack(state, rows.lengths)[0], padding)
        for state in run_pass(config, tensors, rows)
    ]


def embed(config: EncoderConfig, tensors: EncoderTensors, rows: PackedRows) -> Tensor:
    """The embedding output, layer 0's input. [N, H]"""
    embedded = functional.embedding(rows.token_ids, tensors.words)
    if tensors.positions is not None:
        places = torch.cat([torch.arange(length) for length in rows.lengths])
        embedded = embedded + tensors.positions[places.to(embedded.device)]
    if tensors.types is not None:
        embedded = embedded + functional.embedding(rows.type_ids, tensors.types)
    if tensors.embed_proj is not None:
        embedded = functional.linear(embedded, tensors.embed_proj)
    return _normalise(config, embedded, tensors.embed_norm)


def _run_layer(
    config: EncoderConfig,
    layer: LayerTensors,
    relative: Tensor | None,
    hidden: Tensor,
    groups: Sequence[LengthGroup],
    edits: LayerEdits,
) -> Tensor:
    hidden = edits.enter(hidden)
    qkv = edits.at_qkv(_linear(hidden, layer.qkv), hidden)  # [N, 3H]
    prefixes = [edits.prefix(group.members) for group in groups]
    tables = [
        edits.tables(group.members, group.tokens, layer.positions, relative) for group in groups
    ]
    context = packed_attention(qkv, config.num_heads, tables, groups, prefixes)
    context = edits.at("context", context)  # [N, H]
    attended = edits.at("attention_out", _linear(context, layer.attention_out), context)
    attended = _normalise(config, attended + hidden, layer.attention_norm)
    attended = edits.at("attention_norm", attended)
    inner = edits.at("ffn_in", _linear(attended, layer.ffn_in), attended)
    inner = edits.at("inner", _ACTIVATIONS[config.hidden_act](inner))
    outer = edits.at("ffn_out", _linear(inner, layer.ffn_out), inner)

    def normalise(x: Tensor) -> Tensor:
        return _normalise(config, x, layer.ffn_norm)

    outer = edits.bottleneck(outer, attended, normalise)
    return edits.at("ffn_norm", normalise(outer + attended))


def _linear(x: Tensor, affine: Affine) -> Tensor:
    return functional.linear(x, affine.weight, affine.bias)


def _convolve(
    config: EncoderConfig,
    tensors: EncoderTensors,
    embedded: Tensor,
    hidden: Tensor,
    lengths: Sequence[int],
) -> Tensor:
    """The convolution of v2-xlarge and v2-xxlarge: over the embeddings, added to layer 0."""
    assert tensors.convolution is not None and tensors.convolution_norm is not None
    padded, mask = unpack(embedded, lengths)
    convolved = functional.conv1d(
        padded.transpose(1, 2),
        tensors.convolution.weight,
        tensors.convolution.bias,
        padding=config.conv_kernel_size // 2,
        groups=config.conv_groups,
    ).transpose(1, 2)
    convolved = _ACTIVATIONS[config.conv_act](convolved[mask])
    return _normalise(config, hidden + convolved, tensors.convolution_norm)


def _normalise(config: EncoderConfig, x: Tensor, affine: Affine) -> Tensor:
    return functional.layer_norm(
        x, (x.shape[-1],), affine.weight, affine.bias, config.layer_norm_eps
    )
