"""``POST /v1/classify/stream``: any number of texts as lines of JSON, answered as they come."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Request, Response

from labelmux_server import errors
from labelmux_server.access import guarded_router
from labelmux_server.bodies import LINES_TYPES, check_encoding, media_type
from labelmux_server.caller import Caller
from labelmux_server.classification import CLASSIFY_ERRORS, EVERY_TASK, check_tasks, terms_of
from labelmux_server.documented import body_of, documented
from labelmux_server.line_stream import LineStream
from labelmux_server.outcomes import Terms
from labelmux_server.registry import parse_name
from labelmux_server.schemas import ClassifyRequest, StreamAnswer, StreamLine, Windows
from labelmux_server.service import Service
from labelmux_server.windows import Aggregation

router = guarded_router("classify", "classify")

PATH = "/v1/classify/stream"

_Tasks = Annotated[
    list[str],
    Query(
        min_length=1,
        description="Once for each task; `name@3` is version 3, `*` every task that reads "
        "what is sent.",
    ),
]
_TopK = Annotated[int | None, Query(ge=1, description="Only so many labels, best first.")]
_Raw = Annotated[bool, Query(description="Logits instead of calibrated probabilities.")]
_Truncation = Annotated[bool, Query(description="False: a text that is too long is an error.")]
_Overlap = Annotated[
    int | None,
    Query(
        ge=0,
        le=32_768,
        description="Read long texts in windows that share so many tokens; 32 where there is only "
        "`aggregation`.",
    ),
]
_Aggregation = Annotated[
    Aggregation | None,
    Query(
        description="Read long texts in windows whose logits become this; `mean` where there is "
        "only `overlap_tokens`."
    ),
]

#: Its parts are in the document already, as those of the answer to `POST /v1/classify`.
_SCHEMA = StreamAnswer.model_json_schema(ref_template="#/components/schemas/{model}")
del _SCHEMA["$defs"]

_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "One JSON object a line, in the order of the lines sent; blank lines are "
        "signs of life.",
        "content": {LINES_TYPES[0]: {"schema": _SCHEMA}},
    }
}


@router.post(
    PATH,
    response_class=Response,
    openapi_extra=body_of(StreamLine, LINES_TYPES[0]),
    responses=_ANSWER | documented(*CLASSIFY_ERRORS),
)
async def classify_stream(
    request: Request,
    task: _Tasks,
    top_k: _TopK = None,
    raw_scores: _Raw = False,
    truncation: _Truncation = True,
    overlap_tokens: _Overlap = None,
    aggregation: _Aggregation = None,
) -> Response:
    """Scores of any number of texts: a line with each, a line of answer to each, in order.

    A line that is wrong is answered by a line with its `error`, and the stream goes on. So it does
    where the server has no room now: it waits, and reads no further meanwhile. Errors before the
    first line are answered as everywhere.
    """
    service: Service = request.app.state.service
    caller: Caller = request.state.caller
    found = media_type(request)
    if found not in ("", *LINES_TYPES):
        raise errors.MediaTypeError(found, LINES_TYPES[0])
    check_encoding(request)
    names = list(dict.fromkeys(task))
    check_tasks(names, service.settings)
    wanted = ClassifyRequest(
        task=None,
        tasks=names,
        texts=[""],
        pairs=None,
        top_k=top_k,
        raw_scores=raw_scores,
        truncation=truncation,
        windows=_windows(overlap_tokens, aggregation),
    )
    _check(names, terms_of(wanted), service, caller)
    return LineStream(service, caller, wanted)


def _windows(overlap_tokens: int | None, aggregation: Aggregation | None) -> Windows | None:
    """Windows where either is given; what is not is as it is by default."""
    fields = {"overlap_tokens": overlap_tokens, "aggregation": aggregation}
    given = {name: value for name, value in fields.items() if value is not None}
    return Windows.model_validate(given) if given else None


def _check(names: list[str], terms: Terms, service: Service, caller: Caller) -> None:
    """What could answer no line is told before the first."""
    misfits: list[errors.ServerError] = []
    for name in names:
        if name == EVERY_TASK:
            continue
        caller.check_task(parse_name(name)[0])
        try:
            service.engine.check(name, terms)
        except (errors.NoRawScoresError, errors.OverlapTooLongError) as error:
            misfits.append(error)
    if len(misfits) == len(names):
        raise misfits[0]
