"""What of the GPU pass can be tested without one: its buckets, and what a graph captures."""

from __future__ import annotations

import pytest
import torch
from tests.encoder.test_model import VARIANTS, stock

from labelmux_encoder.batch import PackedRows
from labelmux_encoder.cuda_pass import (
    LARGEST_GRAPH_TOKENS,
    Bucket,
    CudaPass,
    all_buckets,
    bucket_for,
    padded_states,
)
from labelmux_encoder.errors import InputTooLongError
from labelmux_encoder.model import derive, run_pass


@pytest.mark.parametrize(
    ("lengths", "bucket"),
    [
        ((1,), Bucket(1, 16)),
        ((16, 3), Bucket(2, 16)),
        ((17, 3, 4), Bucket(4, 32)),
        ((5,) * 64, Bucket(64, 16)),
        ((5,) * 65, None),
        ((513,), None),
        ((512,) * 16, Bucket(16, 512)),
        ((512,) * 17, None),
    ],
)
def test_a_batch_takes_the_smallest_bucket_that_holds_it(
    lengths: tuple[int, ...], bucket: Bucket | None
) -> None:
    assert bucket_for(lengths) == bucket


def test_every_bucket_is_warmed_up_small_ones_first() -> None:
    buckets = all_buckets()
    assert buckets[0] == Bucket(1, 16)
    assert all(bucket_for((b.tokens,) * b.rows) == b for b in buckets)
    assert max(b.rows * b.tokens for b in buckets) <= LARGEST_GRAPH_TOKENS


@pytest.mark.parametrize("name", ["v3", "absolute-positions-and-types"])
def test_what_a_graph_captures_equals_the_pass(name: str) -> None:
    model, config = stock(VARIANTS[name])
    lengths = (9, 16, 1)
    ids = torch.zeros(4, 16, dtype=torch.int64)
    rows = [torch.randint(1, config.vocab_size, (length,)) for length in lengths]
    for row, some in enumerate(rows):
        ids[row, : len(some)] = some
    with torch.no_grad():
        tensors = derive(config, model.state_dict())
        found = padded_states(config, tensors, ids, torch.tensor([*lengths, 1]))
        packed = PackedRows(torch.cat(rows), torch.zeros(26, dtype=torch.int64), lengths)
        expected = torch.stack(run_pass(config, tensors, packed))
    real = torch.cat([torch.arange(row * 16, row * 16 + n) for row, n in enumerate(lengths)])
    assert (found[:, real] - expected).abs().max().item() < 1e-5


def test_without_graphs_the_pass_is_the_plain_one() -> None:
    model, config = stock(VARIANTS["v3"])
    with torch.no_grad():
        tensors = derive(config, model.state_dict())
        rows = PackedRows(torch.arange(1, 8), torch.zeros(7, dtype=torch.int64), (3, 4))
        assert torch.equal(
            CudaPass(config, tensors)(rows), torch.stack(run_pass(config, tensors, rows))
        )
        with pytest.raises(InputTooLongError):
            CudaPass(config, tensors)(PackedRows(*torch.zeros(2, 600).long(), (600,)))
