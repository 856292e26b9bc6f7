"""Cut rows are those of the library's own truncation, without what it builds beside them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from labelmux_encoder.tokenizer import TextInput, Tokenizer, TokenRow
from labelmux_encoder.weights import LoadedEncoder

WORDS = (
    "",
    "a",
    "train",
    "unbelievable",
    "[SEP]",
    "[CLS]",
    "12345",
    "it's!",
    "漢字",
    "🙂",
    "Ünï",
    "\n",
)
_ADDED = {"cls": ["[CLS]", 2], "sep": ["[SEP]", 3]}
#: As checkpoints have them, other than the template of WordPiece and SentencePiece folders.
POST_PROCESSORS: dict[str, dict[str, Any] | None] = {
    "of BERT": {"type": "BertProcessing"} | _ADDED,
    "of RoBERTa": {"type": "RobertaProcessing", "trim_offsets": True, "add_prefix_space": False}
    | _ADDED,
    "none": None,
    "unlike most": {
        "type": "TemplateProcessing",
        "single": [
            {"Sequence": {"id": "A", "type_id": 1}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 2}},
        ],
        "pair": [
            {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "special_tokens": {
            token: {"id": token, "ids": [of], "tokens": [token]}
            for token, of in (("[CLS]", 2), ("[SEP]", 3))
        },
    },
}


def with_post_processor(tokenizer: Tokenizer, settings: dict[str, Any] | None) -> Tokenizer:
    source = json.loads(tokenizer._source) | {"post_processor": settings}
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(source)))


def by_the_library(
    tokenizer: Tokenizer, texts: list[TextInput], max_tokens: int, offsets: bool
) -> list[TokenRow]:
    backend = tokenizer.clone()._backend
    backend.enable_truncation(max_tokens, strategy="longest_first")
    return [
        TokenRow(
            tuple(found.ids),
            tuple(found.type_ids),
            bool(found.overflowing),
            tuple(at for at, special in enumerate(found.special_tokens_mask) if special),
            tuple(found.offsets) if offsets else (),
        )
        for found in backend.encode_batch(texts)
    ]


def some_texts(rng: random.Random) -> list[TextInput]:
    def text() -> str:
        return rng.choice(["", " "]).join(rng.choices(WORDS, k=rng.choice([0, 1, 3, 9, 20])))

    pairs = rng.choice([0.0, 0.5, 1.0])
    return [(text(), text()) if rng.random() < pairs else text() for _ in range(12)]


def check(tokenizer: Tokenizer, seed: int) -> None:
    rng = random.Random(seed)
    for max_tokens in range(4, 65):
        texts = some_texts(rng)
        for offsets in (False, True):
            expected = by_the_library(tokenizer, texts, max_tokens, offsets)
            assert tokenizer.encode(texts, max_tokens, offsets=offsets) == expected


def test_cut_rows_are_those_of_the_library(tiny_encoder: LoadedEncoder, spm_folder: Path) -> None:
    check(tiny_encoder.tokenizer, 1)
    check(Tokenizer.from_folder(spm_folder), 2)


@pytest.mark.parametrize("name", POST_PROCESSORS)
def test_cut_rows_are_those_of_the_library_whatever_it_adds(
    name: str, tiny_encoder: LoadedEncoder
) -> None:
    check(with_post_processor(tiny_encoder.tokenizer, POST_PROCESSORS[name]), 3)


@pytest.mark.parametrize("first", [0, 1, 5, 6, 7, 30])
def test_texts_of_any_two_lengths_lose_the_same_tokens(
    first: int, tiny_encoder: LoadedEncoder
) -> None:
    for max_tokens in (3, 4, 14, 15, 16):
        texts: list[TextInput] = [("a " * first, "the " * second) for second in range(20)]
        expected = by_the_library(tiny_encoder.tokenizer, texts, max_tokens, offsets=True)
        assert tiny_encoder.tokenizer.encode(texts, max_tokens, offsets=True) == expected


class Recording:
    """A backend that keeps what it encoded."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.found: list[tokenizers.Encoding] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def encode_batch(self, texts: list[TextInput]) -> list[tokenizers.Encoding]:
        self.found += self.backend.encode_batch(texts)
        return self.found[-len(texts) :]

    def encode_batch_fast(self, texts: list[TextInput]) -> list[tokenizers.Encoding]:
        self.found += self.backend.encode_batch_fast(texts)
        return self.found[-len(texts) :]


LONG = "the train " * 300


@pytest.mark.parametrize("text", [LONG, (LONG, LONG)])
def test_what_is_cut_away_is_never_built(text: TextInput, tiny_encoder: LoadedEncoder) -> None:
    """Else two long texts cost their product: a request of 200 KB would end the process."""
    tokenizer = tiny_encoder.tokenizer.clone()
    tokenizer.windows([LONG], 16, 4)
    tokenizer._backend = recording = Recording(tokenizer._backend)
    for offsets in (False, True):
        (row,) = tokenizer.encode([text], 16, offsets=offsets)
        assert row.truncated and len(row.token_ids) == 16
    assert [len(found.overflowing) for found in recording.found] == [0, 0]


def test_windows_and_cut_rows_by_turns_are_what_each_is_alone(tiny_encoder: LoadedEncoder) -> None:
    text = "the train to the coast " * 8
    windows = tiny_encoder.tokenizer.clone().windows([text], 16, 4)
    cut = tiny_encoder.tokenizer.clone().encode([text], 16)
    both = tiny_encoder.tokenizer.clone()
    for _ in range(2):
        assert both.windows([text], 16, 4) == windows
        assert both.encode([text], 16) == cut


def test_windows_without_offsets_have_the_same_tokens(
    tiny_encoder: LoadedEncoder, spm_folder: Path
) -> None:
    texts = [text for text in some_texts(random.Random(4)) if isinstance(text, str)]
    assert texts
    for tokenizer in (tiny_encoder.tokenizer, Tokenizer.from_folder(spm_folder)):
        plain = tokenizer.windows(texts, 12, 4)
        assert max(map(len, plain)) > 1
        assert plain == [
            [replace(row, offsets=()) for row in rows]
            for rows in tokenizer.windows(texts, 12, 4, offsets=True)
        ]
