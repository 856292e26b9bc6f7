"""Releasing a version: beside the active one first, or through the task's gate."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request, Response

from labelmux_server import errors, release_errors
from labelmux_server.access import guarded_router
from labelmux_server.answers import json_answer
from labelmux_server.blobs import digest_of
from labelmux_server.bodies import LINES_TYPES, read_bytes, read_json, unless_gone
from labelmux_server.caller import Caller
from labelmux_server.documented import body_of, documented, raw_body
from labelmux_server.gate import GateScores, LabelledSet
from labelmux_server.registry import Version
from labelmux_server.release_schemas import (
    CanaryInfo,
    CanaryRequest,
    GateInfo,
    ShadowInfo,
    ShadowRequest,
    TrialList,
)
from labelmux_server.service import Service
from labelmux_server.store import GateRecord
from labelmux_server.trial import Canary, Shadow, TrialKind, TrialTerms

router = guarded_router("releases", "admin")

_MISSING = (errors.TaskNotFoundError, errors.InvalidRequestError)
_START = documented(
    *_MISSING,
    errors.VersionNotFoundError,
    errors.InvalidJsonError,
    errors.BodyTooLargeError,
    errors.MediaTypeError,
    release_errors.TrialMisfitError,
    errors.AdapterDamagedError,
    errors.BankFullError,
)
_END = documented(*_MISSING, release_errors.TrialNotFoundError)


@router.get("/v1/tasks/{task}/trials", response_model=TrialList, responses=documented(*_MISSING))
async def get_trials(request: Request, task: str) -> Response:
    """What runs beside the active version, and what came of it so far."""
    service = _service(request)
    trials = service.registry.trials(task)
    return json_answer(
        {
            "task": task,
            "active": service.registry.get(task).number,
            "shadow": None if trials.shadow is None else _shadow_body(trials.shadow),
            "canary": None if trials.canary is None else _canary_body(trials.canary),
        }
    )


@router.post(
    "/v1/tasks/{task}/shadow",
    response_model=ShadowInfo,
    openapi_extra=body_of(ShadowRequest),
    responses=_START,
)
async def start_shadow(request: Request, task: str) -> Response:
    """Let a version read a share of the texts, answer nobody, and be compared with the active one.

    It takes the place of the shadow that the task has. `activate`, `rollback` and an upload that
    becomes active end it.
    """
    wanted = await read_json(request, ShadowRequest, _service(request).settings.max_body_bytes)
    started = await _start(request, task, "shadow", wanted.version, TrialTerms(wanted.share))
    assert isinstance(started, Shadow)
    return json_answer(_shadow_body(started))


@router.post(
    "/v1/tasks/{task}/canary",
    response_model=CanaryInfo,
    openapi_extra=body_of(CanaryRequest),
    responses=_START,
)
async def start_canary(request: Request, task: str) -> Response:
    """Let a version answer a share of the texts or callers, the same ones every time.

    It takes the place of the canary that the task has. `activate`, `rollback` and an upload that
    becomes active end it.
    """
    wanted = await read_json(request, CanaryRequest, _service(request).settings.max_body_bytes)
    terms = TrialTerms(wanted.share, wanted.by)
    started = await _start(request, task, "canary", wanted.version, terms)
    assert isinstance(started, Canary)
    return json_answer(_canary_body(started))


@router.delete("/v1/tasks/{task}/shadow", status_code=204, responses=_END)
async def end_shadow(request: Request, task: str) -> Response:
    """End a task's shadow."""
    return await _end(request, task, "shadow")


@router.delete("/v1/tasks/{task}/canary", status_code=204, responses=_END)
async def end_canary(request: Request, task: str) -> Response:
    """End a task's canary: the active version answers everything again."""
    return await _end(request, task, "canary")


