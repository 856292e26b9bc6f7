"""The GPU's attention kernel without a GPU: what it computes, by Triton's interpreter, and that it
compiles for the GPUs that it is for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from tests.encoder.test_model import VARIANTS, stock

from labelmux_encoder.cuda_pass import CudaPass, fused_attention_works
from labelmux_encoder.model import derive

triton = pytest.importorskip("triton", reason="NOT TESTED: triton has no package for this system")

INTERPRETED = """
import sys, torch
from tests.encoder.test_model import VARIANTS, stock
from labelmux_encoder.cuda_pass import fused_attention_works, padded_states
from labelmux_encoder.model import derive
model, config = stock(VARIANTS[sys.argv[1]] | {"hidden_size": 64})
lengths = torch.tensor([70, 1, 40])
ids = torch.randint(1, config.vocab_size, (3, 70))
real = (torch.arange(70) < lengths[:, None]).flatten()
with torch.no_grad():
    tensors = derive(config, model.state_dict())
    assert fused_attention_works(config, tensors)
    plain = padded_states(config, tensors, ids, lengths)
    fused = padded_states(config, tensors, ids, lengths, fused=True)
print((plain - fused)[:, real].abs().max().item())
"""


@pytest.mark.parametrize(
    "name", ["v3", "c2p-only", "p2c-only-own-projection", "no-relative-attention"]
)
def test_the_kernel_attends_as_torch_does(name: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", INTERPRETED, name],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(found.stdout) < 1e-5


@pytest.mark.parametrize("generation", [80, 90])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_kernel_compiles_for_a_gpu(dtype: str, generation: int) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from labelmux_encoder.triton_attention import _BLOCKS, _attend

    torch_dtype, precision = {
        "bf16": (torch.bfloat16, "tf32"),
        "fp32": (torch.float32, "ieee"),
    }[dtype]
    block = _BLOCKS[torch_dtype]
    constants = {
        **dict.fromkeys(("has_by_query", "has_by_key"), True),
        "depth": 64,
        "queries": block,
        "keys": block,
        "precision": precision,
    }
    signature = {
        **dict.fromkeys(("query", "key", "value", "by_query", "by_key", "out"), f"*{dtype}"),
        "lengths": "*i64",
        **dict.fromkeys(("tokens", "heads", "token_stride"), "i32"),
        **dict.fromkeys(constants, "constexpr"),
    }
    source = ASTSource(fn=_attend, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", generation, 32))
    assert compiled.metadata.shared <= 99 * 1024  # of a block, on the smallest of them
    assert ("mma" in compiled.asm["ptx"]) == (dtype == "bf16")


def test_a_head_that_no_matrix_unit_takes_is_torchs() -> None:
    model, config = stock(VARIANTS["v3"])
    assert config.head_size == 12
    assert not fused_attention_works(config, derive(config, model.state_dict()))


def test_without_a_gpu_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def tried(*_: object) -> bool:
        raise AssertionError

    monkeypatch.setattr("labelmux_encoder.cuda_pass.fused_attention_works", tried)
    model, config = stock(VARIANTS["v3"])
    CudaPass(config, derive(config, model.state_dict()))
