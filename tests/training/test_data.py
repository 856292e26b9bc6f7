from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from labelmux_training.columns import Columns
from labelmux_training.data import Dataset, read_rows
from labelmux_training.errors import ColumnsError, DataFileError, RowError, TooFewRowsError
from labelmux_training.rows import Row


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


FORMS = {
    "rows.csv": 'text,label\r\n"good, really",yes\r\nbad,no\r\n',
    "rows.tsv": "text\tlabel\ngood, really\tyes\nbad\tno\n",
    "rows.jsonl": '{"text": "good, really", "label": "yes"}\n\n{"text": "bad", "label": "no"}\n',
}


@pytest.mark.parametrize("name", [*FORMS, *(f"{name}.gz" for name in FORMS)])
def test_every_form_gives_the_same_rows_and_digest(tmp_path: Path, name: str) -> None:
    found = read_rows(write(tmp_path, name, FORMS[name.removesuffix(".gz")]))
    assert [(row.text, row.pair, row.label) for row in found.rows] == [
        ("good, really", None, "yes"),
        ("bad", None, "no"),
    ]
    assert not found.pair
    same = Dataset(
        tmp_path, (Row("good, really", None, ("yes",), 7), Row("bad", None, ("no",), 9)), False
    )
    assert found.digest == same.digest


def test_digest_changes_with_a_label(tmp_path: Path) -> None:
    first = read_rows(write(tmp_path, "a.tsv", "text\tlabel\nx\tyes\n"))
    second = read_rows(write(tmp_path, "b.tsv", "text\tlabel\nx\tno\n"))
    assert first.digest != second.digest


def test_lines_are_counted_over_quoted_line_ends(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'text,label\n"two\nlines",yes\nnext,no\n')
    assert [row.line for row in read_rows(path).rows] == [2, 4]


def test_quotes_mean_nothing_in_tsv(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", 'text\tlabel\n"quoted\tyes\n')
    assert read_rows(path).rows[0].text == '"quoted'


def test_byte_order_mark_is_not_part_of_a_column(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", b"\xef\xbb\xbftext,label\nx,yes\n")
    assert read_rows(path).rows[0].text == "x"


def test_a_line_separator_inside_json_does_not_end_a_row(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "one\u2028row", "label": "x"}\n')
    assert len(read_rows(path).rows) == 1


def test_columns_are_guessed_whatever_their_case(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "id,Sentence1,Sentence2,Label\n1,a,b,yes\n")
    found = read_rows(path)
    assert found.pair
    assert found.rows[0].input == ("a", "b")


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,label,q,r,goal\nx,y,first,second,win\n")
    row = read_rows(path, Columns(text="q", label="goal", pair="r")).rows[0]
    assert (row.text, row.pair, row.label) == ("first", "second", "win")


def test_a_pair_column_can_be_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,pair,label\na,b,yes\n")
    assert read_rows(path, Columns(pair="")).rows[0].input == "a"


def test_a_second_text_that_the_first_row_lacks_is_not_dropped(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", GOOD + '{"text": "x", "Pair": "y", "label": "a"}\n')
    with pytest.raises(RowError, match=r"line 2: it has a second text, 'Pair'"):
        read_rows(path)
    assert not read_rows(path, Columns(pair="")).pair
    empty = write(tmp_path, "b.jsonl", GOOD + '{"text": "x", "pair": null, "label": "a"}\n')
    assert not read_rows(empty).pair


@pytest.mark.parametrize(
    ("columns", "role"),
    [(Columns(), "text"), (Columns(text="one", label="nope"), "label")],
)
def test_column_errors_list_what_was_found(tmp_path: Path, columns: Columns, role: str) -> None:
    path = write(tmp_path, "a.csv", "one,two\nx,y\n")
    with pytest.raises(ColumnsError, match="'one', 'two'") as caught:
        read_rows(path, columns)
    assert caught.value.role == role


def test_whole_numbers_are_labels(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "x", "label": 3}\n')
    assert read_rows(path).rows[0].label == "3"


GOOD = '{"text": "x", "label": "a"}\n'


@pytest.mark.parametrize(
    ("name", "content", "line", "problem"),
    [
        ("a.jsonl", GOOD + "{oops\n", 2, "not JSON"),
        ("a.jsonl", GOOD + "[1]\n", 2, "not a JSON object"),
        ("a.jsonl", GOOD + '\n{"label": "a"}\n', 3, "no field 'text'"),
        ("a.jsonl", GOOD + '{"text": " ", "label": "a"}\n', 2, "'text' is empty"),
        ("a.jsonl", GOOD + '{"text": 5, "label": "a"}\n', 2, "'text' is not text: 5"),
        ("a.jsonl", GOOD + '{"text": "x", "label": ["a"]}\n', 2, r"not one label: \['a'\]"),
        ("a.jsonl", GOOD + '{"text": "x", "label": true}\n', 2, "not one label: True"),
        ("a.jsonl", GOOD + '{"text": "x", "label": 1.5}\n', 2, "not one label: 1.5"),
        ("a.jsonl", GOOD + '{"text": "x", "label": ""}\n', 2, "'label' is empty"),
        ("a.jsonl", GOOD + '{"text": "\\ud800", "label": "a"}\n', 2, "half a character"),
        ("a.csv", "text,label\nx,a\nx,a,b\n", 3, "3 fields, the header has 2"),
        ("a.csv", f"text,label\nx,{'y' * 201}\n", 2, "201 characters"),
        ("a.csv", 'text,label\nx,a\n"never closed,a\n', 3, "bad CSV"),
        ("a.csv", "text,text\nx,a\n", 1, "repeats 'text'"),
        ("a.tsv", "text\tlabel\nx\n", 2, "1 fields, the header has 2"),
        ("a.csv", b"text,label\nx,a\n\xff,a\n", 3, "not UTF-8"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(
    tmp_path: Path, name: str, content: str | bytes, line: int, problem: str
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(RowError, match=problem) as caught:
        read_rows(path)
    assert caught.value.line == line
    assert str(caught.value).startswith(f"{path}, line {line}: ")


@pytest.mark.parametrize("content", ["", "text,label\n", "\n\n"])
def test_a_file_without_rows_says_so(tmp_path: Path, content: str) -> None:
    with pytest.raises(TooFewRowsError, match="0 rows"):
        read_rows(write(tmp_path, "a.csv", content))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    damaged = tmp_path / "a.csv.gz"
    damaged.write_bytes(gzip.compress(b"text,label\nx,a\n" * 50)[:-12])
    unknown = write(tmp_path, "a.xlsx", "x")
    for path, problem in (
        (tmp_path / "absent.csv", "No such file"),
        (damaged, "damaged gzip"),
        (unknown, "not a kind of file"),
    ):
        with pytest.raises(DataFileError, match=problem):
            read_rows(path)


def test_a_token_of_a_conll_file_keeps_its_own_spaces(tmp_path: Path) -> None:
    path = tmp_path / "sums.conll"
    path.write_bytes("about  O\n10\u00a0000 B-sum\r\neuros O \n\n5\u3000000\tB-sum\r\n".encode())
    first, second = read_rows(path).rows
    assert (first.text, first.labels) == (
        "about 10\u00a0000 euros",
        ("O", "B-sum", "I-sum", "O"),
    )
    assert (second.text, second.labels) == ("5\u3000000", ("B-sum", "I-sum"))
