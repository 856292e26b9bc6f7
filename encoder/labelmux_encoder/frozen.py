"""An encoder ready to serve: constants derived, the fastest pass that this machine can trust.

On a CPU that is ``CpuPass``, or ``PlainPass`` without its kernels; on a GPU ``CudaPass``. Neither a
pass nor a dtype is taken on faith: it must first give, on trial rows, the features of ``run_pass``.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from labelmux_encoder import kernels
from labelmux_encoder.batch import PackedRows
from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.cpu_pass import (
    CHUNK_TOKENS,
    TILE_TOKENS,
    CpuPass,
    rounded,
    supports,
    supports_int8,
)
from labelmux_encoder.cuda_pass import CudaPass, all_buckets
from labelmux_encoder.edits import Edit, Placed
from labelmux_encoder.errors import UnsupportedDtypeError
from labelmux_encoder.model import EncoderTensors, State, cast, derive
from labelmux_encoder.plain_pass import PlainPass

#: What the products with an encoder's weights are in.
Precision = Literal["float32", "bfloat16", "int8"]
#: ``auto`` is the fastest on this machine of those whose features pass.
Dtype = Literal["auto", Precision]

_log = logging.getLogger(__name__)

#: Largest difference of a kernel's features from plain torch's, both fp32.
FLOAT32_TOLERANCE = 1e-3
#: Least cosine of a token's last features to those in fp32.
LEAST_COSINE = 0.99
_TRIAL_LENGTHS = (3, 17, 40, 130)
#: Four passes side by side of 8, 16 and 32 texts of 21 tokens gave 3,990, 4,680 and 5,020 texts a
#: second; and what waits a moment longer for a larger pass leaves more of the cores to others.
_LEAST_PASS_TOKENS = 512
#: A lesser precision must be this much faster to be worth its rounding.
_WORTHWHILE = 1.2


class Pass(Protocol):
    """A way through the layers."""

    def lay_out(self, edit: Edit) -> Edit:
        """The edit in the form that this pass reads."""

    def __call__(self, rows: PackedRows, edits: Sequence[Placed] = ()) -> Tensor:
        """Hidden states of every layer, the embedding output first. [L+1, N, H]"""


class Way(NamedTuple):
    """A pass, and what it computes in."""

    run: Pass
    precision: Precision
    #: Of features, and of everything but the products with an encoder's weights.
    dtype: torch.dtype
    #: How far a token's last features may be off, over their length, as trial rows have it.
    rounding: float = 0.0


class Shares(NamedTuple):
    """How passes run side by side: each by a thread that called ``use_threads(1)``.

    They never wait for each other, as the threads of one pass do at its end: four threads with 16
    texts each got 1.3 to 1.4 times as much done as one pass of 128 texts on all of them.
    """

    #: At most so many at once; 1: a pass takes the whole device.
    passes: int
    #: A pass of fewer tokens is better done by all threads together.
    least_tokens: int = _LEAST_PASS_TOKENS
    #: A pass of more tokens gains nothing.
    most_tokens: int = CHUNK_TOKENS


class FrozenEncoder:
    """Features of rows of tokens, without gradients. Any thread may call it; see ``shares``.

    Raises:
        UnsupportedDtypeError: this machine cannot compute in the dtype that is asked for.
    """

    def __init__(
        self,
        config: EncoderConfig,
        state: State,
        fingerprint: str,
        device: str = "cpu",
        dtype: Dtype = "float32",
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self.fingerprint = fingerprint
        #: Values in the checkpoint, embeddings counted.
        self.parameter_count = sum(tensor.numel() for tensor in state.values())
        with torch.inference_mode():
            resident = {name: tensor.to(self.device) for name, tensor in state.items()}
            way = _choose(config, derive(config, resident), self.device, dtype)
        self._pass, self.precision, self.dtype, self.rounding = way

    @property
    def shares(self) -> Shares:
        """Into how many passes a device is best divided: one for each of torch's threads."""
        return Shares(torch.get_num_threads() if isinstance(self._pass, CpuPass) else 1)

    def use_threads(self, count: int) -> None:
        """Let passes of the calling thread take so many threads, where ``shares`` knows of any."""
        if isinstance(self._pass, CpuPass):
            kernels.use_threads(count)

    def share_cores(self, niceness: int | None) -> None:
        """As ``kernels.share_cores``, for all passes of the process."""
        if isinstance(self._pass, CpuPass):
            kernels.share_cores(niceness)

    def lay_out(self, edit: Edit) -> Edit:
        """The edit in the form that this encoder's pass reads, on its device."""
        return self._pass.lay_out(edit)

    @torch.inference_mode()
    def __call__(self, rows: PackedRows, edits: Sequence[Placed] = ()) -> Tensor:
        """Features of a batch, every layer's, on the encoder's device. [L+1, N, H]

        Args:
            rows: on any device.
            edits: stacks of what ``lay_out`` gave; rows that carry none are as without them.

        Raises:
            InputTooLongError: a row is longer than the encoder's limit.
        """
        if rows.token_ids.device != self.device:
            token_ids, type_ids = rows.token_ids.to(self.device), rows.type_ids.to(self.device)
            rows = rows._replace(token_ids=token_ids, type_ids=type_ids)
        return self._pass(rows, edits)

    def warm_up(self, budget_s: float) -> int:
        """Run the sizes that serving will meet, small ones first; how many there was time for.

        Matrix products compile code for every new size and count of threads.
        """
        if isinstance(self._pass, CudaPass):
            self._pass.warm_up(all_buckets())
        ends, divided = time.monotonic() + budget_s, self.shares.passes > 1
        for done, lengths in enumerate(warm_up_lengths(self.config.max_tokens)):
            if time.monotonic() > ends:
                return done
            ids = torch.zeros(sum(lengths), dtype=torch.int64)
            rows = PackedRows(ids, ids, lengths)
            if not divided:
                self(rows)
                continue
            with kernels.each_thread():
                self(rows)
            with kernels.one_thread():
                self(rows)
        return done + 1


