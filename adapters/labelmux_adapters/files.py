"""One safetensors file to and from an Adapter. Every check on hostile bytes is here.

``docs/adapter-format.md`` lists the checks. They run in its order. No number from the file sizes
anything before it is checked. No function here keeps state: any thread may call any of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelmux_adapters.errors import (
    FileTooLargeError,
    FormatVersionError,
    HeaderBeyondFileError,
    HeaderTooLargeError,
    LabelsError,
    ManifestError,
    MissingTensorError,
    NonFiniteTensorError,
    NotSafetensorsError,
    TensorOffsetsError,
    TensorShapeError,
    TruncatedFileError,
    UnexpectedTensorError,
    UnknownDtypeError,
)
from labelmux_adapters.manifest import MAX_LABELS, Manifest, parse_manifest
from labelmux_adapters.methods import DTYPE_BYTES, METHODS, TensorSpec
from labelmux_adapters.strict_json import load_object

FORMAT = "1"
FORMAT_KEY = "labelmux.format"
MANIFEST_KEY = "labelmux.manifest"

_METADATA_KEY = "__metadata__"
_PREFIX_BYTES = 8
_ALIGNMENT_BYTES = 8
_ENTRY_KEYS = frozenset(("dtype", "shape", "data_offsets"))
_SUPPORTED_DTYPES = " or ".join(DTYPE_BYTES)
_STORED_AS: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
_DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16"}


@dataclass(frozen=True, slots=True)
class FileLimits:
    """What a reader takes at most."""

    max_bytes: int = 64 * 1024 * 1024
    max_header_bytes: int = 1024 * 1024
    #: The format itself has at most ``manifest.MAX_LABELS``.
    max_labels: int = MAX_LABELS
    max_tensors: int = 256


DEFAULT_LIMITS = FileLimits()


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where and how one tensor is stored."""

    #: safetensors' name of it: F32 or F16.
    dtype: str
    shape: tuple[int, ...]
    #: Bytes from the end of the header.
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class AdapterDescription:
    """What an adapter file holds, from its header alone."""

    manifest: Manifest
    entries: Mapping[str, TensorEntry]
    size_bytes: int
    #: ``sha256:`` and the hex digest of the file's bytes.
    digest: str


@dataclass(frozen=True, slots=True)
class Adapter:
    """One task's trained tensors and manifest. Equal to another if read from the same bytes."""

    manifest: Manifest = field(compare=False)
    #: float32, on the CPU, sharing no memory with the file.
    tensors: Mapping[str, Tensor] = field(compare=False, repr=False)
    #: ``sha256:`` and the hex digest of the file's bytes.
    digest: str


def read_adapter(data: bytes, limits: FileLimits = DEFAULT_LIMITS) -> Adapter:
    """The adapter that ``data`` is a whole file of.

    Whether it fits the encoder at hand is not asked here: see ``canaries.check_canaries``.

    Raises:
        AdapterFileError: a subclass that names the first check which failed.
    """
    description = describe_adapter(data, limits)
    start = _PREFIX_BYTES + _header_bytes(data)
    tensors = {
        name: _read_values(data, start, name, entry) for name, entry in description.entries.items()
    }
    return Adapter(description.manifest, MappingProxyType(tensors), description.digest)


def describe_adapter(data: bytes, limits: FileLimits = DEFAULT_LIMITS) -> AdapterDescription:
    """What the file holds, after every check but the last: tensor values are not read.

    Raises:
        AdapterFileError: a subclass that names the first check which failed.
    """
    header = _read_header(data, limits)
    manifest = _read_manifest(header.pop(_METADATA_KEY, None), limits)
    expected = _expected_tensors(manifest)
    if len(header) > limits.max_tensors:
        raise HeaderTooLargeError(len(header), limits.max_tensors, "tensors")
    _check_names(header, expected, manifest.method)
    entries = {name: _read_entry(name, header[name], spec) for name, spec in expected.items()}
    _check_cover(entries, _PREFIX_BYTES + _header_bytes(data), len(data))
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return AdapterDescription(manifest, MappingProxyType(entries), len(data), digest)


