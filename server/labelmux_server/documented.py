"""What the OpenAPI document says of errors and of bodies that routes read by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from labelmux_adapters.errors import AdapterFileError, AdapterMisfitError
from labelmux_server.bodies import BYTES_TYPE
from labelmux_server.schemas import ErrorBody
from labelmux_server.statuses import TABLE, leaves

#: What an adapter file can be refused for.
ADAPTER_ERRORS = (*leaves(AdapterFileError), *leaves(AdapterMisfitError))


def documented(
    *kinds: type[Exception], body: type[BaseModel] = ErrorBody
) -> dict[int | str, dict[str, Any]]:
    """A route's errors by status, each naming its codes."""
    codes: dict[int, list[str]] = {}
    for kind in kinds:
        codes.setdefault(TABLE[kind].status, []).append(TABLE[kind].code)
    return {
        status: {
            "model": body,
            "description": ", ".join(f"`{code}`" for code in dict.fromkeys(found)),
        }
        for status, found in sorted(codes.items())
    }


def body_of(kind: type[BaseModel], media_type: str = "application/json") -> dict[str, Any]:
    """A JSON body that the route reads by itself."""
    schema = kind.model_json_schema()
    # References would lead from the document's root, where nothing is.
    schema = _inlined(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def _inlined(node: Any, parts: Mapping[str, Any]) -> Any:
    """A schema with its references replaced by what they lead to."""
    if isinstance(node, list):
        return [_inlined(item, parts) for item in node]
    if not isinstance(node, dict):
        return node
    found = {name: _inlined(item, parts) for name, item in node.items() if name != "$ref"}
    if "$ref" not in node:
        return found
    return _inlined(parts[node["$ref"].rpartition("/")[2]], parts) | found


def raw_body(text: str, media_type: str = BYTES_TYPE) -> dict[str, Any]:
    """A body of plain bytes."""
    schema = {"type": "string", "format": "binary"}
    return {
        "requestBody": {
            "required": True,
            "description": text,
            "content": {media_type: {"schema": schema}},
        }
    }


def known_codes() -> dict[str, int]:
    """Every error code and its status, for the docs."""
    return {answer.code: answer.status for answer in TABLE.values()}
