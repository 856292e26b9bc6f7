"""A trained adapter to its file: manifest, canaries, bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from labelmux_adapters.canaries import serve_logits
from labelmux_adapters.files import Adapter, read_adapter, write_adapter
from labelmux_adapters.kinds import Pooling, TaskKind
from labelmux_adapters.manifest import MAX_CANARY_LOGITS, Calibration, Canary, Manifest
from labelmux_encoder.tokenizer import TextInput
from labelmux_encoder.weights import LoadedEncoder
from labelmux_training.errors import TooFewRowsError

#: Canaries in a file: as many as it may have where there are texts enough, at least four.
_MOST_CANARIES, _FEWEST_CANARIES = 8, 4
#: Texts up to this long make canaries, so that checking them is quick and a file stays small.
_CANARY_CHARS = 200
#: A manifest takes no longer canary than this.
_LONGEST_CANARY_CHARS = 2000
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
    #: Where canaries are taken from, the best source first.
    texts: Sequence[TextInput]
    #: The file they are from.
    path: Path
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
        blank = tuple(self._canary(text, [0.0] * len(self.labels)) for text in self._chosen())
        return read_adapter(self._write(blank, {}, {}))

    def file(self, metrics: Mapping[str, float], card: Mapping[str, str]) -> bytes:
        """The whole file."""
        chosen = self._chosen()
        logits = serve_logits(self.adapter(), self.loaded, chosen)
        canaries = [
            self._canary(text, [round(float(x), _CANARY_DIGITS) for x in row.ravel()])
            for text, row in zip(chosen, logits, strict=True)
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
            encoder=self.loaded.name,
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

    def _chosen(self) -> list[TextInput]:
        """The first distinct short texts; longer ones where there are too few."""
        distinct = [t for t in dict.fromkeys(self.texts) if _chars(t) <= _LONGEST_CANARY_CHARS]
        short = [text for text in distinct if _chars(text) <= _CANARY_CHARS]
        if len(short) < _FEWEST_CANARIES:
            short = sorted(distinct, key=_chars)[:_FEWEST_CANARIES]
        if len(short) < _FEWEST_CANARIES:
            raise TooFewRowsError(
                self.path,
                len(short),
                _FEWEST_CANARIES,
                f"different texts of at most {_LONGEST_CANARY_CHARS} characters",
            )
        return short[:_MOST_CANARIES] if self.kind != "token" else self._few_tokens(short)

    def _few_tokens(self, texts: list[TextInput]) -> list[TextInput]:
        """The first of them, or the shortest where a manifest has no room for all their tokens."""
        rows = self.loaded.tokenizer.encode(texts, self.max_tokens)
        logits = [len(row.token_ids) * len(self.labels) for row in rows]
        if sum(logits[:_MOST_CANARIES]) <= MAX_CANARY_LOGITS:
            return texts[:_MOST_CANARIES]
        order = sorted(range(len(texts)), key=lambda at: logits[at])[:_MOST_CANARIES]
        while len(order) > _FEWEST_CANARIES and sum(logits[at] for at in order) > MAX_CANARY_LOGITS:
            order.pop()
        return [texts[at] for at in order]

    def _canary(self, text: TextInput, logits: list[float]) -> Canary:
        first, second = (text, None) if isinstance(text, str) else text
        return Canary(text=first, pair=second, logits=tuple(logits))


def _chars(text: TextInput) -> int:
    return len(text) if isinstance(text, str) else max(map(len, text))
