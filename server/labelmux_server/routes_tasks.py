"""Tasks: what serves, and, on a router of their own, their versions and the changes to them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import Path, Query, Request, Response

from labelmux_server import errors, release_errors
from labelmux_server.access import guarded_router
from labelmux_server.answers import (
    active_body,
    json_answer,
    report_body,
    task_body,
    version_body,
)
from labelmux_server.bodies import read_json, read_upload, stated_sha256
from labelmux_server.caller import Caller
from labelmux_server.documented import ADAPTER_ERRORS, body_of, documented, raw_body
from labelmux_server.registry import MAX_VERSION, check_task_name
from labelmux_server.routes_releases import pass_gate
from labelmux_server.schemas import (
    ActivateAnswer,
    ActivateRequest,
    TaskHistory,
    TaskInfo,
    TaskList,
    UploadAnswer,
    VersionList,
    VersionReport,
)
from labelmux_server.service import Service

router = guarded_router("tasks", "classify", "admin")
admin_router = guarded_router("admin", "admin")

Number = Annotated[int, Path(ge=1, le=MAX_VERSION)]

_Search = Annotated[str, Query(description="Only tasks with this in their name, in any case.")]
_After = Annotated[str, Query(description="Only tasks behind this name: the last one's, to go on.")]
_Limit = Annotated[int | None, Query(ge=1, description="At most so many.")]

_Activate = Annotated[
    Literal["now", "later", "gated"],
    Query(
        description="`now`: it serves at once. `later`: it is stored, to be activated or tried. "
        "`gated`: it serves if it is at least as good as the active version on the task's gate. "
        "The first version of a task serves at once in any case."
    ),
]

#: What an activation through the gate can end in.
_GATE_ERRORS = (
    release_errors.GateNotFoundError,
    release_errors.GateFailedError,
    release_errors.GateMisfitError,
    release_errors.ActiveChangedError,
    errors.TimedOutError,
)

_MISSING = documented(
    errors.TaskNotFoundError,
    errors.VersionNotFoundError,
    errors.InvalidRequestError,
    errors.StorageError,
)
_CHANGING = {**_MISSING, **documented(errors.DiskFullError)}


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


@router.get("/v1/tasks", response_model=TaskList, responses=documented(errors.InvalidRequestError))
async def list_tasks(
    request: Request, search: _Search = "", after: _After = "", limit: _Limit = None
) -> Response:
    """Tasks that the key is for, by name: all, or a page of those that `search` finds."""
    registry = _service(request).registry
    covers = _caller(request).rights.covers

    def body() -> dict[str, Any]:
        wanted = search.lower()
        found = [
            version
            for version in registry.active()
            if wanted in version.task.lower() and covers(version.task)
        ]
        page = [version for version in found if version.task > after][:limit]
        return {"tasks": [task_body(version) for version in page], "total": len(found)}

    return json_answer(await asyncio.to_thread(body))


@router.get("/v1/tasks/{task}", response_model=TaskInfo, responses=_MISSING)
async def get_task(request: Request, task: str) -> Response:
    """One task and its active version."""
    return json_answer(task_body(_service(request).registry.get(task)))


@router.get("/v1/tasks/{task}/versions/{version}", response_model=VersionReport, responses=_MISSING)
async def get_version(request: Request, task: str, version: Number) -> Response:
    """One version of a task: how it was made and how good it is, as its file says."""
    registry = _service(request).registry

    def body() -> dict[str, Any]:
        return report_body(registry.get(task, version), registry.get(task).number)

    return json_answer(await asyncio.to_thread(body))


@admin_router.get("/v1/tasks/{task}/versions", response_model=VersionList, responses=_MISSING)
async def list_versions(request: Request, task: str) -> Response:
    """A task's versions and its history."""
    service = _service(request)

    def body() -> dict[str, Any]:
        active = service.registry.get(task).number
        versions = service.registry.versions(task)
        return {
            "task": task,
            "active": active,
            "versions": [version_body(version, active) for version in versions],
            "history": service.store.history(task),
        }

    return json_answer(await asyncio.to_thread(body))


@admin_router.get("/v1/tasks/{task}/history", response_model=TaskHistory, responses=_MISSING)
async def task_history(request: Request, task: str) -> Response:
    """Who changed a task, how and when; it is there after the task was deleted, too."""
    history = await asyncio.to_thread(_service(request).store.history, task)
    if not history:
        raise errors.TaskNotFoundError(task)
    return json_answer({"task": task, "history": history})


@admin_router.get(
    "/v1/tasks/{task}/adapter",
    response_class=Response,
    responses={
        200: {"content": {"application/octet-stream": {}}, "description": "The adapter file."},
        **_MISSING,
        **documented(errors.AdapterDamagedError),
    },
)
async def download_adapter(
    request: Request, task: str, version: Annotated[int | None, Query(ge=1, le=MAX_VERSION)] = None
) -> Response:
    """The adapter file of the active version, or of the one named."""
    service = _service(request)
    found = service.registry.get(task, version)
    data = await asyncio.to_thread(service.library.file, found)
    return Response(
        data,
        headers={
            "content-disposition": f'attachment; filename="{task}.safetensors"',
            "etag": f'"{found.digest}"',
            "x-labelmux-version": str(found.number),
        },
        media_type="application/octet-stream",
    )


