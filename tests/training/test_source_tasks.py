"""Labelled sets for an encoder: which are read, and how batches are drawn from them."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from labelmux_training.corpus import SHORT_TOKENS
from labelmux_training.errors import OptionsError
from labelmux_training.source_tasks import SourceTask, TaskSampler, choose_sets, read_task


def write_set(folder: Path, name: str, rows: int, pair: bool) -> None:
    with gzip.open(folder / f"{name}.jsonl.gz", "wt") as out:
        for number in range(rows):
            row = {"text": "the bus to the coast " * (1 + number % 7), "label": f"l{number % 3}"}
            out.write(json.dumps(row | ({"pair": "it leaves at nine"} if pair else {})) + "\n")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    write_set(folder, "moods", 400, pair=False)
    write_set(folder, "links", 100, pair=True)
    write_set(folder, "help_and_or", 5, pair=True)
    return folder


@pytest.fixture
def tokenizer(teacher: Path) -> Tokenizer:
    return Tokenizer.from_file(str(teacher / "tokenizer.json"))


@pytest.fixture
def tasks(source: Path, tokenizer: Tokenizer) -> list[SourceTask]:
    names = choose_sets(source, None)
    return [read_task(source / f"{name}.jsonl.gz", tokenizer) for name in names]


def test_all_sets_but_the_one_that_saw_an_evaluation_set(source: Path) -> None:
    assert choose_sets(source, None) == ["links", "moods"]
    assert choose_sets(source, ["help_and_or"]) == ["help_and_or"]


def test_a_set_that_is_not_there_is_named_with_those_that_are(source: Path) -> None:
    with pytest.raises(OptionsError, match=r"no mods.*has help_and_or, links, moods"):
        choose_sets(source, ["moods", "mods"])
    with pytest.raises(OptionsError, match="no set"):
        choose_sets(source.parent, None)


def test_a_set_is_read_with_its_labels_and_both_texts(tasks: list[SourceTask]) -> None:
    links, moods = tasks
    assert (links.pair, moods.pair) == (True, False)
    assert links.labels == moods.labels == ("l0", "l1", "l2")
    assert moods.gold[:4].tolist() == [0, 1, 2, 0]
    assert len(links.rows[0]) > len(moods.rows[0])


def test_every_row_comes_once_before_any_comes_again(tasks: list[SourceTask]) -> None:
    moods = tasks[1]
    sampler = TaskSampler([moods], batch_tokens=256, temper=0.5, pair_weight=1.0, seed=1)
    seen = Counter[str]()
    while sum(seen.values()) < len(moods.rows):
        drawn = sampler.draw()
        rows, tokens = drawn.batch.token_ids.shape
        assert rows == len(drawn.gold)
        assert rows * tokens <= 256
        assert tokens <= SHORT_TOKENS
        for ids, mask, gold in zip(
            drawn.batch.token_ids, drawn.batch.mask, drawn.gold, strict=True
        ):
            seen[f"{ids[mask].tolist()} {int(gold)}"] += 1
    expected = Counter(
        f"{row.tolist()} {gold}" for row, gold in zip(moods.rows, moods.gold, strict=True)
    )
    assert seen == expected


def test_sets_are_drawn_by_tempered_size_and_pairs_more_often(tasks: list[SourceTask]) -> None:
    sampler = TaskSampler(tasks, batch_tokens=128, temper=0.5, pair_weight=1.5, seed=1)
    drawn = Counter(sampler.draw().task for _ in range(700))
    # sqrt(100) * 1.5 = 15 against sqrt(400) = 20
    assert drawn["links"] / 700 == pytest.approx(15 / 35, abs=0.06)


def test_equal_seeds_draw_the_same(tasks: list[SourceTask]) -> None:
    first, second = (TaskSampler(tasks, 128, 0.5, 1.0, seed=4) for _ in range(2))
    for _ in range(20):
        one, other = first.draw(), second.draw()
        assert one.task == other.task
        assert one.batch.token_ids.equal(other.batch.token_ids)
