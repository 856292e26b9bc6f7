"""Routes of vLLM, Infinity and, for the list of models, of OpenAI's client. A model is a task."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Literal

from fastapi import Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from labelmux_server import errors
from labelmux_server.access import guarded_router
from labelmux_server.answers import json_answer
from labelmux_server.bodies import read_json
from labelmux_server.caller import Caller
from labelmux_server.compatible import (
    LABELS_ERRORS,
    ForeignRequest,
    Labelled,
    Remedies,
    default_task,
    label,
)
from labelmux_server.documented import body_of, documented
from labelmux_server.registry import Version
from labelmux_server.schemas import LabelScore
from labelmux_server.service import Service

router = guarded_router("vLLM and Infinity", "classify", any_parameters=True)
models_router = guarded_router("vLLM and Infinity", "classify", "admin", any_parameters=True)


def _texts(value: object) -> object:
    return [value] if isinstance(value, str) else value


Texts = Annotated[
    list[str],
    Field(min_length=1, fail_fast=True),
    BeforeValidator(_texts),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


_REMEDIES: Remedies = {
    errors.NeedsPairsError: 'this route takes single texts alone; send "pairs" to /v1/classify',
    errors.TextTruncatedError: 'send "truncate_prompt_tokens": -1',
}
_EXAMPLE: dict[str, Any] = {"model": "sentiment", "input": ["What a lovely film."]}


class VllmRequest(ForeignRequest):
    """vLLM's request."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    model: str | None = Field(None, description="The task; the default task if left out.")
    input: Texts = Field(description="One text or many.")
    truncate_prompt_tokens: int | None = Field(
        None, description="Left out: a text that is too long is an error. Else its end is cut."
    )
    use_activation: bool | None = Field(None, description="False: logits.")


class InfinityRequest(ForeignRequest):
    """Infinity's request."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    model: str | None = Field(None, description="The task; the default task if left out.")
    input: Texts = Field(description="One text or many.")
    raw_scores: bool = Field(False, description="Logits instead of probabilities.")


class Usage(BaseModel):
    """Tokens of the call."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int


class VllmClass(BaseModel):
    """One text's answer."""

    index: int
    label: str = Field(description="The best.")
    probs: list[float] = Field(description="Of each label, in the task's order.")
    num_classes: int


class VllmAnswer(BaseModel):
    """vLLM's answer."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[VllmClass]
    usage: Usage


class InfinityAnswer(BaseModel):
    """Infinity's answer."""

    object: Literal["classify"]
    data: list[list[LabelScore]]
    model: str
    usage: Usage
    id: str
    created: int


class Model(BaseModel):
    """A task, as vLLM lists an adapter."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str = Field(description="Digest of the active version, or of the one named.")
    parent: str = Field(description="The encoder.")
    max_model_len: int


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"]
    data: list[Model]


class InfinityStats(BaseModel):
    """What waits on the server, whatever its task."""

    queue_fraction: float
    queue_absolute: int
    batch_size: int


class InfinityModel(Model):
    """A task, as Infinity lists a model."""

    owned_by: Literal["infinity"] = Field(description="Its clients know no other owner.")
    backend: str
    capabilities: list[str]
    stats: InfinityStats


class InfinityModelList(BaseModel):
    """All of them."""

    object: Literal["list"]
    data: list[InfinityModel]


@router.post(
    "/classify",
    response_model=VllmAnswer,
    openapi_extra=body_of(VllmRequest),
    responses=documented(*LABELS_ERRORS),
)
async def vllm_classify(request: Request) -> Response:
    """vLLM's classification: the best label of each text, and the scores in the task's order."""
    service: Service = request.app.state.service
    service.batcher.check_room()
    wanted = await read_json(request, VllmRequest, service.settings.max_body_bytes)
    task = wanted.model or default_task(service)
    found = await label(
        request,
        task,
        [(text,) for text in wanted.input],
        raw_scores=wanted.use_activation is False,
        truncation=wanted.truncate_prompt_tokens is not None,
        remedies=_REMEDIES,
    )
    usual = found.version.manifest.labels
    answers = zip(found.versions, found.labels, strict=True)
    data = [
        {
            "index": index,
            "label": labels[0]["label"],
            "probs": _in_order(_order(usual, version.manifest.labels), labels),
            "num_classes": len(labels),
        }
        for index, (version, labels) in enumerate(answers)
    ]
    about = _about(request, task, found)
    return json_answer(
        {**about, "id": f"classify-{about['id']}", "object": "list", "data": data},
        headers=found.headers,
    )


@router.post(
    "/infinity/classify",
    response_model=InfinityAnswer,
    openapi_extra=body_of(InfinityRequest),
    responses=documented(*LABELS_ERRORS),
)
async def infinity_classify(request: Request) -> Response:
    """Infinity's classification: every label of each text, best first."""
    service: Service = request.app.state.service
    service.batcher.check_room()
    wanted = await read_json(request, InfinityRequest, service.settings.max_body_bytes)
    task = wanted.model or default_task(service)
    found = await label(
        request,
        task,
        [(text,) for text in wanted.input],
        raw_scores=wanted.raw_scores,
        remedies=_REMEDIES,
    )
    about = _about(request, task, found)
    return json_answer(
        {**about, "id": f"infinity-{about['id']}", "object": "classify", "data": found.labels},
        headers=found.headers,
    )


