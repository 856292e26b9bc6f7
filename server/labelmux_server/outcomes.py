"""What a call gives: by task and text, the logits and the version that gave them, or an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from labelmux_encoder.tokenizer import TokenRow
from labelmux_server.errors import ServerError
from labelmux_server.registry import Version


class Outcome(NamedTuple):
    """One text for one task: what was read and the logits, or why there are none."""

    #: The version that answers: the active one, the one that was named, or a canary.
    version: Version
    #: One, or one per window.
    rows: Sequence[TokenRow] = ()
    #: Of each row. [K], or [T, K] of a token task
    logits: Sequence[Any] = ()
    truncated: bool = False
    error: ServerError | None = None

    @classmethod
    def of(
        cls, version: Version, rows: Sequence[TokenRow], first: int, answers: Sequence[Any]
    ) -> Outcome:
        """What a version says of a text whose rows' answers lie from ``first`` on."""
        return cls(version, rows, answers[first : first + len(rows)], rows[0].truncated)


class Column(NamedTuple):
    """One task's part of a call: an outcome per text, or why it has none."""

    name: str
    #: The one that the name means now; a canary of it may have answered some texts.
    version: Version | None
    error: ServerError | None
    outcomes: Sequence[Outcome] = ()


class Classified(NamedTuple):
    """A whole call."""

    columns: Sequence[Column]
    encoder_rows: int
    tokens: int
    #: Seconds by stage, in order.
    stages: Mapping[str, float]


class Terms(NamedTuple):
    """How the texts of a call may be read."""

    #: False: a text that is longer than a task reads is an error.
    truncation: bool = True
    #: None: such a text is cut. Else it is read in windows that share so many tokens.
    overlap_tokens: int | None = None
    #: Whether logits are wanted: then a task that answers with spans is in error.
    raw_scores: bool = False
