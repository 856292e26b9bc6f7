"""The plain pass on a GPU: one captured graph per bucket of (rows, length), eager beyond.

A small batch on a GPU waits for kernel launches, not for arithmetic; a captured graph launches them
all at once. Within a bucket rows are padded, the states of real tokens are picked out at the end,
and nothing waits for the host. Attention is torch's, or one kernel where that works. Which of these
serves a bucket is measured at warm-up.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from labelmux_encoder.attention import LengthGroup
from labelmux_encoder.batch import PackedRows
from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.edits import Placed
from labelmux_encoder.model import EncoderTensors, embed, run_layers
from labelmux_encoder.plain_pass import PlainPass

ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
TOKEN_BUCKETS = (16, 32, 64, 96, 128, 192, 256, 384, 512)
#: Buckets above this many padded tokens keep a GPU busy without a graph.
LARGEST_GRAPH_TOKENS = 8192
_TRIALS = 5
_LEAST_COSINE = 0.999


@dataclass(frozen=True, slots=True)
class Bucket:
    """Rows and tokens per row that one graph serves."""

    rows: int
    tokens: int


@dataclass(frozen=True, slots=True)
class _Graph:
    replay: Callable[[], None]
    token_ids: Tensor  # [B, T]
    lengths: Tensor  # [B]
    states: Tensor  # [L+1, B * T, H]


def bucket_for(lengths: Sequence[int]) -> Bucket | None:
    """The smallest bucket that holds such a batch; None if it is served eagerly."""
    rows = next((rows for rows in ROW_BUCKETS if rows >= len(lengths)), None)
    tokens = next((tokens for tokens in TOKEN_BUCKETS if tokens >= max(lengths)), None)
    if rows is None or tokens is None or rows * tokens > LARGEST_GRAPH_TOKENS:
        return None
    return Bucket(rows, tokens)


def all_buckets() -> list[Bucket]:
    """Every bucket that has a graph, small ones first."""
    found = [
        Bucket(rows, tokens)
        for rows in ROW_BUCKETS
        for tokens in TOKEN_BUCKETS
        if rows * tokens <= LARGEST_GRAPH_TOKENS
    ]
    return sorted(found, key=lambda bucket: bucket.rows * bucket.tokens)


def padded_states(
    config: EncoderConfig,
    tensors: EncoderTensors,
    token_ids: Tensor,
    lengths: Tensor,
    *,
    fused: bool = False,
) -> Tensor:
    """Hidden states of every layer of rows padded to one length. [L+1, B * T, H]

    Its shapes depend on its arguments' shapes alone, so it can be captured.

    Args:
        token_ids: [B, T]
        lengths: real tokens of each row, at least 1. [B]
        fused: attend by the kernel of ``triton_attention``.
    """
    rows, tokens = token_ids.shape
    flat = token_ids.flatten()
    group = LengthGroup.padded(lengths, tokens, fused=fused)
    embedded = embed(config, tensors, PackedRows(flat, torch.zeros_like(flat), (tokens,) * rows))
    return torch.stack(run_layers(config, tensors, embedded, [group], (tokens,) * rows))


class CudaPass(PlainPass):
    """The pass with constants on a GPU."""

    def __init__(self, config: EncoderConfig, tensors: EncoderTensors) -> None:
        super().__init__(config, tensors)
        self._graphs: dict[Bucket, _Graph] = {}
        self._fuses = tensors.words.is_cuda and fused_attention_works(config, tensors)

    def __call__(self, rows: PackedRows, edits: Sequence[Placed] = ()) -> Tensor:
        """Hidden states of every layer, the embedding output first. [L+1, N, H]

        No graph has edits: a batch with any is eager.

        Raises:
            InputTooLongError: a row is longer than the encoder's limit.
        """
        bucket = None if edits else bucket_for(rows.lengths)
        if bucket is None or bucket not in self._graphs:
            return super().__call__(rows, edits)
        return self._replay(self._graphs[bucket], bucket, rows)

    def warm_up(self, buckets: Sequence[Bucket]) -> None:
        """Capture graphs for each bucket; keep the fastest that gives the same features, if any."""
        device = self._tensors.words.device
        for bucket in buckets if _has_graphs(self._config) else ():
            if bucket.tokens > self._config.max_tokens:
                continue
            ids = torch.arange(bucket.rows * bucket.tokens, device=device) % self._config.vocab_size
            rows = PackedRows(ids, torch.zeros_like(ids), (bucket.tokens,) * bucket.rows)
            expected, least_s = self(rows)[-1].float(), _seconds(partial(self, rows))
            for fused in (False, True) if self._fuses else (False,):
                graph = self._capture(bucket, fused=fused)
                run = partial(self._replay, graph, bucket, rows)
                found, graph_s = run()[-1].float(), _seconds(run)
                alike = functional.cosine_similarity(found, expected, dim=-1).min().item()
                if graph_s <= least_s and alike > _LEAST_COSINE:
                    self._graphs[bucket], least_s = graph, graph_s

    def _replay(self, graph: _Graph, bucket: Bucket, rows: PackedRows) -> Tensor:
        device = graph.token_ids.device
        places = torch.cat(
            [
                torch.arange(row * bucket.tokens, row * bucket.tokens + length)
                for row, length in enumerate(rows.lengths)
            ]
        )
        lengths = torch.ones(bucket.rows, dtype=torch.int64)
        lengths[: len(rows.lengths)] = torch.tensor(rows.lengths)
        places = places.pin_memory().to(device, non_blocking=True)
        graph.lengths.copy_(lengths.pin_memory(), non_blocking=True)
        graph.token_ids.view(-1).index_copy_(0, places, rows.token_ids)
        graph.replay()
        return graph.states.index_select(1, places)

    def _capture(self, bucket: Bucket, *, fused: bool) -> _Graph:
        device = self._tensors.words.device
        ids = torch.zeros(bucket.rows, bucket.tokens, dtype=torch.int64, device=device)
        lengths = torch.ones(bucket.rows, dtype=torch.int64, device=device)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(2):
                padded_states(self._config, self._tensors, ids, lengths, fused=fused)
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            states = padded_states(self._config, self._tensors, ids, lengths, fused=fused)
        return _Graph(graph.replay, ids, lengths, states)


def fused_attention_works(config: EncoderConfig, tensors: EncoderTensors) -> bool:
    """Whether one kernel can attend on this machine, by a trial; False where triton is missing."""
    if importlib.util.find_spec("triton") is None:
        return False
    from labelmux_encoder.triton_attention import works

    return works(config, tensors)


def _has_graphs(config: EncoderConfig) -> bool:
    """Graphs know no second text's types, and a convolution would read padding."""
    return not (config.type_vocab_size or config.conv_kernel_size)


def _seconds(run: Callable[[], object]) -> float:
    run()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(_TRIALS):
        run()
    torch.cuda.synchronize()
    return time.perf_counter() - started
