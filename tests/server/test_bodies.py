"""How a body becomes a request, and what is told of one that does not."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from labelmux_server.bodies import parse_json
from labelmux_server.errors import InvalidJsonError, InvalidRequestError
from labelmux_server.routes_openai import InfinityRequest, VllmRequest
from labelmux_server.routes_tei import PredictRequest
from labelmux_server.routes_v2 import InferRequest
from labelmux_server.schemas import ClassifyRequest

MANY = 1000
TENSOR = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}


@pytest.mark.parametrize(
    ("kind", "body", "field", "problem"),
    [
        (ClassifyRequest, {"task": "t", "texts": [1] * MANY}, "texts.0", "valid string"),
        (ClassifyRequest, {"task": "t", "texts": ["a", *[1] * MANY]}, "texts.1", "valid string"),
        (ClassifyRequest, {"task": "t", "pairs": [1] * MANY}, "pairs.0", "valid array"),
        (ClassifyRequest, {"tasks": [1] * MANY, "texts": "a"}, "tasks.0", "valid string"),
        (VllmRequest, {"input": [1] * MANY}, "input.0", "valid string"),
        (InfinityRequest, {"input": [1] * MANY}, "input.0", "valid string"),
        (PredictRequest, {"inputs": [1] * MANY}, "inputs", "give a text"),
        (InferRequest, {"inputs": [1] * MANY}, "inputs.0", "object"),
        (InferRequest, {"inputs": [TENSOR] * MANY}, "inputs", "at most 2 items"),
        (
            InferRequest,
            {"inputs": [TENSOR | {"shape": [""] * MANY}]},
            "inputs.0.shape.0",
            "integer",
        ),
        (InferRequest, {"inputs": [TENSOR], "outputs": [1] * MANY}, "outputs.0", "object"),
    ],
)
def test_the_first_fault_of_a_list_is_told_and_no_other_looked_for(kind, body, field, problem):
    data = json.dumps(body).encode()
    with pytest.raises(ValidationError) as caught:
        kind.model_validate_json(data)
    assert caught.value.error_count() == 1
    with pytest.raises(InvalidRequestError, match=problem) as told:
        parse_json(data, kind)
    assert told.value.fields == {"field": field}


def test_unknown_fields_beyond_number_are_counted_not_listed():
    body = {"task": "t", "texts": "a"} | {f"field{number}": 1 for number in range(2 * MANY)}
    with pytest.raises(InvalidRequestError, match="2000 fields are unknown") as told:
        parse_json(json.dumps(body).encode(), ClassifyRequest)
    assert told.value.fields == {"field": "body"}


@pytest.mark.parametrize(
    ("body", "field", "half", "at"),
    [
        (rb'{"task": "t", "texts": ["a", "b \ud83d", "\ud800"]}', "texts.1", "ud83d", 2),
        (rb'{"task": "t", "texts": "\ud83d\ude00 \uDE00!"}', "texts", "ude00", 2),
        (b'{"task": "t", "texts": ["\xed\xa0\xbd"]}', "texts.0", "ud83d", 0),
        (rb'{"task": "t", "pairs": [["a", "b"], ["c", "\ud83dx"]]}', "pairs.1.1", "ud83d", 0),
        (rb'{"task": "\ud83d", "texts": "a"}', "task", "ud83d", 0),
        (rb'{"\ud83d": 1}', "body", "ud83d", 0),
    ],
)
def test_half_a_character_is_told_with_the_text_that_it_is_in(body, field, half, at):
    with pytest.raises(InvalidRequestError) as told:
        parse_json(body, ClassifyRequest)
    assert told.value.fields == {"field": field}
    assert f"{field}: half of a surrogate pair (\\{half}) at character {at}," in str(told.value)
    str(told.value).encode()


@pytest.mark.parametrize(
    "body",
    [
        rb'{"texts": ["\ud83d"',
        rb'{"texts": ["\ud83d\ude00"], }',
        rb'{"texts": "\ud83d", "more": ' + b"[" * 100_000,
        rb'{"texts": ["\ud83d"' + b',""' * 200_000 + b"]}",
    ],
    ids=["cut", "whole", "deep", "many"],
)
def test_what_is_no_json_or_too_much_to_look_through_is_told_as_that(body):
    with pytest.raises(InvalidJsonError):
        parse_json(body, ClassifyRequest)
