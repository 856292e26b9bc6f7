"""Which pass and dtype serve: the fastest that gives the right features, and no other."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from tests.encoder.test_cpu_pass import can_int8
from tests.encoder.test_model import VARIANTS, stock

from labelmux_encoder import frozen, kernels
from labelmux_encoder.batch import PackedRows
from labelmux_encoder.cpu_pass import CHUNK_TOKENS, TILE_TOKENS, CpuPass, rounded
from labelmux_encoder.errors import UnsupportedDtypeError
from labelmux_encoder.frozen import Dtype, FrozenEncoder, Precision
from labelmux_encoder.model import derive, run_pass

ROWS = PackedRows(torch.arange(1, 41), torch.zeros(40, dtype=torch.int64), (33, 7))

needs_kernels = pytest.mark.skipif(not kernels.load(), reason="the kernels are not built here")


def frozen_encoder(dtype: Dtype = "float32", name: str = "v3") -> FrozenEncoder:
    model, config = stock(VARIANTS[name])
    return FrozenEncoder(config, model.state_dict(), "sha256:test", dtype=dtype)


def plain_features(name: str = "v3") -> torch.Tensor:
    model, config = stock(VARIANTS[name])
    with torch.no_grad():
        return torch.stack(run_pass(config, derive(config, model.state_dict()), ROWS))


def test_float32_is_the_default_and_equals_plain_torch() -> None:
    encoder = frozen_encoder()
    assert encoder.dtype == torch.float32
    assert (encoder(ROWS) - plain_features()).abs().max().item() < 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_lesser_precision_is_near_float32(dtype: Dtype) -> None:
    if dtype == "int8" and not can_int8():
        pytest.skip("this machine multiplies no bytes")
    encoder = frozen_encoder(dtype)
    found = encoder(ROWS)
    assert encoder.precision == dtype
    assert encoder.dtype == found.dtype
    assert found.dtype == torch.bfloat16 or not kernels.has_bfloat16()
    cosine = torch.nn.functional.cosine_similarity(found.float(), plain_features(), dim=-1)
    assert cosine.min().item() > frozen.LEAST_COSINE


def test_int8_is_refused_by_name_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "has_int8", lambda: False)
    with pytest.raises(UnsupportedDtypeError, match=r"'int8' needs .* use auto"):
        frozen_encoder("int8")


def test_int8_is_refused_without_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "load", lambda: False)
    with pytest.raises(UnsupportedDtypeError, match="kernels"):
        frozen_encoder("int8")


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("faster", [True, False])
def test_auto_takes_a_lesser_precision_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, faster: bool, precision: Precision
) -> None:
    if precision == "int8" and not can_int8():
        pytest.skip("this machine multiplies no bytes")
    monkeypatch.setattr(frozen, "_WORTHWHILE", 0.0 if faster else math.inf)
    monkeypatch.setattr(frozen, "_candidates", lambda *_: (precision,))
    assert frozen_encoder("auto").precision == (precision if faster else "float32")


def test_auto_tries_what_this_machine_can_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_int8():
        pytest.skip("this machine multiplies no bytes")
    monkeypatch.setattr(frozen, "_WORTHWHILE", 0.0)
    assert frozen_encoder("auto").precision == "int8"
    monkeypatch.setattr(kernels, "has_int8", lambda: False)
    monkeypatch.setattr(kernels, "has_bfloat16", lambda: False)
    assert frozen_encoder("auto").precision == "float32"


def test_auto_stays_at_float32_where_the_others_are_too_far_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(frozen, "_candidates", lambda *_: ("bfloat16",))
    monkeypatch.setattr(frozen, "LEAST_COSINE", 1.1)
    with caplog.at_level(logging.WARNING):
        encoder = frozen_encoder("auto")
    assert encoder.precision == "float32"
    assert encoder.dtype == torch.float32
    assert "serving float32" in caplog.text
    assert (encoder(ROWS) - plain_features()).abs().max().item() < 1e-4


@needs_kernels
def test_kernels_that_compute_something_else_do_not_serve(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(CpuPass):
        def __call__(self, rows: PackedRows) -> torch.Tensor:
            return super().__call__(rows) * 1.01

    monkeypatch.setattr(frozen, "CpuPass", Wrong)
    with caplog.at_level(logging.WARNING):
        encoder = frozen_encoder()
    assert "serving without them" in caplog.text
    assert (encoder(ROWS) - plain_features()).abs().max().item() < 1e-5


def test_an_encoder_that_the_kernels_cannot_run_is_served_by_plain_torch() -> None:
    encoder = frozen_encoder(name="convolution-gelu")
    assert torch.equal(encoder(ROWS), plain_features("convolution-gelu"))


def test_without_a_build_the_features_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "load", lambda: False)
    assert torch.equal(frozen_encoder()(ROWS), plain_features())


def test_a_warm_up_meets_every_size_that_serving_can_meet() -> None:
    batches = frozen.warm_up_lengths(512)
    sizes = {rounded(sum(batch)) for batch in batches}
    assert sizes >= {rounded(tokens) for tokens in range(1, 2 * TILE_TOKENS + 1)} | {CHUNK_TOKENS}
    assert all(max(batch) <= 40 for batch in frozen.warm_up_lengths(40))
    encoder = frozen_encoder()
    assert encoder.warm_up(budget_s=60.0) == len(batches)
    assert encoder.warm_up(budget_s=-1.0) == 0