@router.put(
    "/v1/tasks/{task}/gate",
    response_model=GateInfo,
    openapi_extra=raw_body(
        'Labelled rows, one JSON object a line: `{"text", "label"}`, `{"text", "labels": []}` or '
        '`{"text", "spans": [{"label", "start", "end"}]}`; with `"pair"` where the task reads two.',
        LINES_TYPES[0],
    ),
    responses=documented(
        *_MISSING,
        errors.BodyTooLargeError,
        errors.MediaTypeError,
        errors.TextTooLongError,
        release_errors.GateMisfitError,
    ),
)
async def put_gate(request: Request, task: str) -> Response:
    """Store the labelled set that gated versions of a task are judged by; one per task."""
    service = _service(request)
    active = service.registry.get(task)
    limit_bytes = service.settings.max_gate_bytes
    data = await read_bytes(
        request, LINES_TYPES, limit_bytes, errors.BodyTooLargeError(limit_bytes)
    )
    labelled = await asyncio.to_thread(service.gate.parse, data)
    labelled.check(active)
    by = _caller(request).key
    record = await service.change(
        "gate", lambda changes: changes.put_gate(task, digest_of(data), data, by)
    )
    return json_answer(_gate_body(task, record, labelled))


@router.get(
    "/v1/tasks/{task}/gate",
    response_model=GateInfo,
    responses=documented(*_MISSING, release_errors.GateNotFoundError),
)
async def get_gate(request: Request, task: str) -> Response:
    """What labelled set a task has."""
    service = _service(request)
    service.registry.get(task)
    record = await asyncio.to_thread(service.store.gate, task)
    if record is None:
        raise release_errors.GateNotFoundError(task)
    labelled = await asyncio.to_thread(service.gate.parse, record.data, stored=True)
    return json_answer(_gate_body(task, record, labelled))


@router.delete(
    "/v1/tasks/{task}/gate",
    status_code=204,
    responses=documented(*_MISSING, release_errors.GateNotFoundError),
)
async def delete_gate(request: Request, task: str) -> Response:
    """Forget a task's labelled set."""
    await _service(request).change("gate", lambda changes: changes.delete_gate(task))
    return Response(status_code=204)


async def pass_gate(request: Request, version: Version, labelled: LabelledSet) -> GateScores | None:
    """Activate a version if it is at least as good as the active one; both scores.

    None where it is the active one, so that there is nothing to compare.

    Raises:
        GateFailedError, GateMisfitError, ActiveChangedError, VersionNotFoundError
        CallerGoneError: the caller left; nothing was activated.
    """
    service, caller = _service(request), _caller(request)
    active = service.registry.get(version.task)
    if active.number == version.number:
        return None
    scores = await unless_gone(request, service.gate.check(labelled, version, active, caller))
    await service.change(
        "activate",
        lambda changes: changes.activate(
            version.task, version.number, caller.key, over=active.number
        ),
    )
    return scores


async def _start(
    request: Request, task: str, kind: TrialKind, number: int, terms: TrialTerms
) -> Shadow | Canary:
    by = _caller(request).key
    return await _service(request).change(
        kind, lambda changes: changes.trials.start(task, kind, number, terms, by)
    )


async def _end(request: Request, task: str, kind: TrialKind) -> Response:
    by = _caller(request).key
    await _service(request).change(
        f"end_{kind}", lambda changes: changes.trials.end(task, kind, by)
    )
    return Response(status_code=204)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


def _trial_body(trial: Shadow | Canary) -> dict[str, Any]:
    return {
        "version": trial.version.number,
        "digest": trial.version.digest,
        "share": trial.terms.share,
        "since": trial.since,
        "started_by": trial.started_by,
        "counted_since": trial.counted_since,
    }


def _shadow_body(shadow: Shadow) -> dict[str, Any]:
    compared = shadow.compared
    return {
        **_trial_body(shadow),
        "compared": compared,
        "agreed": shadow.agreed,
        "agreement": shadow.agreed / compared if compared else None,
        "score_difference": shadow.score_difference / compared if compared else None,
        "dropped": shadow.dropped,
        "unloaded": shadow.unloaded,
    }


def _canary_body(canary: Canary) -> dict[str, Any]:
    return {
        **_trial_body(canary),
        "by": canary.terms.by,
        "answered": canary.answered,
        "active_answered": canary.active_answered,
        "fell_back": canary.fell_back,
    }


def _gate_body(task: str, record: GateRecord, labelled: LabelledSet) -> dict[str, Any]:
    return {
        "task": task,
        "task_kind": labelled.kind,
        "pair": labelled.pair,
        "rows": len(labelled.texts),
        "digest": record.digest,
        "size_bytes": len(record.data),
        "stored_at": record.stored_at,
        "stored_by": record.stored_by,
    }
