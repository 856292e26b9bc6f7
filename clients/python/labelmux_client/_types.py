"""What a server answers, as frozen values. Unknown fields of a newer server are passed over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from labelmux_client._errors import StatusError, error_class

__all__ = [
    "Activation",
    "Canary",
    "ClassifyResult",
    "EncoderInfo",
    "GateInfo",
    "GateScores",
    "HistoryEntry",
    "LabelScore",
    "Prediction",
    "PushResult",
    "ServerInfo",
    "Shadow",
    "Span",
    "TaskFailure",
    "TaskInfo",
    "TextResult",
    "Trials",
    "VersionInfo",
    "VersionList",
    "VersionRef",
    "Windows",
]

#: Whether a pushed version serves at once, later, or if it passes the task's gate.
Activation = Literal["now", "later", "gated"]


@dataclass(frozen=True, slots=True)
class Windows:
    """Read a text that is longer than the task reads in parts, instead of cutting it."""

    #: Tokens that a part shares with the one before it; at most half of the task's ``max_tokens``,
    #: less one.
    overlap_tokens: int = 32
    #: What the logits of all parts become before they are calibrated.
    aggregation: Literal["mean", "max"] = "mean"


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label of a task and how likely it is."""

    label: str
    #: A probability, or a logit where ``raw_scores`` was asked for.
    score: float


@dataclass(frozen=True, slots=True)
class Span:
    """A part of the text, and what it is: ``text[start:end]``."""

    label: str
    start: int
    end: int
    text: str
    #: Mean probability of its words' tags.
    score: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one task says of one text. What its kind of task does not have is None."""

    task: str
    #: The version that answered, and the digest of its file.
    version: int
    digest: str
    #: ``single_label``, ``multi_label`` or ``token``.
    task_kind: str
    #: The text was longer than the task reads; its end was not seen.
    truncated: bool
    #: How many parts of the text were read; 1 where ``windows`` was not asked for.
    windows: int
    #: A temperature, fitted on the task's dev set, shaped the scores; False for raw scores.
    calibrated: bool
    #: Of single_label and multi_label: the likeliest first; at most ``top_k``.
    labels: tuple[LabelScore, ...] | None = None
    #: Of single_label: no score is high enough for the task to be sure.
    abstained: bool | None = None
    #: Of multi_label: the labels that the text has, the likeliest first, whatever ``top_k``.
    predicted: tuple[str, ...] | None = None
    #: Of token: what was found, in the order of the text.
    spans: tuple[Span, ...] | None = None

    @property
    def label(self) -> str:
        """The likeliest label.

        Raises:
            ValueError: a task that finds spans has none.
        """
        return self._best().label

    @property
    def score(self) -> float:
        """The likeliest label's score.

        Raises:
            ValueError: a task that finds spans has none.
        """
        return self._best().score

    def _best(self) -> LabelScore:
        if not self.labels:
            raise ValueError(f"task {self.task!r} finds spans, not labels; take .spans instead")
        return self.labels[0]


@dataclass(frozen=True, slots=True)
class TaskFailure:
    """Why one task of a call could not answer, while others may have."""

    task: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class TextResult:
    """What every task of a call says of one text; ``result["sentiment"]`` is its prediction."""

    #: By task name, as it was asked for.
    predictions: Mapping[str, Prediction]
    failures: Mapping[str, TaskFailure]
    #: Why no task could answer: of a text in a stream alone. The stream goes on.
    error: StatusError | None = None

    def __getitem__(self, task: str) -> Prediction:
        """The prediction of ``task``.

        Raises:
            StatusError: of the class that fits, where the task failed.
            KeyError: the call did not ask for this task.
        """
        if self.error is not None:
            raise self.error
        if task in self.failures:
            failure = self.failures[task]
            kind = error_class(200, failure.code)
            raise kind(status=200, code=failure.code, message=failure.message)
        return self.predictions[task]


@dataclass(frozen=True, slots=True)
class ClassifyResult:
    """The answer to one call: one ``TextResult`` per text, in the order of the texts.

    For calls with one task, ``predictions`` has the prediction of each text; for calls with one
    task and one text, ``prediction`` is the only one.
    """

    results: tuple[TextResult, ...]
    #: Rows that the encoder ran for this call, and their tokens.
    encoder_rows: int
    tokens: int
    request_id: str | None

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[TextResult]:
        return iter(self.results)

    def __getitem__(self, index: int) -> TextResult:
        return self.results[index]

    @property
    def predictions(self) -> list[Prediction]:
        """Each text's prediction, for a call with one task.

        Raises:
            StatusError: the task failed.
            ValueError: the call had several tasks; take ``result[0]["task"]`` instead.
        """
        return [_only(text) for text in self.results]

    @property
    def prediction(self) -> Prediction:
        """The only prediction of a call with one task and one text.

        Raises:
            StatusError: the task failed.
            ValueError: there are several; take ``predictions`` or ``result[0]["task"]`` instead.
        """
        if len(self.results) != 1:
            raise ValueError(f"the call had {len(self.results)} texts; take .predictions instead")
        return _only(self.results[0])


def _only(text: TextResult) -> Prediction:
    names = [*text.predictions, *text.failures]
    if len(names) != 1:
        raise ValueError(
            f'the call was answered for {len(names)} tasks; take result[0]["task"] instead'
        )
    return text[names[0]]


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """One task and its active version."""

    task: str
    method: str
    #: ``single_label``, ``multi_label`` or ``token``.
    task_kind: str
    #: In the order of the logits.
    labels: tuple[str, ...]
    #: Reads two texts.
    pair: bool
    max_tokens: int
    version: int
    digest: str
    encoder_fingerprint: str
    #: On the task's own dev set, such as accuracy.
    metrics: Mapping[str, float]
    parameters: int
    #: Share of the encoder's parameters.
    parameter_share: float
    size_bytes: int
    #: When this server took the version.
    created_at: datetime
    #: Free notes: data, licence, scores.
    card: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class GateScores:
    """How good a version and the one that was active are on the task's labelled set."""

    #: ``accuracy``, ``macro_f1`` or ``span_f1``, by kind of task.
    measure: str
    rows: int
    score: float
    active_version: int
    active_score: float


