"""The six primitives written down a second time: one row, one adapter, the published modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DebertaV2Model
from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

from labelmux_encoder.batch import PackedRows
from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.edits import (
    Bottleneck,
    Edit,
    Gate,
    LowRank,
    Placed,
    Prefix,
    Scale,
    Shift,
    SpecialTokenShift,
)

SITE_WIDTHS = {"ffn_in": "intermediate_size", "inner": "intermediate_size"}
INPUT_WIDTHS = {"ffn_out": "intermediate_size"}


def random_edits(config: EncoderConfig, entries: int, seed: int) -> list[Edit]:
    """One of each primitive, gated and not, with values large enough to show."""
    generator = torch.Generator().manual_seed(seed)
    layers, hidden = config.num_layers, config.hidden_size

    def values(*shape: int, size: float = 0.3) -> Tensor:
        return torch.randn(entries, layers, *shape, generator=generator) * size

    def gate() -> Gate:
        return Gate(values(hidden), values())

    def low_rank(site: str, rank: int, gate: Gate | None) -> LowRank:
        read = getattr(config, INPUT_WIDTHS.get(site, "hidden_size"))
        written = getattr(config, SITE_WIDTHS.get(site, "hidden_size"))
        return LowRank(site, values(rank, read), values(written, rank), gate)  # type: ignore[arg-type]

    return [
        SpecialTokenShift(values(3, hidden)),
        SpecialTokenShift(values(2, hidden), gate()),
        *(low_rank(site, 4, None) for site in ("query", "attention_out", "ffn_in", "ffn_out")),
        *(low_rank(site, 3, gate()) for site in ("key", "value")),
        Prefix(values(5, hidden), values(5, hidden), gate()),
        Bottleneck(values(7, hidden), values(7), values(hidden, 7), values(hidden), gate()),
        *(
            Shift(site, values(getattr(config, SITE_WIDTHS.get(site, "hidden_size"))))  # type: ignore[arg-type]
            for site in ("query", "context", "attention_norm", "ffn_in", "inner", "ffn_norm")
        ),
        *(
            Scale(site, 1 + values(getattr(config, SITE_WIDTHS.get(site, "hidden_size"))))  # type: ignore[arg-type]
            for site in ("key", "value", "inner", "ffn_out", "position_key")
        ),
        Scale("query", 1 + values(hidden), gate()),
        *(low_rank(site, 3, gate()) for site in ("position_query", "position_key")),
        Shift("position_query", values(hidden)),
    ]


def oracle_states(
    model: DebertaV2Model, rows: PackedRows, row: int, edits: Sequence[Placed]
) -> list[Tensor]:
    """Hidden states of one row of the batch, computed alone. L+1 of [T, H]"""
    start = sum(rows.lengths[:row])
    ids = rows.token_ids[start : start + rows.lengths[row]]
    own = [(edit, entries[row]) for edit, entries in edits if entries[row] >= 0]
    hidden = model.embeddings(ids[None], mask=torch.ones(1, len(ids)))[0]
    states = [hidden]
    for index in range(len(model.encoder.layer)):
        special = rows.special[row] if rows.special else ()
        hidden = _layer(model, index, hidden, own, special)
        states.append(hidden)
    return states


def _gate(gate: Gate | None, entry: int, layer: int, x: Tensor) -> Tensor | float:
    if gate is None:
        return 1.0
    return torch.sigmoid(x @ gate.weight[entry, layer] + gate.bias[entry, layer]).mean()


def _layer(
    model: DebertaV2Model,
    index: int,
    hidden: Tensor,
    edits: Sequence[tuple[Edit, int]],
    special: Sequence[int],
) -> Tensor:
    layer = model.encoder.layer[index]
    hidden = _shifted(hidden, index, edits, special)

    def at(site: str, value: Tensor, source: Tensor | None = None) -> Tensor:
        for edit, entry in edits:
            if getattr(edit, "site", None) == site:
                gate = _gate(edit.gate, entry, index, hidden)
                value = _changed(edit, entry, index, gate, value, source)
        return value

    context = at("context", _context(model, index, hidden, edits, at))
    output = layer.attention.output
    attended = output.LayerNorm(at("attention_out", output.dense(context), context) + hidden)
    attended = at("attention_norm", attended)
    inner = at("ffn_in", layer.intermediate.dense(attended), attended)
    inner = at("inner", layer.intermediate.intermediate_act_fn(inner))
    outer = at("ffn_out", layer.output.dense(inner), inner)
    norm = layer.output.LayerNorm
    for edit, entry in edits:
        if isinstance(edit, Bottleneck):
            read = norm(outer + attended)
            narrow = torch.relu(read @ edit.down[entry, index].T + edit.down_bias[entry, index])
            added = narrow @ edit.up[entry, index].T + edit.up_bias[entry, index]
            outer = outer + _gate(edit.gate, entry, index, read) * added
    return at("ffn_norm", norm(outer + attended))


def _shifted(
    hidden: Tensor, index: int, edits: Sequence[tuple[Edit, int]], special: Sequence[int]
) -> Tensor:
    for edit, entry in edits:
        if isinstance(edit, SpecialTokenShift):
            gate = _gate(edit.gate, entry, index, hidden)
            hidden = hidden.clone()
            for slot, place in enumerate(special[: edit.vectors.shape[2]]):
                hidden[place] = hidden[place] + gate * edit.vectors[entry, index, slot]
    return hidden


def _changed(
    edit: Edit,
    entry: int,
    index: int,
    gate: Tensor | float,
    value: Tensor,
    source: Tensor | None,
) -> Tensor:
    if isinstance(edit, LowRank):
        return value + gate * (source @ edit.down[entry, index].T @ edit.up[entry, index].T)
    if isinstance(edit, Shift):
        return value + gate * edit.vectors[entry, index]
    assert isinstance(edit, Scale)
    return value * (1 + gate * (edit.factors[entry, index] - 1))


def _context(
    model: DebertaV2Model,
    index: int,
    hidden: Tensor,
    edits: Sequence[tuple[Edit, int]],
    at: Callable[..., Tensor],
) -> Tensor:
    attention = model.encoder.layer[index].attention.self

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (attention.num_attention_heads, -1)).transpose(0, 1)

    query = split(at("query", attention.query_proj(hidden), hidden))
    key = split(at("key", attention.key_proj(hidden), hidden))
    value = split(at("value", attention.value_proj(hidden), hidden))
    terms = 1 + len(attention.pos_att_type)
    root = (query.shape[-1] * terms) ** 0.5
    logits = query @ key.transpose(1, 2) / root + _position_terms(model, attention, query, key, at)
    for edit, entry in edits:
        if isinstance(edit, Prefix):
            gate = _gate(edit.gate, entry, index, hidden)
            keys = split(gate * edit.keys[entry, index])
            logits = torch.cat([query @ keys.transpose(1, 2) / root, logits], -1)
            value = torch.cat([split(gate * edit.values[entry, index]), value], 1)
    return (logits.softmax(-1) @ value).transpose(0, 1).flatten(1)


def _position_terms(
    model: DebertaV2Model, attention: Any, query: Tensor, key: Tensor, at: Callable[..., Tensor]
) -> Tensor:
    """The published terms, with the projections of their tables changed. [heads, T, T]"""
    if not attention.relative_attention:
        return torch.zeros(())
    names = ("query_proj", "key_proj")
    if not attention.share_att_key:
        names = ("pos_query_proj", "pos_key_proj")
    sites = ("position_query", "position_key")
    frozen = {name: getattr(attention, name, None) for name in names}
    distances = build_relative_position(
        query, key, attention.position_buckets, attention.max_relative_positions
    )
    try:
        for (name, project), site in zip(frozen.items(), sites, strict=True):
            if project is not None:
                setattr(attention, name, _Changed(project, site, at))
        return attention.disentangled_attention_bias(
            query,
            key,
            distances,
            model.encoder.get_rel_embedding(),
            1 + len(attention.pos_att_type),
        )
    finally:
        for name, project in frozen.items():
            if project is not None:
                setattr(attention, name, project)


class _Changed(torch.nn.Module):
    """A projection with the edits of a site."""

    def __init__(self, project: torch.nn.Module, site: str, at: Callable[..., Tensor]) -> None:
        super().__init__()
        self.project, self.site, self.at = project, site, at

    def forward(self, x: Tensor) -> Tensor:
        return self.at(self.site, self.project(x), x)
