"""The pass on kernels gives what plain torch gives, whatever the lengths and whatever the batch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tests.encoder.test_model import VARIANTS, stock

from labelmux_encoder import kernels
from labelmux_encoder.batch import PackedRows
from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.cpu_pass import (
    CHUNK_TOKENS,
    TILE_TOKENS,
    CpuPass,
    divide,
    rounded,
    supports,
)
from labelmux_encoder.model import EncoderTensors, cast, derive, run_pass
from labelmux_encoder.weights import read_checkpoint

FLOAT32_TOLERANCE = 1e-4
BFLOAT16_TOLERANCE = 0.05
ROW_TOLERANCE = 1e-5
BATCHES = ((1,), (2, 1), (16, 17), (5, 128, 31), (129, 3), (512, 1, 300, 128), (40,) * 60)

needs_kernels = pytest.mark.skipif(not kernels.load(), reason="the kernels are not built here")


def can_int8() -> bool:
    """Whether the kernels are built here, on a machine that multiplies bytes."""
    return kernels.load() and kernels.has_int8()


def random_rows(config: EncoderConfig, lengths: tuple[int, ...]) -> PackedRows:
    generator = torch.Generator().manual_seed(len(lengths))
    tokens = sum(lengths)
    ids = torch.randint(1, config.vocab_size, (tokens,), generator=generator)
    types = torch.randint(0, 2, (tokens,), generator=generator)
    return PackedRows(ids, types, lengths)


def made(name: str) -> tuple[EncoderConfig, EncoderTensors]:
    model, config = stock(VARIANTS[name])
    with torch.no_grad():
        return config, derive(config, model.state_dict())


def test_the_kernels_are_built_where_there_is_a_compiler() -> None:
    if shutil.which("g++") and kernels.unit_of_this_machine():
        assert kernels.load(), "run python -m labelmux_encoder.kernels"


def test_a_build_of_other_sources_is_not_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = [tmp_path / name / "kernels" for name in ("before", "after")]
    for at, folder in enumerate(folders):
        folder.mkdir(parents=True)
        (folder / "kernels.cpp").write_text(f"int version = {at};")
    unit = kernels.unit_of_this_machine()
    if unit is None:
        pytest.skip("the kernels know no vector unit of this machine")
    before, after = (kernels.library_path(folder, unit).name for folder in folders)
    assert before != after
    (folders[1] / before).touch()  # what is left of an earlier build
    assert not kernels.load(folders[1])
    assert "build them with python -m after.kernels" in caplog.text


@needs_kernels
@pytest.mark.parametrize("name", [name for name in VARIANTS if "convolution" not in name])
def test_features_equal_plain_torch(name: str) -> None:
    config, tensors = made(name)
    assert supports(config)
    fast = CpuPass(config, tensors, torch.float32)
    for lengths in BATCHES:
        rows = random_rows(config, lengths)
        with torch.inference_mode():
            expected = torch.stack(run_pass(config, tensors, rows))
            assert (fast(rows) - expected).abs().max().item() < FLOAT32_TOLERANCE, lengths


ON_ONE_UNIT = """
import sys, torch
from labelmux_encoder import kernels
unit = sys.argv[1]
kernels.unit_of_this_machine = lambda: unit
from labelmux_encoder.model import derive, run_pass
from labelmux_encoder.batch import PackedRows
from labelmux_encoder.cpu_pass import CpuPass, supports
from labelmux_encoder.weights import read_checkpoint
config, state = read_checkpoint("bundled")
assert supports(config)
ids = torch.arange(1, 230)
rows = PackedRows(ids, torch.zeros_like(ids), (3, 17, 130, 79))
with torch.inference_mode():
    tensors = derive(config, state)
    expected = torch.stack(run_pass(config, tensors, rows))
    print((CpuPass(config, tensors, torch.float32)(rows) - expected).abs().max().item())
