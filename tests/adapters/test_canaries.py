"""An upload proves that the adapter acts here as it was trained to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.encoder.test_cpu_pass import can_int8
from torch import Tensor

from labelmux_adapters import canaries
from labelmux_adapters.bank import Bank
from labelmux_adapters.canaries import Admission, check_canaries, check_fit, serve_logits
from labelmux_adapters.errors import CanaryMismatchError, ForeignEncoderError, SizeMisfitError
from labelmux_adapters.files import Adapter, read_adapter, write_adapter
from labelmux_adapters.kinds import TaskKind
from labelmux_adapters.methods import METHODS
from labelmux_adapters.scores import scores_of, thresholds_of, to_scores
from labelmux_adapters.ytuning import YTuningSizes, expected_tensors, parameter_count
from labelmux_encoder.batch import PackedRows
from labelmux_encoder.edits import Placed
from labelmux_encoder.frozen import FrozenEncoder, Precision
from labelmux_encoder.weights import LoadedEncoder, load_encoder

MakeAdapter = Callable[..., Adapter]

DEMO = Path(__file__).parents[2] / "server/labelmux_server/demo"


def with_manifest(adapter: Adapter, **changes: Any) -> Adapter:
    manifest = adapter.manifest.model_copy(update=changes)
    return read_adapter(write_adapter(manifest, adapter.tensors))


def test_an_adapter_that_acts_as_trained_passes(
    make_adapter: MakeAdapter, tiny_encoder: LoadedEncoder
) -> None:
    check_canaries(make_adapter(("a", "b", "c")), tiny_encoder)
    check_canaries(make_adapter(("a", "b"), pair=True), tiny_encoder)
    check_canaries(make_adapter(("a", "b"), task_kind="multi_label"), tiny_encoder)


def test_a_token_task_proves_every_token(
    make_adapter: MakeAdapter, tiny_encoder: LoadedEncoder
) -> None:
    adapter = make_adapter(("O", "B-x", "I-x"), task_kind="token")
    check_canaries(adapter, tiny_encoder)
    shorter = adapter.manifest.canaries[0]
    shorter = shorter.model_copy(update={"logits": shorter.logits[:-3]})
    canaries = (shorter, *adapter.manifest.canaries[1:])
    with pytest.raises(CanaryMismatchError) as caught:
        check_canaries(with_manifest(adapter, canaries=canaries), tiny_encoder)
    assert caught.value.canary == 0 and caught.value.difference is None


def test_other_tensors_than_the_trained_ones_are_caught(
    make_adapter: MakeAdapter, tiny_encoder: LoadedEncoder
) -> None:
    adapter, other = make_adapter(seed=0), make_adapter(seed=1)
    mixed = read_adapter(write_adapter(adapter.manifest, other.tensors))
    with pytest.raises(CanaryMismatchError) as caught:
        check_canaries(mixed, tiny_encoder)
    assert caught.value.difference > adapter.manifest.canary_tolerance


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_rounding_is_allowed_for_and_an_adapter_that_does_not_act_is_caught(
    precision: Precision,
) -> None:
    if precision == "int8" and not can_int8():
        pytest.skip("this machine multiplies no bytes")
    loaded = load_encoder(dtype=precision)
    adapters = [read_adapter(path.read_bytes()) for path in sorted(DEMO.glob("*.safetensors"))]
    assert len(adapters) >= 8
    for adapter in adapters:
        check_canaries(adapter, loaded)
    changing = [each for each in adapters if METHODS[each.manifest.method].edited is not None]
    assert len(changing) >= 3
    for adapter in changing:
        idle = {
            name: value if name.startswith("head") else torch.zeros_like(value)
            for name, value in adapter.tensors.items()
        }
        with pytest.raises(CanaryMismatchError):
            check_canaries(read_adapter(write_adapter(adapter.manifest, idle)), loaded)


def test_an_overflowing_adapter_is_caught(
    make_adapter: MakeAdapter, tiny_encoder: LoadedEncoder
) -> None:
    adapter = make_adapter()
    huge = {name: tensor * 1e30 for name, tensor in adapter.tensors.items()}
    with pytest.raises(CanaryMismatchError):
        check_canaries(read_adapter(write_adapter(adapter.manifest, huge)), tiny_encoder)


def test_logits_that_are_not_finite_are_caught_whatever_the_tolerance(
    make_adapter: MakeAdapter, tiny_encoder: LoadedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter()
    canaries = adapter.manifest.canaries
    broken = [np.full(len(canary.logits), np.inf, np.float32) for canary in canaries]
    monkeypatch.setattr(Bank, "readout", lambda *_: broken)
    anything = adapter.manifest.model_copy(update={"canary_tolerance": np.inf})
    with pytest.raises(CanaryMismatchError) as caught:
        check_canaries(replace(adapter, manifest=anything), tiny_encoder)
    assert caught.value.difference is None


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each pass had from now on."""
    passes: list[int] = []
    encode = FrozenEncoder.__call__

    def count(self: FrozenEncoder, rows: PackedRows, edits: Sequence[Placed] = ()) -> Tensor:
        passes.append(len(rows.lengths))
        return encode(self, rows, edits)

    monkeypatch.setattr(FrozenEncoder, "__call__", count)
    return passes