def write_adapter(
    manifest: Manifest, tensors: Mapping[str, Tensor], limits: FileLimits = DEFAULT_LIMITS
) -> bytes:
    """The adapter's file: equal input gives equal bytes, on any machine.

    Tensors are stored in the dtype they have, float32 or float16.

    Raises:
        AdapterFileError: ``read_adapter`` would not take the file back.
    """
    arrays = {name: _to_array(name, tensor) for name, tensor in tensors.items()}
    header: dict[str, Any] = {_METADATA_KEY: {FORMAT_KEY: FORMAT, MANIFEST_KEY: manifest.to_json()}}
    # Wider values first keeps every tensor aligned to its own width.
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    offset = 0
    for name in order:
        array = arrays[name]
        header[name] = {
            "dtype": _DTYPE_NAMES[tensors[name].dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    prefix = len(text).to_bytes(_PREFIX_BYTES, "little")
    data = b"".join([prefix, text, *(arrays[name].tobytes() for name in order)])
    read_adapter(data, limits)
    return data


def _header_bytes(data: bytes) -> int:
    return int.from_bytes(data[:_PREFIX_BYTES], "little")


def _read_header(data: bytes, limits: FileLimits) -> dict[str, Any]:
    if len(data) > limits.max_bytes:
        raise FileTooLargeError(len(data), limits.max_bytes)
    if len(data) < _PREFIX_BYTES:
        raise NotSafetensorsError(f"it has {len(data)} bytes")
    available = len(data) - _PREFIX_BYTES
    if available and data[_PREFIX_BYTES] != ord("{"):
        raise NotSafetensorsError("its header does not begin with '{'")
    length = _header_bytes(data)
    if length > limits.max_header_bytes:
        raise HeaderTooLargeError(length, limits.max_header_bytes)
    if length > available:
        raise HeaderBeyondFileError(length, available)
    try:
        text = data[_PREFIX_BYTES : _PREFIX_BYTES + length].decode("utf-8")
        return load_object(text, "header")
    except ValueError as exc:
        raise NotSafetensorsError(f"its header cannot be read: {exc}") from exc


def _read_manifest(metadata: object, limits: FileLimits) -> Manifest:
    if metadata is None:
        raise FormatVersionError(None, FORMAT)
    if not isinstance(metadata, dict):
        raise NotSafetensorsError(f"its {_METADATA_KEY} is not a JSON object")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise NotSafetensorsError(f"its {_METADATA_KEY} has a value that is not a string")
    if metadata.get(FORMAT_KEY) != FORMAT:
        raise FormatVersionError(metadata.get(FORMAT_KEY), FORMAT)
    if MANIFEST_KEY not in metadata:
        raise ManifestError(MANIFEST_KEY, None, "the metadata needs it")
    manifest = parse_manifest(metadata[MANIFEST_KEY])
    labels = len(manifest.labels)
    if labels > limits.max_labels:
        raise LabelsError(
            "labels", manifest.labels, f"{labels}, this reader takes {limits.max_labels}"
        )
    return manifest


def _expected_tensors(manifest: Manifest) -> dict[str, TensorSpec]:
    method = METHODS[manifest.method]
    expected = method.expected_tensors(manifest.sizes, len(manifest.labels), manifest.task_kind)
    values = sum(spec.values for spec in expected.values())
    if manifest.parameters != values:
        raise ManifestError(
            "parameters", manifest.parameters, f"its sizes and labels imply {values}"
        )
    return expected


def _check_names(header: dict[str, Any], expected: dict[str, TensorSpec], method: str) -> None:
    for name in header:
        if name not in expected:
            raise UnexpectedTensorError(name, method)
    for name in expected:
        if name not in header:
            raise MissingTensorError(name, method)


def _read_entry(name: str, entry: object, spec: TensorSpec) -> TensorEntry:
    if not isinstance(entry, dict) or entry.keys() != _ENTRY_KEYS:
        raise NotSafetensorsError(
            f"its entry of tensor {name!r} does not have exactly the keys "
            f"{', '.join(sorted(_ENTRY_KEYS))}"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise UnknownDtypeError(name, dtype, _SUPPORTED_DTYPES)
    if not _is_int_list(shape) or tuple(shape) != spec.shape:
        raise TensorShapeError(name, shape, spec.shape)
    if not _is_int_list(offsets) or len(offsets) != 2:
        raise TensorOffsetsError(name, offsets, "two whole numbers are needed")
    begin, end = offsets
    needed = spec.values * DTYPE_BYTES[dtype]
    if end - begin != needed:
        raise TensorOffsetsError(name, offsets, f"its shape needs {needed} bytes")
    return TensorEntry(dtype, spec.shape, begin, end)


def _is_int_list(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _check_cover(entries: Mapping[str, TensorEntry], start: int, total_bytes: int) -> None:
    """The tensors follow each other from the header to the end of the file."""
    position, last = 0, ""
    for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        if entry.begin != position:
            found = [entry.begin, entry.end]
            raise TensorOffsetsError(name, found, f"the tensor before it ends at {position}")
        position, last = entry.end, name
    if start + position > total_bytes:
        raise TruncatedFileError(start + position, total_bytes)
    if start + position < total_bytes:
        found = [entries[last].begin, entries[last].end]
        surplus = total_bytes - start - position
        raise TensorOffsetsError(last, found, f"{surplus} bytes follow the last tensor")


def _read_values(data: bytes, start: int, name: str, entry: TensorEntry) -> Tensor:
    stored = np.frombuffer(
        data,
        dtype=_STORED_AS[entry.dtype],
        count=(entry.end - entry.begin) // DTYPE_BYTES[entry.dtype],
        offset=start + entry.begin,
    )
    # The copy is aligned and may be written to, which the file's bytes need not be.
    values = torch.from_numpy(stored.copy()).float()
    finite = np.isfinite(values.numpy())
    if not finite.all():
        raise NonFiniteTensorError(name, int(np.count_nonzero(~finite)))
    return values.reshape(entry.shape)


def _to_array(name: str, tensor: Tensor) -> NDArray[Any]:
    if tensor.dtype not in _DTYPE_NAMES:
        raise UnknownDtypeError(name, str(tensor.dtype), _SUPPORTED_DTYPES)
    dtype = _STORED_AS[_DTYPE_NAMES[tensor.dtype]]
    array: NDArray[Any] = tensor.detach().cpu().numpy().astype(dtype, order="C", copy=False)
    return array
