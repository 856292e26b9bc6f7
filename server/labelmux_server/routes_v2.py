"""The Open Inference Protocol, version 2, of KServe and Triton's clients. A model is a task."""

from __future__ import annotations

import asyncio
from importlib.metadata import version as installed_version
from typing import Annotated, Any, Literal

from fastapi import Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from labelmux_server import errors
from labelmux_server.access import guarded_router
from labelmux_server.answers import json_answer
from labelmux_server.bodies import parse_json, read_body
from labelmux_server.caller import Caller
from labelmux_server.compatible import LABELS_ERRORS, ForeignRequest, Labelled, label
from labelmux_server.documented import body_of, documented
from labelmux_server.error_shapes import V2Error
from labelmux_server.registry import MAX_VERSION, Registry, Version
from labelmux_server.service import Service
from labelmux_server.tensors import InputTensor, texts_of

router = guarded_router(
    "Open Inference Protocol", "classify", error_body=V2Error, any_parameters=True
)
info_router = guarded_router(
    "Open Inference Protocol", "classify", "admin", error_body=V2Error, any_parameters=True
)

Number = Annotated[int, Path(ge=1, le=MAX_VERSION)]
OutputName = Literal["labels", "scores", "truncated"]

_MODEL = "/v2/models/{task}"
_VERSION = _MODEL + "/versions/{version}"
#: Where the JSON ends, for clients that send tensors behind it.
_JSON_LENGTH = "inference-header-content-length"
_LENGTH_DIGITS = 20
_EXAMPLE: dict[str, Any] = {
    "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["What a lovely film."]}]
}
_EXTENSIONS = ["model_repository", "binary_tensor_data"]


class InferParameters(ForeignRequest):
    """What may be asked besides."""

    raw_scores: bool = Field(default=False, description="Logits instead of probabilities.")
    truncation: bool = Field(
        default=True, description="False: a text that is too long is an error."
    )


class RequestedOutput(ForeignRequest):
    """One output that is wanted."""

    name: OutputName


class InferRequest(ForeignRequest):
    """An inference."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    id: str | None = Field(None, description="Comes back with the answer.")
    parameters: InferParameters = InferParameters()
    inputs: list[InputTensor] = Field(
        min_length=1,
        max_length=2,
        fail_fast=True,
        description="`text`, and `pair` for a task that reads two.",
    )
    outputs: list[RequestedOutput] | None = Field(
        None, fail_fast=True, description="All if left out."
    )


class IndexRequest(ForeignRequest):
    """Which models to list."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ready": True}]})

    ready: bool = False


class OutputTensor(BaseModel):
    """One output."""

    name: OutputName
    datatype: Literal["BYTES", "FP32", "BOOL"]
    shape: list[int]
    data: list[str] | list[float] | list[bool]


class InferAnswer(BaseModel):
    """Outputs; labels and scores are best first."""

    model_name: str
    model_version: str
    id: str
    outputs: list[OutputTensor]


class TensorInfo(BaseModel):
    """An input or output; a dimension of -1 is open."""

    name: str
    datatype: str
    shape: list[int]


class ModelInfo(BaseModel):
    """A task and its versions."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]


class ServerInfo(BaseModel):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class ModelReady(BaseModel):
    """The task answers."""

    name: str
    ready: Literal[True] = True


class IndexEntry(BaseModel):
    """One version of a task."""

    name: str
    version: str
    state: Literal["READY"] = "READY"
    reason: str = ""


_MISSING = documented(
    errors.TaskNotFoundError,
    errors.VersionNotFoundError,
    errors.InvalidRequestError,
    body=V2Error,
)
_INFER: dict[str, Any] = {
    "response_model": InferAnswer,
    "openapi_extra": body_of(InferRequest),
    "responses": documented(*LABELS_ERRORS, body=V2Error),
}


@info_router.get("/v2", response_model=ServerInfo)
async def v2_server(request: Request) -> Response:  # noqa: ARG001 - the framework's signature
    """The server, and what it has beyond the protocol's core."""
    return json_answer(
        {
            "name": "labelmux",
            "version": installed_version("labelmux"),
            "extensions": _EXTENSIONS,
        }
    )


@info_router.get(_MODEL, response_model=ModelInfo, responses=_MISSING)
async def v2_model(request: Request, task: str) -> Response:
    """A task: its versions, inputs and outputs."""
    return _model(request, task, None)


@info_router.get(_VERSION, response_model=ModelInfo, responses=_MISSING)
async def v2_model_version(request: Request, task: str, version: Number) -> Response:
    """As above, by one version."""
    return _model(request, task, version)


@info_router.get(_MODEL + "/ready", response_model=ModelReady, responses=_MISSING)
async def v2_model_ready(request: Request, task: str) -> Response:
    """Whether the task answers."""
    return _ready(request, task, None)


@info_router.get(_VERSION + "/ready", response_model=ModelReady, responses=_MISSING)
async def v2_version_ready(request: Request, task: str, version: Number) -> Response:
    """Whether this version of the task answers."""
    return _ready(request, task, version)


@router.post(_MODEL + "/infer", **_INFER)
async def v2_infer(request: Request, task: str) -> Response:
    """Labels of texts: `labels` (BYTES) and `scores` (FP32), best first, and `truncated` (BOOL)."""
    return await _infer(request, task)


