"""``labelmux classify --input``: files in, files out, and runs that broke off."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

#: Quotes, commas, newlines, carriage returns, empty texts, other scripts.
TEXTS = [
    "win!",
    'she said "no", twice',
    "two\nlines, one text!",
    "carriage\rreturn",
    "",
    "für Elise, 你好",
    "  blanks around  ",
]
ROWS = [
    {"id": str(number), "text": f"{TEXTS[number % len(TEXTS)]}", "note": f"n,{number}"}
    for number in range(40)
]


def as_csv(rows, delimiter=","):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_jsonl(rows):
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def files(tmp_path):
    """An input of ``ROWS`` and where the output goes."""
    source = tmp_path / "in.csv"
    source.write_bytes(as_csv(ROWS))
    return source, tmp_path / "out.csv"


@pytest.fixture
def run(labelmux, server, files):
    def call(*args, source=files[0], target=files[1]):
        given = args or ("--task", "spam")
        return labelmux("classify", "--input", source, "--output", target, *given, url=server.url)

    return call


def test_rows_come_back_with_a_column_for_each_answer(run, server, files):
    server.tasks["tone"] = server.tasks["spam"]
    done = run("--task", "spam", "--task", "tone@1")
    assert (done.code, done.out) == (0, "")
    found = read_csv(files[1])
    assert [{name: row[name] for name in ROWS[0]} for row in found] == ROWS
    for row in found:
        best = "spam" if "!" in row["text"] else "ham"
        for task in ("spam", "tone@1"):
            answer = (row[f"{task}.label"], row[f"{task}.score"], row[f"{task}.version"])
            assert answer == (best, "0.75", "1")
        assert row["error"] == ""


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("to", ["csv", "tsv", "jsonl"])
def test_every_form_goes_in_and_comes_out(run, tmp_path, form, to, packed):
    rows = [{"id": str(at), "sentence": text} for at, text in enumerate(["win!", "a b", "c"])]
    source, target = tmp_path / f"x.{form}", tmp_path / f"y.{to}"
    data = as_jsonl(rows) if form == "jsonl" else as_csv(rows, {"csv": ",", "tsv": "\t"}[form])
    if packed:
        source, data = tmp_path / f"x.{form}.gz", gzip.compress(data)
    source.write_bytes(data)
    assert run(source=source, target=target).code == 0
    text = target.read_text()
    if to == "jsonl":
        found = [json.loads(line) for line in text.splitlines()]
        assert [{name: row[name] for name in rows[0]} for row in found] == rows
        labels = [row["predictions"]["spam"]["labels"][0]["label"] for row in found]
    else:
        found = list(csv.DictReader(io.StringIO(text), delimiter={"csv": ",", "tsv": "\t"}[to]))
        assert [{name: row[name] for name in rows[0]} for row in found] == rows
        labels = [row["spam.label"] for row in found]
    assert labels == ["spam", "ham", "ham"]


def test_a_table_of_tabs_keeps_its_cells_but_for_what_ends_them(run, tmp_path):
    source, target = tmp_path / "in.tsv", tmp_path / "out.tsv"
    cells = ["a\u2028b", "a\x85b", "a\x0bb", "a\x0cb", "a\x1cb", ' a "b" ']
    source.write_bytes("".join(f"{cell}\n" for cell in ["text", *cells]).encode())
    assert run(source=source, target=target).code == 0
    rows = target.read_bytes().decode().split("\n")[1:-1]
    assert [row.split("\t")[0] for row in rows] == cells
    source = tmp_path / "in.jsonl"
    source.write_bytes(as_jsonl([{"text": "a\r\nb\rc\nd\te\n"}]))
    target.unlink()
    assert run(source=source, target=target).code == 0
    assert target.read_bytes().split(b"\n")[1].startswith(b"a b c d e \t")
    assert run(source=source, target=target).code == 0


def test_what_each_kind_of_task_says_in_a_table(run, server, files):
    common = {"truncated": False, "windows": 1, "calibrated": True}
    labels = [{"label": "a", "score": 0.9}, {"label": "b", "score": 0.7}]
    span = {"label": "person", "start": 0, "end": 3, "text": "Ada", "score": 0.9}
    for answer, label, score in (
        ({"task_kind": "multi_label", "labels": labels, "predicted": ["a", "b"]}, "a|b", "0.9|0.7"),
        ({"task_kind": "multi_label", "labels": labels, "predicted": []}, "", ""),
        ({"task_kind": "single_label", "labels": labels, "abstained": True}, "", "0.9"),
        ({"task_kind": "token", "spans": [span]}, json.dumps([span]), ""),
    ):
        server.tasks["spam"].answer = common | answer
        files[1].unlink(missing_ok=True)
        assert run().code == 0
        first = read_csv(files[1])[0]
        assert (first["spam.label"], first["spam.score"]) == (label, score)


def test_pairs_and_all(run, server, tmp_path):
    server.tasks["same"] = type(server.tasks["spam"])(pair=True, files=[b"adapter two"])
    source = tmp_path / "pairs.csv"
    source.write_bytes(b"premise,hypothesis\na!,b\n")
    for target, args in (
        ("one.csv", ("--task", "same")),
        ("two.csv", ("--all", "--pair-column", "hypothesis", "--text-column", "premise")),
    ):
        assert run(*args, source=source, target=tmp_path / target).code == 0
        assert json.loads(server.requests[-1][2]) == {"text": "a!", "pair": "b"}
        assert read_csv(tmp_path / target)[0]["same.label"] == "spam"
    done = run("--task", "same", "--task", "spam", source=source)
    assert (done.code, "ask them apart" in done.err) == (2, True)


def test_a_line_that_cannot_be_answered_has_its_error_and_the_run_goes_on(run, server, files):
    server.line_errors["win!"] = "text_too_long"
    assert run().code == 1
    found = read_csv(files[1])
    assert len(found) == len(ROWS)
    told = [row["error"] for row in found if row["text"] == "win!"]
    assert set(told) == {"text_too_long: no"}
    assert all(row["error"] == "" for row in found if row["text"] != "win!")


def test_an_error_that_passes_ends_the_run_and_never_stands_in_the_output(run, server, files):
    whole = files[1].with_name("whole.csv")
    run(target=whole)
    server.line_errors["für Elise, 你好"] = "timeout"
    assert run().code == 1
    assert len(read_csv(files[1])) == 5
    server.line_errors.clear()
    done = run()
    assert (done.code, "5 of 40 rows are there" in done.err) == (0, True)
    assert files[1].read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("to", ["csv", "tsv", "jsonl"])
def test_a_run_goes_on_wherever_the_one_before_was_cut_off(run, files, tmp_path, to):
    whole, target = tmp_path / f"whole.{to}", tmp_path / f"cut.{to}"
    source = files[0]
    if to == "tsv":
        source = tmp_path / "in.tsv"
        source.write_bytes(b"text\tid\n" + b"".join(b"win! %d\t%d\n" % (at, at) for at in range(9)))
    assert run(source=source, target=whole).code == 0
    data = whole.read_bytes()
    cuts = {0, 1, len(data) - 1, len(data), *random.Random(7).sample(range(len(data)), 60)}
    for cut in cuts:
        target.write_bytes(data[:cut])
        done = run(source=source, target=target)
        assert done.code == 0, (cut, done.err)
        assert target.read_bytes() == data, cut


def test_what_is_there_is_not_asked_again(run, server, files):
    run()
    server.requests.clear()
    assert run().code == 0
    assert [method for method, _, _ in server.requests] == ["GET"]


@pytest.mark.parametrize("to", ["csv", "jsonl"])
def test_a_changed_input_is_noticed(run, files, tmp_path, to):
    source, target = files[0], tmp_path / f"out.{to}"
    run(target=target)
    data = target.read_bytes()
    changed = [dict(row) for row in ROWS]
    changed[3]["note"] = "other"
    shorter, longer = ROWS[:-1], [*ROWS, {"id": "x", "text": "more", "note": ""}]
    renamed = [{"nr": row["id"], "text": row["text"], "note": row["note"]} for row in ROWS]
    for rows in (changed, shorter, renamed):
        source.write_bytes(as_csv(rows))
        done = run(target=target)
        assert (done.code, "has changed" in done.err) == (1, True), done.err
        assert target.read_bytes() == data
    source.write_bytes(as_csv(longer))
    assert run(target=target).code == 0
    assert target.read_bytes().startswith(data)
    # Cut within the row that has changed: its beginning tells.
    source.write_bytes(as_csv(changed))
    fourth = data.index(b"n,3") + 3
    target.write_bytes(data[:fourth])
    done = run(target=target)
    assert (done.code, "has changed" in done.err) == (1, True)


@pytest.mark.parametrize("to", ["csv", "jsonl"])
def test_other_tasks_and_other_files_are_noticed(run, server, tmp_path, to):
    target = tmp_path / f"out.{to}"
    server.tasks["tone"] = server.tasks["spam"]
    run(target=target)
    data = target.read_bytes()
    for asked in (["tone"], ["spam", "tone"]):
        tasks = [part for task in asked for part in ("--task", task)]
        assert run(*tasks, target=target).code == 1
        assert target.read_bytes() == data
    for other in (b"my notes", b"my notes\n", b"id,text\n1,2\n", as_jsonl(ROWS)):
        target.write_bytes(other)
        done = run(target=target)
        assert (done.code, "remove it" in done.err) == (1, True) or "not JSON" in done.err
        assert target.read_bytes() == other


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_the_input_is_never_the_output(run, tmp_path, form):
    source = tmp_path / f"in.{form}"
    linked = tmp_path / f"linked.{form}"
    # Without its last newline, the last row would pass for one that was cut off.
    source.write_bytes((as_csv(ROWS) if form == "csv" else as_jsonl(ROWS)).rstrip())
    linked.symlink_to(source)
    before = source.read_bytes()
    for target in (source, linked):
        done = run(source=source, target=target)
        assert (done.code, "name another file" in done.err) == (2, True), done.err
        assert source.read_bytes() == before


def test_lines_that_no_task_could_answer_count_as_done(run, server, tmp_path):
    server.line_errors["win!"] = "text_too_long"
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(as_jsonl(ROWS))
    assert run(source=source, target=target).code == 1
    server.requests.clear()
    assert run(source=source, target=target).code == 0
    assert [method for method, _, _ in server.requests] == ["GET"]


@pytest.mark.parametrize(
    ("name", "data", "code", "problem"),
    [
        ("x.csv", b"text\n\xff\n", 1, "line 2: not UTF-8"),
        ("x.csv", b'text\n"open\n', 1, "bad CSV"),
        ("x.csv", b"text,b\na\n", 1, "line 2: 1 fields"),
        ("x.csv", b"text,text\na,b\n", 1, "repeats 'text'"),
        ("x.csv", b"", 1, "no rows"),
        ("x.csv", b"a,b\n1,2\n", 2, "--text-column"),
        ("x.csv", b"text,spam.label\n1,2\n", 2, "'spam.label' already"),
        ("x.jsonl", b'{"text": "a"}\n[1]\n', 1, "line 2: not a JSON object"),
        ("x.jsonl", b'{"text": "a"}\n{"text": 1}\n', 1, "line 2: 'text' is not text"),
        ("x.jsonl", b'{"text": "a"}\n{\n', 1, "line 2: not JSON"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "a", "b": 1}\n', 1, "name the output .jsonl"),
        ("x.csv.gz", b"no gzip", 1, "damaged gzip"),
        ("x.txt", b"a", 2, "name it .csv"),
    ],
)
def test_an_input_that_cannot_be_read_is_told(run, files, tmp_path, name, data, code, problem):
    path = tmp_path / name
    path.write_bytes(data)
    done = run(source=path)
    assert done.code == code, done.err
    assert problem in done.err


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--input", "a.csv", "--task", "spam"], "go together"),
        (["--output", "a.csv", "--task", "spam"], "go together"),
        (["hi", "--input", "a.csv", "--output", "b.csv", "--task", "spam"], "leave out TEXT"),
    ],
)
def test_a_command_line_without_sense_ends_in_2(labelmux, args, problem):
    done = labelmux("classify", *args)
    assert (done.code, problem in done.err) == (2, True)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_a_run_that_the_server_keeps_waiting(server, tmp_path):
    server.stalling_text = "stall"
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    rows = [{"id": str(at), "text": "win!" if at < 256 else "stall"} for at in range(5 * 256)]
    source.write_bytes(as_csv(rows))
    arguments = ["--input", source, "--output", target, "--task", "spam", "--url", server.url]
    with start("classify", *arguments) as running:
        try:
            for _ in range(4):  # the answers to the first 256 rows have been taken
                assert server.stalled.acquire(timeout=60)
            running.send_signal(signal.SIGINT)
            _, err = running.communicate(timeout=30)
        finally:
            running.kill()
    assert (running.returncode, b"Traceback" in err) == (130, False), err
    assert [row["id"] for row in read_csv(target)] == [row["id"] for row in rows[:256]]
    assert target.read_bytes().endswith(b"\n")


@pytest.mark.slow
def test_runs_that_are_killed_add_up_to_an_unbroken_one(labelmux, server, tmp_path):
    rows = [
        {"id": str(at), "text": f"{TEXTS[at % len(TEXTS)]} {at}", "note": "x" * (at % 97)}
        for at in range(20_000)
    ]
    source, whole, target = (tmp_path / name for name in ("in.csv", "whole.csv", "out.csv"))
    source.write_bytes(as_csv(rows))
    arguments = ["classify", "--input", source, "--task", "spam", "--url", server.url, "--output"]
    assert labelmux(*arguments, whole).code == 0
    size = whole.stat().st_size
    draw, kills = random.Random(11), 0
    while kill_beyond(target, draw.randrange(size // 4) + done_bytes(target), [*arguments, target]):
        kills += 1
        assert kills < 100
    assert kills >= 5
    assert target.read_bytes() == whole.read_bytes()


def start(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "labelmux_cli.main", *map(str, arguments)]
    environment = os.environ | {"NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=environment)


def done_bytes(target: Path) -> int:
    return target.stat().st_size if target.exists() else 0


def kill_beyond(target: Path, size: int, arguments: list) -> bool:
    """Run the command and kill it once the output has so many bytes; False if it ended before."""
    with start(*arguments) as process:
        while process.poll() is None:
            if done_bytes(target) > size:
                process.send_signal(signal.SIGKILL)
                process.wait()
                return True
        assert process.returncode == 0, process.stderr.read()
        return False
