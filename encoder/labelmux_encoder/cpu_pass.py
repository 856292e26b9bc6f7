"""The plain pass on a CPU: weights laid out once, fused kernels, no gradients.

Rows are packed, so nothing is computed on padding. A batch with enough tokens is divided among the
threads, a few whole rows for each, and no thread waits for another until the end; a smaller one
goes through the layers with all threads on each product. Token counts are rounded up, because the
products compile code for every new size of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from labelmux_encoder import kernels
from labelmux_encoder.batch import PackedRows
from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.edits import Edit, Placed
from labelmux_encoder.errors import InputTooLongError
from labelmux_encoder.kernel_edits import KernelEdits, lay_out
from labelmux_encoder.model import Affine, EncoderTensors, LayerTensors
from labelmux_encoder.storage import int8_rows

#: Most tokens that pass through the layers together, unless one row has more: their intermediate
#: results stay in the cache.
CHUNK_TOKENS = 1024
#: Most tokens of one tile of a matrix product, as ``linear.h`` has it.
TILE_TOKENS = 64
#: A thread with fewer tokens of its own would spend its time on reading the weights.
_LEAST_SHARE_TOKENS = 96
#: A division is worth it if the largest share is at most this many times the mean.
_MOST_UNEVEN = 1.3
#: Activations that the matrix product applies itself.
_FUSED_ACTIVATIONS = ("gelu", "gelu_new", "relu")


def supports(config: EncoderConfig) -> bool:
    """Whether this pass can run such an encoder on this machine."""
    return (
        not config.conv_kernel_size
        and config.hidden_act in _FUSED_ACTIVATIONS
        and config.head_size % 2 == 0
        and config.intermediate_size % 2 == 0
        and kernels.load()
    )


def supports_int8(config: EncoderConfig) -> bool:
    """Whether it can do so with products in int8, and is the faster for it."""
    even = config.hidden_size % 4 == 0 and config.intermediate_size % 4 == 0
    return even and supports(config) and kernels.has_int8()


def rounded(tokens: int) -> int:
    """The size of a matrix product that serves this many tokens: its tiles are of few sizes."""
    return -(-tokens // 16) * 16


class Chunks(NamedTuple):
    """How the rows of a batch go through the layers."""

    #: Rows of each chunk, in their order.
    rows: list[int]
    #: Tokens of each chunk.
    tokens: list[int]
    #: A thread for each chunk, or one chunk after the other with all threads.
    side_by_side: bool


def divide(lengths: Sequence[int], threads: int) -> Chunks:
    """A share for each thread where there is enough for all, else chunks that fit the cache."""
    tokens = sum(lengths)
    if threads > 1 and tokens >= threads * _LEAST_SHARE_TOKENS:
        rounds = -(-tokens // (threads * CHUNK_TOKENS))
        shares = _cut(lengths, tokens / (threads * rounds))
        even = max(shares.tokens) * threads * rounds <= _MOST_UNEVEN * tokens
        if even and len(shares.rows) <= threads * rounds:
            return shares._replace(side_by_side=True)
    return _cut(lengths, CHUNK_TOKENS, within=True)


def _cut(lengths: Sequence[int], target: float, *, within: bool = False) -> Chunks:
    """Chunks that end nearest to the multiples of ``target`` tokens, or ``within`` it."""
    rows, tokens, done = [0], [0], 0
    for length in lengths:
        reach = tokens[-1] + length if within else done + length / 2
        limit = target if within else len(rows) * target
        if rows[-1] and reach > limit:
            rows.append(0)
            tokens.append(0)
        rows[-1] += 1
        tokens[-1] += length
        done += length
    return Chunks(rows, tokens, side_by_side=False)


class CpuPass:
    """The pass with states of one dtype, and the layers' linear maps in it or in int8."""

    def __init__(
        self,
        config: EncoderConfig,
        tensors: EncoderTensors,
        dtype: torch.dtype,
        *,
        quantised: bool = False,
    ) -> None:
        self._config = config
        self._dtype = dtype
        self._quantised = quantised
        self._embedding = _embedding_constants(tensors)
        relative = kernels.widen(tensors.relative, dtype)
        self._relative = torch.empty(0, 0, dtype=dtype) if relative is None else relative
        self._centre = 0
        self._constants: list[Tensor] = []
        for layer in tensors.layers:
            self._constants += self._layer_constants(layer)

    def lay_out(self, edit: Edit) -> Edit:
        """The edit in the form that this pass reads."""
        return lay_out(self._config, edit, self._dtype)

    def __call__(self, rows: PackedRows, edits: Sequence[Placed] = ()) -> Tensor:
        """Hidden states of every layer, the embedding output first. [L+1, N, H]

        Args:
            rows: the batch.
            edits: stacks of what ``lay_out`` gave.

        Raises:
            InputTooLongError: a row is longer than the encoder's limit.
        """
        config = self._config
        if max(rows.lengths) > config.max_tokens:
            raise InputTooLongError(max(rows.lengths), config.max_tokens)
        chunks = divide(rows.lengths, torch.get_num_threads())
        states: Tensor = torch.ops.labelmux.encode(
            self._embedding,
            rows.token_ids,
            rows.type_ids,
            self._constants,
            self._relative,
            rows.lengths,
            chunks.rows,
            [rounded(count) for count in chunks.tokens],
            chunks.side_by_side,
            config.num_heads,
            self._centre,
            config.layer_norm_eps,
            config.hidden_act,
            *KernelEdits.of(edits, rows),
        )
        return states

    def _layer_constants(self, layer: LayerTensors) -> list[Tensor]:
        """In the order of ``Pass::layer`` in ``kernels.cpp``."""
        tables = kernels.KernelTables.of(layer.positions, self._dtype)
        self._centre = tables.centre
        nothing = torch.empty(0, dtype=self._dtype)
        return [
            *self._linear(layer.qkv),
            nothing if tables.key is None else tables.key,
            nothing if tables.query is None else tables.query,
            *self._linear(layer.attention_out),
            *_norm(layer.attention_norm),
            *self._linear(layer.ffn_in),
            *self._linear(layer.ffn_out),
            *_norm(layer.ffn_norm),
        ]

    def _linear(self, affine: Affine) -> tuple[Tensor, Tensor]:
        """The weight in the order that the matrix product reads, and what else it needs."""
        assert affine.bias is not None
        bias = affine.bias.float()
        if not self._quantised:
            return kernels.blocks(affine.weight.to(self._dtype)), bias
        rows, scales = int8_rows(affine.weight)
        sums = rows.sum(1, dtype=torch.int32).float()
        return kernels.blocks(rows), torch.stack([bias, scales.flatten(), sums])


def _embedding_constants(tensors: EncoderTensors) -> list[Tensor]:
    """In the order of ``Embedding`` in ``kernels.cpp``. Projections are linear: the tables' own."""
    proj, nothing = tensors.embed_proj, torch.empty(0)
    tables = [tensors.words, tensors.positions, tensors.types]
    if proj is not None:
        tables = [table if table is None else functional.linear(table, proj) for table in tables]
    found = [nothing if table is None else table.float().contiguous() for table in tables]
    return [*found, *_norm(tensors.embed_norm)]


def _norm(affine: Affine) -> tuple[Tensor, Tensor]:
    assert affine.bias is not None
    return affine.weight.float(), affine.bias.float()
