"""What a rate depends on besides the code: to stand beside every figure."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

_PACKAGES = ("torch", "transformers", "infinity_emb", "litserve", "peft", "fastapi", "uvicorn")
_PRINT_VERSIONS = """
import importlib.metadata, sys
for name in sys.argv[1:]:
    try:
        print(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        pass
"""


def machine_facts() -> dict[str, object]:
    """Processor, cores, memory, system, and how busy it was."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
        "commit": _output("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"),
    }


def versions(python: Path | None) -> dict[str, str]:
    """Of the packages that matter, in the environment of this interpreter."""
    if python is None:
        return {}
    lines = _output(str(python), "-c", _PRINT_VERSIONS, *_PACKAGES).splitlines()
    return dict(line.split(" ", 1) for line in lines if " " in line)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "")


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except OSError:
        return ""
    return done.stdout.strip()
