"""The plain pass on a CPU: weights laid out once, fused kernels, no gradients.

Rows are packed, so nothing is computed on padding, and taken in chunks whose intermediate results
stay in the cache. Token counts are rounded up to a few sizes, because the matrix products compile
code for every new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from labelmux_encoder import kernels
from labelmux_encoder.batch import PackedRows
from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.errors import InputTooLongError
from labelmux_encoder.model import Affine, EncoderTensors, LayerTensors, embed

#: Most tokens that pass through the layers together, unless one row has more.
CHUNK_TOKENS = 1024
#: Activations that the matrix product applies itself, with its name for them.
_FUSED_ACTIVATIONS = {"gelu": ("gelu", "none"), "gelu_new": ("gelu", "tanh"), "relu": ("relu", "")}


def supports(config: EncoderConfig) -> bool:
    """Whether this pass can run such an encoder on this machine."""
    return (
        not config.conv_kernel_size
        and config.hidden_act in _FUSED_ACTIVATIONS
        and config.head_size % 2 == 0
        and kernels.load()
    )


def rounded(tokens: int) -> int:
    """The size of a matrix product that serves this many tokens."""
    step = 16 if tokens <= 128 else 32 if tokens <= 512 else 64
    return -(-tokens // step) * step


class _Linear:
    """A linear map with its weight in the order that the matrix product reads."""

    def __init__(self, affine: Affine, dtype: torch.dtype, activation: str | None = None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(
            affine.weight.to(dtype).contiguous(), CHUNK_TOKENS
        )
        self._bias = None if affine.bias is None else affine.bias.to(dtype)
        self._after, self._algorithm = _FUSED_ACTIVATIONS.get(activation or "", ("none", ""))

    def __call__(self, x: Tensor) -> Tensor:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, self._after, [], self._algorithm
        )
        return found


class _Norm:
    """``LayerNorm(x + residual)`` into a given place."""

    def __init__(self, affine: Affine, epsilon: float) -> None:
        assert affine.bias is not None
        self._weight, self._bias = affine.weight.float(), affine.bias.float()
        self._epsilon = epsilon

    def __call__(self, x: Tensor, residual: Tensor, out: Tensor) -> None:
        kernels.add_norm(x, residual, self._weight, self._bias, self._epsilon, out)


class _Layer:
    def __init__(self, config: EncoderConfig, layer: LayerTensors, dtype: torch.dtype) -> None:
        self._heads = config.num_heads
        self._qkv = _Linear(layer.qkv, dtype)
        self._tables = kernels.KernelTables.of(layer.positions, dtype)
        self._attention_out = _Linear(layer.attention_out, dtype)
        self._attention_norm = _Norm(layer.attention_norm, config.layer_norm_eps)
        self._ffn_in = _Linear(layer.ffn_in, dtype, config.hidden_act)
        self._ffn_out = _Linear(layer.ffn_out, dtype)
        self._ffn_norm = _Norm(layer.ffn_norm, config.layer_norm_eps)

    def __call__(self, hidden: Tensor, lengths: Sequence[int], work: _Work, out: Tensor) -> None:
        kernels.attention(self._qkv(hidden), lengths, self._tables, self._heads, work.context)
        self._attention_norm(self._attention_out(work.context), hidden, work.attended)
        self._ffn_norm(self._ffn_out(self._ffn_in(work.attended)), work.attended, out)


@dataclass(frozen=True, slots=True)
class _Work:
    """Memory of one chunk that every layer uses again. Each [M, H]"""

    context: Tensor
    attended: Tensor


class CpuPass:
    """The pass with weights of one dtype."""

    def __init__(self, config: EncoderConfig, tensors: EncoderTensors, dtype: torch.dtype) -> None:
        self._config = config
        self._dtype = dtype
        self._embedding = tensors
        self._layers = [_Layer(config, layer, dtype) for layer in tensors.layers]

    def __call__(self, rows: PackedRows) -> Tensor:
        """Hidden states of every layer, the embedding output first. [L+1, N, H]

        Raises:
            InputTooLongError: a row is longer than the encoder's limit.
        """
        if max(rows.lengths) > self._config.max_tokens:
            raise InputTooLongError(max(rows.lengths), self._config.max_tokens)
        tokens = sum(rows.lengths)
        # A chunk's last rows, which only round its size up, are written over by the next chunk.
        states = torch.empty(
            len(self._layers) + 1, tokens + 64, self._config.hidden_size, dtype=self._dtype
        )
        for first, lengths in chunks(rows.lengths):
            self._run_chunk(rows, first, lengths, states)
        return states[:, :tokens]

    def _run_chunk(
        self, rows: PackedRows, first: int, lengths: Sequence[int], states: Tensor
    ) -> None:
        tokens = sum(lengths)
        size = rounded(tokens)
        part = states[:, first : first + size]
        part[0, :tokens] = embed(
            self._config,
            self._embedding,
            PackedRows(
                rows.token_ids[first : first + tokens],
                rows.type_ids[first : first + tokens],
                tuple(lengths),
            ),
        )
        part[0, tokens:] = 0
        work = _Work(*torch.zeros(2, size, self._config.hidden_size, dtype=self._dtype))
        for index, layer in enumerate(self._layers):
            layer(part[index], lengths, work, part[index + 1])


def chunks(lengths: Sequence[int]) -> Iterator[tuple[int, Sequence[int]]]:
    """Rows in their order, as (first token, lengths) of each chunk."""
    first_row, first_token, tokens = 0, 0, 0
    for row, length in enumerate(lengths):
        if tokens and tokens + length > CHUNK_TOKENS:
            yield first_token, lengths[first_row:row]
            first_row, first_token, tokens = row, first_token + tokens, 0
        tokens += length
    yield first_token, lengths[first_row:]
