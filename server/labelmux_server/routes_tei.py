"""Routes of text-embeddings-inference (TEI), and so of Hugging Face's ``InferenceClient``.

``/predict`` asks the default task. ``/tei/{task}`` is a base address that asks one task.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Literal, TypeGuard

from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field, field_validator

from labelmux_server import errors
from labelmux_server.access import guarded_router
from labelmux_server.answers import json_answer
from labelmux_server.bodies import read_json
from labelmux_server.caller import Caller
from labelmux_server.compatible import (
    LABELS_ERRORS,
    ForeignRequest,
    Remedies,
    default_task,
    label,
)
from labelmux_server.documented import body_of, documented
from labelmux_server.error_shapes import TeiError
from labelmux_server.registry import parse_name
from labelmux_server.schemas import LabelScore
from labelmux_server.service import Service

router = guarded_router("TEI", "classify", error_body=TeiError, any_parameters=True)
info_router = guarded_router("TEI", "classify", "admin", error_body=TeiError, any_parameters=True)

_INPUTS = 'give a text, a pair ["a", "b"], or a batch [["a"], ["b"]] or [["a", "b"], ["c", "d"]]'
_REMEDIES: Remedies = {
    errors.NeedsPairsError: 'send "inputs": ["first", "second"], a batch as lists of two strings',
    errors.TakesSingleTextsError: (
        'two strings in one list are a pair; send a batch as "inputs": [["first"], ["second"]]'
    ),
    errors.TextTruncatedError: 'leave out "truncate": false',
}
_FUNCTIONS = {"single_label": "softmax", "multi_label": "sigmoid"}

#: One text, or two that are read together.
Text = tuple[str, ...]
_Inputs = str | list[str] | list[list[str]]


class Parameters(ForeignRequest):
    """Hugging Face's inference parameters."""

    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = Field(
        default=None, description="`none`: logits. Else it must be the one of the task's kind."
    )
    top_k: int | None = Field(default=None, ge=1, description="Only so many labels, best first.")


class PredictRequest(ForeignRequest):
    """TEI's request; two strings in one list are a pair, not two texts."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": "What a lovely film."}]})

    inputs: str | Text | list[Text] = Field(description=_INPUTS)
    raw_scores: bool = Field(False, description="Logits instead of probabilities.")
    truncate: bool | None = Field(None, description="False: a text that is too long is an error.")
    truncation_direction: Literal["Right", "right"] = Field(
        "Right", description="The beginning is read; the end is cut."
    )
    parameters: Parameters | None = Field(
        None, description="Where it is given, the answer is a list of lists, as Hugging Face's is."
    )

    @field_validator("inputs", mode="plain", json_schema_input_type=_Inputs)
    @classmethod
    def _read_inputs(cls, value: object) -> str | Text | list[Text]:
        if isinstance(value, str):
            return value
        if _is_text(value):
            return tuple(value)
        if isinstance(value, list) and value and all(map(_is_text, value)):
            return [tuple(each) for each in value]
        raise ValueError(_INPUTS)


def _is_text(value: object) -> TypeGuard[list[str]]:
    """Whether it is one string in a list, or two."""
    if not isinstance(value, list) or len(value) not in (1, 2):
        return False
    return all(isinstance(each, str) for each in value)


class TeiInfo(BaseModel):
    """What TEI says of its model: here, of the task."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str


Prediction = list[LabelScore]

_PREDICT: dict[str, Any] = {
    "response_model": Prediction | list[Prediction],
    "openapi_extra": body_of(PredictRequest),
    "responses": documented(*LABELS_ERRORS, body=TeiError),
}
_INFO: dict[str, Any] = {
    "response_model": TeiInfo,
    "responses": documented(
        errors.NoDefaultTaskError,
        errors.TaskNotFoundError,
        errors.VersionNotFoundError,
        errors.InvalidRequestError,
        body=TeiError,
    ),
}


@router.post("/predict", **_PREDICT)
async def predict(request: Request) -> Response:
    """Labels and scores by the default task.

    One text or pair gives a list, a batch a list of lists. Two strings in one list are a pair.
    """
    return await _predict(request, default_task(request.app.state.service))


@router.post("/tei/{task}/predict", **_PREDICT)
async def predict_task(request: Request, task: str) -> Response:
    """As `/predict`, by the task that is named."""
    return await _predict(request, task)


@info_router.get("/info", **_INFO)
async def tei_info(request: Request) -> Response:
    """The default task, as TEI tells of its model."""
    return _info(request, default_task(request.app.state.service))


@info_router.get("/tei/{task}/info", **_INFO)
async def tei_info_task(request: Request, task: str) -> Response:
    """As `/info`, of the task that is named."""
    return _info(request, task)


async def _predict(request: Request, task: str) -> Response:
    service: Service = request.app.state.service
    service.batcher.check_room()
    wanted = await read_json(request, PredictRequest, service.settings.max_body_bytes)
    batch = isinstance(wanted.inputs, list)
    sequences = wanted.inputs if isinstance(wanted.inputs, list) else [_sequence(wanted.inputs)]
    parameters = wanted.parameters or Parameters()
    found = await label(
        request,
        task,
        sequences,
        raw_scores=wanted.raw_scores or parameters.function_to_apply == "none",
        truncation=wanted.truncate is not False,
        top_k=parameters.top_k,
        remedies=_REMEDIES,
    )
    _check_function(parameters, found.version.manifest.task_kind)
    nested = batch or wanted.parameters is not None
    return json_answer(found.labels if nested else found.labels[0], headers=found.headers)


def _sequence(inputs: str | Text) -> Text:
    return (inputs,) if isinstance(inputs, str) else inputs


def _check_function(parameters: Parameters, kind: str) -> None:
    asked, own = parameters.function_to_apply, _FUNCTIONS[kind]
    if asked not in (None, "none", own):
        raise errors.InvalidRequestError(
            "parameters.function_to_apply",
            f"the scores of a {kind} task are {own}; ask for that, or for none",
        )


def _info(request: Request, name: str) -> Response:
    service: Service = request.app.state.service
    caller: Caller = request.state.caller
    caller.check_task(parse_name(name)[0])
    found = service.registry.resolve(name)
    manifest, settings = found.manifest, service.settings
    kind = {
        "id2label": {str(at): label for at, label in enumerate(manifest.labels)},
        "label2id": {label: at for at, label in enumerate(manifest.labels)},
    }
    return json_answer(
        {
            "model_id": name,
            "model_sha": found.digest.removeprefix("sha256:"),
            "model_dtype": service.loaded.encoder.precision,
            "model_type": {"classifier": kind},
            "max_concurrent_requests": settings.max_concurrent_requests,
            "max_input_length": manifest.max_tokens,
            "max_batch_tokens": settings.max_batch_tokens,
            "max_batch_requests": settings.max_batch_rows,
            "max_client_batch_size": settings.max_client_batch_size,
            "auto_truncate": True,
            "tokenization_workers": settings.tokenizer_threads,
            "version": version("labelmux"),
        }
    )