@dataclass(frozen=True, slots=True)
class VersionRef:
    """The version of a task that is active now."""

    task: str
    version: int
    digest: str
    #: None where no gate was asked for, or there was nothing to compare with.
    gate: GateScores | None = None


@dataclass(frozen=True, slots=True)
class PushResult:
    """The version that a push made."""

    task: str
    version: int
    digest: str
    #: Whether it serves now.
    active: bool
    #: False where this very file already was a version of the task.
    created: bool
    gate: GateScores | None = None


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One version of a task."""

    version: int
    digest: str
    size_bytes: int
    created_at: datetime
    active: bool
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One change to a task, such as upload, stage, activate, rollback or delete."""

    at: datetime
    action: str
    version: int
    digest: str
    #: The name of the key that asked for it; None where the server asked for none.
    by: str | None
    #: Of the traffic, where it began a shadow or a canary.
    share: float | None


@dataclass(frozen=True, slots=True)
class Shadow:
    """A version that reads along with the active one, and how far the two agree."""

    version: int
    digest: str
    #: Of the task's texts.
    share: float
    since: datetime
    started_by: str | None
    #: When the counts begin: at the server's last start, if that is later.
    counted_since: datetime
    #: Texts that both read, and of these, those with the same verdict.
    compared: int
    agreed: int
    #: Share of ``compared``, and mean difference of scores; None before the first text.
    agreement: float | None
    score_difference: float | None
    #: Texts that it did not read: there was too much to do, or its adapter was not there.
    dropped: int
    unloaded: int


@dataclass(frozen=True, slots=True)
class Canary:
    """A version that answers a share of a task's traffic."""

    version: int
    digest: str
    share: float
    #: What the share is of: ``text`` or ``caller``.
    by: str
    since: datetime
    started_by: str | None
    counted_since: datetime
    #: Texts that it answered, and that the active version did meanwhile.
    answered: int
    active_answered: int
    #: Texts of its share that it could not read, so that the active version did.
    fell_back: int


@dataclass(frozen=True, slots=True)
class Trials:
    """What runs beside the active version of a task."""

    task: str
    active: int
    shadow: Shadow | None
    canary: Canary | None


@dataclass(frozen=True, slots=True)
class GateInfo:
    """The labelled set that gated versions of a task are judged by."""

    task: str
    task_kind: str
    pair: bool
    rows: int
    digest: str
    size_bytes: int
    stored_at: datetime
    stored_by: str | None


@dataclass(frozen=True, slots=True)
class VersionList:
    """All versions of a task, and how they came and went."""

    task: str
    #: The number of the version that serves.
    active: int
    versions: tuple[VersionInfo, ...]
    history: tuple[HistoryEntry, ...]


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """The frozen encoder under every task of a server."""

    name: str
    fingerprint: str
    hidden_size: int
    layers: int
    parameters: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """A key and what it opens."""

    name: str
    #: Of ``classify``, ``admin`` and ``metrics``.
    scopes: tuple[str, ...]
    #: Patterns of task names.
    tasks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server is and what it takes."""

    name: str
    version: str
    encoder: EncoderInfo
    #: How many tasks it serves.
    tasks: int
    #: By the name of the setting.
    limits: Mapping[str, Any]
    #: Whether requests need a key: ``open`` or ``key``.
    access: str
    #: The key that asked; None where none is needed.
    key: KeyInfo | None
