from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from labelmux_adapters.errors import (
    AdapterFileError,
)
from labelmux_adapters.files import describe_adapter, read_adapter, write_adapter
from labelmux_adapters.manifest import Manifest

MakeManifest = Callable[..., Manifest]
MakeTensors = Callable[..., dict[str, Tensor]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_adapter_survives_its_file(
    make_manifest: MakeManifest, make_tensors: MakeTensors, dtype: torch.dtype
):
    manifest = make_manifest(labels=("née", "日本", '"x"\n'))
    tensors = make_tensors(manifest, dtype=dtype)
    adapter = read_adapter(write_adapter(manifest, tensors))
    assert adapter.manifest == manifest
    assert adapter.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(adapter.tensors[name], tensor.float())
        assert adapter.tensors[name].dtype == torch.float32


def test_equal_input_gives_equal_bytes(make_manifest: MakeManifest, make_tensors: MakeTensors):
    manifest = make_manifest()
    tensors = make_tensors(manifest)
    backwards = dict(reversed(tensors.items()))
    assert write_adapter(manifest, tensors) == write_adapter(manifest, backwards)


def test_a_view_is_written_as_its_values(make_manifest: MakeManifest, make_tensors: MakeTensors):
    manifest = make_manifest()
    tensors = make_tensors(manifest)
    views = {name: tensor.t().contiguous().t() for name, tensor in tensors.items()}
    assert write_adapter(manifest, views) == write_adapter(manifest, tensors)


def test_a_trainable_tensor_is_written(make_manifest: MakeManifest, make_tensors: MakeTensors):
    manifest = make_manifest()
    tensors = make_tensors(manifest)
    trainable = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    assert write_adapter(manifest, trainable) == write_adapter(manifest, tensors)


def test_mixed_dtypes_share_a_file(make_manifest: MakeManifest, make_tensors: MakeTensors):
    manifest = make_manifest()
    tensors = make_tensors(manifest)
    tensors["mix"] = tensors["mix"].half()
    description = describe_adapter(write_adapter(manifest, tensors))
    assert description.entries["mix"].dtype == "F16"
    assert description.entries["mix_scale"].dtype == "F32"
    assert all(entry.begin % 2 == 0 for entry in description.entries.values())


def test_the_reference_library_reads_what_is_written(
    make_manifest: MakeManifest, make_tensors: MakeTensors
):
    manifest = make_manifest()
    tensors = make_tensors(manifest)
    found = load(write_adapter(manifest, tensors))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_what_the_reference_library_writes_is_read(
    make_manifest: MakeManifest, make_tensors: MakeTensors
):
    manifest = make_manifest()
    tensors = make_tensors(manifest)
    metadata = {"labelmux.format": "1", "labelmux.manifest": manifest.to_json(), "format": "pt"}
    adapter = read_adapter(save(tensors, metadata=metadata))
    assert adapter.manifest == manifest
    assert all(torch.equal(adapter.tensors[name], tensor) for name, tensor in tensors.items())


def test_the_digest_names_the_bytes(adapter_file: bytes):
    adapter = read_adapter(adapter_file)
    assert adapter.digest == "sha256:" + hashlib.sha256(adapter_file).hexdigest()
    assert adapter == read_adapter(adapter_file)
    assert hash(adapter) == hash(read_adapter(adapter_file))
    assert adapter != read_adapter(adapter_file.replace(b"tiny", b"Tiny"))


def test_tensors_share_no_memory_with_the_file(adapter_file: bytes):
    before = bytes(bytearray(adapter_file))
    for tensor in read_adapter(adapter_file).tensors.values():
        tensor.zero_()
    assert adapter_file == before


def test_the_header_keeps_tensors_aligned(adapter_file: bytes):
    assert struct.unpack("<Q", adapter_file[:8])[0] % 8 == 0


def test_a_description_needs_no_tensor_values(adapter_file: bytes):
    broken = adapter_file[:-4] + struct.pack("<f", math.nan)
    description = describe_adapter(broken)
    assert description.manifest.encoder == "tiny"
    assert description.entries["label_vectors"].shape == (2, 4)
    assert description.size_bytes == len(broken)
    assert description.digest == "sha256:" + hashlib.sha256(broken).hexdigest()


def test_a_writer_refuses_what_no_reader_takes(
    make_manifest: MakeManifest, make_tensors: MakeTensors
):
    manifest = make_manifest()
    tensors = make_tensors(manifest)
    for changed, code in (
        (tensors | {"mix": tensors["mix"].double()}, "unknown_dtype"),
        (tensors | {"mix": tensors["mix"].bfloat16()}, "unknown_dtype"),
        (tensors | {"mix": torch.full((3,), math.inf)}, "non_finite"),
        (tensors | {"mix": torch.ones(4)}, "wrong_shape"),
        (tensors | {"mix": torch.tensor(1.0)}, "wrong_shape"),
        (tensors | {"extra": torch.ones(1)}, "unexpected_tensor"),
        (tensors | {"__metadata__": torch.ones(1)}, "not_safetensors"),
        ({}, "missing_tensor"),
    ):
        with pytest.raises(AdapterFileError) as caught:
            write_adapter(manifest, changed)
        assert caught.value.code == code


def test_a_writer_refuses_a_manifest_that_was_changed_past_its_checks(
    make_manifest: MakeManifest, make_tensors: MakeTensors
):
    manifest = make_manifest()
    changed = manifest.model_copy(update={"labels": ("a", "a")})
    with pytest.raises(AdapterFileError) as caught:
        write_adapter(changed, make_tensors(manifest))
    assert caught.value.code == "bad_labels"
