"""Products in int8 give what plain torch gives with the same rounding, whatever the batch."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.encoder.test_cpu_pass import BATCHES, ROW_TOLERANCE, can_int8, made, random_rows
from torch import Tensor
from torch.nn import functional

from labelmux_encoder import kernels, model
from labelmux_encoder.batch import PackedRows
from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.cpu_pass import CpuPass, supports_int8
from labelmux_encoder.edits import Placed, Shift
from labelmux_encoder.model import Affine, EncoderTensors, derive, run_pass
from labelmux_encoder.storage import int8_rows
from labelmux_encoder.weights import read_checkpoint

pytestmark = pytest.mark.skipif(not can_int8(), reason="this machine multiplies no bytes")

#: Sums of floats differ in their last digits, and with them now and then a byte.
ORACLE_COSINE = 0.9999
FLOAT32_COSINE = 0.995
VARIANTS = ("v3", "c2p-only", "no-relative-attention", "gelu-new", "narrow-embedding")


def rounded_linear(x: Tensor, affine: Affine) -> Tensor:
    """Each token's values to 256 steps between its extremes and 0, each weight row to 255."""
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, 1.0, scale)
    zero = (-low / scale).round()
    steps = ((x / scale + zero).round().clamp(0, 255) - zero) * scale
    rows, scales = int8_rows(affine.weight)
    return functional.linear(steps, rows * scales, affine.bias)


def quantised(
    config: EncoderConfig, tensors: EncoderTensors, dtype: torch.dtype = torch.float32
) -> CpuPass:
    return CpuPass(config, tensors, dtype, quantised=True)


def cosine(found: Tensor, expected: Tensor) -> float:
    return functional.cosine_similarity(found.float(), expected.float(), dim=-1).min().item()


@pytest.mark.parametrize("name", VARIANTS)
def test_features_equal_plain_torch_with_the_same_rounding(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, tensors = made(name)
    fast = quantised(config, tensors)
    monkeypatch.setattr(model, "_linear", rounded_linear)
    for lengths in BATCHES:
        rows = random_rows(config, lengths)
        with torch.inference_mode():
            expected = torch.stack(run_pass(config, tensors, rows))
            assert cosine(fast(rows), expected) > ORACLE_COSINE, lengths


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bundled_features_stay_near_float32(dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and not kernels.has_bfloat16():
        pytest.skip("this machine has no bfloat16 products")
    config, state = read_checkpoint("bundled")
    tensors = derive(config, state)
    fast = quantised(config, tensors, dtype)
    for lengths in BATCHES:
        rows = random_rows(config, lengths)
        with torch.inference_mode():
            found, expected = fast(rows), torch.stack(run_pass(config, tensors, rows))
        assert found.dtype == dtype
        assert cosine(found, expected) > FLOAT32_COSINE, lengths


def test_a_row_alone_equals_the_row_in_any_batch() -> None:
    config, tensors = made("v3")
    fast = quantised(config, tensors)
    rows = random_rows(config, (1, 2, 9, 33, 140, 300, 16, 128, 500, 129, 64))
    with torch.inference_mode():
        together = fast(rows).split(rows.lengths, dim=1)
        parts = zip(rows.token_ids.split(rows.lengths), rows.lengths, together, strict=True)
        for ids, length, found in parts:
            alone = fast(PackedRows(ids, torch.zeros_like(ids), (length,)))
            assert (alone - found).abs().max().item() < ROW_TOLERANCE


def test_features_are_the_same_with_either_order_of_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, tensors = made("v3")
    rows = random_rows(config, (5, 40, 31, 128))
    found = []
    for matrix_unit in (False, True):
        monkeypatch.setattr(
            torch.cpu, "_is_amx_tile_supported", lambda matrix_unit=matrix_unit: matrix_unit
        )
        with torch.inference_mode():
            found.append(quantised(config, tensors)(rows))
    assert torch.equal(*found)


def test_what_is_no_number_stays_none_and_its_neighbours_do_not_see_it() -> None:
    config, tensors = made("v3")
    rows = random_rows(config, (3, 4))
    with torch.inference_mode():
        expected = quantised(config, tensors)(rows)
        words = tensors.words.clone()
        broken = dataclasses.replace(tensors, words=words)
        words[rows.token_ids[0]] = torch.nan
        found = quantised(config, broken)(rows)
    assert found[-1, 0].isnan().all()
    assert torch.equal(found[:, 3:], expected[:, 3:])


def test_one_value_that_is_no_number_is_not_lost_in_a_product() -> None:
    config, tensors = made("v3")
    fast, rows = quantised(config, tensors), random_rows(config, (3, 4))
    for at in (0, 17, config.intermediate_size - 1):
        vectors = torch.zeros(1, config.num_layers, config.intermediate_size)
        vectors[0, -1, at] = torch.nan
        with torch.inference_mode():
            expected = fast(rows)
            found = fast(rows, [Placed(fast.lay_out(Shift("inner", vectors)), (0, -1))])
        assert found[-1, :3].isnan().all()
        assert torch.equal(found[:, 3:], expected[:, 3:])


def test_a_text_of_nothing_but_zeros_is_no_division_by_zero() -> None:
    config, tensors = made("no-relative-attention")
    norm = tensors.embed_norm
    assert norm.bias is not None
    blank = dataclasses.replace(
        tensors, embed_norm=Affine(torch.zeros_like(norm.weight), torch.zeros_like(norm.bias))
    )
    with torch.inference_mode():
        rows = random_rows(config, (5,))
        expected = torch.stack(run_pass(config, blank, rows))
        assert cosine(quantised(config, blank)(rows)[1:], expected[1:]) > FLOAT32_COSINE


def test_widths_that_bytes_cannot_be_grouped_in_are_left_to_other_precisions() -> None:
    config, _ = made("relu-and-a-width-of-no-block")
    assert not supports_int8(config)