def warm_up_lengths(max_tokens: int) -> list[tuple[int, ...]]:
    """Batches that have every size of a product's tile, and every size of attention's blocks."""
    sizes = {rounded(tokens) for tokens in range(1, 2 * TILE_TOKENS + 1)}
    sizes |= {256, 512, CHUNK_TOKENS}
    short = min(16, max_tokens)
    batches = {(short,) * (size // short) for size in sizes}
    for length in range(16, 129, 16):
        batches |= {
            (min(length, max_tokens),) * rows for rows in (1, 2, 4, 8) if rows * length <= 256
        }
    batches |= {(min(length, max_tokens),) for length in (256, 384, 512)}
    return sorted(batches, key=sum)


def _choose(
    config: EncoderConfig, tensors: EncoderTensors, device: torch.device, wanted: Dtype
) -> Way:
    trial = _trial_rows(config, device)
    plain = PlainPass(config, tensors)
    expected = plain(trial)
    fused = _fused_pass(config, tensors, device, trial, expected)
    best = Way(fused or plain, "float32", torch.float32)
    if wanted == "float32":
        return best
    tried = _candidates(config, device, fused) if wanted == "auto" else (wanted,)
    for precision in tried:
        way = _rounded(config, tensors, fused, precision)
        cosine = _least_cosine(way.run(trial)[-1], expected[-1])
        way = way._replace(rounding=math.sqrt(max(0.0, 2.0 - 2.0 * cosine)))
        if wanted != "auto":
            return way
        if cosine < LEAST_COSINE:
            _log.warning(
                "%s features are at a cosine of %.4f to float32's, below %s: serving %s",
                *(precision, cosine, LEAST_COSINE, best.precision),
            )
        elif device.type == "cuda" or _is_faster(way.run, best.run, trial):
            best = way
    return best


def _candidates(
    config: EncoderConfig, device: torch.device, fused: Pass | None
) -> tuple[Precision, ...]:
    """Those worth a trial; of kernels the trial itself says more than a product."""
    if not isinstance(fused, CpuPass):
        return ("bfloat16",) if bfloat16_is_faster(config, device) else ()
    possible: dict[Precision, bool] = {
        "bfloat16": kernels.has_bfloat16(),
        "int8": supports_int8(config),
    }
    return tuple(precision for precision, there in possible.items() if there)


def _rounded(
    config: EncoderConfig, tensors: EncoderTensors, fused: Pass | None, precision: Precision
) -> Way:
    """The fastest pass of a precision below fp32, where ``fused`` is the one in fp32."""
    if precision == "int8":
        if not isinstance(fused, CpuPass) or not supports_int8(config):
            raise UnsupportedDtypeError(precision, "a CPU with AVX-512 VNNI, and the kernels")
        dtype = torch.bfloat16 if kernels.has_bfloat16() else torch.float32
        return Way(CpuPass(config, tensors, dtype, quantised=True), precision, dtype)
    run: Pass
    if isinstance(fused, CudaPass):
        run = CudaPass(config, cast(tensors, torch.bfloat16))
    elif isinstance(fused, CpuPass):
        run = cpu_pass(config, tensors, torch.bfloat16)
    else:
        run = PlainPass(config, cast(tensors, torch.bfloat16))
    return Way(run, precision, torch.bfloat16)


def cpu_pass(config: EncoderConfig, tensors: EncoderTensors, dtype: torch.dtype) -> Pass:
    """The pass on kernels, if they know the encoder and the dtype; else plain torch's."""
    if supports(config) and (dtype != torch.bfloat16 or kernels.has_bfloat16()):
        return CpuPass(config, tensors, dtype)
    return PlainPass(config, cast(tensors, dtype))


def _fused_pass(
    config: EncoderConfig,
    tensors: EncoderTensors,
    device: torch.device,
    trial: PackedRows,
    expected: Tensor,
) -> Pass | None:
    """The fp32 pass on kernels, if there is one and it gives what is expected."""
    if device.type == "cuda":
        return CudaPass(config, tensors)
    if device.type != "cpu" or not supports(config):
        return None
    fast = CpuPass(config, tensors, torch.float32)
    difference = (fast(trial) - expected).abs().max().item()
    if difference <= FLOAT32_TOLERANCE:
        return fast
    _log.warning(
        "the CPU kernels differ by %.2e from plain torch on this machine: serving without them",
        difference,
    )
    return None


def _trial_rows(config: EncoderConfig, device: torch.device) -> PackedRows:
    lengths = tuple(min(length, config.max_tokens) for length in _TRIAL_LENGTHS)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (sum(lengths),), generator=generator)
    return PackedRows(ids.to(device), torch.zeros_like(ids).to(device), lengths)


def _least_cosine(found: Tensor, expected: Tensor) -> float:
    cosines = torch.nn.functional.cosine_similarity(found.float(), expected.float(), dim=-1)
    return cosines.min().item()


def _is_faster(short: Pass, fast: Pass, trial: PackedRows) -> bool:
    """Whether a pass of a lesser precision is worth its rounding."""
    seconds = {short: math.inf, fast: math.inf}
    # On one thread: several wait for the slowest, which on a busy machine is slow in any dtype.
    with kernels.one_thread():
        for _ in range(3):  # by turns, so that a busy moment of the machine is one of both
            for each in seconds:
                started = time.perf_counter()
                each(trial)
                seconds[each] = min(seconds[each], time.perf_counter() - started)
    return seconds[fast] > _WORTHWHILE * seconds[short]


def bfloat16_is_faster(config: EncoderConfig, device: torch.device) -> bool:
    """Whether torch's products of this encoder's shape are worth rounding on this device."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    shapes = (256, config.hidden_size), (config.hidden_size, 4 * config.hidden_size)
    factors = {
        dtype: [torch.ones(shape, dtype=dtype) for shape in shapes]
        for dtype in (torch.float32, torch.bfloat16)
    }
    seconds = dict.fromkeys(factors, math.inf)
    for _ in range(16):  # by turns, as above
        for dtype, (left, right) in factors.items():
            started = time.perf_counter()
            left @ right
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - started)
    return seconds[torch.float32] > _WORTHWHILE * seconds[torch.bfloat16]