@admin_router.put(
    "/v1/tasks/{task}/adapter",
    status_code=201,
    response_model=UploadAnswer,
    openapi_extra=raw_body("An adapter file as `labelmux train` writes it."),
    responses={
        200: {"model": UploadAnswer, "description": "The task had this file already."},
        **documented(
            errors.TaskExistsError,
            errors.UploadTooLargeError,
            errors.MediaTypeError,
            errors.InvalidRequestError,
            errors.DigestMismatchError,
            errors.OverloadedError,
            errors.RateLimitedError,
            errors.BankFullError,
            errors.StoreFullError,
            errors.StorageError,
            errors.DiskFullError,
            errors.BodyStalledError,
            *_GATE_ERRORS,
            *ADAPTER_ERRORS,
        ),
    },
)
async def upload_adapter(request: Request, task: str, activate: _Activate = "now") -> Response:
    """Make an adapter file a version of a task, new or existing, and the active one from now on.

    Headers: `X-Content-SHA256` (hex) refuses a body that was damaged on its way;
    `If-None-Match: *` refuses to touch a task that exists.
    """
    service = _service(request)
    check_task_name(task)
    sha256 = stated_sha256(request)
    create_only = request.headers.get("if-none-match", "").strip() == "*"
    if create_only and task in service.registry:
        raise errors.TaskExistsError(task)
    by = _caller(request).key
    with service.upload_place():
        data = await read_upload(request, service.settings.max_upload_bytes)
        gated = activate == "gated" and task in service.registry
        labelled = await asyncio.to_thread(service.gate.load, task) if gated else None
        done = await service.change(
            "upload",
            lambda changes: changes.upload(
                task,
                data,
                sha256=sha256,
                create_only=create_only,
                activate=activate == "now",
                by=by,
            ),
        )
        scores = labelled and await pass_gate(request, done.version, labelled)
    active = service.registry.is_active(done.version)
    location = f"/v1/tasks/{task}/adapter?version={done.version.number}"
    return json_answer(
        {**active_body(done.version), "gate": scores, "active": active},
        201 if done.created else 200,
        {"location": location},
    )


@admin_router.post(
    "/v1/tasks/{task}/activate",
    response_model=ActivateAnswer,
    openapi_extra=body_of(ActivateRequest),
    responses={
        **documented(
            *_GATE_ERRORS,
            errors.InvalidJsonError,
            errors.BodyTooLargeError,
            errors.BodyStalledError,
            errors.MediaTypeError,
        ),
        **_CHANGING,
    },
)
async def activate_version(request: Request, task: str) -> Response:
    """Let another version serve from now on, and end the task's shadow and canary."""
    service = _service(request)
    wanted = await read_json(request, ActivateRequest, service.settings.max_body_bytes)
    if wanted.gated:
        version = service.registry.get(task, wanted.version)
        labelled = await asyncio.to_thread(service.gate.load, task)
        with service.upload_place():
            scores = await pass_gate(request, version, labelled)
        return json_answer({**active_body(version), "gate": scores})
    by = _caller(request).key
    version = await service.change(
        "activate", lambda changes: changes.activate(task, wanted.version, by)
    )
    return json_answer({**active_body(version), "gate": None})


@admin_router.post(
    "/v1/tasks/{task}/rollback",
    response_model=ActivateAnswer,
    responses=documented(
        errors.TaskNotFoundError,
        release_errors.NoPreviousVersionError,
        errors.InvalidRequestError,
        errors.StorageError,
        errors.DiskFullError,
    ),
)
async def rollback_task(request: Request, task: str) -> Response:
    """Let the version that was active before serve again; repeated, go further back.

    This ends the task's shadow and canary.
    """
    by = _caller(request).key
    version = await _service(request).change("rollback", lambda changes: changes.rollback(task, by))
    return json_answer({**active_body(version), "gate": None})


@admin_router.delete("/v1/tasks/{task}", status_code=204, responses=_CHANGING)
async def delete_task(request: Request, task: str) -> Response:
    """Delete a task with all its versions."""
    by = _caller(request).key
    await _service(request).change("delete", lambda changes: changes.delete_task(task, by))
    return Response(status_code=204)


@admin_router.delete(
    "/v1/tasks/{task}/versions/{version}",
    status_code=204,
    responses={
        **_CHANGING,
        **documented(errors.VersionActiveError, release_errors.VersionOnTrialError),
    },
)
async def delete_version(request: Request, task: str, version: Number) -> Response:
    """Delete one version that is not active and runs neither as shadow nor as canary."""
    by = _caller(request).key
    await _service(request).change(
        "delete", lambda changes: changes.delete_version(task, version, by)
    )
    return Response(status_code=204)
