from __future__ import annotations

import re
from pathlib import Path

import pytest

from labelmux_adapters.errors import (
    ManifestError,
)
from labelmux_adapters.methods import METHODS

DOCUMENT = Path(__file__).parents[2] / "docs" / "adapter-format.md"


@pytest.mark.parametrize(
    ("sizes", "word"),
    [
        ({"hidden": 12}, "missing"),
        ({"hidden": 12, "states": 3, "width": 4, "heads": 2, "ffn": 6, "depth": 1}, "unknown"),
        ({"hidden": 12, "states": 3, "width": 4, "heads": 3, "ffn": 6}, "heads"),
    ],
)
def test_sizes_that_a_method_cannot_have_are_refused(sizes: dict[str, int], word: str):
    with pytest.raises(ManifestError) as caught:
        METHODS["ytuning"].expected_tensors(sizes, 2)
    assert caught.value.field == "sizes"
    assert word in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_an_error_does_not_grow_with_the_name_of_a_size(method: str):
    edited = METHODS[method].edited
    own = edited.defaults if edited else {"states": 3, "width": 4, "heads": 2, "ffn": 6}
    sizes = {"hidden": 12, "layers": 2, "intermediate": 48, **own, "k" * 500_000: 1}
    if not edited:
        del sizes["layers"], sizes["intermediate"]
    with pytest.raises(ManifestError, match="unknown") as caught:
        METHODS[method].expected_tensors(sizes, 2)
    assert len(str(caught.value)) < 1000


def test_the_document_lists_the_tensors_of_ytuning():
    section = DOCUMENT.read_text().split("\n## Tensors of `ytuning`\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.+`) \| \[(.+)\] \|", section, re.MULTILINE)
    values = {"S": 3, "W": 4, "H": 12, "F": 6, "K": 5, "1": 1}
    sizes = {"hidden": 12, "states": 3, "width": 4, "heads": 2, "ffn": 6}
    documented = {
        name: tuple(values[letter] for letter in shape.split(", "))
        for names, shape in rows
        for name in re.findall(r"`([^`]+)`", names)
    }
    specs = METHODS["ytuning"].expected_tensors(sizes, 5)
    assert documented == {name: spec.shape for name, spec in specs.items()}
    of_tokens = METHODS["ytuning"].expected_tensors(sizes, 5, "token")
    without = {name for name in specs if name.startswith("cross_") and "norm" not in name}
    assert set(of_tokens) == set(specs) - without


#: A size of its own for each name, so that a shape says which it is made of.
SYMBOLS = {"L": 2, "H": 11, "F": 23, "K": 5, "slots": 3, "prefix": 13, "bottleneck": 17, "rank": 7}
ENCODER = {"layers": 2, "hidden": 11, "intermediate": 23}


def documented_methods() -> dict[str, str]:
    """The text of each method's row, but its name."""
    section = DOCUMENT.read_text().split("<!-- edited tensors: begin")[1].split("<!-- edited")[0]
    return dict(re.findall(r"^\| (?:`(?:(\w+))`|all) (\|.*\|)$", section, re.MULTILINE))


def documented_shapes(text: str, symbols: dict[str, int]) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(symbols[letter] for letter in shape.split(", "))
        for name, shape in re.findall(r"`(\w+\.\w+)` \[([^\]]+)\]", text)
    }


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.edited])
def test_the_document_lists_the_tensors_of_every_other_method(name: str):
    method = METHODS[name].edited
    assert method is not None
    rows = documented_methods()
    symbols = SYMBOLS | ({"query": 19} if name == "lora" else {})
    own = {size: symbols.get(size, 19 if name == "lora" else 1) for size in method.defaults}
    if name in ("lora", "ia3"):  # the document shows one site of several
        own = {("query" if name == "lora" else "key"): own["query" if name == "lora" else "key"]}
    sizes = ENCODER | own
    documented = documented_shapes(rows[""] + rows[name], symbols)
    if name == "unipelt":  # and one gate of several
        gates = {key: shape for key, shape in documented.items() if ".gate_" in key}
        for part in ("bottleneck", "lora_query", "lora_value"):
            documented |= {key.replace("prefix", part): shape for key, shape in gates.items()}
    assert documented == method.shapes(sizes | {"pooler": 11}, 5)
    for size in (*method.defaults, *method.optional):
        assert f"`{size}`" in rows[name], size


def test_the_document_names_every_method():
    (line,) = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `method`")]
    assert re.findall(r"`(\w+)`", line.split("One of:")[1]) == list(METHODS)
