"""What an adapter file says of itself: ``docs/adapter-format.md`` as types.

Every bound here is part of the format. They keep a manifest small enough to list, and its numbers
where softmax stays finite, so nobody downstream has to check them again.
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from typing import Annotated, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from labelmux_adapters.errors import LabelsError, ManifestError
from labelmux_adapters.iob2 import check_tags
from labelmux_adapters.kinds import Pooling, TaskKind
from labelmux_adapters.methods import METHODS
from labelmux_adapters.strict_json import load_object

MIN_LABELS = 2
MAX_LABELS = 1000
MAX_LABEL_CHARS = 200
MAX_CANARY_CHARS = 2000
#: In all canaries together.
MAX_CANARY_LOGITS = 16_000
MAX_SIZE = 1 << 16
MAX_NAME_CHARS = 200
MAX_NOTE_CHARS = 4000
#: In one card.
MAX_NOTES = 64

_UTC_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z")


def _read_time(value: object) -> object:
    """A file's time as a datetime; what is no text is left to the type's own check."""
    if not isinstance(value, str):
        return value
    if not _UTC_TIME.fullmatch(value):
        raise ValueError("write it as 2026-01-31T12:00:00Z")
    return datetime.fromisoformat(value)


Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=1, le=MAX_SIZE)]
CanaryText = Annotated[str, Field(min_length=1, max_length=MAX_CANARY_CHARS)]
Time = Annotated[AwareDatetime, BeforeValidator(_read_time)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]
Note = Annotated[str, Field(max_length=MAX_NOTE_CHARS)]
Share = Annotated[float, Field(gt=0, lt=1)]


class _Record(BaseModel):
    # Tuples from a file fail fast: an error per item would cost hundreds of bytes for each one.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Canary(_Record):
    """A text and the uncalibrated logits that the trainer got for it."""

    text: CanaryText
    #: The second text; None where the task reads one.
    pair: CanaryText | None = None
    #: In label order, [K]; of a token task, those of all tokens, special ones too, [T * K].
    logits: tuple[float, ...] = Field(fail_fast=True)


class Calibration(_Record):
    """What turns logits into probabilities, and probabilities into answers."""

    #: Logits are divided by it first.
    temperature: float = Field(default=1.0, ge=1e-3, le=1e3)
    #: From which score on each label is given; multi_label only, 0.5 where there are none. [K]
    thresholds: tuple[Share, ...] | None = Field(default=None, fail_fast=True)
    #: Below this best score the task abstains; single_label only.
    abstain: Share | None = None


class Manifest(_Record):
    """The manifest of one adapter.

    Constructing one raises ``LabelsError`` or ``ManifestError`` where values do not belong
    together, and pydantic's ``ValidationError`` where a field alone is wrong.
    """

    task_kind: TaskKind
    #: In logit order.
    labels: tuple[str, ...] = Field(fail_fast=True)
    #: One of ``methods.METHODS``.
    method: Name
    #: The method's sizes: with the labels, they fix every tensor's shape.
    sizes: dict[str, Size] = Field(max_length=32)
    #: What of the features a method with a linear head reads; None for one that has none.
    pooling: Pooling | None = None
    #: The encoder's name, for people; the fingerprint decides.
    encoder: Name
    encoder_fingerprint: Digest
    #: Longest row in tokens, special tokens counted; longer texts are truncated to it.
    max_tokens: int = Field(ge=4, le=MAX_SIZE)
    #: Whether the task reads two texts.
    pair: bool
    calibration: Calibration = Calibration()
    #: On the adapter's own dev set.
    metrics: dict[Name, float] = Field(max_length=64)
    #: Values in all tensors together.
    parameters: int = Field(ge=1)
    #: ``parameters`` over the encoder's own count, embeddings included.
    parameter_share: float = Field(ge=0)
    #: Of the training rows.
    data_digest: Digest
    #: UTC.
    created_at: Time
    canaries: tuple[Canary, ...] = Field(min_length=4, max_length=8, fail_fast=True)
    #: Largest difference of a canary's logit that still counts as equal.
    canary_tolerance: float = Field(default=1e-3, gt=0, le=0.1)
    #: Free notes: data, licence, scores.
    card: dict[Name, Note] = Field(default={}, max_length=MAX_NOTES)

    @field_validator("labels")
    @classmethod
    def _labels_are_usable(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if not MIN_LABELS <= len(labels) <= MAX_LABELS:
            raise LabelsError("labels", labels, f"{len(labels)}, not {MIN_LABELS} to {MAX_LABELS}")
        seen: set[str] = set()
        for index, label in enumerate(labels):
            if not label.strip():
                raise LabelsError(f"labels.{index}", label, "a label needs a visible character")
            if len(label) > MAX_LABEL_CHARS:
                raise LabelsError(
                    f"labels.{index}", label, f"{len(label)} characters, not {MAX_LABEL_CHARS}"
                )
            if label in seen:
                raise LabelsError(f"labels.{index}", label, "another label has that name")
            seen.add(label)
        return labels

    @field_validator("method")
    @classmethod
    def _method_is_known(cls, method: str) -> str:
        if method not in METHODS:
            raise ManifestError("method", method, f"the methods are {', '.join(METHODS)}")
        return method

    @field_validator("created_at")
    @classmethod
    def _created_at_is_utc(cls, created_at: datetime) -> datetime:
        if created_at.utcoffset() != timedelta(0):
            raise ManifestError("created_at", created_at.isoformat(), "give the time in UTC")
        return created_at

    @model_validator(mode="after")
    def _pooling_fits_the_method(self) -> Self:
        pools = METHODS[self.method].edited is not None and self.task_kind != "token"
        if (self.pooling is not None) != pools:
            problem = "give mean or first" if pools else "its readout pools nothing: leave it out"
            raise ManifestError(
                "pooling", self.pooling, f"{self.method} {self.task_kind}: {problem}"
            )
        return self

    @model_validator(mode="after")
    def _labels_fit_the_kind(self) -> Self:
        if self.task_kind == "token":
            check_tags(self.labels)
            if self.pair:
                raise ManifestError("pair", self.pair, "a token task reads one text")
        return self

    @model_validator(mode="after")
    def _calibration_fits_the_kind(self) -> Self:
        thresholds, abstain = self.calibration.thresholds, self.calibration.abstain
        if thresholds is not None and self.task_kind != "multi_label":
            raise ManifestError("calibration.thresholds", thresholds, "of a multi_label task only")
        if thresholds is not None and len(thresholds) != len(self.labels):
            problem = f"{len(thresholds)} thresholds for {len(self.labels)} labels"
            raise ManifestError("calibration.thresholds", thresholds, problem)
        if abstain is not None and self.task_kind != "single_label":
            raise ManifestError("calibration.abstain", abstain, "of a single_label task only")
        return self

    @model_validator(mode="after")
    def _canaries_fit_the_task(self) -> Self:
        for index, canary in enumerate(self.canaries):
            if not self._has_shape(len(canary.logits)):
                raise ManifestError(
                    f"canaries.{index}.logits",
                    canary.logits,
                    f"{len(canary.logits)} logits for {len(self.labels)} labels",
                )
            if (canary.pair is not None) != self.pair:
                expected = "the task reads two texts" if self.pair else "the task reads one text"
                raise ManifestError(f"canaries.{index}.pair", canary.pair, expected)
        values = sum(len(canary.logits) for canary in self.canaries)
        if values > MAX_CANARY_LOGITS:
            problem = f"{values} logits in all, not at most {MAX_CANARY_LOGITS}"
            raise ManifestError("canaries", f"{len(self.canaries)} canaries", problem)
        return self

    def _has_shape(self, logits: int) -> bool:
        if self.task_kind == "token":
            return logits > 0 and logits % len(self.labels) == 0
        return logits == len(self.labels)

    def to_json(self) -> str:
        """The manifest as a file carries it: equal manifests give equal text.

        What is None is left out, so that a reader of an earlier release, which knows fewer optional
        fields, takes every file that does not use them.
        """
        fields = self.model_dump(mode="json", exclude_none=True)
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def parse_manifest(text: str) -> Manifest:
    """The manifest that ``text`` is.

    Raises:
        DuplicateKeyError: an object in it has a key twice.
        LabelsError, ManifestError: a field is missing, unknown or wrong; the error names it.
    """
    try:
        load_object(text, "manifest")
        return Manifest.model_validate_json(text)
    except ValidationError as exc:
        raise _first_fault(exc) from exc
    except ValueError as exc:
        raise ManifestError("labelmux.manifest", text, str(exc)) from exc


def _first_fault(exc: ValidationError) -> ManifestError:
    fault = exc.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in fault["loc"]) or "labelmux.manifest"
    found = None if fault["type"] == "missing" else fault["input"]
    problem = fault["msg"].removeprefix("Value error, ")
    return ManifestError(field, found, problem[:1].lower() + problem[1:])
