"""The benchmarks are scripts beside each other, not a package: tests import them by name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module", autouse=True)
def bench_on_path() -> Iterator[None]:
    """A module's tests find the scripts; no others do."""
    folder = str(Path(__file__).parents[2] / "bench")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)
