"""Disentangled attention with its position tables computed once.

DeBERTa's logit between query i and key j is ``q_i.k_j + q_i.Kr[d] + k_j.Qr[d]`` over
``sqrt(terms * head_size)``, with d = i - j (He et al. 2021, DeBERTa, section 3.1, equation 4). The
tables Kr and Qr depend on weights alone, so they are laid out once by signed distance. A row of
length T then needs one contiguous slice of each, and both lookups are strided views of one matrix
product: no gather.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

_LENGTH_STEP_TOKENS = 16


@dataclass(frozen=True, slots=True)
class PositionTables:
    """One layer's position terms, a row per signed distance; the scale is folded in.

    Row M-1 is distance 0 in both, where M is the longest row in tokens.
    """

    #: Keys for the c2p term, distance falling from M-1 to 1-M. [heads, 2M-1, D], or each row's
    #: own where an edit changes them: [B, heads, 2M-1, D]
    key: Tensor | None
    #: Queries for the p2c term, distance rising from 1-M to M-1; shaped as ``key``.
    query: Tensor | None

    def for_length(self, tokens: int) -> PositionTables:
        """The part that rows of so many tokens read."""
        return PositionTables(_for_length(self.key, tokens), _for_length(self.query, tokens))


def relative_rows(max_tokens: int, span: int, buckets: int, max_distance: int) -> Tensor:
    """Which row of a relative table serves each signed distance, rising. [2*max_tokens - 1]

    Within half the buckets a distance has a row of its own; beyond, rows are logarithmic.
    """
    distance = torch.arange(1 - max_tokens, max_tokens)
    if buckets > 0:
        distance = _log_bucket(distance, buckets, max_distance)
    return (distance + span).clamp(0, 2 * span - 1)


def _log_bucket(distance: Tensor, buckets: int, max_distance: int) -> Tensor:
    middle = buckets // 2
    magnitude = torch.where(distance.abs() < middle, torch.tensor(middle - 1), distance.abs())
    # float32 on purpose: the published checkpoints were trained with these exact roundings.
    scale = torch.log(torch.tensor((max_distance - 1) / middle))
    logarithmic = torch.ceil(torch.log(magnitude / middle) / scale * (middle - 1)) + middle
    return torch.where(magnitude <= middle, distance, logarithmic * distance.sign()).long()


class LengthGroup(NamedTuple):
    """Rows of near-equal length, attended together."""

    #: Which of the batch.
    members: tuple[int, ...]
    #: Of each row, padding counted.
    tokens: int
    #: 0 at real keys, -inf at padding; None where nothing is padded. [rows, 1, 1, tokens]
    key_bias: Tensor | None
    #: Where the group lies in the packed batch; None if it is the batch.
    places: GroupPlaces | None
    #: Real tokens of each row, where a fused kernel attends instead of torch. [rows]
    lengths: Tensor | None = None

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.members)

    @classmethod
    def whole(cls, rows: int, tokens: int) -> LengthGroup:
        """A batch of rows of one length."""
        return cls(tuple(range(rows)), tokens, None, None)

    @classmethod
    def padded(cls, lengths: Tensor, tokens: int, *, fused: bool) -> LengthGroup:
        """A batch of rows that are padded to one length. Shapes alone decide what is launched."""
        whole = cls.whole(len(lengths), tokens)
        if fused:
            return whole._replace(lengths=lengths)
        steps = torch.arange(tokens, device=lengths.device)
        bias = torch.zeros(len(lengths), tokens, device=lengths.device)
        bias = bias.masked_fill(steps >= lengths.unsqueeze(1), float("-inf"))
        return whole._replace(key_bias=bias[:, None, None])


class GroupPlaces(NamedTuple):
    """Where the rows of a group lie in the packed batch."""

    #: Of every token of every row; padding repeats a row's last. [rows, tokens]
    padded: Tensor
    #: Which of these are real, flattened. [real tokens]
    real: Tensor
    #: Of those in the packed batch. [real tokens]
    destinations: Tensor


def group_by_length(
    lengths: Sequence[int], device: torch.device, apart: Sequence[tuple[int, ...]] = ()
) -> list[LengthGroup]:
    """Rows that differ in length by less than a step share a group, unless ``apart`` differs."""
    keys = apart or [()] * len(lengths)
    if len(set(lengths)) == 1 and len(set(keys)) == 1:
        return [LengthGroup.whole(len(lengths), lengths[0])]
    starts = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
    members: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for row, (length, key) in enumerate(zip(lengths, keys, strict=True)):
        members.setdefault((key, -(-length // _LENGTH_STEP_TOKENS)), []).append(row)
    return [
        _length_group(rows, torch.tensor([lengths[row] for row in rows]), starts[rows], device)
        for rows in members.values()
    ]


def _length_group(
    rows: list[int], lengths: Tensor, starts: Tensor, device: torch.device
) -> LengthGroup:
    steps = torch.arange(int(lengths.max()))
    places = starts[:, None] + torch.minimum(steps, lengths[:, None] - 1)
    mask = steps < lengths[:, None]
    bias = None
    if not bool(mask.all()):
        bias = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
        bias = bias[:, None, None].to(device)
    real = mask.flatten().nonzero().squeeze(1)
    found = GroupPlaces(places.to(device), real.to(device), places[mask].to(device))
    return LengthGroup(tuple(rows), len(steps), bias, found)


#: Keys and values without a position, for each row of a group. Two of [rows, P, H]
GroupPrefix = tuple[Tensor, Tensor]


def packed_attention(
    qkv: Tensor,
    heads: int,
    tables: Sequence[PositionTables],
    groups: Sequence[LengthGroup],
    prefixes: Sequence[GroupPrefix | None] = (),
) -> Tensor:
    """Attention of each row over itself, in plain torch: any device, differentiable. [N, H]

    Args:
        qkv: queries (scaled already), keys and values side by side. [N, 3H]
        heads: attention heads.
        tables: for each group, its position terms.
        groups: every row, once.
        prefixes: for each group, what its rows attend to besides themselves; empty: nothing.
    """
    prefixes = prefixes or [None] * len(groups)
    if groups[0].places is None:
        return _group_attention(qkv, heads, tables[0], groups[0], prefixes[0])
    context = qkv.new_zeros(qkv.shape[0], qkv.shape[1] // 3)
    for group, own_tables, prefix in zip(groups, tables, prefixes, strict=True):
        assert group.places is not None
        own = qkv.index_select(0, group.places.padded.flatten())  # its gradient is the faster
        found = _group_attention(own, heads, own_tables, group, prefix)
        context = context.index_copy(0, group.places.destinations, found[group.places.real])
    return context


def _group_attention(
    qkv: Tensor,
    heads: int,
    tables: PositionTables,
    group: LengthGroup,
    prefix: GroupPrefix | None,
) -> Tensor:
    """[rows * tokens, 3H] -> [rows * tokens, H]"""
    if group.lengths is not None:
        from labelmux_encoder.triton_attention import fused_attention

        return fused_attention(qkv, heads, tables, group.tokens, group.lengths)
    parts = qkv.view(group.rows, group.tokens, 3, heads, -1)
    query, key, value = (part.transpose(1, 2) for part in parts.unbind(2))
    bias = None if group.key_bias is None else group.key_bias.to(qkv.dtype)
    found = disentangled_attention(query, key, value, tables, bias, prefix)
    return found.transpose(1, 2).flatten(0, 1).flatten(1)


def disentangled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tables: PositionTables,
    key_bias: Tensor | None,
    prefix: GroupPrefix | None = None,
) -> Tensor:
    """Attention output. [B, heads, T, D]

    Args:
        query: scaled already. [B, heads, T, D]
        key: [B, heads, T, D]
        value: [B, heads, T, D]
        tables: the position terms; either may be absent.
        key_bias: 0 at real keys, -inf at padding; None where nothing is padded. [B, 1, 1, T]
        prefix: keys and values ahead of the row's own, by content alone. Two of [B, P, H]
    """
    bias = _position_bias(query, key, tables)
    if bias is None:
        bias = key_bias
    elif key_bias is not None:
        bias = bias + key_bias
    if prefix is not None:
        heads = query.shape[1]
        before_key, before_value = (
            part.to(query.dtype).unflatten(-1, (heads, -1)).transpose(1, 2) for part in prefix
        )
        key, value = torch.cat([before_key, key], 2), torch.cat([before_value, value], 2)
        bias = None if bias is None else functional.pad(bias, (before_key.shape[2], 0))
    if query.device.type == "cpu" and query.requires_grad and bias is not None:
        return _attend(query, key, value, bias)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """The same, where torch would fall back on a slower path: its fused one has no gradient."""
    shape = (*query.shape[:-1], key.shape[-2])
    query, key, bias = (part.flatten(0, 1) for part in (query, key, bias.expand(shape)))
    logits = torch.baddbmm(bias, query, key.transpose(-1, -2)).view(shape)
    with torch.autocast("cpu", enabled=False):  # it would go by way of float32
        weights = logits.softmax(-1)
    return weights @ value


def _position_bias(query: Tensor, key: Tensor, tables: PositionTables) -> Tensor | None:
    tables = tables.for_length(query.shape[-2])
    bias: Tensor | None = None
    if tables.key is not None:
        bias = _by_distance(query @ tables.key.transpose(-1, -2))
    if tables.query is not None:
        by_key = _by_distance(key @ tables.query.transpose(-1, -2))
        bias = by_key.transpose(-1, -2) if bias is None else bias + by_key.transpose(-1, -2)
    return bias


def _for_length(table: Tensor | None, tokens: int) -> Tensor | None:
    if table is None:
        return None
    longest = (table.shape[-2] + 1) // 2
    return table[..., longest - tokens : longest + tokens - 1, :]


def _by_distance(products: Tensor) -> Tensor:
    """View ``products[..., a, T-1-a+b]`` as ``[..., a, b]``. [..., T, 2T-1] -> [..., T, T]"""
    tokens = products.shape[-2]
    width = max(2 * tokens - 2, 1)
    flat = products.flatten(-2)[..., tokens - 1 : tokens - 1 + tokens * width]
    view: Tensor = flat.unflatten(-1, (tokens, width))[..., :tokens]
    return view
