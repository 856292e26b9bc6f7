"""One classification, from what is asked to the answer's body; every route that asks goes here."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, NamedTuple

from labelmux_encoder.tokenizer import TextInput
from labelmux_server import errors
from labelmux_server.answers import classify_body
from labelmux_server.caller import Caller
from labelmux_server.outcomes import Classified, Terms
from labelmux_server.registry import Registry
from labelmux_server.schemas import ClassifyRequest
from labelmux_server.service import Service
from labelmux_server.settings import Settings

EVERY_TASK = "*"
#: An answer about more tokens, or with more predictions, is put together beside the event loop,
#: where it would hold up all others for tens of milliseconds.
_LOOP_TOKENS = 4096
_LOOP_CELLS = 512

#: What a call that classifies may be answered with.
CLASSIFY_ERRORS: tuple[type[errors.ServerError], ...] = (
    errors.InvalidJsonError,
    errors.TaskNotFoundError,
    errors.VersionNotFoundError,
    errors.BodyTooLargeError,
    errors.BodyStalledError,
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
    errors.StorageError,
    errors.BankFullError,
    errors.OutOfMemoryError,
    errors.NotReadyError,
    errors.DrainingError,
    errors.TimedOutError,
)


class Answered(NamedTuple):
    """What the engine found, and as the caller gets it."""

    found: Classified
    body: dict[str, Any]


async def answer(service: Service, caller: Caller, wanted: ClassifyRequest) -> Answered:
    """Scores of texts or pairs for the tasks that are asked.

    Raises:
        ServerError: of ``CLASSIFY_ERRORS``; with ``wanted.task``, what goes wrong with it too.
    """
    texts: list[Any] = wanted.pairs if wanted.texts is None else wanted.texts  # type: ignore[assignment]
    _check_sizes(texts, service.settings)
    names = _names(wanted, service.registry, caller)
    check_tasks(names, service.settings)
    found = await service.engine.classify(names, texts, caller, terms_of(wanted))
    if wanted.task is not None:
        _raise_first_error(found)
    if found.tokens <= _LOOP_TOKENS and len(texts) * len(names) <= _LOOP_CELLS:
        return Answered(found, classify_body(found, texts, wanted))
    return Answered(found, await asyncio.to_thread(classify_body, found, texts, wanted))


def terms_of(wanted: ClassifyRequest) -> Terms:
    """How the texts are to be read, as the engine takes it."""
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
    if wanted.task is not None:
        return [wanted.task]
    asked = dict.fromkeys(wanted.tasks or ())
    check_tasks(asked, caller.settings)
    names: dict[str, None] = {}
    for name in asked:
        if name == EVERY_TASK:
            reads_pairs = wanted.pairs is not None
            names.update(
                (version.task, None)
                for version in registry.active()
                if version.pair == reads_pairs and caller.rights.covers(version.task)
            )
        else:
            names[name] = None
    return list(names)


def check_tasks(names: Collection[str], settings: Settings) -> None:
    """Return if one call may name so many.

    Raises:
        TooManyTasksError
    """
    if len(names) > settings.max_tasks_per_call:
        raise errors.TooManyTasksError(len(names), settings.max_tasks_per_call)


def _raise_first_error(found: Classified) -> None:
    for column in found.columns:
        for error in (column.error, *(outcome.error for outcome in column.outcomes)):
            if error is not None:
                # All who waited for a load have the same one, and each raise adds to its traceback.
                raise error.with_traceback(None)
