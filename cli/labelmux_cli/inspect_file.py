"""``labelmux inspect``: what an adapter file is, without a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labelmux_cli.connection import AsJson
from labelmux_cli.errors import about
from labelmux_cli.output import plain, print_json, print_table, reported, size, when

if TYPE_CHECKING:
    from labelmux_adapters.files import Adapter
    from labelmux_adapters.manifest import Calibration

_SHOWN_LABELS = 20


@reported
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An adapter file.")],
    as_json: AsJson = False,
) -> None:
    """Say what an adapter file is, or what is wrong with it. Nothing is sent anywhere.

    Example:
      labelmux inspect spam.safetensors
    """
    from labelmux_adapters.errors import FileTooLargeError
    from labelmux_adapters.files import DEFAULT_LIMITS, read_adapter

    size_bytes = file.stat().st_size
    with about(file):
        if size_bytes > DEFAULT_LIMITS.max_bytes:
            raise FileTooLargeError(size_bytes, DEFAULT_LIMITS.max_bytes)
        adapter = read_adapter(file.read_bytes())
    if as_json:
        print_json(_as_object(adapter, size_bytes))
    else:
        _print_people(adapter, size_bytes)


def _as_object(adapter: Adapter, size_bytes: int) -> dict[str, object]:
    return {
        "digest": adapter.digest,
        "size_bytes": size_bytes,
        "manifest": adapter.manifest.model_dump(mode="json"),
        "tensors": {name: list(tensor.shape) for name, tensor in adapter.tensors.items()},
    }


def _calibration(found: Calibration) -> dict[str, object]:
    facts: dict[str, object] = {"temperature": f"{found.temperature:.4g}"}
    if found.thresholds is not None:
        facts["thresholds"] = ", ".join(f"{threshold:.3g}" for threshold in found.thresholds)
    if found.abstain is not None:
        facts["abstains"] = f"below {found.abstain:.3g}"
    return facts


def _print_people(adapter: Adapter, size_bytes: int) -> None:
    manifest = adapter.manifest
    labels = ", ".join(manifest.labels[:_SHOWN_LABELS])
    if len(manifest.labels) > _SHOWN_LABELS:
        labels += f" and {len(manifest.labels) - _SHOWN_LABELS} more"
    facts: dict[str, object] = {
        "kind": f"{manifest.task_kind}, reads {'two texts' if manifest.pair else 'a text'}",
        "labels": f"{len(manifest.labels)}: {labels}",
        "method": manifest.method,
        "sizes": ", ".join(f"{name} {value}" for name, value in manifest.sizes.items()),
        "parameters": f"{manifest.parameters:,} ({manifest.parameter_share:.2%} of the encoder's)",
        "file": f"{size(size_bytes)}, {len(adapter.tensors)} tensors",
        "digest": adapter.digest,
        "encoder": f"{manifest.encoder} ({manifest.encoder_fingerprint})",
        "max tokens": manifest.max_tokens,
        "made": when(manifest.created_at),
        "data": manifest.data_digest,
        **_calibration(manifest.calibration),
        "canaries": len(manifest.canaries),
    }
    facts |= {f"{name} (dev)": f"{value:.4g}" for name, value in manifest.metrics.items()}
    facts |= {f"card: {name}": text for name, text in manifest.card.items()}
    print_table(("Field", "Value"), ((name, plain(value)) for name, value in facts.items()))
