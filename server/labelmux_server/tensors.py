"""Texts as the Open Inference Protocol sends them: BYTES tensors in JSON, or in bytes behind it."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from labelmux_server.compatible import ForeignRequest
from labelmux_server.errors import InvalidRequestError

_LENGTH = struct.Struct("<I")
#: Of one dimension; bounded, since sizes are multiplied.
_Size = Annotated[int, Field(ge=0, le=2**31)]


class InputTensor(ForeignRequest):
    """One input."""

    name: str
    shape: list[_Size] = Field(
        min_length=1, max_length=2, fail_fast=True, description="[N] or [N, 1]."
    )
    datatype: str = Field(description="BYTES.")
    data: list[Any] | None = Field(None, description="Texts, where they are not behind the JSON.")
    parameters: dict[str, Any] = Field(default_factory=dict)


def texts_of(tensors: list[InputTensor], behind: bytes) -> dict[str, list[str]]:
    """The texts of each input, by its name.

    Args:
        tensors: the inputs.
        behind: the bytes after the JSON; each input that states ``binary_data_size`` has its part
            of them, in order.

    Raises:
        InvalidRequestError
    """
    found: dict[str, list[str]] = {}
    at = 0
    for tensor in tensors:
        where = f"inputs.{tensor.name}"
        if tensor.name in found:
            raise InvalidRequestError(where, "given twice")
        if tensor.datatype != "BYTES":
            raise InvalidRequestError(where, f"datatype is {tensor.datatype}; send BYTES")
        size = _binary_size(tensor.parameters, where)
        if size is None:
            texts = list(_flat(tensor.data or [], where))
        else:
            texts = list(_unpacked(behind[at : at + size], size, where))
            at += size
        if math.prod(tensor.shape) != len(texts):
            raise InvalidRequestError(where, f"shape {tensor.shape} has not {len(texts)} texts")
        found[tensor.name] = texts
    if at != len(behind):
        raise InvalidRequestError("inputs", f"{len(behind) - at} bytes belong to no input")
    return found


def _binary_size(parameters: Mapping[str, Any], where: str) -> int | None:
    size = parameters.get("binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise InvalidRequestError(where, f"binary_data_size is {size!r}; give a number of bytes")
    return size


def _flat(data: list[Any], where: str) -> Iterator[str]:
    """The texts of an array, nested or not; no deeper than its shape of two dimensions."""
    for item in data:
        inner = item if isinstance(item, list) else [item]
        for text in inner:
            if not isinstance(text, str):
                raise InvalidRequestError(where, "data holds something else than text")
            yield text


def _unpacked(data: bytes, size: int, where: str) -> Iterator[str]:
    """Each text is its length in bytes, 4 bytes little-endian, then UTF-8."""
    at = 0
    while at < size:
        begin = at + _LENGTH.size
        end = begin + _LENGTH.unpack(data[at:begin])[0] if begin <= len(data) else size + 1
        if end > len(data):
            raise InvalidRequestError(where, "its bytes end inside a text")
        try:
            yield data[begin:end].decode()
        except UnicodeDecodeError as error:
            raise InvalidRequestError(where, f"not UTF-8 ({error.reason})") from error
        at = end
