"""Which pass and dtype serve: the fastest that gives the right features, and no other."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from tests.encoder.test_model import VARIANTS, stock

from labelmux_encoder import frozen, kernels
from labelmux_encoder.batch import PackedRows
from labelmux_encoder.cpu_pass import CHUNK_TOKENS, TILE_TOKENS, CpuPass, rounded
from labelmux_encoder.frozen import Dtype, FrozenEncoder
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


def test_bfloat16_is_near_float32() -> None:
    encoder = frozen_encoder("bfloat16")
    found = encoder(ROWS)
    assert encoder.dtype == found.dtype == torch.bfloat16
    cosine = torch.nn.functional.cosine_similarity(found.float(), plain_features(), dim=-1)
    assert cosine.min().item() > frozen.BFLOAT16_COSINE


@pytest.mark.parametrize(("faster", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bfloat16_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, faster: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(frozen, "_WORTHWHILE", 0.0 if faster else math.inf)
    monkeypatch.setattr(frozen, "_may_be_faster", lambda *_: True)
    assert frozen_encoder("auto").dtype == dtype


def test_auto_stays_at_float32_where_bfloat16_is_too_far_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(frozen, "_may_be_faster", lambda *_: True)
    monkeypatch.setattr(frozen, "BFLOAT16_COSINE", 1.1)
    with caplog.at_level(logging.WARNING):
        encoder = frozen_encoder("auto")
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
