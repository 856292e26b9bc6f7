"""Each check on an adapter file, in the order of docs/adapter-format.md."""

from __future__ import annotations

import json
import math
import pickle
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from labelmux_adapters import errors
from labelmux_adapters.errors import (
    AdapterFileError,
)
from labelmux_adapters.files import FileLimits, read_adapter, write_adapter
from labelmux_adapters.manifest import Manifest

MakeManifest = Callable[..., Manifest]
MakeTensors = Callable[..., dict[str, Tensor]]
Header = dict[str, Any]


def split(data: bytes) -> tuple[Header, bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: Header | str, body: bytes) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + body


def code_of(data: bytes, limits: FileLimits | None = None) -> str:
    with pytest.raises(AdapterFileError) as caught:
        read_adapter(data, limits or FileLimits())
    return caught.value.code


def with_manifest(data: bytes, **fields: Any) -> bytes:
    header, body = split(data)
    metadata = header["__metadata__"]
    manifest = json.loads(metadata["labelmux.manifest"]) | fields
    metadata["labelmux.manifest"] = json.dumps(manifest)
    return join(header, body)


def test_a_file_over_the_limit_is_refused_unread(adapter_file: bytes):
    limits = FileLimits(max_bytes=len(adapter_file) - 1)
    assert code_of(adapter_file, limits) == "file_too_large"
    assert read_adapter(adapter_file, FileLimits(max_bytes=len(adapter_file)))


@pytest.mark.parametrize("data", [b"", b"\x00", b"1234567"])
def test_less_than_a_header_length_is_not_safetensors(data: bytes):
    assert code_of(data) == "not_safetensors"


@pytest.mark.parametrize(
    "data",
    [
        b"PK\x03\x04" + b"\x00" * 100,
        pickle.dumps({"weights": list(range(100))}),
        b"\x89PNG\r\n\x1a\n" + b"\x00" * 100,
        b"<!doctype html><html></html>",
        b'{"json": "but no header length"}',
        b"\x00" * 100,
    ],
)
def test_another_format_is_not_safetensors(data: bytes):
    assert code_of(data) == "not_safetensors"


@pytest.mark.parametrize("length", [1024 * 1024 + 1, 2**31, 2**63, 2**64 - 1])
def test_a_header_over_its_limit_is_refused(adapter_file: bytes, length: int):
    assert code_of(struct.pack("<Q", length) + adapter_file[8:]) == "header_too_large"


def test_a_header_longer_than_the_file_is_refused(adapter_file: bytes):
    length = len(adapter_file) - 8 + 1
    assert code_of(struct.pack("<Q", length) + adapter_file[8:]) == "header_beyond_file"
    assert code_of(struct.pack("<Q", 16)) == "header_beyond_file"


@pytest.mark.parametrize(
    "header",
    ["{", "{]", '{"a": NaN}', '{"a": ' + "[" * 200_000, '{"a": ' + "1" * 5000 + "}", '{"a": 1} x'],
    ids=lambda header: header[:12],
)
def test_a_header_that_is_no_json_object_is_refused(header: str):
    assert code_of(join(header, b"")) == "not_safetensors"


def test_a_header_that_is_no_utf8_is_refused():
    assert code_of(struct.pack("<Q", 6) + b'{"\xff":1') == "not_safetensors"


@pytest.mark.parametrize(
    "header",
    [
        '{"__metadata__": {}, "__metadata__": {}}',
        '{"__metadata__": {"labelmux.format": "1", "labelmux.format": "1"}}',
        '{"mix": {"dtype": "F32", "dtype": "F16"}}',
    ],
)
def test_a_key_twice_in_the_header_is_refused(header: str):
    assert code_of(join(header, b"")) == "duplicate_key"


def test_a_key_twice_in_the_manifest_is_refused(adapter_file: bytes):
    header, body = split(adapter_file)
    metadata = header["__metadata__"]
    metadata["labelmux.manifest"] = '{"pair":true,' + metadata["labelmux.manifest"][1:]
    assert code_of(join(header, body)) == "duplicate_key"


@pytest.mark.parametrize("metadata", [None, [], 7, {"labelmux.format": 1}, {"other": {}}])
def test_metadata_must_be_strings(adapter_file: bytes, metadata: object):
    header, body = split(adapter_file)
    header["__metadata__"] = metadata
    expected = "unknown_format" if metadata is None else "not_safetensors"
    assert code_of(join(header, body)) == expected


