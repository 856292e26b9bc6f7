"""A trained adapter to its file: manifest, canaries, bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import torch
from torch import Tensor

from labelmux_adapters.canaries import serve_logits
from labelmux_adapters.files import Adapter, read_adapter, write_adapter
from labelmux_adapters.kinds import Pooling, TaskKind
from labelmux_adapters.manifest import MAX_NAME_CHARS, Calibration, Canary, Manifest
from labelmux_encoder.tokenizer import TextInput
from labelmux_encoder.weights import LoadedEncoder

#: Of a canary's logits: far finer than any tolerance.
_CANARY_DIGITS = 5


@dataclass(frozen=True)
class Assembly:
    """What goes into an adapter file. Values derived here come from the stored tensors."""

    loaded: LoadedEncoder
    method: str
    sizes: Mapping[str, int]
    labels: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    max_tokens: int
    pair: bool
    data_digest: str
    #: As ``CanaryChooser`` gives them.
    canaries: Sequence[TextInput]
    kind: TaskKind = "single_label"
    #: What a linear head reads of a text, if there is one.
    pooling: Pooling | None = None
    calibration: Calibration = field(default_factory=Calibration)
    #: fp16 halves the file; on dev it changes no answer that we saw.
    stored_as: torch.dtype = torch.float16

    def calibrated(self, calibration: Calibration) -> Assembly:
        """The same with another calibration."""
        return replace(self, calibration=calibration)

    def adapter(self) -> Adapter:
        """The adapter as a server would read it, but for metrics, card and the canaries' logits."""
        blank = tuple(self._canary(text, [0.0] * len(self.labels)) for text in self.canaries)
        return read_adapter(self._write(blank, {}, {}))

    def file(self, metrics: Mapping[str, float], card: Mapping[str, str]) -> bytes:
        """The whole file."""
        logits = serve_logits(self.adapter(), self.loaded, self.canaries)
        canaries = [
            self._canary(text, [round(float(x), _CANARY_DIGITS) for x in row.ravel()])
            for text, row in zip(self.canaries, logits, strict=True)
        ]
        return self._write(tuple(canaries), metrics, card)

    def _write(
        self, canaries: tuple[Canary, ...], metrics: Mapping[str, float], card: Mapping[str, str]
    ) -> bytes:
        stored = {name: tensor.to(self.stored_as) for name, tensor in self.tensors.items()}
        values = sum(tensor.numel() for tensor in stored.values())
        manifest = Manifest(
            task_kind=self.kind,
            labels=self.labels,
            method=self.method,
            sizes=dict(self.sizes),
            pooling=self.pooling,
            encoder=self.loaded.name[:MAX_NAME_CHARS],
            encoder_fingerprint=self.loaded.encoder.fingerprint,
            max_tokens=self.max_tokens,
            pair=self.pair,
            calibration=self.calibration,
            metrics={name: float(value) for name, value in metrics.items()},
            parameters=values,
            parameter_share=values / self.loaded.encoder.parameter_count,
            data_digest=self.data_digest,
            created_at=datetime.now(UTC).replace(microsecond=0),
            canaries=canaries,
            card=dict(card),
        )
        return write_adapter(manifest, stored)

    def _canary(self, text: TextInput, logits: list[float]) -> Canary:
        first, second = (text, None) if isinstance(text, str) else text
        return Canary(text=first, pair=second, logits=tuple(logits))
