"""How a body becomes a request, and what is told of one that does not."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from labelmux_server.bodies import parse_json
from labelmux_server.errors import InvalidRequestError
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
