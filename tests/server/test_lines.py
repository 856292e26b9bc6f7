"""Bytes to lines, lines to parts."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from labelmux_server.lines import Line, Part, PartLimits, Splitter, parts_of
from labelmux_server.statuses import answer_for

LIMITS = PartLimits(line_bytes=100, text_chars=20, part_lines=3, part_bytes=90)


def split(pieces: list[bytes], limit_bytes: int = 1000) -> list[Line]:
    splitter = Splitter(limit_bytes)
    return [*(line for piece in pieces for line in splitter.feed(piece)), *splitter.end()]


def text(number: int, value: str, **more: str) -> Line:
    return Line(number, json.dumps({"text": value, **more}).encode())


def code(part: Part) -> str:
    return answer_for(type(part.error)).code


@given(st.lists(st.binary(max_size=20)), st.lists(st.integers(0, 200)))
def test_lines_do_not_depend_on_how_their_bytes_come(lines, cuts):
    data = b"\n".join(line.replace(b"\n", b"") for line in lines)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in pairwise(places)]
    expected = [
        Line(number, line) for number, line in enumerate(data.split(b"\n"), start=1) if line.strip()
    ]
    assert split(pieces) == expected


def test_a_line_that_is_too_long_is_dropped_and_counted():
    found = split([b"one\n" + b"x" * 6, b"x" * 6, b"\nthree\n\n", b"x" * 10, b"\nsix"], 10)
    assert found[:2] == [Line(1, b"one"), Line(2, None)]
    assert found[2:] == [Line(3, b"three"), Line(5, b"x" * 10), Line(6, b"six")]


def test_of_a_line_that_is_too_long_nothing_is_held():
    splitter = Splitter(10)
    for _ in range(100):
        assert list(splitter.feed(b"x" * 1000)) == []
    assert splitter._held == []
    assert list(splitter.feed(b"\n")) == [Line(1, None)]


def test_parts_keep_the_order_and_their_limits():
    lines = [text(number, f"t{number}") for number in range(1, 6)]
    assert [part.numbers for part in parts_of(lines, LIMITS)] == [[1, 2, 3], [4, 5]]
    lines = [text(number, "x" * 20) for number in range(1, 6)]
    parts = list(parts_of(lines, LIMITS))
    assert [part.numbers for part in parts] == [[1, 2], [3, 4], [5]]
    assert all(part.size_bytes <= LIMITS.part_bytes for part in parts)


def test_texts_and_pairs_are_not_in_one_part():
    lines = [text(1, "a"), text(2, "a", pair="b"), text(3, "c", pair="d"), text(4, "e")]
    found = [(part.numbers, part.texts, part.pairs) for part in parts_of(lines, LIMITS)]
    assert found == [
        ([1], ["a"], False),
        ([2, 3], [("a", "b"), ("c", "d")], True),
        ([4], ["e"], False),
    ]


def test_a_wrong_line_is_a_part_of_its_own():
    wrong = [
        Line(2, b"{"),
        Line(3, b'"a string"'),
        Line(4, b'{"text": 1}'),
        Line(5, b'{"text": "a", "label": "b"}'),
        Line(6, b"\xff"),
        Line(7, None),
        text(8, "x" * 21),
        text(9, "x" * 11, pair="x" * 10),
    ]
    parts = list(parts_of([text(1, "a"), *wrong, text(10, "b")], LIMITS))
    assert [part.numbers for part in parts] == [[number] for number in range(1, 11)]
    assert [code(part) for part in parts[1:-1]] == [
        "invalid_json",
        "invalid_request",
        "invalid_request",
        "invalid_request",
        "invalid_json",
        "invalid_request",
        "text_too_long",
        "text_too_long",
    ]
    assert parts[0].error is parts[-1].error is None


def test_a_line_with_half_a_character_is_told_by_its_field():
    (part,) = parts_of([Line(3, rb'{"text": "a", "pair": "b\ud83d"}')], LIMITS)
    assert part.numbers == [3]
    assert part.error is not None
    assert str(part.error).startswith("pair: half of a surrogate pair (\\ud83d) at character 1")
