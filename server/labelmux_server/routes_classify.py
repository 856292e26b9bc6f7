"""``POST /v1/classify``."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response

from labelmux_encoder.tokenizer import TextInput
from labelmux_server import errors
from labelmux_server.access import guarded_router
from labelmux_server.answers import classify_body, json_answer, server_timing
from labelmux_server.bodies import read_json, unless_gone
from labelmux_server.caller import Caller
from labelmux_server.documented import body_of, documented
from labelmux_server.engine import Classified, Terms
from labelmux_server.registry import Registry
from labelmux_server.schemas import ClassifyAnswer, ClassifyRequest
from labelmux_server.service import Service
from labelmux_server.settings import Settings

router = guarded_router("classify", "classify")

PATH = "/v1/classify"

EVERY_TASK = "*"

_TIMED: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            "Server-Timing": {
                "description": "Milliseconds of the call: `tokenise`, `queue`, `encode`, `readout` "
                "(of the batches that held its texts) and `total`.",
                "schema": {"type": "string"},
            }
        }
    }
}


@router.post(
    PATH,
    response_model=ClassifyAnswer,
    openapi_extra=body_of(ClassifyRequest),
    responses=_TIMED
    | documented(
        errors.InvalidJsonError,
        errors.TaskNotFoundError,
        errors.VersionNotFoundError,
        errors.BodyTooLargeError,
        errors.TooManyTasksError,
        errors.TooManyTextsError,
        errors.TextTooLongError,
        errors.MediaTypeError,
        errors.InvalidRequestError,
        errors.NeedsPairsError,
        errors.TakesSingleTextsError,
        errors.TextTruncatedError,
        errors.OverlapTooLongError,
        errors.NoRawScoresError,
        errors.OverloadedError,
        errors.RateLimitedError,
        errors.InternalError,
        errors.AdapterDamagedError,
        errors.BankFullError,
        errors.DrainingError,
        errors.TimedOutError,
    ),
)
async def classify(request: Request) -> Response:
    """Scores of texts, or pairs of texts, for one task or several.

    With `task`, what goes wrong fails the call. With `tasks`, a task that cannot answer has an
    `error` in its place and the others answer.
    """
    service: Service = request.app.state.service
    caller: Caller = request.state.caller
    service.batcher.check_room()
    wanted = await read_json(request, ClassifyRequest, service.settings.max_body_bytes)
    texts: list[Any] = wanted.pairs if wanted.texts is None else wanted.texts  # type: ignore[assignment]
    _check_sizes(texts, service.settings)
    names = _names(wanted, service.registry, caller)
    if len(names) > service.settings.max_tasks_per_call:
        raise errors.TooManyTasksError(len(names), service.settings.max_tasks_per_call)
    found = await unless_gone(
        request,
        service.engine.classify(names, texts, caller, _terms(wanted)),
    )
    if wanted.task is not None:
        _raise_first_error(found)
    body = classify_body(found, texts, wanted)
    timing = server_timing(found.stages, request.state.started_s)
    return json_answer(body, headers={"server-timing": timing})


def _terms(wanted: ClassifyRequest) -> Terms:
    overlap_tokens = None if wanted.windows is None else wanted.windows.overlap_tokens
    return Terms(wanted.truncation, overlap_tokens, wanted.raw_scores)


def _check_sizes(texts: list[TextInput], settings: Settings) -> None:
    if len(texts) > settings.max_client_batch_size:
        raise errors.TooManyTextsError("texts", len(texts), settings.max_client_batch_size)
    for index, text in enumerate(texts):
        chars = len(text) if isinstance(text, str) else len(text[0]) + len(text[1])
        if chars > settings.max_text_chars:
            raise errors.TextTooLongError(index, chars, settings.max_text_chars)


def _names(wanted: ClassifyRequest, registry: Registry, caller: Caller) -> list[str]:
    """The tasks asked for, once each; ``*`` becomes the caller's that read what was sent."""
    asked = [wanted.task] if wanted.task is not None else wanted.tasks or []
    names: dict[str, None] = {}
    for name in asked:
        if name == EVERY_TASK and wanted.task is None:
            reads_pairs = wanted.pairs is not None
            names.update(
                (version.task, None)
                for version in registry.active()
                if version.pair == reads_pairs and caller.rights.covers(version.task)
            )
        else:
            names[name] = None
    return list(names)


def _raise_first_error(found: Classified) -> None:
    for column in found.columns:
        for error in (column.error, *(outcome.error for outcome in column.outcomes)):
            if error is not None:
                raise error
