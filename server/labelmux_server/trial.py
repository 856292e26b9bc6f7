"""Versions that run beside the active one of their task: its shadow and its canary.

Which texts one of them gets hangs on a hash alone, so the same text, or caller, always gets the
same version, also after a restart and on another server; and whoever is in a share stays in when
the share grows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from labelmux_encoder.tokenizer import TextInput

if TYPE_CHECKING:
    from labelmux_server.outcomes import Outcome
    from labelmux_server.registry import Version

TrialKind = Literal["shadow", "canary"]
#: What a share is a share of: texts, or callers by the names of their keys.
ShareOf = Literal["text", "caller"]

_HASH_BYTES = 6


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class TrialTerms:
    """What an operator asks of a trial."""

    share: float
    by: ShareOf = "text"


@dataclass(slots=True, eq=False)
class _Trial:
    version: Version
    terms: TrialTerms
    since: datetime
    #: The name of the key that asked for it; None where the server asked for no key.
    started_by: str | None
    #: The counts below begin there: counts do not outlive the server.
    counted_since: datetime = field(default_factory=_now)


@dataclass(slots=True, eq=False)
class Shadow(_Trial):
    """A version that reads traffic and answers nobody. One thread changes each count."""

    #: Texts that both versions read, and of them, those with the same verdict.
    compared: int = 0
    agreed: int = 0
    #: Sum over these texts of the mean difference of their scores.
    score_difference: float = 0.0
    #: Texts that it did not read since there was too much to do, or its adapter was not there.
    dropped: int = 0
    unloaded: int = 0
    #: Its file could not be loaded, and is not tried again.
    broken: bool = False

    def covers(self, text: TextInput) -> bool:
        """Whether it reads this text."""
        return _place("shadow", self.version.task, _name(text)) < self.terms.share

    def settle(self, slot: Future[Any]) -> None:
        """Its adapter is in the bank, or cannot be."""
        self.broken = slot.exception() is not None


@dataclass(slots=True, eq=False)
class Canary(_Trial):
    """A version that answers a share of the traffic."""

    #: Texts that it answered, and that the active version did.
    answered: int = 0
    active_answered: int = 0
    #: Texts of its share that it could not read, so that the active version did.
    fell_back: int = 0

    def covers(self, text: TextInput, caller: str) -> bool:
        """Whether it answers this text of a caller."""
        what = caller if self.terms.by == "caller" else _name(text)
        return _place("canary", self.version.task, what) < self.terms.share

    def count(self, outcomes: Iterable[Outcome]) -> None:
        """A call was answered so."""
        for outcome in outcomes:
            if outcome.error is None:
                by_canary = outcome.version is self.version
                self.answered += by_canary
                self.active_answered += not by_canary


@dataclass(frozen=True, slots=True)
class Trials:
    """What runs beside a task's active version."""

    shadow: Shadow | None = None
    canary: Canary | None = None

    def kind_of(self, number: int) -> TrialKind | None:
        """As what the version of this number runs, if it does."""
        if self.shadow is not None and self.shadow.version.number == number:
            return "shadow"
        if self.canary is not None and self.canary.version.number == number:
            return "canary"
        return None


NO_TRIALS = Trials()


def _name(text: TextInput) -> str:
    return text if isinstance(text, str) else "\0".join(text)


def _place(kind: TrialKind, task: str, what: str) -> float:
    """Where it lies between 0 and 1, 1 left out; salted, or each task would try the same texts."""
    salted = f"{kind}\0{task}\0{what}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(salted, digest_size=_HASH_BYTES).digest()
    # So few bytes are exact in a float.
    return int.from_bytes(digest) / (1 << (8 * _HASH_BYTES))
