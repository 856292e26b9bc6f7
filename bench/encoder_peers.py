"""The ways to run one encoder that ``bench/encoder.py`` compares: ours, and its peers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DebertaV2Config, DebertaV2Model

from labelmux_encoder.batch import PackedRows, unpack
from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.frozen import Dtype, FrozenEncoder, Precision

#: Token ids [B, T] and mask [B, T] to the last hidden states [B, T, H].
Run = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to run the encoder."""

    name: str
    run: Run
    #: Of ours: what its products are in.
    precision: Precision = "float32"


def v3_base() -> DebertaV2Model:
    """The shape of deberta-v3-base with random weights."""
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=128_100,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        relative_attention=True,
        position_buckets=256,
        max_relative_positions=-1,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
        type_vocab_size=0,
        layer_norm_eps=1e-7,
    )
    return DebertaV2Model(config).eval()


def ours(model: DebertaV2Model, dtype: Dtype) -> Contender:
    """labelmux at one dtype; packs the rows that it is given padded."""
    config = EncoderConfig.from_checkpoint(model.config.to_dict())
    encoder = FrozenEncoder(config, model.state_dict(), "bench", dtype=dtype)

    def run(ids: Tensor, mask: Tensor) -> Tensor:
        lengths = tuple(mask.sum(1).tolist())
        packed = ids[mask]
        states = encoder(PackedRows(packed, torch.zeros_like(packed), lengths))
        return unpack(states[-1], lengths)[0]

    return Contender(f"labelmux {dtype}", run, encoder.precision)


def ours_padded(model: DebertaV2Model, dtype: Dtype) -> Contender:
    """The same code, every row as long as the longest: what packing saves."""
    plain = ours(model, dtype)
    return Contender(
        f"labelmux {dtype}, padded", lambda ids, mask: plain.run(ids, torch.ones_like(mask))
    )


def stock(model: DebertaV2Model, dtype: torch.dtype) -> Contender:
    """transformers, eager."""
    cast = DebertaV2Model(model.config).eval()
    cast.load_state_dict(model.state_dict())
    cast = cast.to(dtype)

    def run(ids: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = cast(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return found

    return Contender(f"transformers {_short(dtype)}", run)


def compiled(model: DebertaV2Model, dtype: torch.dtype) -> Contender:
    """transformers under torch.compile, one graph for all shapes."""
    cast = DebertaV2Model(model.config).eval()
    cast.load_state_dict(model.state_dict())
    graph: Any = torch.compile(cast.to(dtype), dynamic=True)

    def run(ids: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = graph(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return found

    return Contender(f"torch.compile {_short(dtype)}", run)


class _LastState(torch.nn.Module):
    def __init__(self, model: DebertaV2Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found: Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        return found


def export_onnx(model: DebertaV2Model, folder: Path) -> Path:
    """The encoder as an ONNX file with free batch and length."""
    path = folder / "encoder.onnx"
    ids = torch.ones(2, 24, dtype=torch.int64)
    axes = {0: "batch", 1: "tokens"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _LastState(model),
            (ids, torch.ones_like(ids)),
            str(path),
            input_names=["input_ids", "attention_mask"],
            output_names=["last_hidden_state"],
            dynamic_axes=dict.fromkeys(("input_ids", "attention_mask", "last_hidden_state"), axes),
            opset_version=17,
            dynamo=False,
        )
    return path


def onnxruntime_float32(path: Path, threads: int) -> Contender:
    """ONNX Runtime at fp32."""
    return Contender("ONNX Runtime float32", _onnxruntime(path, threads))


def onnxruntime_int8(path: Path, threads: int) -> Contender:
    """ONNX Runtime with dynamic int8 weights and activations."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = path.with_name("encoder-int8.onnx")
    quantize_dynamic(path, target, weight_type=QuantType.QInt8)
    return Contender("ONNX Runtime int8", _onnxruntime(target, threads))


def _onnxruntime(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(ids: Tensor, mask: Tensor) -> Tensor:
        feed = {"input_ids": ids.numpy(), "attention_mask": mask.long().numpy()}
        return torch.from_numpy(session.run(None, feed)[0])

    return run


def openvino(path: Path, threads: int, precision: str) -> Contender:
    """OpenVINO at ``f32`` or ``bf16``."""
    import openvino as ov

    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    graph = ov.Core().compile_model(str(path), "CPU", settings)

    def run(ids: Tensor, mask: Tensor) -> Tensor:
        found = graph({"input_ids": ids.numpy(), "attention_mask": mask.long().numpy()})
        return torch.from_numpy(np.asarray(found[0]))

    return Contender(f"OpenVINO {precision}", run)


def contenders(
    model: DebertaV2Model, folder: Path, threads: int, *, with_compile: bool
) -> Iterator[Contender | tuple[str, str]]:
    """Every contender in turn; one that cannot run here as (name, why)."""
    path: list[Path] = []

    def exported() -> Path:
        if not path:
            path.append(export_onnx(model, folder))
        return path[0]

    makers: dict[str, Callable[[], Contender]] = {
        "labelmux float32": lambda: ours(model, "float32"),
        "labelmux bfloat16": lambda: ours(model, "bfloat16"),
        "labelmux auto": lambda: ours(model, "auto"),
        "labelmux auto, padded": lambda: ours_padded(model, "auto"),
        "transformers float32": lambda: stock(model, torch.float32),
        "transformers bfloat16": lambda: stock(model, torch.bfloat16),
        "ONNX Runtime float32": lambda: onnxruntime_float32(exported(), threads),
        "ONNX Runtime int8": lambda: onnxruntime_int8(exported(), threads),
        "OpenVINO f32": lambda: openvino(exported(), threads, "f32"),
        "OpenVINO bf16": lambda: openvino(exported(), threads, "bf16"),
    }
    if with_compile:
        makers["torch.compile float32"] = lambda: compiled(model, torch.float32)
        makers["torch.compile bfloat16"] = lambda: compiled(model, torch.bfloat16)
    for name, make in makers.items():
        try:
            yield make()
        except Exception as error:  # noqa: BLE001 - a peer that is missing is reported, not fatal
            yield name, f"{type(error).__name__}: {error}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
