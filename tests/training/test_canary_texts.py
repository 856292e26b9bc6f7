"""Which texts prove an adapter file; long ones are cut, so that any rows can."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from labelmux_adapters.canaries import check_canaries
from labelmux_adapters.files import read_adapter
from labelmux_adapters.manifest import MAX_CANARY_LOGITS
from labelmux_encoder.weights import LoadedEncoder
from labelmux_training.canary_texts import CanaryChooser
from labelmux_training.errors import TooFewRowsError
from labelmux_training.options import TrainOptions
from labelmux_training.progress import NoProgress
from labelmux_training.settings import TrainerSettings
from labelmux_training.train import train

ROWS = Path("rows.jsonl")


@pytest.fixture
def chooser(tiny_encoder: LoadedEncoder) -> CanaryChooser:
    return CanaryChooser(tiny_encoder, "single_label", 3, 64)


def test_short_texts_come_first_and_each_once(chooser: CanaryChooser) -> None:
    texts = ["soup " * 100, *(f"a train {n}" for n in range(10)), "a train 3"]
    assert chooser.choose(texts, ROWS) == [f"a train {n}" for n in range(8)]


def test_whole_texts_come_before_parts(chooser: CanaryChooser) -> None:
    texts = ["soup " * n for n in (500, 300, 200, 100, 50)]
    assert chooser.choose(texts, ROWS) == ["soup " * n for n in (50, 100, 200, 300)]


def test_long_texts_are_cut_at_the_end_of_a_word(chooser: CanaryChooser) -> None:
    texts = [f"{n} " + "train " * 400 for n in range(10, 50)]
    chosen = chooser.choose(texts, ROWS)
    assert chosen == [(f"{n} " + "train " * 333)[:-1] for n in range(10, 14)]


def test_texts_that_begin_alike_give_several_parts_each(chooser: CanaryChooser) -> None:
    preamble = "dear reader " * 200
    first = "dear reader " * 166 + "dear"
    chosen = chooser.choose([f"{preamble}{n}" for n in "abc"], ROWS)
    assert len(set(chosen)) == len(chosen) == 4
    assert chosen[0] == first and all(len(text) <= 2000 for text in chosen)


def test_a_long_text_without_spaces_is_cut_all_the_same(chooser: CanaryChooser) -> None:
    texts = [letter * 7000 for letter in "長山川田"]
    assert chooser.choose(texts, ROWS) == [letter * 2000 for letter in "長山川田"]


def test_both_texts_of_a_pair_are_cut(chooser: CanaryChooser) -> None:
    texts = [(f"{n} " + "train " * 400, "a film") for n in range(9)]
    for first, second in chooser.choose(texts, ROWS):
        assert len(first) <= 2000 and first.endswith("train") and second == "a film"


@pytest.mark.parametrize("labels", (3, 101, 401, 1000))
def test_all_tokens_of_a_token_task_have_room(tiny_encoder: LoadedEncoder, labels: int) -> None:
    chooser = CanaryChooser(tiny_encoder, "token", labels, 64)
    texts = [f"{n} the train to the coast leaves at nine " * 60 for n in range(40)]
    chosen = chooser.choose(texts, ROWS)
    assert len(set(chosen)) == 4
    tokens = [len(row.token_ids) for row in tiny_encoder.tokenizer.encode(chosen, 64)]
    assert sum(tokens) * labels <= MAX_CANARY_LOGITS
    assert all(count > 2 for count in tokens)


def test_what_cannot_be_is_said_before_the_training(
    options: TrainOptions, tiny_encoder: LoadedEncoder, tmp_path: Path
) -> None:
    small = tmp_path / "small.csv"
    small.write_text("text,label\na film,film\nthe soup,food\n")
    begun = _Begun()
    with pytest.raises(TooFewRowsError, match="2 different texts, at least 4"):
        train(replace(options, train=small, dev=small), tiny_encoder, begun)
    assert begun.stages == []


def test_rows_of_long_texts_are_trained(options: TrainOptions, tiny_encoder: LoadedEncoder) -> None:
    words = {"travel": "train ", "food": "soup "}
    rows = [
        {"text": f"{n} " + word * 450, "label": label}
        for n in range(20)
        for label, word in words.items()
    ]
    options.train.write_text("\n".join(map(json.dumps, rows)))
    result = train(options, tiny_encoder)
    check_canaries(read_adapter(result.path.read_bytes()), tiny_encoder)
    assert all(1990 < len(found.text) <= 2000 for found in result.adapter.manifest.canaries)


def test_long_rows_of_many_tags_are_trained(
    options: TrainOptions, tiny_encoder: LoadedEncoder
) -> None:
    tags = [f"B-{n}" for n in range(100)]
    rows = [
        {"tokens": ["the", "train", "to", str(n)] * 20, "tags": ["O", tag, "O", "O"] * 20}
        for n, tag in enumerate(tags)
    ]
    options.train.write_text("\n".join(map(json.dumps, rows)))
    result = train(replace(options, dev=options.train), tiny_encoder)
    check_canaries(read_adapter(result.path.read_bytes()), tiny_encoder)


class _Begun(NoProgress):
    def __init__(self) -> None:
        self.stages: list[str] = []

    def start(self, stage: str, total: int, unit: str) -> None:
        self.stages.append(stage)


@pytest.fixture
def options(tmp_path: Path) -> TrainOptions:
    return TrainOptions(
        task="long",
        train=tmp_path / "rows.jsonl",
        out=tmp_path / "long.safetensors",
        cache_dir=tmp_path / "cache",
        settings=TrainerSettings(epochs=1, least_steps=0, batch_rows=8),
        sizes={"width": 8},
    )
