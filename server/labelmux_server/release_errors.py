"""Errors about which version serves: trials, gates, rollbacks; ``errors`` draws the tree."""

from __future__ import annotations

from collections.abc import Mapping

from labelmux_server.errors import ConflictError, LookupFailedError


class TrialNotFoundError(LookupFailedError):
    """The task has no shadow, or no canary."""

    def __init__(self, task: str, kind: str) -> None:
        super().__init__(
            f"task {task!r} has no {kind}; GET /v1/tasks/{task}/trials says what runs", task=task
        )


class GateNotFoundError(LookupFailedError):
    """The task has no labelled set to be gated by."""

    def __init__(self, task: str) -> None:
        super().__init__(
            f"task {task!r} has no gate; send a labelled set to PUT /v1/tasks/{task}/gate first",
            task=task,
        )


class VersionOnTrialError(ConflictError):
    """A version that runs beside the active one cannot be deleted."""

    def __init__(self, task: str, version: int, kind: str) -> None:
        super().__init__(
            f"version {version} is the {kind} of task {task!r}; end that first with DELETE "
            f"/v1/tasks/{task}/{kind}",
            task=task,
            version=version,
        )


class TrialMisfitError(ConflictError):
    """A version cannot run beside the active one."""

    def __init__(self, task: str, version: int, problem: str) -> None:
        super().__init__(
            f"version {version} cannot run beside the active version of task {task!r}: {problem}; "
            "name another",
            task=task,
            version=version,
        )


class GateFailedError(ConflictError):
    """A version is worse than the active one on the task's labelled set."""

    def __init__(self, task: str, version: int, scores: Mapping[str, object]) -> None:
        super().__init__(
            f"version {version} of task {task!r} has {scores['measure']} {scores['score']:.4f} on "
            f"the gate's {scores['rows']} rows, below {scores['active_score']:.4f} of the active "
            f"version {scores['active_version']}; it is stored but not active",
            task=task,
            version=version,
            **scores,
        )


class GateMisfitError(ConflictError):
    """The labelled set is not of the kind that a version answers."""

    def __init__(self, task: str, version: int, problem: str) -> None:
        super().__init__(
            f"the gate cannot judge version {version} of task {task!r}: {problem}; send another "
            "labelled set, or activate it without the gate",
            task=task,
            version=version,
        )


class ActiveChangedError(ConflictError):
    """Another version became active meanwhile."""

    def __init__(self, task: str, version: int, over: int) -> None:
        super().__init__(
            f"version {over} of task {task!r}, with which version {version} was compared, is not "
            "active any more; activate it again",
            task=task,
            version=version,
        )


class NoPreviousVersionError(ConflictError):
    """There is nothing to roll back to."""

    def __init__(self, task: str, version: int) -> None:
        super().__init__(
            f"no version of task {task!r} was active before version {version}",
            task=task,
            version=version,
        )