@pytest.mark.parametrize("version", [None, "", "0", "2", "1.0", " 1"])
def test_another_format_version_is_refused(adapter_file: bytes, version: str | None):
    header, body = split(adapter_file)
    if version is None:
        del header["__metadata__"]["labelmux.format"]
    else:
        header["__metadata__"]["labelmux.format"] = version
    assert code_of(join(header, body)) == "unknown_format"


def test_an_ordinary_safetensors_file_is_of_unknown_format():
    assert code_of(save({"weight": torch.ones(2)})) == "unknown_format"


def test_a_file_without_a_manifest_is_refused(adapter_file: bytes):
    header, body = split(adapter_file)
    del header["__metadata__"]["labelmux.manifest"]
    assert code_of(join(header, body)) == "bad_manifest"


def test_a_wrong_manifest_is_refused(adapter_file: bytes):
    assert code_of(with_manifest(adapter_file, max_tokens=-1)) == "bad_manifest"
    assert code_of(with_manifest(adapter_file, labels=["a", "a"])) == "bad_labels"


def test_a_reader_may_take_fewer_labels(make_manifest: MakeManifest, make_tensors: MakeTensors):
    manifest = make_manifest(labels=("a", "b", "c"))
    data = write_adapter(manifest, make_tensors(manifest))
    assert code_of(data, FileLimits(max_labels=2)) == "bad_labels"


def test_sizes_that_the_method_cannot_have_are_refused(adapter_file: bytes):
    assert code_of(with_manifest(adapter_file, sizes={"width": 4})) == "bad_manifest"


def test_a_false_parameter_count_is_refused(adapter_file: bytes):
    assert code_of(with_manifest(adapter_file, parameters=7)) == "bad_manifest"


def test_a_header_of_too_many_tensors_is_refused(adapter_file: bytes):
    assert code_of(adapter_file, FileLimits(max_tensors=3)) == "header_too_large"


def test_a_tensor_that_the_manifest_does_not_imply_is_refused(adapter_file: bytes):
    header, body = split(adapter_file)
    header["extra"] = {"dtype": "F32", "shape": [0], "data_offsets": [len(body), len(body)]}
    assert code_of(join(header, body)) == "unexpected_tensor"


def test_a_missing_tensor_is_refused(adapter_file: bytes):
    header, body = split(adapter_file)
    del header["mix"]
    assert code_of(join(header, body)) == "missing_tensor"


@pytest.mark.parametrize("dtype", ["F64", "BF16", "I8", "F8_E4M3", "f32", "", None, 32, ["F32"]])
def test_another_dtype_is_refused(adapter_file: bytes, dtype: object):
    header, body = split(adapter_file)
    header["mix"]["dtype"] = dtype
    assert code_of(join(header, body)) == "unknown_dtype"


@pytest.mark.parametrize(
    "shape", [[4], [3, 1], [], [3.0], [-3], [True], ["3"], None, {}, [2**62, 4], [10**19]]
)
def test_another_shape_is_refused(adapter_file: bytes, shape: object):
    header, body = split(adapter_file)
    header["mix"]["shape"] = shape
    assert code_of(join(header, body)) == "wrong_shape"


def test_sizes_that_the_tensors_do_not_have_are_refused(
    adapter_file: bytes, make_manifest: MakeManifest
):
    huge = dict.fromkeys(("hidden", "states", "width", "heads", "ffn"), 65536)
    other = make_manifest(sizes=huge)
    data = with_manifest(adapter_file, sizes=huge, parameters=other.parameters)
    assert code_of(data) == "wrong_shape"


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        "F32",
        {"dtype": "F32", "shape": [3]},
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 12], "code": "x"},
    ],
)
def test_a_tensor_entry_of_another_form_is_refused(adapter_file: bytes, entry: object):
    header, body = split(adapter_file)
    header["mix"] = entry
    assert code_of(join(header, body)) == "not_safetensors"


@pytest.mark.parametrize(
    "offsets",
    [None, [], [0], [0, 12, 24], [0.0, 12.0], ["0", "12"], [False, 12], [12, 0], [0, 11], [0, 0]],
)
def test_offsets_of_another_form_or_length_are_refused(adapter_file: bytes, offsets: object):
    header, body = split(adapter_file)
    header["mix"]["data_offsets"] = offsets
    assert code_of(join(header, body)) == "bad_offsets"


@pytest.mark.parametrize("shift", [-4, 4, -(2**62), 2**62])
def test_overlapping_gapped_or_outside_offsets_are_refused(adapter_file: bytes, shift: int):
    header, body = split(adapter_file)
    for name in ("mix", "self_norm.bias"):
        moved = json.loads(json.dumps(header))
        moved[name]["data_offsets"] = [offset + shift for offset in header[name]["data_offsets"]]
        assert code_of(join(moved, body)) == "bad_offsets"


