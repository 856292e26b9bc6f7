"""Compiles a folder of kernels: its ``kernels.cpp``, once per kind of vector unit."""

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

from labelmux_encoder.kernels import FOLDER, UNITS, library_path

_FLAGS = ("-O3", "-std=c++20", "-fPIC", "-shared", "-fopenmp", "-DNDEBUG", "-fno-math-errno")


def build(folder: Path, units: Sequence[str] = ()) -> int:
    """Build what is missing; say so where nothing can be built.

    Returns:
        An exit status: 1 if a compiler failed.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or platform.machine() not in ("x86_64", "AMD64"):
        what = "no C++ compiler" if compiler is None else f"no kernels for {platform.machine()}"
        sys.stderr.write(f"{what}: plain torch will serve, slower\n")
        return 0
    wanted = [unit for unit in units or UNITS if not library_path(folder, unit).exists()]
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(lambda unit: _compile(folder, unit, compiler), wanted))
    for unit, words in zip(wanted, said, strict=True):
        sys.stderr.write(f"{folder.parent.name} kernels for {unit}: {words or 'built'}\n")
    return 1 if any(said) else 0


def _compile(folder: Path, unit: str, compiler: str) -> str:
    """What the compiler said, empty if it went well."""
    target = library_path(folder, unit)
    torch_folder = Path(torch.__file__).parent
    include = torch_folder / "include"
    unfinished = target.with_suffix(f".{os.getpid()}")
    command = [
        *(compiler, *_FLAGS, *UNITS[unit], f"-I{FOLDER}", f"-I{include}"),
        *(f"-I{include / 'torch/csrc/api/include'}", str(folder / "kernels.cpp")),
        *("-o", str(unfinished), f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        unfinished.unlink(missing_ok=True)
        return done.stderr or f"{compiler} ended with {done.returncode}"
    unfinished.replace(target)
    for other in folder.glob(f"{unit}-torch*.so"):
        if other != target:
            other.unlink(missing_ok=True)
    return ""
