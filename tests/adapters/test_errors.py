from __future__ import annotations

import math
import re
from pathlib import Path

from labelmux_adapters import errors
from labelmux_adapters.errors import (
    AdapterError,
    AdapterFileError,
    AdapterMisfitError,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "adapter-format.md"


def leaves(base: type[AdapterError]) -> list[type[AdapterError]]:
    children = [leaf for child in base.__subclasses__() for leaf in leaves(child)]
    return [*([base] if "code" in vars(base) else []), *children]


def test_the_drawn_tree_is_the_tree():
    drawn = re.findall(r"── (\w+) +([a-z_]+)$", errors.__doc__ or "", re.MULTILINE)
    assert {leaf.__name__: leaf.code for leaf in leaves(AdapterError)} == dict(drawn)


def test_the_document_lists_every_code_of_a_file_and_no_other():
    text = DOCUMENT.read_text()
    checks = text.split("\n## Checks\n")[1].split("\n## ")[0]
    on_file = re.findall(r"^\| \d+ \|.*\| `([a-z_]+)` \|$", checks, re.MULTILINE)
    misfit = re.findall(r"^\| - \|.*\| `([a-z_]+)` \|$", checks, re.MULTILINE)
    assert set(on_file) == {leaf.code for leaf in leaves(AdapterFileError)}
    assert set(misfit) == {leaf.code for leaf in leaves(AdapterMisfitError)}


def test_misfits_say_what_to_do():
    foreign = errors.ForeignEncoderError("sha256:aa", "sha256:bb")
    assert "sha256:aa" in str(foreign)
    assert "sha256:bb" in str(foreign)
    assert "train it again" in str(foreign)
    assert errors.CanaryMismatchError(2, 0.5, 1e-3).difference == 0.5
    assert errors.CanaryMismatchError(2, math.nan, 1e-3).difference is None