@models_router.get("/v1/models", response_model=ModelList)
async def list_models(request: Request) -> Response:
    """Tasks that the key is for, as OpenAI lists models."""
    return json_answer(await _models(request))


@models_router.get("/infinity/models", response_model=InfinityModelList)
async def list_infinity_models(request: Request) -> Response:
    """Tasks that the key is for, as Infinity lists models."""
    service: Service = request.app.state.service
    waiting, most = service.batcher.queued_rows, service.settings.max_queue_rows
    own = {
        "owned_by": "infinity",
        "backend": "labelmux",
        "capabilities": ["classify"],
        "stats": {
            "queue_fraction": waiting / most,
            "queue_absolute": waiting,
            "batch_size": service.settings.max_batch_rows,
        },
    }
    found = await _models(request)
    return json_answer(found | {"data": [model | own for model in found["data"]]})


@models_router.get(
    "/v1/models/{task}",
    response_model=Model,
    responses=documented(
        errors.TaskNotFoundError, errors.VersionNotFoundError, errors.InvalidRequestError
    ),
)
async def get_model(request: Request, task: str) -> Response:
    """One task, or one version of it as `task@3`, as OpenAI shows a model."""
    service: Service = request.app.state.service
    found = _model(service.registry.resolve(task), service.loaded.name)
    return json_answer(found | {"id": task})


async def _models(request: Request) -> dict[str, Any]:
    service: Service = request.app.state.service
    caller: Caller = request.state.caller

    def data() -> list[dict[str, Any]]:
        return [
            _model(found, service.loaded.name)
            for found in service.registry.active()
            if caller.rights.covers(found.task)
        ]

    # Manifests may be read from disk.
    return {"object": "list", "data": await asyncio.to_thread(data)}


def _model(found: Version, encoder: str) -> dict[str, Any]:
    return {
        "id": found.task,
        "object": "model",
        "created": int(found.created_at.timestamp()),
        "owned_by": "labelmux",
        "root": found.digest,
        "parent": encoder,
        "max_model_len": found.manifest.max_tokens,
    }


def _about(request: Request, task: str, found: Labelled) -> dict[str, Any]:
    return {
        "id": request.state.request_id,
        "created": int(time.time()),
        "model": task,
        "usage": found.usage,
    }


def _order(usual: tuple[str, ...], own: tuple[str, ...]) -> tuple[str, ...]:
    """A version's labels, those of the active one in their usual places: callers go by places."""
    kept = tuple(name for name in usual if name in own)
    return (*kept, *(name for name in own if name not in usual))


def _in_order(names: tuple[str, ...], labels: list[dict[str, Any]]) -> list[float]:
    scores = {item["label"]: item["score"] for item in labels}
    return [scores[name] for name in names]
