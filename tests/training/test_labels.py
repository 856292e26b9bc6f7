from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from labelmux_training.data import Dataset
from labelmux_training.errors import LabelsError, RowError, TooFewRowsError
from labelmux_training.labels import check_known, choose_labels, label_ids, split_dev
from labelmux_training.rows import Row


def dataset(*labels: str, texts: list[str] | None = None) -> Dataset:
    texts = texts or [f"text {index}" for index in range(len(labels))]
    rows = tuple(
        Row(text, None, (label,), line)
        for line, (text, label) in enumerate(zip(texts, labels, strict=True), start=2)
    )
    return Dataset(Path("rows.csv"), rows, pair=False)


def test_labels_are_sorted_and_numbers_by_value() -> None:
    assert choose_labels(dataset("b", "a", "b")) == ("a", "b")
    assert choose_labels(dataset("10", "9", "-1")) == ("-1", "9", "10")
    assert choose_labels(dataset("10", "9", "x")) == ("10", "9", "x")


def test_a_given_order_is_kept() -> None:
    rows = dataset("b", "a", "b")
    assert choose_labels(rows, ("b", "a")) == ("b", "a")
    assert label_ids(rows, ("b", "a")).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        (None, "all 2 rows have the label 'a'"),
        (("a", "b"), "no row has the label 'b'"),
        (("a", "a"), "'a' is named twice"),
    ],
)
def test_labels_that_make_no_task_are_refused(wanted: tuple[str, ...] | None, problem: str) -> None:
    with pytest.raises(LabelsError, match=problem):
        choose_labels(dataset("a", "a"), wanted)


def test_too_many_labels_are_refused() -> None:
    with pytest.raises(LabelsError, match="1001 labels"):
        choose_labels(dataset(*(f"label {index}" for index in range(1001))))


def test_an_unknown_label_is_named_by_line() -> None:
    with pytest.raises(RowError, match="line 3: unknown label 'c'"):
        check_known(dataset("a", "c"), ("a", "b"))


def test_split_is_stratified_seeded_and_whole() -> None:
    rows = dataset(*(["a"] * 80 + ["b"] * 20))
    train, dev = split_dev(rows, seed=1)
    assert Counter(rows.rows[index].label for index in dev) == {"a": 8, "b": 2}
    assert sorted(train + dev) == list(range(100))
    assert split_dev(rows, seed=1) == (train, dev)
    assert split_dev(rows, seed=2) != (train, dev)


def test_equal_texts_stay_on_one_side() -> None:
    texts = [f"text {index // 2}" for index in range(40)]
    rows = dataset(*(["a", "a"] * 20), texts=texts)
    train, dev = split_dev(rows, seed=1)
    assert not {texts[index] for index in train} & {texts[index] for index in dev}
    assert len(dev) == 4


def test_a_rare_label_stays_in_train_and_nothing_to_split_is_an_error() -> None:
    rows = dataset(*(["a"] * 10 + ["b"] * 2))
    assert {rows.rows[index].label for index in split_dev(rows, seed=1)[1]} == {"a"}
    with pytest.raises(TooFewRowsError, match="2 different texts"):
        split_dev(dataset("a", "a", "b"), seed=1)