@router.post(_VERSION + "/infer", **_INFER)
async def v2_infer_version(request: Request, task: str, version: Number) -> Response:
    """As above, by one version."""
    return await _infer(request, f"{task}@{version}")


@info_router.post(
    "/v2/repository/index",
    response_model=list[IndexEntry],
    openapi_extra=body_of(IndexRequest),
    responses=documented(
        errors.BodyTooLargeError,
        errors.BodyStalledError,
        errors.InvalidJsonError,
        errors.InvalidRequestError,
        errors.MediaTypeError,
        body=V2Error,
    ),
)
async def v2_index(request: Request) -> Response:
    """Every version of every task that the key is for. All are ready."""
    service, caller = _service(request), _caller(request)
    data = await read_body(request, service.settings.max_body_bytes)
    if data:
        parse_json(data, IndexRequest)

    def body() -> list[dict[str, str]]:
        return [
            {"name": found.task, "version": str(each.number), "state": "READY", "reason": ""}
            for found in service.registry.active()
            if caller.rights.covers(found.task)
            for each in service.registry.versions(found.task)
        ]

    return json_answer(await asyncio.to_thread(body))


async def _infer(request: Request, task: str) -> Response:
    service = _service(request)
    service.batcher.check_room()
    data = await read_body(request, service.settings.max_body_bytes)
    length = _json_length(request, len(data))
    wanted = parse_json(data[:length], InferRequest)
    found = await label(
        request,
        task,
        _sequences(texts_of(wanted.inputs, data[length:])),
        raw_scores=wanted.parameters.raw_scores,
        truncation=wanted.parameters.truncation,
    )
    names = None if wanted.outputs is None else {output.name for output in wanted.outputs}
    body = {
        "model_name": found.version.task,
        "model_version": str(_version(found).number),
        "id": wanted.id or request.state.request_id,
        "outputs": [each for each in _outputs(found) if names is None or each["name"] in names],
    }
    return json_answer(body, headers=found.headers)


def _json_length(request: Request, body_bytes: int) -> int:
    stated = request.headers.get(_JSON_LENGTH)
    if stated is None:
        return body_bytes
    # Python makes no number of thousands of digits.
    fits = stated.isdecimal() and len(stated) <= _LENGTH_DIGITS and int(stated) <= body_bytes
    if not fits:
        raise errors.InvalidRequestError(
            _JSON_LENGTH,
            f"{stated[:_LENGTH_DIGITS]!r}, but the body has {body_bytes} bytes; give those of its "
            "JSON",
        )
    return int(stated)


def _sequences(texts: dict[str, list[str]]) -> list[tuple[str, ...]]:
    names = list(texts)
    if set(names) not in ({"text"}, {"text", "pair"}):
        raise errors.InvalidRequestError(
            "inputs", f"inputs are {', '.join(names)}; name them text, and pair for two texts"
        )
    columns = [texts[name] for name in ("text", "pair") if name in texts]
    if not columns[0] or len({len(column) for column in columns}) > 1:
        raise errors.InvalidRequestError("inputs", "give text and pair the same shape, not empty")
    return list(zip(*columns, strict=True))


def _version(found: Labelled) -> Version:
    """The version that answered; the one that the name means, where a canary answered a part."""
    who = set(found.versions)
    return who.pop() if len(who) == 1 else found.version


def _outputs(found: Labelled) -> list[dict[str, Any]]:
    # A tensor has no rows of several lengths: where versions differ, the least likely labels go.
    most = min(map(len, found.labels))
    rows = [labels[:most] for labels in found.labels]
    shape = [len(rows), most]
    cells = [item for labels in rows for item in labels]
    return [
        _tensor("labels", "BYTES", shape, [item["label"] for item in cells]),
        _tensor("scores", "FP32", shape, [item["score"] for item in cells]),
        _tensor("truncated", "BOOL", shape[:1], found.truncated),
    ]


def _tensor(name: OutputName, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def _model(request: Request, task: str, version: int | None) -> Response:
    registry = _service(request).registry
    found = _find(registry, task, version)
    labels = len(found.manifest.labels)
    inputs = ["text", "pair"] if found.pair else ["text"]
    return json_answer(
        {
            "name": task,
            "versions": [str(each.number) for each in registry.versions(found.task)],
            "platform": f"labelmux_{found.manifest.method}",
            "inputs": [_info(name, "BYTES", [-1]) for name in inputs],
            "outputs": _output_infos(found, labels),
        }
    )


def _output_infos(found: Version, labels: int) -> list[dict[str, Any]]:
    if found.manifest.task_kind == "token":
        return []
    return [
        _info("labels", "BYTES", [-1, labels]),
        _info("scores", "FP32", [-1, labels]),
        _info("truncated", "BOOL", [-1]),
    ]


def _info(name: str, datatype: str, shape: list[int]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape}


def _ready(request: Request, task: str, version: int | None) -> Response:
    _find(_service(request).registry, task, version)
    return json_answer({"name": task, "ready": True})


def _find(registry: Registry, task: str, version: int | None) -> Version:
    """The version that the path names, by a part of its own or as ``task@3``."""
    return registry.resolve(task) if version is None else registry.get(task, version)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller
