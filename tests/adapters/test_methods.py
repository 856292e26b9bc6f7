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
