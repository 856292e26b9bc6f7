"""Fused CPU kernels of the plain pass, compiled where the project is installed.

``python -m labelmux_encoder.kernels`` compiles them, once per kind of vector unit; ``load`` takes
the one for this machine. Without them (no compiler, or no such vector unit) the encoder gives the
same features by plain torch, slower.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from labelmux_encoder.attention import PositionTables

_log = logging.getLogger(__name__)

#: The sources and builds of this room.
FOLDER = Path(__file__).parent
#: The kernels look this far beyond the longest row's distances: twice their largest block.
_MARGIN = 256
#: Columns of a weight's block for vector units: four registers of floats.
_NARROW_BLOCK = 64

#: Vector units that have a build of their own, best first, and how the compiler is told.
UNITS: dict[str, tuple[str, ...]] = {
    "avx512_bf16": (
        "-DCPU_CAPABILITY=AVX512",
        "-DCPU_CAPABILITY_AVX512",
        *("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mavx512bf16"),
        *("-mavx2", "-mfma", "-mf16c"),
    ),
    "avx512": (
        "-DCPU_CAPABILITY=AVX512",
        "-DCPU_CAPABILITY_AVX512",
        *("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mavx2", "-mfma", "-mf16c"),
    ),
    "avx2": ("-DCPU_CAPABILITY=AVX2", "-DCPU_CAPABILITY_AVX2", "-mavx2", "-mfma", "-mf16c"),
}


def library_path(folder: Path, unit: str) -> Path:
    """Where a folder's build for a vector unit lies.

    Its name has torch's version, as its ABI, and a digest of its sources: a build of other sources
    has operators of another kind, and is never loaded.
    """
    return folder / f"{unit}-torch{torch.__version__}-{_digest(folder)}.so"


@functools.cache
def _digest(folder: Path) -> str:
    sources = (folder / "kernels.cpp", *sorted(FOLDER.glob("*.h")))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]


def unit_of_this_machine() -> str | None:
    """The best vector unit that the kernels know; None if there is none."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX512":
        return "avx512_bf16" if torch.cpu._is_avx512_bf16_supported() else "avx512"
    return "avx2" if capability == "AVX2" else None


@functools.cache
def load(folder: Path = FOLDER) -> bool:
    """Make the operators of a folder's build for this machine available; False if there is none."""
    unit = unit_of_this_machine()
    if unit is None:
        return False
    library = library_path(folder, unit)
    if not library.exists():
        _log.warning(
            "no kernels for %s are built from these sources: plain torch computes, at a third of "
            "the speed; build them with python -m %s.kernels",
            *(unit, folder.parent.name),
        )
        return False
    torch.ops.load_library(str(library))
    return True


def use_threads(count: int) -> None:
    """Let what the calling thread computes take so many threads; other threads keep their count."""
    torch.ops.labelmux.use_threads(count)


@contextmanager
def one_thread() -> Iterator[None]:
    """The calling thread computes alone for a while; without the kernels nothing changes."""
    if not load():
        yield
        return
    threads = torch.get_num_threads()
    use_threads(1)
    try:
        yield
    finally:
        use_threads(threads)


def share_cores(niceness: int | None) -> None:
    """From now on what is computed shares the cores with an event loop or the like.

    Threads of its own help then, which give way by so much and are waited for by nobody; with
    None, as at first, they are OpenMP's, which torch's operators use too.
    """
    torch.ops.labelmux.share_cores(niceness is not None, niceness or 0)


@contextmanager
def each_thread() -> Iterator[None]:
    """Each thread that helps the calling one computes something, so as to compile what it needs."""
    torch.ops.labelmux.take_turns(True)
    try:
        yield
    finally:
        torch.ops.labelmux.take_turns(False)


def has_bfloat16() -> bool:
    """Whether the kernels of this machine multiply bfloat16."""
    return unit_of_this_machine() == "avx512_bf16"


def has_int8() -> bool:
    """Whether this machine multiplies bytes faster than anything wider."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_vnni_supported()


def interleave(operand: Tensor) -> Tensor:
    """A product's right operand as the kernels read it: 4 bytes of K side by side. [.., K, N]"""
    together = 4 // operand.element_size()
    groups = operand.unflatten(-2, (-1, together)).transpose(-1, -2)  # [.., K/2, N, 2] of bfloat16
    interleaved: Tensor = groups.reshape(operand.shape)
    return interleaved


def blocks(weight: Tensor) -> Tensor:
    """A linear map's weight as the kernels read it: columns in blocks. [N, K] -> [blocks, K, block]

    The last block is filled up with zeros.
    """
    columns, inner = weight.shape
    block = _block_columns(columns, inner * weight.element_size())
    filled = functional.pad(weight, (0, 0, 0, -columns % block))
    return interleave(filled.unflatten(0, (-1, block)).transpose(1, 2)).contiguous()


def _block_columns(columns: int, column_bytes: int) -> int:
    """A vector unit reads narrow blocks from one end to the other; a matrix unit wants large calls.

    With a matrix unit: as many columns as divide all evenly and fit a core's cache.
    """
    if not torch.cpu._is_amx_tile_supported():
        return _NARROW_BLOCK
    padded = -(-columns // 32) * 32
    most = max(32, min(512, 600_000 // column_bytes) // 32 * 32)
    return next(size for size in range(most, 0, -32) if padded % size == 0)


@dataclass(frozen=True, slots=True)
class KernelTables:
    """One layer's position terms as the kernels read them; distance 0 lies at ``centre``."""

    #: Distance falling; bfloat16 pairs of D side by side. [heads, D, width]
    key: Tensor | None
    #: Distance rising. [heads, width, D]
    query: Tensor | None
    centre: int

    @classmethod
    def of(cls, tables: PositionTables, dtype: torch.dtype) -> KernelTables:
        """Lay the portable tables out anew."""
        key, query = widen(tables.key, dtype), widen(tables.query, dtype)
        rows = tables.key if tables.key is not None else tables.query
        longest = 0 if rows is None else (rows.shape[1] + 1) // 2
        if key is not None:
            key = interleave(key.transpose(1, 2)).contiguous()
        return cls(key, query, longest - 1 + _MARGIN)


def widen(table: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A table with lines of zeros around it. [.., 2M-1, D] -> [.., width, D]"""
    if table is None:
        return None
    return functional.pad(table, (0, 0, _MARGIN, _MARGIN)).to(dtype).contiguous()
