"""Bodies of requests and answers, as they stand in the OpenAPI document."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from labelmux_adapters.kinds import Pooling, TaskKind
from labelmux_server.registry import MAX_VERSION
from labelmux_server.release_schemas import GateScoresInfo
from labelmux_server.schema_bases import StrictAnswer as _Answer
from labelmux_server.schema_bases import StrictRequest as _Request
from labelmux_server.windows import Aggregation

_ONE_OR_MANY = WithJsonSchema(
    {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
)


class Windows(_Request):
    """How a text that is longer than a task reads is read in parts."""

    overlap_tokens: int = Field(
        32,
        ge=0,
        le=32_768,
        description="Tokens that a window shares with the one before it; at most half of the "
        "task's `max_tokens`, less one.",
    )
    aggregation: Aggregation = Field(
        "mean",
        description="What the logits of all windows become before they are calibrated, label by "
        "label. A token task takes each word from the window that shows most around it.",
    )


class ClassifyRequest(_Request):
    """Texts or pairs for one task or several."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"tasks": ["*"], "texts": ["What a lovely film."]}]}
    )

    task: str | None = Field(None, description="One task, or one version of it as `task@3`.")
    tasks: list[str] | None = Field(
        None,
        min_length=1,
        fail_fast=True,
        description="Several; `*` stands for every task that reads what is sent.",
    )
    texts: Annotated[list[str] | None, _ONE_OR_MANY] = Field(
        None, min_length=1, fail_fast=True, description="One text or many."
    )
    pairs: list[tuple[str, str]] | None = Field(
        None, min_length=1, fail_fast=True, description="Pairs of texts that a task reads together."
    )
    top_k: int | None = Field(None, ge=1, description="Only so many labels, best first.")
    raw_scores: bool = Field(
        False, description="Logits instead of calibrated probabilities; not of token tasks."
    )
    truncation: bool = Field(True, description="False: a text that is too long is an error.")
    windows: Windows | None = Field(
        None, description="Read a long text in overlapping windows instead of cutting it."
    )

    @field_validator("texts", mode="before")
    @classmethod
    def _one_text(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _exactly_one(self) -> ClassifyRequest:
        if (self.task is None) == (self.tasks is None):
            raise ValueError('give exactly one of "task" and "tasks"')
        if (self.texts is None) == (self.pairs is None):
            raise ValueError('give exactly one of "texts" and "pairs"')
        if self.windows is not None and self.pairs is not None:
            raise ValueError('"windows" are of single texts; leave them out, or send "texts"')
        return self


class ActivateRequest(_Request):
    """Which version shall serve."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"version": 1}]})

    version: int = Field(ge=1, le=MAX_VERSION)
    gated: bool = Field(
        False, description="Only if it is at least as good as the active one on the task's gate."
    )


class ErrorDetail(BaseModel):
    """What went wrong; some codes add fields of their own."""

    model_config = ConfigDict(extra="allow")

    code: str = Field(description="A stable snake_case word.")
    message: str = Field(description="What happened, to what, and what to do.")
    request_id: str


class ErrorBody(_Answer):
    """The body of every error."""

    error: ErrorDetail


class TaskErrorDetail(BaseModel):
    """Why one task of the call has no prediction."""

    model_config = ConfigDict(extra="allow")

    code: str
    message: str


class TaskError(_Answer):
    """Stands in a prediction's place."""

    error: TaskErrorDetail


class LabelScore(_Answer):
    """One label and its score."""

    label: str
    score: float = Field(description="A probability, or a logit with `raw_scores`.")


class Span(_Answer):
    """A part of the text, and what it is."""

    label: str
    start: int = Field(description="Its first character; the text's first is 0.")
    end: int = Field(description="The character after its last.")
    text: str
    score: float = Field(description="Mean probability of its words' tags.")


class _Prediction(_Answer):
    task: str
    version: int
    digest: str
    truncated: bool = Field(description="Whether the task read only the beginning.")
    windows: int = Field(description="How many parts of the text were read: 1 without `windows`.")
    calibrated: bool = Field(description="Whether a fitted temperature shaped the scores.")


class SingleLabelPrediction(_Prediction):
    """The answer of a task whose texts have one label each."""

    task_kind: Literal["single_label"]
    labels: list[LabelScore] = Field(description="Best first.")
    abstained: bool = Field(
        description="Whether the best score is below the one from which the task is sure enough."
    )


class MultiLabelPrediction(_Prediction):
    """The answer of a task whose texts have any number of labels."""

    task_kind: Literal["multi_label"]
    labels: list[LabelScore] = Field(description="Best first; each score is the label's own.")
    predicted: list[str] = Field(
        description="The labels whose score reaches their threshold, best first, whatever `top_k`."
    )


class TokenPrediction(_Prediction):
    """The answer of a task that finds spans."""

    task_kind: Literal["token"]
    spans: list[Span] = Field(description="In the order of the text.")


Prediction = Annotated[
    SingleLabelPrediction | MultiLabelPrediction | TokenPrediction,
    Field(discriminator="task_kind"),
]


class TextResult(_Answer):
    """One text's answers, by the task's name as it was asked for."""

    predictions: dict[str, Prediction | TaskError]


class ClassifyAnswer(_Answer):
    """Results in the order of the texts."""

    results: list[TextResult]
    encoder_rows: int = Field(
        description="Distinct texts that the encoder read for this call; 0 where all came before."
    )
    tokens: int = Field(description="Tokens of the call's distinct texts.")


class StreamLine(_Request):
    """One line of a stream: a text, or two that a task reads together."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "What a lovely film."}]})

    text: str
    pair: str | None = None


class StreamAnswer(_Answer):
    """The answer to one line: `predictions`, or the `error` of the whole line."""

    line: int | None = Field(
        description="Its number in the body, from 1; null where no more of the body is read: the "
        "server stops, or nothing came for `stall_s`."
    )
    predictions: dict[str, Prediction | TaskError] | None = None
    error: TaskErrorDetail | None = None


class TaskInfo(_Answer):
    """A task and its active version."""

    task: str
    method: str
    task_kind: TaskKind
    labels: list[str] = Field(description="In logit order; those of a token task are IOB2 tags.")
    pair: bool = Field(description="Whether it reads two texts.")
    max_tokens: int
    version: int
    digest: str
    encoder_fingerprint: str
    metrics: dict[str, float]
    parameters: int
    parameter_share: float = Field(description="Of the encoder's parameters.")
    size_bytes: int
    created_at: datetime = Field(description="When this server got the version.")
    card: dict[str, str]


class CalibrationInfo(_Answer):
    """What turns a version's logits into scores, and scores into answers."""

    temperature: float = Field(description="Logits are divided by it first.")
    thresholds: list[float] | None = Field(
        description="From which score on each label is given, in the order of `labels`; "
        "null where 0.5 holds for all, or the task gives no number of labels."
    )
    abstain: float | None = Field(description="Below this best score the task abstains.")


class VersionReport(TaskInfo):
    """One version of a task, and all that its file says of how it was made and how good it is."""

    active: bool
    sizes: dict[str, int] = Field(description="The method's own.")
    pooling: Pooling | None = Field(
        description="What of the features its linear head reads; null where it has none."
    )
    encoder: str = Field(description="The name of the encoder that it was trained on.")
    calibration: CalibrationInfo
    data_digest: str = Field(description="Of the training rows.")
    trained_at: datetime
    canaries: int = Field(description="Texts by which it was checked when it came.")
    canary_tolerance: float = Field(
        description="Largest difference of a canary's logit that counted as equal."
    )


class TaskList(_Answer):
    """Tasks that serve, by name: all, or one page."""

    tasks: list[TaskInfo]
    total: int = Field(description="All that `search` finds, on this page or not.")


class ActivateAnswer(_Answer):
    """The version that serves now."""

    task: str
    version: int
    digest: str
    gate: GateScoresInfo | None = Field(
        None, description="Null where no gate was asked for, or nothing to compare with."
    )


class UploadAnswer(ActivateAnswer):
    """The version that was uploaded."""

    active: bool = Field(description="Whether it serves now.")


class VersionInfo(_Answer):
    """One version of a task."""

    version: int
    digest: str
    size_bytes: int
    created_at: datetime
    active: bool
    metrics: dict[str, float] = Field(description="On its own dev set, as its file states them.")


class HistoryEntry(_Answer):
    """One change to a task."""

    at: datetime
    action: Literal[
        "upload",
        "stage",
        "activate",
        "rollback",
        "delete",
        "shadow",
        "canary",
        "end_shadow",
        "end_canary",
    ] = Field(description="`stage`: an upload that was not activated.")
    version: int
    digest: str
    by: str | None = Field(
        description="Name of the key that asked for it; null where the server asked for none."
    )
    share: float | None = Field(description="Of the traffic, for a `shadow` or `canary`.")


class VersionList(_Answer):
    """A task's versions by number, and its history, oldest first."""

    task: str
    active: int
    versions: list[VersionInfo]
    history: list[HistoryEntry]


class EncoderInfo(_Answer):
    """The encoder that every task shares."""

    name: str
    fingerprint: str
    hidden_size: int
    layers: int
    parameters: int
    max_tokens: int


class TaskHistory(_Answer):
    """Every change to a task, oldest first; it outlives the task."""

    task: str
    history: list[HistoryEntry]


class KeyInfo(_Answer):
    """A key and what it opens."""

    name: str
    scopes: list[Literal["classify", "admin", "metrics"]]
    tasks: list[str] = Field(description="Patterns of task names.")


class Info(_Answer):
    """What this server is."""

    name: Literal["labelmux"] = "labelmux"
    version: str
    encoder: EncoderInfo
    tasks: int
    limits: dict[str, Any]
    access: Literal["open", "key"] = Field(description="Whether requests need a key.")
    key: KeyInfo | None = Field(description="The key that asks; null where none is needed.")


class Health(_Answer):
    """All is well."""

    status: Literal["ok"] = "ok"


class V2Live(_Answer):
    """The process is worth keeping."""

    live: Literal[True] = True


class V2Ready(_Answer):
    """Requests may be sent here."""

    ready: Literal[True] = True
