"""The shape of an error's body: ours, or that of the clients that a path is for."""

from __future__ import annotations

from typing import Any

from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field

from labelmux_server.answers import json_answer
from labelmux_server.statuses import answer_for, error_part

_TEI = ("/predict", "/info", "/tei/")
_V2 = "/v2"
#: Words of text-embeddings-inference, by status; those of other 4xx and 5xx are below.
_TEI_WORDS = {429: "Overloaded", 503: "Unhealthy"}


class V2Error(BaseModel):
    """The body of an error of the Open Inference Protocol; some codes add fields of their own."""

    model_config = ConfigDict(extra="allow")

    error: str = Field(description="What happened, to what, and what to do.")
    code: str = Field(description="A stable snake_case word.")
    request_id: str


class TeiError(V2Error):
    """The body of an error of text-embeddings-inference."""

    error_type: str = Field(description="Validation, Overloaded, Unhealthy or Backend.")


def error_answer(
    error: BaseException, path: str, request_id: str, headers: dict[str, str] | None = None
) -> Response:
    """An error as the clients of a path read it."""
    status, part = answer_for(type(error)).status, error_part(error)
    return json_answer(_shaped(path, status, part, request_id), status, headers)


def _shaped(path: str, status: int, part: dict[str, Any], request_id: str) -> dict[str, Any]:
    if path == _V2 or path.startswith(f"{_V2}/"):
        return _flat(part, request_id)
    if path.startswith(_TEI):
        word = _TEI_WORDS.get(status, "Validation" if status < 500 else "Backend")
        return {**_flat(part, request_id), "error_type": word}
    return {"error": {**part, "request_id": request_id}}


def _flat(part: dict[str, Any], request_id: str) -> dict[str, Any]:
    fields = {name: value for name, value in part.items() if name != "message"}
    return {"error": part["message"], **fields, "request_id": request_id}
