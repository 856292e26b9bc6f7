"""Bodies about versions on trial and about gates, as they stand in the OpenAPI document."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import ConfigDict, Field

from labelmux_adapters.kinds import TaskKind
from labelmux_server.registry import MAX_VERSION
from labelmux_server.schema_bases import StrictAnswer, StrictRequest
from labelmux_server.trial import ShareOf

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class ShadowRequest(StrictRequest):
    """Which version shall read along."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"version": 2, "share": 1.0}]})

    version: int = Field(ge=1, le=MAX_VERSION)
    share: Share = Field(1.0, description="Of the task's texts, by a hash of each.")


class CanaryRequest(StrictRequest):
    """Which version shall answer how much."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"version": 2, "share": 0.05, "by": "text"}]}
    )

    version: int = Field(ge=1, le=MAX_VERSION)
    share: Share = Field(description="Of the texts or callers, by a hash of each.")
    by: ShareOf = Field(
        "text",
        description="`caller`: all texts that come with the same key get the same version. "
        "Callers without a key are one.",
    )


class _TrialInfo(StrictAnswer):
    version: int
    digest: str
    share: float
    since: datetime
    started_by: str | None = Field(description="Name of the key that asked for it.")
    counted_since: datetime = Field(description="Counts begin here: at the server's last start.")


class ShadowInfo(_TrialInfo):
    """A version that reads along, and how far it agrees with the active one."""

    compared: int = Field(description="Texts that both read.")
    agreed: int = Field(
        description="Of these, texts with the same best label (single_label), the same labels "
        "(multi_label), or the same spans (token)."
    )
    agreement: float | None = Field(description="`agreed` of `compared`; null before the first.")
    score_difference: float | None = Field(
        description="Mean absolute difference of the scores of labels, or spans, that both have."
    )
    dropped: int = Field(description="Texts that it did not read since there was too much to do.")
    unloaded: int = Field(description="Texts that it did not read since its adapter was not there.")


class CanaryInfo(_TrialInfo):
    """A version that answers a share of the traffic."""

    by: ShareOf
    answered: int = Field(description="Texts that it answered.")
    active_answered: int = Field(description="Texts that the active version answered meanwhile.")
    fell_back: int = Field(
        description="Texts of its share that it could not read, so that the active version did."
    )


class TrialList(StrictAnswer):
    """What runs beside the active version."""

    task: str
    active: int
    shadow: ShadowInfo | None
    canary: CanaryInfo | None


class GateInfo(StrictAnswer):
    """A task's labelled set."""

    task: str
    task_kind: TaskKind
    pair: bool
    rows: int
    digest: str
    size_bytes: int
    stored_at: datetime
    stored_by: str | None = Field(description="Name of the key that sent it.")


class GateScoresInfo(StrictAnswer):
    """How good a version and the active one are on the task's labelled set."""

    measure: str = Field(description="`accuracy`, `macro_f1` or `span_f1`, by kind of task.")
    rows: int
    score: float
    active_version: int = Field(description="The version that was active before.")
    active_score: float
