"""Edits in the pass on kernels give what they give in plain torch."""

from __future__ import annotations

import pytest
import torch
from tests.encoder.edits_oracle import random_edits
from tests.encoder.test_cpu_pass import made, needs_kernels, random_rows
from tests.encoder.test_edits import each_alone, one_row

from labelmux_encoder import kernels
from labelmux_encoder.batch import PackedRows
from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.cpu_pass import CpuPass
from labelmux_encoder.edits import Edit, Placed
from labelmux_encoder.model import EncoderTensors, run_pass

pytestmark = needs_kernels

FLOAT32_TOLERANCE = 2e-4
ROW_TOLERANCE = 1e-5
#: Of a token's states in a lesser precision and in fp32.
LEAST_COSINE = 0.995
#: Few rows, then so many that threads share them; rows longer than a block of attention.
BATCHES = ((3,), (17, 40, 17), (5, 129, 31, 300), (40, 9, 23) * 12)
VARIANTS = ("v3", "own-position-projections", "c2p-only", "no-relative-attention", "gelu-new")


def rows_of(config: EncoderConfig, lengths: tuple[int, ...]) -> PackedRows:
    """Two or three special tokens a row."""
    rows = random_rows(config, lengths)
    special = tuple(
        (0, length // 2, length - 1)[:: 2 - row % 2] for row, length in enumerate(lengths)
    )
    return rows._replace(special=special)


def entries_of(lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Every fourth row carries none."""
    return tuple(row % 4 - 1 for row in range(1, len(lengths) + 1))


def laid(fast: CpuPass, edits: list[Edit], entries: tuple[int, ...]) -> list[Placed]:
    return [Placed(fast.lay_out(edit), entries) for edit in edits]


def pass_in(precision: str, config: EncoderConfig, tensors: EncoderTensors) -> CpuPass:
    """Skips the test where this machine has no such products."""
    there = {"bfloat16": kernels.has_bfloat16, "int8": kernels.has_int8}
    if precision in there and not there[precision]():
        pytest.skip(f"this machine multiplies no {precision}")
    half = precision != "float32" and kernels.has_bfloat16()
    dtype = torch.bfloat16 if half else torch.float32
    return CpuPass(config, tensors, dtype, quantised=precision == "int8")


@pytest.mark.parametrize("name", VARIANTS)
def test_edited_features_equal_plain_torch(name: str) -> None:
    config, tensors = made(name)
    fast = CpuPass(config, tensors, torch.float32)
    for lengths in BATCHES:
        rows, entries = rows_of(config, lengths), entries_of(lengths)
        for edits in each_alone(config):
            with torch.inference_mode():
                placed = [Placed(edit, entries) for edit in edits]
                expected = torch.stack(run_pass(config, tensors, rows, placed))
                found = fast(rows, laid(fast, edits, entries))
            assert (found - expected).abs().max().item() < FLOAT32_TOLERANCE, (lengths, edits)


@pytest.mark.parametrize("precision", ("bfloat16", "int8"))
def test_edited_features_in_a_lesser_precision_stay_near(precision: str) -> None:
    config, tensors = made("v3")
    fast = pass_in(precision, config, tensors)
    for lengths in BATCHES:
        rows, entries = rows_of(config, lengths), entries_of(lengths)
        for edits in each_alone(config):
            with torch.inference_mode():
                placed = [Placed(edit, entries) for edit in edits]
                expected = run_pass(config, tensors, rows, placed)[-1]
                found = fast(rows, laid(fast, edits, entries))[-1].float()
            cosine = torch.cosine_similarity(found, expected, dim=-1).min().item()
            assert cosine > LEAST_COSINE, (lengths, edits)


@pytest.mark.parametrize("precision", ("float32", "bfloat16", "int8"))
def test_rows_without_an_edit_keep_every_bit(precision: str) -> None:
    config, tensors = made("v3")
    fast = pass_in(precision, config, tensors)
    for lengths in BATCHES:
        rows, entries = rows_of(config, lengths), entries_of(lengths)
        with torch.inference_mode():
            plain = fast(rows).split(lengths, 1)
            for edits in each_alone(config):
                found = fast(rows, laid(fast, edits, entries)).split(lengths, 1)
                for row, entry in enumerate(entries):
                    assert torch.equal(found[row], plain[row]) == (entry < 0), (lengths, edits)


def test_a_row_alone_equals_the_row_in_a_mixed_batch() -> None:
    config, tensors = made("v3")
    fast = CpuPass(config, tensors, torch.float32)
    lengths = (5, 129, 31, 17, 17, 64)
    rows, entries = rows_of(config, lengths), entries_of(lengths)
    edits = random_edits(config, 3, seed=5)
    with torch.inference_mode():
        together = fast(rows, laid(fast, edits, entries)).split(lengths, 1)
        for row, entry in enumerate(entries):
            alone = fast(one_row(rows, row), laid(fast, edits, (entry,)))
            assert (alone - together[row]).abs().max().item() < ROW_TOLERANCE
