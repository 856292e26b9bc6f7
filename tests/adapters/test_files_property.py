"""Mutated files give an adapter or an AdapterFileError, in bounded time and memory.

``make fuzz CASES=1000000`` tries so many in all, other ones every time.
"""

from __future__ import annotations

import json
import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from labelmux_adapters.errors import AdapterFileError
from labelmux_adapters.files import Adapter, read_adapter, write_adapter
from labelmux_adapters.manifest import Canary, Manifest, parse_manifest
from labelmux_adapters.methods import METHODS

MAX_SECONDS = 5.0
#: Of all tests here together, where nobody says otherwise.
ALL_EXAMPLES = 1350
#: The file here has about 3 kB; a whole header of JSON parses to a few hundred times that.
MAX_PEAK_BYTES = 4 * 1024 * 1024


#: Of all tests here together, where this file is the fuzzer.
FUZZ_CASES = int(os.environ.get("FUZZ_CASES", "0"))


def examples(count: int) -> settings:
    return settings(
        max_examples=count * FUZZ_CASES // ALL_EXAMPLES or count,
        derandomize=not FUZZ_CASES,
        print_blob=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


huge = st.sampled_from([2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 10**19, 10**30, -(2**63)])
odd_text = st.sampled_from(
    ["", "\x00", "\ud800", "F32", "BF16", "__metadata__", "mix", "1", "x" * 5000, "nan", "é"]
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), huge, st.floats(), odd_text, st.text(max_size=8)
)
json_values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(odd_text, st.text(max_size=4)), inner, max_size=4),
    ),
    max_leaves=8,
)


def attempt_manifest(text: str) -> None:
    """Read a manifest's text: a manifest, or one of the errors for it, in bounds."""
    tracemalloc.start()
    start = time.process_time()
    try:
        parse_manifest(text)
    except AdapterFileError as exc:
        assert len(str(exc)) < 1000
    seconds = time.process_time() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < MAX_SECONDS
    assert peak < MAX_PEAK_BYTES