@pytest.mark.parametrize("surplus", [-4, 4])
def test_a_range_that_its_shape_does_not_fill_is_refused(adapter_file: bytes, surplus: int):
    header, body = split(adapter_file)
    last = max(header.keys() - {"__metadata__"}, key=lambda name: header[name]["data_offsets"])
    header[last]["data_offsets"][1] += surplus
    fitting = (body + b"\x00" * 4)[: len(body) + surplus]
    assert code_of(join(header, fitting)) == "bad_offsets"


def test_two_tensors_in_one_place_are_refused(adapter_file: bytes):
    header, body = split(adapter_file)
    header["ffn_norm.bias"]["data_offsets"] = header["ffn_norm.weight"]["data_offsets"]
    assert code_of(join(header, body)) == "bad_offsets"


def test_bytes_before_the_first_tensor_are_refused(adapter_file: bytes):
    header, body = split(adapter_file)
    for name, entry in header.items():
        if name != "__metadata__":
            entry["data_offsets"] = [offset + 4 for offset in entry["data_offsets"]]
    assert code_of(join(header, b"\x00" * 4 + body)) == "bad_offsets"


def test_bytes_after_the_last_tensor_are_refused(adapter_file: bytes):
    assert code_of(adapter_file + b"\x00") == "bad_offsets"


def test_every_truncation_is_refused(adapter_file: bytes):
    header_end = 8 + struct.unpack("<Q", adapter_file[:8])[0]
    assert code_of(adapter_file[: header_end - 1]) == "header_beyond_file"
    for length in (header_end, header_end + 1, len(adapter_file) - 1):
        assert code_of(adapter_file[:length]) == "truncated_file"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_value_that_is_not_finite_is_refused(
    make_manifest: MakeManifest, make_tensors: MakeTensors, value: float, dtype: torch.dtype
):
    manifest = make_manifest()
    data = write_adapter(manifest, make_tensors(manifest, dtype=dtype))
    spot = torch.tensor([value], dtype=dtype).numpy().tobytes()
    with pytest.raises(errors.NonFiniteTensorError) as caught:
        read_adapter(data[: -len(spot)] + spot)
    assert caught.value.count == 1


def test_the_first_of_several_faults_is_named(adapter_file: bytes):
    header, body = split(adapter_file)
    body = body[:-4] + struct.pack("<f", math.nan)
    stages: list[tuple[str, Callable[[], object]]] = [
        ("non_finite", lambda: None),
        ("bad_offsets", lambda: header["mix"].update(data_offsets=[8, 20])),
        ("wrong_shape", lambda: header["mix"].update(shape=[9])),
        ("unknown_dtype", lambda: header["mix"].update(dtype="I8")),
        ("missing_tensor", lambda: header.pop("mix_scale")),
        ("unexpected_tensor", lambda: header.update(extra={})),
        ("unknown_format", lambda: header["__metadata__"].update({"labelmux.format": "9"})),
    ]
    for code, spoil in stages:
        spoil()
        assert code_of(join(header, body)) == code
    twice = '{"a": 1, "a": 1, ' + json.dumps(header)[1:]
    assert code_of(join(twice, body)) == "duplicate_key"
    short = struct.pack("<Q", 2**20) + join(twice, body)[8:]
    assert code_of(short) == "header_beyond_file"
    assert code_of(short, FileLimits(max_header_bytes=9)) == "header_too_large"
    assert code_of(short, FileLimits(max_header_bytes=9, max_bytes=9)) == "file_too_large"


# No number from the file decides how much work is done.


def heavy_headers() -> list[str]:
    many = 300_000
    return [
        "{" + ",".join(f'"{index}":0' for index in range(100_000)) + "}",
        '{"a":[' + ",".join(["[]"] * many) + "]}",
        '{"__metadata__":{"labelmux.format":"1","labelmux.manifest":"{\\"labels\\":['
        + ",".join(["1"] * many)
        + ']}"}}',
        '{"__metadata__":{"labelmux.format":"1","labelmux.manifest":"{\\"canaries\\":['
        + ",".join(["1"] * many)
        + ']}"}}',
    ]


@pytest.mark.parametrize("header", heavy_headers(), ids=["keys", "lists", "labels", "canaries"])
def test_a_full_header_costs_little_memory(header: str):
    data = join(header, b"")
    tracemalloc.start()
    try:
        code_of(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50 * FileLimits().max_header_bytes
