"""Who changed a task, how and when; and what was active before."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy.orm import Session

from labelmux_server.database import HistoryRow, now

#: ``stage``: an upload that was not activated. ``shadow`` and ``canary`` begin a trial.
Action = Literal[
    "upload",
    "stage",
    "activate",
    "rollback",
    "delete",
    "shadow",
    "canary",
    "end_shadow",
    "end_canary",
]


@dataclass(frozen=True, slots=True)
class HistoryRecord:
    """One change that was made to a task."""

    at: datetime
    action: Action
    version: int
    digest: str
    #: The name of the key that asked for it; None where the server asked for no key.
    by: str | None = None
    #: Of the traffic, where it began a trial.
    share: float | None = None


def previous_active(history: list[HistoryRecord], present: Set[int]) -> int | None:
    """The version that was active before the present one, undoing changes like a stack.

    A rollback takes the newest change back, so two rollbacks go two versions back. Versions that
    are not ``present`` any more are passed over.
    """
    stack: list[int] = []
    for record in history:
        if record.action == "delete":
            stack = [number for number in stack if number != record.version]
        elif record.action == "rollback":
            while stack and stack[-1] != record.version:
                stack.pop()
        elif record.action in ("upload", "activate"):
            stack.append(record.version)
        stack = [number for at, number in enumerate(stack) if at == 0 or stack[at - 1] != number]
    earlier = [number for number in stack[:-1] if number in present and number != stack[-1]]
    return earlier[-1] if earlier else None


def note(
    session: Session,
    task: str,
    action: Action,
    version: int,
    digest: str,
    by: str | None,
    share: float | None = None,
) -> None:
    """Put a change into the history, with the change itself."""
    session.add(
        HistoryRow(
            task=task,
            at=now(),
            action=action,
            version=version,
            digest=digest,
            by=by,
            share=share,
        )
    )