def test_versions_with_the_same_canaries_share_a_pass_unless_they_change_it(
    make_adapter: MakeAdapter, tiny_encoder: LoadedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = [make_adapter(seed=seed) for seed in (0, 1)]
    edited = [make_adapter(seed=seed, method="pasta") for seed in (0, 1)]
    passes = counted(monkeypatch)
    bank = Bank.beside(tiny_encoder.encoder)
    admission = Admission(tiny_encoder, bank)
    slots = [admission.admit(adapter) for adapter in plain]
    assert len(passes) == 1
    slots += [admission.admit(adapter) for adapter in edited]
    assert len(passes) == 3
    assert len(set(slots)) == 4
    mixed = read_adapter(write_adapter(plain[0].manifest, plain[1].tensors))
    with pytest.raises(CanaryMismatchError):
        admission.admit(mixed)
    assert len(passes) == 3


def test_features_of_canaries_stay_within_a_budget(
    make_adapter: MakeAdapter, tiny_encoder: LoadedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter()
    monkeypatch.setattr(canaries, "_KEPT_BYTES", 1)
    passes = counted(monkeypatch)
    admission = Admission(tiny_encoder, Bank.beside(tiny_encoder.encoder))
    for _ in range(2):
        admission.admit(adapter)
    assert len(passes) == 2


def test_what_is_refused_is_not_in_the_bank(
    make_adapter: MakeAdapter, tiny_encoder: LoadedEncoder
) -> None:
    adapter = make_adapter()
    bank = Bank.beside(tiny_encoder.encoder)
    admission = Admission(tiny_encoder, bank)
    first = admission.admit(adapter)
    mixed = read_adapter(write_adapter(adapter.manifest, make_adapter(seed=1).tensors))
    with pytest.raises(CanaryMismatchError):
        admission.admit(mixed)
    assert admission.admit(adapter).place == first.place + 1


def test_a_foreign_encoder_is_named(make_adapter: MakeAdapter, tiny_encoder: LoadedEncoder) -> None:
    foreign = with_manifest(make_adapter(), encoder_fingerprint="sha256:" + "1" * 64)
    with pytest.raises(ForeignEncoderError, match="train it again on this encoder") as caught:
        check_canaries(foreign, tiny_encoder)
    assert tiny_encoder.encoder.fingerprint in str(caught.value)


@pytest.mark.parametrize("size", ["hidden", "states"])
def test_sizes_that_the_encoder_does_not_have_are_refused_before_any_pass(
    size: str, make_adapter: MakeAdapter, tiny_encoder: LoadedEncoder
) -> None:
    adapter = make_adapter()
    sizes = adapter.manifest.sizes | {size: adapter.manifest.sizes[size] + 1}
    shapes = expected_tensors(YTuningSizes.from_mapping(sizes), 2)
    manifest = adapter.manifest.model_copy(
        update={
            "sizes": sizes,
            "parameters": parameter_count(YTuningSizes.from_mapping(sizes), 2),
        }
    )
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    with pytest.raises(SizeMisfitError, match=rf"sizes\.{size}"):
        check_fit(read_adapter(write_adapter(manifest, tensors)), tiny_encoder.encoder)


def test_more_tokens_than_the_encoder_reads_are_refused(
    make_adapter: MakeAdapter, tiny_encoder: LoadedEncoder
) -> None:
    with pytest.raises(SizeMisfitError, match="at most 64"):
        check_fit(with_manifest(make_adapter(), max_tokens=65), tiny_encoder.encoder)


def test_scores_are_calibrated_probabilities_that_keep_the_order(
    make_adapter: MakeAdapter, tiny_encoder: LoadedEncoder
) -> None:
    adapter = make_adapter(("a", "b", "c"))
    (logits,) = serve_logits(adapter, tiny_encoder, ["the train to the coast"])
    warm = adapter.manifest.calibration.model_copy(update={"temperature": 4.0})
    plain = to_scores(logits, adapter.manifest)
    flat = to_scores(logits, adapter.manifest.model_copy(update={"calibration": warm}))
    assert plain.sum() == pytest.approx(1, abs=1e-6) and flat.sum() == pytest.approx(1, abs=1e-6)
    assert (np.argsort(plain) == np.argsort(flat)).all()
    assert flat.max() < plain.max()
    expected = torch.softmax(torch.tensor(logits) / 4, -1).numpy()
    assert np.allclose(flat, expected, atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("kind", ["single_label", "multi_label", "token"])
def test_scores_of_finite_logits_are_finite(kind: TaskKind, temperature: float) -> None:
    largest = np.finfo(np.float32).max
    for logits in ([largest, -largest, 0.0], [-largest] * 3, [2e36, 1e36, -1e36], [1e30, 1, 1]):
        scores = scores_of(np.array(logits, np.float32), kind, temperature)
        assert np.isfinite(scores).all() and (scores >= 0).all() and (scores <= 1).all()
        assert scores[int(np.argmax(logits))] == scores.max()
        assert kind == "multi_label" or scores.sum() == pytest.approx(1)


def test_labels_of_a_multi_label_task_have_scores_of_their_own(make_adapter: MakeAdapter) -> None:
    manifest = make_adapter(("a", "b", "c"), task_kind="multi_label").manifest
    logits = np.array([0.0, 800.0, -800.0], np.float32)
    assert to_scores(logits, manifest).tolist() == [0.5, 1.0, 0.0]
    assert thresholds_of(manifest).tolist() == [0.5] * 3
    warm = manifest.calibration.model_copy(
        update={"temperature": 2.0, "thresholds": (0.1, 0.2, 0.3)}
    )
    calibrated = manifest.model_copy(update={"calibration": warm})
    expected = torch.sigmoid(torch.tensor([1.0]) / 2).numpy()
    assert np.allclose(to_scores(np.ones(1, np.float32), calibrated), expected)
    assert thresholds_of(calibrated).tolist() == pytest.approx([0.1, 0.2, 0.3])
