"""Words, their tokens, tags and spans: one rule for raw text and for the tokens of a data set."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from labelmux_adapters.errors import LabelsError
from labelmux_adapters.iob2 import check_tags, runs_of, spread, types_of, word_tokens, words_of
from labelmux_encoder.weights import LoadedEncoder

TAGS = ("O", "B-x", "I-x", "B-y", "I-y")


@given(st.lists(st.sampled_from(TAGS)))
def test_spans_are_those_that_seqeval_finds(tags: list[str]) -> None:
    expected = [(label, first, last + 1) for label, first, last in get_entities(tags)]
    assert [tuple(run) for run in runs_of(tags)] == expected


def test_an_inside_tag_after_outside_or_another_type_begins_a_span() -> None:
    assert list(runs_of(["I-x", "O", "I-x", "I-y", "B-y"])) == [
        ("x", 0, 1),
        ("x", 2, 3),
        ("y", 3, 4),
        ("y", 4, 5),
    ]


@pytest.mark.parametrize(
    ("labels", "field", "message"),
    [
        (("B-x", "I-x"), "labels", "one tag is O"),
        (("O", "x"), "labels.1", "B-name or I-name"),
        (("O", "B-"), "labels.1", "B-name or I-name"),
        (("O", "B- "), "labels.1", "B-name or I-name"),
        (("O", "S-x"), "labels.1", "B-name or I-name"),
        (("O", "B-x", "I-y"), "labels.2", "no B-y"),
    ],
)
def test_labels_that_are_no_tags_are_named(
    labels: tuple[str, ...], field: str, message: str
) -> None:
    with pytest.raises(LabelsError, match=message) as caught:
        check_tags(labels)
    assert caught.value.field == field


def test_types_are_those_that_a_tag_begins() -> None:
    check_tags(("I-a-b", "B-a-b", "O", "B-c"))
    assert types_of(("I-a-b", "B-a-b", "O", "B-c")) == ("a-b", "c")


def test_words_are_runs_of_letters_and_single_signs() -> None:
    text = "It's 3,5 km -- naïve\tcafé_1 漢字🙂"
    words = [text[first:end] for first, end in words_of(text)]
    assert " ".join(words) == "It ' s 3 , 5 km - - naïve café_1 漢字 🙂"


def test_splitting_at_spaces_first_changes_no_word() -> None:
    text = "New-York's A.B.  mayor (x_y)"
    whole = [text[first:end] for first, end in words_of(text)]
    parts = [part[first:end] for part in text.split() for first, end in words_of(part)]
    assert whole == parts


def test_words_can_be_asked_for_up_to_a_place() -> None:
    text = "one two, three"
    assert words_of(text, 0) == []
    assert words_of(text, 4) == [(0, 3)]
    assert words_of(text, 5) == [(0, 3), (4, 7)]
    assert words_of(text, len(text)) == words_of(text)


def test_a_word_is_read_at_the_first_token_that_covers_it() -> None:
    offsets = [(0, 0), (0, 3), (3, 5), (5, 9), (9, 11), (0, 0)]
    words = [(0, 5), (6, 8), (8, 9), (9, 11), (12, 14)]
    assert word_tokens(words, offsets, (0, 5)).tolist() == [1, 3, 3, 4, -1]


def test_no_words_and_no_tokens_are_fine() -> None:
    assert word_tokens([], [(0, 0)], (0,)).tolist() == []
    assert word_tokens([(0, 2)], [(0, 0), (0, 0)], (0, 1)).tolist() == [-1]


def test_every_word_of_a_text_has_its_own_token(tiny_encoder: LoadedEncoder) -> None:
    chooser = random.Random(3)
    signs = ["train", "coast", "it's", "a-b", "Ünï", "12,5", "[SEP]", "  ", "(x)", "…"]
    for _ in range(50):
        text = " ".join(chooser.choices(signs, k=8))
        (row,) = tiny_encoder.tokenizer.encode([text], 64, offsets=True)
        words = words_of(text)
        tokens = word_tokens(words, row.offsets, row.special)
        assert (tokens > 0).all() and len(set(tokens.tolist())) == len(words)
        for (first, end), token in zip(words, tokens, strict=True):
            assert row.offsets[token][0] == first and row.offsets[token][1] <= end


def test_a_token_of_several_words_spreads_its_tag() -> None:
    tags = ["B-x", "O", "I-x", "O", "B-y"]
    assert spread(tags, [2, 2, 1, 0, 3]) == [
        *("B-x", "I-x", "O", "O", "I-x", "B-y", "I-y", "I-y"),
    ]