def attempt(data: bytes) -> Adapter | None:
    """Read, and see to it that nothing but the two allowed outcomes happens."""
    tracemalloc.start()
    start = time.process_time()
    adapter = None
    try:
        adapter = read_adapter(data)
    except AdapterFileError as exc:
        assert len(str(exc)) < 1000
        str(exc).encode()
        json.dumps(vars(exc), allow_nan=False)
    seconds = time.process_time() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < MAX_SECONDS
    assert peak < MAX_PEAK_BYTES
    if adapter is not None:
        assert all(tensor.isfinite().all() for tensor in adapter.tensors.values())
        write_adapter(adapter.manifest, adapter.tensors)
    return adapter


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(text: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + body


def edit(draw: st.DataObject, value: Any) -> Any:
    """``value`` with one thing in it replaced, removed or added, at a drawn depth."""
    if not isinstance(value, (dict, list)) or not value or draw.draw(st.integers(0, 4)) == 0:
        return draw.draw(json_values)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw.draw(st.sampled_from(keys))
    action = draw.draw(st.sampled_from(["into", "into", "into", "remove", "add"]))
    changed = value.copy()
    if action == "remove":
        del changed[key]
    elif action == "into":
        changed[key] = edit(draw, value[key])
    elif isinstance(changed, dict):
        changed[draw.draw(odd_text)] = value[key]
    else:
        changed.append(value[key])
    return changed


def test_the_unchanged_file_is_read(adapter_file: bytes):
    assert attempt(adapter_file) is not None


@examples(150)
@given(st.data())
def test_flipped_bytes(adapter_file: bytes, data: st.DataObject):
    changed = bytearray(adapter_file)
    spots = st.tuples(st.integers(0, len(changed) - 1), st.integers(0, 255))
    for place, value in data.draw(st.lists(spots, min_size=1, max_size=8)):
        changed[place] = value
    attempt(bytes(changed))


@examples(80)
@given(st.data())
def test_truncations(adapter_file: bytes, data: st.DataObject):
    assert attempt(adapter_file[: data.draw(st.integers(0, len(adapter_file) - 1))]) is None


@examples(100)
@given(st.data())
def test_splices(adapter_file: bytes, data: st.DataObject):
    place = st.integers(0, len(adapter_file))
    start, stop = sorted((data.draw(place), data.draw(place)))
    inserted = data.draw(st.one_of(st.binary(max_size=64), st.just(adapter_file[start:stop])))
    cut = data.draw(st.booleans())
    attempt(adapter_file[:start] + inserted + adapter_file[stop if cut else start :])


@examples(80)
@given(st.data())
def test_any_header_length(adapter_file: bytes, data: st.DataObject):
    lengths = st.one_of(st.integers(0, 2 * len(adapter_file)), st.integers(0, 2**64 - 1))
    attempt(struct.pack("<Q", data.draw(lengths)) + adapter_file[8:])


@examples(150)
@given(st.data())
def test_edited_headers(adapter_file: bytes, data: st.DataObject):
    header, body = split(adapter_file)
    for _ in range(data.draw(st.integers(1, 3))):
        header = edit(data, header)
    attempt(join(json.dumps(header).encode(), body))


@examples(100)
@given(st.data())
def test_edited_tensor_entries(adapter_file: bytes, data: st.DataObject):
    header, body = split(adapter_file)
    names = [name for name in header if name != "__metadata__"]
    for _ in range(data.draw(st.integers(1, 2))):
        entry = header[data.draw(st.sampled_from(names))]
        key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        numbers = st.lists(st.one_of(huge, st.integers(-8, len(body) + 8)), max_size=3)
        entry[key] = data.draw(st.one_of(odd_text, numbers, json_values))
    adapter = attempt(join(json.dumps(header).encode(), body))
    assert (adapter is not None) == (header == split(adapter_file)[0])


@examples(50)
@given(st.data())
def test_overwritten_values(adapter_file: bytes, data: st.DataObject):
    header, body = split(adapter_file)
    bits = st.sampled_from([0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0x7F7FFFFF, 1])
    place = 4 * data.draw(st.integers(0, len(body) // 4 - 1))
    value = data.draw(bits)
    changed = body[:place] + struct.pack("<I", value) + body[place + 4 :]
    adapter = attempt(join(json.dumps(header).encode(), changed))
    assert (adapter is not None) == (value in (0x7F7FFFFF, 1))


@examples(200)
@given(st.data())
def test_edited_manifests(adapter_file: bytes, data: st.DataObject):
    header, body = split(adapter_file)
    metadata = header["__metadata__"]
    manifest = json.loads(metadata["labelmux.manifest"])
    for _ in range(data.draw(st.integers(1, 2))):
        manifest = edit(data, manifest)
    metadata["labelmux.manifest"] = json.dumps(manifest)
    attempt(join(json.dumps(header).encode(), body))


deep = st.builds(
    lambda opening, inner, times: opening * times + inner,
    st.sampled_from(["[", '{"a":', '[{"labels":[', "-", "1e", '"\\u']),
    st.text(max_size=4),
    st.integers(1, 20_000),
)


@examples(200)
@given(st.data())
def test_manifest_texts(adapter_file: bytes, data: st.DataObject):
    whole = split(adapter_file)[0]["__metadata__"]["labelmux.manifest"]
    place = st.integers(0, len(whole))
    start, stop = sorted((data.draw(place), data.draw(place)))
    new = data.draw(st.one_of(st.text(max_size=20), deep, json_values.map(json.dumps)))
    attempt_manifest(data.draw(st.sampled_from([new, whole[:start] + new + whole[stop:]])))


@examples(100)
@given(st.data())
def test_other_methods_and_kinds(adapter_file: bytes, data: st.DataObject):
    """Sizes that decide what tensors there must be, of every method."""
    header, body = split(adapter_file)
    metadata = header["__metadata__"]
    manifest = json.loads(metadata["labelmux.manifest"])
    manifest["method"] = data.draw(st.sampled_from(list(METHODS)))
    kinds = ["single_label", "multi_label", "token"]
    manifest["task_kind"] = data.draw(st.sampled_from(kinds))
    size = st.one_of(st.integers(-1, 2000), huge)
    sizes = st.sampled_from([*manifest["sizes"], "layers", "rank", "prefix", "bottleneck"])
    manifest["sizes"] |= data.draw(st.dictionaries(sizes, size, max_size=6))
    metadata["labelmux.manifest"] = json.dumps(manifest)
    attempt(join(json.dumps(header).encode(), body))


@examples(80)
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes(noise: bytes, framed: bool):
    assert attempt(join(b"{" + noise, b"") if framed else noise) is None


names = st.text(min_size=1, max_size=20).filter(lambda text: text.strip())
finite = st.floats(allow_nan=False, allow_infinity=False)


@examples(60)
@given(st.data())
def test_every_adapter_survives_its_file(
    make_manifest: Callable[..., Manifest],
    make_tensors: Callable[..., dict[str, Tensor]],
    data: st.DataObject,
):
    labels = tuple(data.draw(st.lists(names, min_size=2, max_size=6, unique=True)))
    logits = st.tuples(*[finite] * len(labels))
    canaries = st.lists(logits, min_size=4, max_size=8)
    manifest = make_manifest(
        labels=labels,
        metrics=data.draw(st.dictionaries(names, finite, max_size=3)),
        card=data.draw(st.dictionaries(names, st.text(max_size=20), max_size=3)),
        canaries=tuple(
            Canary(text=data.draw(names), logits=logits) for logits in data.draw(canaries)
        ),
    )
    tensors = make_tensors(manifest, seed=data.draw(st.integers(0, 9)))
    file = write_adapter(manifest, tensors)
    adapter = read_adapter(file)
    assert adapter.manifest == manifest
    assert all(torch.equal(adapter.tensors[name], tensors[name]) for name in tensors)
    assert write_adapter(adapter.manifest, adapter.tensors) == file
