"""What the routes for other servers' clients share: they ask one task for labels.

Fields that such a client sends and that change nothing here are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastapi import Request
from pydantic import BaseModel, ConfigDict

from labelmux_server import errors
from labelmux_server.answers import server_timing
from labelmux_server.bodies import unless_gone
from labelmux_server.classification import CLASSIFY_ERRORS, answer
from labelmux_server.registry import Version
from labelmux_server.schemas import ClassifyRequest
from labelmux_server.service import Service

LABELS_ERRORS = (*CLASSIFY_ERRORS, errors.NoDefaultTaskError, errors.SpansUnsupportedError)

#: What to do about some errors of ``_REMEDIED``, in the words of a route's own fields.
Remedies = Mapping[type[errors.ServerError], str]
_REMEDIES: Remedies = {
    errors.NeedsPairsError: 'send "text" and "pair"',
    errors.TakesSingleTextsError: 'send "text" without "pair"',
}

#: A text, or two that are read together.
Sequences = Sequence[tuple[str, ...]]

#: Their messages end in a remedy; they are made from it and their fields.
_REMEDIED = (errors.NeedsPairsError, errors.TakesSingleTextsError, errors.TextTruncatedError)


class ForeignRequest(BaseModel):
    """Base of what other servers' clients send."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Labelled(NamedTuple):
    """What one task says of some texts."""

    #: The one that the name means now.
    version: Version
    #: Of each text: the version that answered, which may be a canary with other labels.
    versions: list[Version]
    #: Of each text: its labels and their scores, best first.
    labels: list[list[dict[str, Any]]]
    #: Of each text: whether its end was not read.
    truncated: list[bool]
    tokens: int
    headers: dict[str, str]

    @property
    def usage(self) -> dict[str, int]:
        """The tokens as OpenAI counts them."""
        return {
            "prompt_tokens": self.tokens,
            "total_tokens": self.tokens,
            "completion_tokens": 0,
        }


async def label(
    request: Request,
    task: str,
    sequences: Sequences,
    *,
    raw_scores: bool = False,
    truncation: bool = True,
    top_k: int | None = None,
    remedies: Remedies = _REMEDIES,
) -> Labelled:
    """Ask ``task`` (or ``task@3``) for the labels of texts, or of pairs of texts.

    Raises:
        ServerError: of ``LABELS_ERRORS``; ``InvalidRequestError`` where texts and pairs are mixed.
    """
    if len({len(texts) for texts in sequences}) > 1:
        raise errors.InvalidRequestError("inputs", "texts and pairs in one call; split it")
    pairs = len(sequences[0]) == 2
    wanted = ClassifyRequest(
        task=task,
        tasks=None,
        texts=None if pairs else [text for (text,) in sequences],
        pairs=[(first, second) for first, second in sequences] if pairs else None,
        raw_scores=raw_scores,
        truncation=truncation,
        top_k=top_k,
        windows=None,
    )
    service: Service = request.app.state.service
    try:
        found, body = await unless_gone(request, answer(service, request.state.caller, wanted))
    except _REMEDIED as error:
        fields: dict[str, Any] = error.fields
        if type(error) not in remedies:
            raise
        raise type(error)(**fields, remedy=remedies[type(error)]) from error
    version = found.columns[0].version
    assert version is not None
    if version.manifest.task_kind == "token":
        raise errors.SpansUnsupportedError(version.task)
    predictions = [result["predictions"][task] for result in body["results"]]
    return Labelled(
        version,
        [outcome.version for outcome in found.columns[0].outcomes],
        [prediction["labels"] for prediction in predictions],
        [prediction["truncated"] for prediction in predictions],
        found.tokens,
        {"server-timing": server_timing(found.stages, request.state.started_s)},
    )


def default_task(service: Service) -> str:
    """The task of a request that names none.

    Raises:
        NoDefaultTaskError: there is none.
    """
    if service.settings.default_task is not None:
        return service.settings.default_task
    if len(service.registry) != 1:
        raise errors.NoDefaultTaskError(len(service.registry))
    return service.registry.active()[0].task
