"""A small whole adapter file that needs no encoder; its canaries are made up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
import torch
from torch import Tensor

from labelmux_adapters.files import write_adapter
from labelmux_adapters.manifest import Canary, Manifest
from labelmux_adapters.methods import METHODS

SIZES = {"hidden": 12, "states": 3, "width": 4, "heads": 2, "ffn": 6}


@pytest.fixture(scope="session")
def make_manifest() -> Callable[..., Manifest]:
    """A maker of manifests that fit together; any field may be given."""

    def make(
        labels: tuple[str, ...] = ("no", "yes"), pair: bool = False, **fields: Any
    ) -> Manifest:
        sizes = fields.get("sizes", SIZES)
        kind = fields.get("task_kind", "single_label")
        specs = METHODS["ytuning"].expected_tensors(sizes, len(labels), kind).values()
        canary = Canary(text="a", pair="b" if pair else None, logits=(0.25,) * len(labels))
        defaults: dict[str, Any] = {
            "task_kind": "single_label",
            "labels": labels,
            "method": "ytuning",
            "sizes": sizes,
            "encoder": "tiny",
            "encoder_fingerprint": "sha256:" + "1" * 64,
            "max_tokens": 64,
            "pair": pair,
            "metrics": {"accuracy": 0.5},
            "parameters": sum(spec.values for spec in specs),
            "parameter_share": 0.01,
            "data_digest": "sha256:" + "0" * 64,
            "created_at": datetime(2026, 1, 31, 12, tzinfo=UTC),
            "canaries": (canary,) * 4,
            "card": {"licence": "CC0"},
        }
        return Manifest(**(defaults | fields))

    return make


@pytest.fixture(scope="session")
def make_tensors() -> Callable[..., dict[str, Tensor]]:
    """A maker of the tensors that a manifest implies, seeded."""

    def make(
        manifest: Manifest, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        specs = METHODS[manifest.method].expected_tensors(
            manifest.sizes, len(manifest.labels), manifest.task_kind
        )
        return {
            name: torch.randn(spec.shape, generator=generator).to(dtype)
            for name, spec in specs.items()
        }

    return make


@pytest.fixture(scope="session")
def adapter_file(
    make_manifest: Callable[..., Manifest],
    make_tensors: Callable[[Manifest], Mapping[str, Tensor]],
) -> bytes:
    """The bytes of a whole adapter file."""
    manifest = make_manifest()
    return write_adapter(manifest, make_tensors(manifest))
