"""Attention on a GPU as one Triton kernel: nothing of size [T, T] is kept.

Products with the position tables are torch's, [T, 2T-1] for each head; the kernel reads both as
they lie, a step to the side for every token, while softmax runs over blocks of keys (Dao et al.
2022, FlashAttention, algorithm 1). Needs triton, which torch brings along where there is a GPU.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

from labelmux_encoder.attention import LengthGroup, PositionTables, packed_attention
from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.model import EncoderTensors

_log = logging.getLogger(__name__)

#: Queries, and keys, of one block. Wider values fill the memory that a block shares.
_BLOCKS = {torch.float32: 32, torch.bfloat16: 64}
#: The least inner dimension of a product on a matrix unit.
_LEAST_DEPTH = 16
_TRIAL_TOKENS = 70
#: Largest difference from torch's attention, as a share of it.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-2}


@triton.jit
def _attend(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    by_query: tl.tensor,
    by_key: tl.tensor,
    lengths: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    heads: tl.tensor,
    token_stride: tl.tensor,
    has_by_query: tl.constexpr,
    has_by_key: tl.constexpr,
    depth: tl.constexpr,
    queries: tl.constexpr,
    keys: tl.constexpr,
    precision: tl.constexpr,
) -> None:
    row, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    length = tl.load(lengths + row)
    d = tl.arange(0, depth)
    i = tl.program_id(0) * queries + tl.arange(0, queries)
    inside = i < tokens
    of_row = row.to(tl.int64) * tokens * token_stride + head * depth
    of_bias = tl.program_id(1).to(tl.int64) * tokens * (2 * tokens - 1) + tokens - 1
    q = tl.load(query + of_row + i[:, None] * token_stride + d[None, :], inside[:, None], other=0.0)
    best = tl.full([queries], float("-inf"), tl.float32)
    total = tl.zeros([queries], tl.float32)
    found = tl.zeros([queries, depth], tl.float32)
    for first in range(0, length, keys):
        j = first + tl.arange(0, keys)
        real = j < length
        k = tl.load(key + of_row + j[None, :] * token_stride + d[:, None], real[None, :], other=0.0)
        logits = tl.dot(q, k, input_precision=precision)
        seen = inside[:, None] & real[None, :]
        # A line of these products begins a distance later than the one before it.
        if has_by_query:
            at = i[:, None] * (2 * tokens - 2) + j[None, :]
            logits += tl.load(by_query + of_bias + at, seen, other=0.0).to(tl.float32)
        if has_by_key:
            at = j[None, :] * (2 * tokens - 2) + i[:, None]
            logits += tl.load(by_key + of_bias + at, seen, other=0.0).to(tl.float32)
        logits = tl.where(real[None, :], logits * 1.4426950408889634, float("-inf"))
        top = tl.maximum(best, tl.max(logits, 1))
        weights = tl.exp2(logits - top[:, None])
        kept = tl.exp2(best - top)
        v = tl.load(
            value + of_row + j[:, None] * token_stride + d[None, :], real[:, None], other=0.0
        )
        found = found * kept[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=precision)
        total = total * kept + tl.sum(weights, 1)
        best = top
    to = out + (row.to(tl.int64) * tokens + i[:, None]) * heads * depth + head * depth + d[None, :]
    tl.store(to, (found / total[:, None]).to(out.dtype.element_ty), inside[:, None])


def fused_attention(
    qkv: Tensor, heads: int, tables: PositionTables, tokens: int, lengths: Tensor
) -> Tensor:
    """Attention of rows padded to one length; what padding becomes means nothing. [B * T, H]

    Args:
        qkv: queries (scaled already), keys and values side by side. [B * T, 3H]
        heads: attention heads, whose size is a power of two from 16 on.
        tables: the position terms; either may be absent.
        tokens: T.
        lengths: real tokens of each row, at least 1. [B]
    """
    parts = qkv.view(len(lengths), tokens, 3, heads, -1)
    query, key, value = parts.unbind(2)  # [B, T, heads, D]
    near = tables.for_length(tokens)
    by_query, by_key = _products(query, near.key), _products(key, near.query)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    depth = out.shape[-1]
    kernel: Any = _attend
    block = _BLOCKS[qkv.dtype]
    kernel[(triton.cdiv(tokens, block), len(lengths) * heads)](
        query,
        key,
        value,
        *(query if each is None else each for each in (by_query, by_key)),
        lengths,
        out,
        tokens,
        heads,
        query.stride(1),
        has_by_query=by_query is not None,
        has_by_key=by_key is not None,
        depth=depth,
        queries=block,
        keys=block,
        precision="ieee" if qkv.dtype == torch.float32 else "tf32",
    )
    return out.view(-1, heads * depth)


def _products(states: Tensor, table: Tensor | None) -> Tensor | None:
    """[B, T, heads, D] with [heads, 2T-1, D] -> [B, heads, T, 2T-1]"""
    return None if table is None else states.transpose(1, 2) @ table.transpose(-1, -2)


def works(config: EncoderConfig, tensors: EncoderTensors) -> bool:
    """Whether the kernel gives torch's attention, on the device and in the dtype of the tensors."""
    heads, depth = config.num_heads, config.head_size
    if depth < _LEAST_DEPTH or depth & (depth - 1):
        return False
    tables, weight = tensors.layers[0].positions, tensors.layers[0].qkv.weight
    tokens = min(_TRIAL_TOKENS, config.max_tokens)
    lengths = torch.tensor([tokens, 1, -(-tokens // 2)], device=weight.device)
    source = torch.Generator().manual_seed(0)
    qkv = torch.randn(len(lengths) * tokens, 3 * config.hidden_size, generator=source)
    qkv = qkv.to(weight) * depth**-0.25  # logits of a trained encoder's size
    real = (torch.arange(tokens, device=weight.device) < lengths[:, None]).flatten()
    group = LengthGroup.padded(lengths, tokens, fused=False)
    expected = packed_attention(qkv, heads, [tables], [group])[real].float()
    try:
        found = fused_attention(qkv, heads, tables, tokens, lengths)[real].float()
    except (TritonError, RuntimeError, OSError, ImportError) as error:  # or no C compiler
        _log.warning("the fused attention kernel does not run here, serving without: %s", error)
        return False
    difference = ((found - expected).norm() / expected.norm()).item()
    if not difference <= _TOLERANCE[weight.dtype]:
        _log.warning("fused attention differs by %.1e from torch's: serving without", difference)
        return False
    return True