"""


@pytest.mark.parametrize("unit", kernels.UNITS)
def test_the_build_for_every_lesser_vector_unit_is_right_too(unit: str) -> None:
    units = list(kernels.UNITS)
    best = kernels.unit_of_this_machine()
    if best is None or units.index(unit) < units.index(best):
        pytest.skip(f"this machine has no {unit}")
    if not kernels.library_path(kernels.FOLDER, unit).exists():
        pytest.skip("the kernels are not built here")
    found = subprocess.run(
        [sys.executable, "-c", ON_ONE_UNIT, unit], capture_output=True, text=True, check=True
    )
    assert float(found.stdout) < FLOAT32_TOLERANCE


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bundled_features_equal_plain_torch(dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and not kernels.has_bfloat16():
        pytest.skip("this machine has no bfloat16 products")
    config, state = read_checkpoint("bundled")
    tensors = derive(config, state)
    fast = CpuPass(config, tensors, dtype)
    tolerance = FLOAT32_TOLERANCE if dtype == torch.float32 else BFLOAT16_TOLERANCE
    for lengths in BATCHES:
        rows = random_rows(config, lengths)
        with torch.inference_mode():
            expected = torch.stack(run_pass(config, tensors, rows))
            found = fast(rows).float()
        relative = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert relative.max().item() < tolerance, lengths


@needs_kernels
def test_bfloat16_is_no_further_from_float32_than_plain_torch_has_it() -> None:
    if not kernels.has_bfloat16():
        pytest.skip("this machine has no bfloat16 products")
    config, state = read_checkpoint("bundled")
    tensors = derive(config, state)
    rows = random_rows(config, (5, 128, 31, 60))
    with torch.inference_mode():
        expected = torch.stack(run_pass(config, tensors, rows))
        plain = torch.stack(run_pass(config, cast(tensors, torch.bfloat16), rows))
        fast = CpuPass(config, tensors, torch.bfloat16)(rows)
    errors = [(found.float() - expected).square().mean(dim=(1, 2)) for found in (fast, plain)]
    assert (errors[0] <= 1.1 * errors[1]).all()


@needs_kernels
@pytest.mark.parametrize("matrix_unit", [False, True])
@pytest.mark.parametrize("name", ["v3", "relu-and-a-width-of-no-block"])
def test_features_are_the_same_with_either_order_of_weights(
    name: str, matrix_unit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: matrix_unit)
    config, tensors = made(name)
    rows = random_rows(config, (5, 40, 31, 128))
    with torch.inference_mode():
        expected = torch.stack(run_pass(config, tensors, rows))
        found = CpuPass(config, tensors, torch.float32)(rows)
    assert (found - expected).abs().max().item() < FLOAT32_TOLERANCE


@needs_kernels
def test_a_row_alone_equals_the_row_in_any_batch() -> None:
    config, tensors = made("v3")
    fast = CpuPass(config, tensors, torch.float32)
    rows = random_rows(config, (1, 2, 9, 33, 140, 300, 16, 128, 500, 129, 64))
    split = list(zip(rows.token_ids.split(rows.lengths), rows.lengths, strict=True))
    with torch.inference_mode():
        together = fast(rows).split(rows.lengths, dim=1)
        for (ids, length), found in zip(split, together, strict=True):
            alone = fast(PackedRows(ids, torch.zeros_like(ids), (length,)))
            assert (found - alone).abs().max().item() < ROW_TOLERANCE


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        ((3, 4), [2]),
        ((CHUNK_TOKENS - 1, 1, 1), [2, 1]),
        ((CHUNK_TOKENS + 5, 2), [1, 1]),
        ((500, 500, 500), [2, 1]),
    ],
)
def test_a_batch_that_cannot_be_shared_goes_in_chunks_that_fit(
    lengths: tuple[int, ...], rows: list[int]
) -> None:
    found = divide(lengths, threads=4)
    assert (found.rows, found.side_by_side) == (rows, False)


@pytest.mark.parametrize("lengths", [(16,) * 60, (512,) * 8, (21,) * 32, (10, 200, 30, 90) * 20])
def test_a_large_batch_is_shared_evenly(lengths: tuple[int, ...]) -> None:
    found = divide(lengths, threads=4)
    assert found.side_by_side
    assert sum(found.rows) == len(lengths)
    assert sum(found.tokens) == sum(lengths)
    assert max(found.tokens) <= 1.3 * sum(lengths) / len(found.rows)


@needs_kernels
def test_shares_and_chunks_give_the_same_features() -> None:
    config, tensors = made("v3")
    fast = CpuPass(config, tensors, torch.float32)
    rows = random_rows(config, (10, 200, 30, 90) * 5)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert divide(rows.lengths, 3).side_by_side
        with torch.inference_mode():
            shared = fast(rows)
            torch.set_num_threads(1)
            alone = fast(rows)
    finally:
        torch.set_num_threads(threads)
    assert (shared - alone).abs().max().item() < ROW_TOLERANCE


@needs_kernels
@pytest.mark.parametrize("wrong", [-1, 10**9])
def test_an_id_that_is_no_words_reads_nothing(wrong: int) -> None:
    config, tensors = made("v3")
    rows = random_rows(config, (3, 4))
    rows.token_ids[5] = wrong
    with torch.inference_mode(), pytest.raises(IndexError, match=str(wrong)):
        CpuPass(config, tensors, torch.float32)(rows)


@needs_kernels
def test_a_thread_that_computes_alone_leaves_others_theirs() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with ThreadPoolExecutor(1) as other:
            assert other.submit(torch.get_num_threads).result() == 3
            other.submit(kernels.use_threads, 1).result()
            assert other.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_sizes_of_tiles_are_few_and_none_is_below_its_tokens() -> None:
    assert len({rounded(tokens) % TILE_TOKENS for tokens in range(1, CHUNK_TOKENS + 1)}) <= 4
    assert all(0 <= rounded(tokens) - tokens < 16 for tokens in range(1, CHUNK_TOKENS + 1))
