"""``POST /v1/classify``."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response

from labelmux_server.access import guarded_router
from labelmux_server.answers import json_answer, server_timing
from labelmux_server.bodies import read_json, unless_gone
from labelmux_server.caller import Caller
from labelmux_server.classification import CLASSIFY_ERRORS, answer
from labelmux_server.documented import body_of, documented
from labelmux_server.schemas import ClassifyAnswer, ClassifyRequest
from labelmux_server.service import Service

router = guarded_router("classify", "classify")

PATH = "/v1/classify"

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
    responses=_TIMED | documented(*CLASSIFY_ERRORS),
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
    answered = await unless_gone(request, answer(service, caller, wanted))
    timing = server_timing(answered.found.stages, request.state.started_s)
    return json_answer(answered.body, headers={"server-timing": timing})
