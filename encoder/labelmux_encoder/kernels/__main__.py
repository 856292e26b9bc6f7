"""Compile the kernels: ``python -m labelmux_encoder.kernels [UNIT …]``; all units by default."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from labelmux_encoder.kernels import UNITS, library_path

_SOURCE = Path(__file__).parent / "kernels.cpp"
_FLAGS = ("-O3", "-std=c++20", "-fPIC", "-shared", "-fopenmp", "-DNDEBUG", "-fno-math-errno")


def build(unit: str, compiler: str) -> str:
    """Compile for one vector unit; returns what the compiler said, empty if it went well."""
    target = library_path(unit)
    torch_folder = Path(torch.__file__).parent
    include = torch_folder / "include"
    unfinished = target.with_suffix(f".{os.getpid()}")
    command = [
        *(compiler, *_FLAGS, *UNITS[unit], f"-I{include}"),
        *(f"-I{include / 'torch/csrc/api/include'}", str(_SOURCE), "-o", str(unfinished)),
        *(f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        unfinished.unlink(missing_ok=True)
        return done.stderr or f"{compiler} ended with {done.returncode}"
    unfinished.replace(target)
    return ""


def _is_stale(library: Path) -> bool:
    sources = (_SOURCE, _SOURCE.with_name("lanes.h"))
    return not library.exists() or any(
        source.stat().st_mtime > library.stat().st_mtime for source in sources
    )


def main(units: Sequence[str]) -> int:
    """Build what is missing or older than its source; say so where nothing can be built."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or platform.machine() not in ("x86_64", "AMD64"):
        what = "no C++ compiler" if compiler is None else f"no kernels for {platform.machine()}"
        sys.stderr.write(f"{what}: the encoder will run on plain torch, slower\n")
        return 0
    wanted = [unit for unit in units or UNITS if _is_stale(library_path(unit))]
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(lambda unit: build(unit, compiler), wanted))
    for unit, words in zip(wanted, said, strict=True):
        sys.stderr.write(f"kernels for {unit}: {words or 'built'}\n")
    return 1 if any(said) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
