"""A piece of a stream: what is sent for some lines, and how their answers are read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httpx2

from labelmux_client._answers import text_result
from labelmux_client._call import Call
from labelmux_client._errors import StatusError, error_class
from labelmux_client._types import TextResult, Windows

__all__: list[str] = []


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of every line of a stream."""

    tasks: str | Sequence[str]
    top_k: int | None
    raw_scores: bool
    truncation: bool
    windows: Windows | None

    def check(self, texts: object, pairs: object) -> None:
        """Refuse what makes no sense.

        Raises:
            ValueError: both or neither of texts and pairs, or pairs with windows.
        """
        if (texts is None) == (pairs is None):
            raise ValueError("give either texts or pairs")
        if pairs is not None and self.windows is not None:
            raise ValueError("windows are of single texts, not of pairs")

    def params(self) -> dict[str, int | str | Sequence[str]]:
        """As the request's query."""
        asked: dict[str, int | str | Sequence[str]] = {
            "task": [self.tasks] if isinstance(self.tasks, str) else list(self.tasks)
        }
        if self.top_k is not None:
            asked["top_k"] = self.top_k
        if self.raw_scores:
            asked["raw_scores"] = "true"
        if not self.truncation:
            asked["truncation"] = "false"
        if self.windows is not None:
            asked |= asdict(self.windows)
        return asked


def classify_lines(lines: Sequence[bytes], question: Question) -> Call[list[TextResult]]:
    """A piece of a stream: lines of JSON, an answer to each."""
    return Call(
        "POST",
        "/v1/classify/stream",
        lambda response: _results(response, len(lines)),
        content=b"\n".join(lines),
        headers={"Content-Type": "application/x-ndjson"},
        params=question.params(),
    )


def _results(response: httpx2.Response, expected: int) -> list[TextResult]:
    answers = [json.loads(line) for line in response.content.splitlines() if line]
    if answers and answers[-1]["line"] is None:
        raise _error(answers[-1]["error"], response, 200)
    if len(answers) != expected:
        raise ValueError(f"{len(answers)} answers to {expected} lines")
    return [
        TextResult({}, {}, _error(answer["error"], response, 200))
        if answer.get("error")
        else text_result(answer["predictions"])
        for answer in answers
    ]


def _error(error: Mapping[str, Any], response: httpx2.Response, status: int) -> StatusError:
    fields = dict(error)
    code, message = fields.pop("code"), fields.pop("message")
    request_id = response.headers.get("X-Request-Id")
    return error_class(status, code)(
        status=status, code=code, message=message, request_id=request_id, fields=fields
    )
