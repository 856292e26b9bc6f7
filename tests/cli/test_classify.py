"""``labelmux classify``: where texts come from, and what is printed."""

import json

import pytest

from labelmux_cli.texts import rows_of_lines


def test_arguments_give_a_table(labelmux, server):
    done = labelmux("classify", "win!", "see you", "--task", "spam", url=server.url)
    assert (done.code, done.err) == (0, "")
    rows = [line.split() for line in done.out.splitlines()[1:]]
    assert rows == [
        ["win!", "spam", "spam", "0.750,", "ham", "0.250"],
        ["see", "you", "spam", "ham", "0.750,", "spam", "0.250"],
    ]


def test_arguments_with_json_give_one_object(labelmux, server):
    done = labelmux("classify", "win!", "--task", "spam", "--json", url=server.url)
    (result,) = done.json["results"]
    assert result["text"] == "win!"
    assert result["predictions"]["spam"]["labels"][0] == {"label": "spam", "score": 0.75}
    assert result["predictions"]["spam"]["version"] == 1


def test_stdin_lines_give_json_lines(labelmux, server):
    done = labelmux("classify", "--task", "spam", "--json", url=server.url, stdin="win!\r\n\nhi\n")
    assert [line["text"] for line in done.lines] == ["win!", "hi"]
    best = [line["predictions"]["spam"]["labels"][0]["label"] for line in done.lines]
    assert best == ["spam", "ham"]


def test_jsonl_keeps_the_other_fields(labelmux, server, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 7, "text": "win!"}\n"a bare string"\n')
    done = labelmux("classify", "--file", path, "--task", "spam", "--json", url=server.url)
    first, second = done.lines
    assert (first["id"], first["text"]) == (7, "win!")
    assert second["text"] == "a bare string"


def test_a_file_without_json_gives_a_table(labelmux, server, tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text('{"text": "not JSON in a .txt"}\n')
    done = labelmux("classify", "--file", path, "--task", "spam", url=server.url)
    assert '{"text"' in done.out


def test_pairs_from_arguments_lines_and_jsonl(labelmux, server):
    server.tasks["same"] = server.tasks["spam"]
    server.tasks["same"].pair = True
    done = labelmux("classify", "a!", "b", "--pair", "--task", "same", "--json", url=server.url)
    assert (done.json["results"][0]["text"], done.json["results"][0]["pair"]) == ("a!", "b")
    for stdin in ("a!\tb\n", '{"text": "a!", "pair": "b"}\n'):
        done = labelmux(
            "classify", "--pair", "--task", "same", "--json", url=server.url, stdin=stdin
        )
        assert done.lines[0]["pair"] == "b"
    assert json.loads(server.requests[-1][2])["pairs"] == [["a!", "b"]]


def test_a_task_of_pairs_says_how_to_ask(labelmux, server):
    server.tasks["spam"].pair = True
    done = labelmux("classify", "a", "--task", "spam", url=server.url)
    assert done.code == 1
    assert "give --pair and two texts" in done.err


def test_all_asks_every_task_and_several_ask_those(labelmux, server):
    server.tasks["tone"] = server.tasks["spam"]
    done = labelmux("classify", "hi", "--all", "--json", url=server.url)
    assert set(done.json["results"][0]["predictions"]) == {"spam", "tone"}
    labelmux("classify", "hi", "--task", "spam", "--task", "tone", url=server.url)
    assert json.loads(server.requests[-1][2])["tasks"] == ["spam", "tone"]


def test_a_task_that_fails_beside_others_ends_in_1(labelmux, server):
    arguments = ("classify", "hi", "--task", "spam", "--task", "none")
    done = labelmux(*arguments, "--json", url=server.url)
    predictions = done.lines[0]["results"][0]["predictions"]
    assert predictions["none"]["error"]["code"] == "task_not_found"
    assert predictions["spam"]["labels"][0]["label"] == "ham"
    assert done.code == 1
    people = labelmux(*arguments, url=server.url)
    assert people.code == 1
    assert "none: task_not_found" in people.out


COMMON = {"truncated": False, "windows": 1, "calibrated": True}
SPAN = {"label": "person", "start": 0, "end": 3, "text": "Ada", "score": 0.9}


def test_spans_are_shown_with_what_they_are(labelmux, server):
    server.tasks["spam"].answer = COMMON | {"task_kind": "token", "spans": [SPAN]}
    assert "person Ada 0.900" in labelmux("classify", "Ada", "--task", "spam", url=server.url).out
    done = labelmux("classify", "Ada", "--task", "spam", "--json", url=server.url)
    prediction = done.json["results"][0]["predictions"]["spam"]
    assert prediction["spans"] == [SPAN]
    assert not {"labels", "predicted", "abstained"} & set(prediction)
    server.tasks["spam"].answer["spans"] = []
    assert "nothing" in labelmux("classify", "Ada", "--task", "spam", url=server.url).out


def test_a_task_that_is_not_sure_says_so(labelmux, server):
    labels = [{"label": "spam", "score": 0.5}, {"label": "ham", "score": 0.4}]
    unsure = COMMON | {"task_kind": "single_label", "labels": labels, "abstained": True}
    server.tasks["spam"].answer = unsure
    assert "(not sure)" in labelmux("classify", "hm", "--task", "spam", url=server.url).out
    several = COMMON | {"task_kind": "multi_label", "labels": labels, "predicted": ["spam"]}
    server.tasks["spam"].answer = several
    done = labelmux("classify", "hm", "--task", "spam", "--json", url=server.url)
    assert done.json["results"][0]["predictions"]["spam"]["predicted"] == ["spam"]
    people = labelmux("classify", "hm", "--task", "spam", url=server.url)
    assert "spam 0.500" in people.out and "ham" not in people.out


def test_windows_reach_the_server(labelmux, server):
    arguments = ("classify", "hi", "--task", "spam", "--windows", "--aggregation", "max")
    labelmux(*arguments, "--overlap-tokens", 8, url=server.url)
    wanted = {"overlap_tokens": 8, "aggregation": "max"}
    assert json.loads(server.requests[-1][2])["windows"] == wanted
    labelmux("classify", "hi", "--task", "spam", url=server.url)
    assert "windows" not in json.loads(server.requests[-1][2])


def test_options_reach_the_server(labelmux, server):
    labelmux(
        "classify",
        "hi",
        "--task",
        "spam@1",
        "--top-k",
        1,
        "--raw-scores",
        "--no-truncation",
        url=server.url,
    )
    assert json.loads(server.requests[-1][2]) == {
        "task": "spam@1",
        "texts": ["hi"],
        "top_k": 1,
        "raw_scores": True,
        "truncation": False,
    }


def test_many_texts_go_in_several_calls_in_order(labelmux, server):
    texts = [f"text {number}" for number in range(150)]
    done = labelmux("classify", "--task", "spam", "--json", url=server.url, stdin="\n".join(texts))
    assert [line["text"] for line in done.lines] == texts
    assert [len(json.loads(body)["texts"]) for _, _, body in server.requests] == [64, 64, 22]


def test_calls_shrink_to_what_the_server_takes(labelmux, server):
    server.max_texts = 20
    texts = [f"text {number}" for number in range(64)]
    done = labelmux("classify", "--task", "spam", "--json", url=server.url, stdin="\n".join(texts))
    assert done.code == 0
    assert [line["text"] for line in done.lines] == texts


def test_texts_that_look_like_markup_or_steer_terminals_are_shown_plainly(labelmux, server):
    out = labelmux("classify", "[bold]hi[/bold] \x1b[2J", "--task", "spam", url=server.url).out
    assert "[bold]hi[/bold]" in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("stdin", "args", "problem"),
    [
        (b"fine\n\xff\n", [], "stdin, line 2: not UTF-8"),
        ('{"text": "a"}\n{"text": 3}\n', [], "line 2"),
        ('{"text": "a"}\nplain\n', [], "line 2: not JSON"),
        ('{"text": "\\ud800"}\n', [], "half a character"),
        ("no tab\n", ["--pair"], "a tab between"),
        ('{"text": "a"}\n', ["--pair"], '"pair"'),
    ],
)
def test_a_bad_line_is_named(labelmux, server, stdin, args, problem):
    done = labelmux("classify", "--task", "spam", *args, url=server.url, stdin=stdin)
    assert done.code == 1
    assert problem in done.err


@pytest.mark.parametrize("max_texts", [256, 20])
def test_a_text_that_the_server_refuses_is_named_by_its_line(labelmux, server, tmp_path, max_texts):
    server.max_texts = max_texts
    path = tmp_path / "rows.txt"
    path.write_text("".join(f"{'x' * (2000 if at == 70 else 2)}\n" for at in range(1, 101)))
    arguments = ("classify", "--file", path, "--task", "spam")
    done = labelmux(*arguments, "--json", url=server.url)
    *answers, last = done.lines
    assert (done.code, done.err) == (1, f"error: {path}, line 70 has too much\n")
    assert len(answers) == 64
    told = {"code": "text_too_long", "message": f"{path}, line 70 has too much"}
    assert last["error"] == told | {"where": f"{path}, line 70", "request_id": "r-1"}
    people = labelmux(*arguments, url=server.url)
    assert (people.code, people.err) == (1, done.err)
    assert people.out.count("spam") == 64 * 2


def test_a_text_that_the_server_refuses_is_named_by_its_argument(labelmux, server):
    done = labelmux("classify", *["hi"] * 70, "x" * 2000, "--task", "spam", url=server.url)
    assert done.err == "error: argument 71 has too much\n"
    long = "x" * 2000
    done = labelmux("classify", "a", "b", "c", long, "--pair", "--task", "spam", url=server.url)
    assert done.err == "error: pair 2 has too much\n"


def test_a_failure_of_one_task_names_the_line_too(labelmux, server, monkeypatch):
    def predict(name, text, body):
        index = body["texts"].index(text)
        return {"error": {"code": "text_truncated", "message": f"text {index} is over", "index": 0}}

    monkeypatch.setattr(server, "_predict", predict)
    arguments = ("--task", "spam", "--task", "tone", "--json")
    done = labelmux("classify", *arguments, url=server.url, stdin="a\n\nb\n")
    told = [line["predictions"]["spam"]["error"]["message"] for line in done.lines[:2]]
    assert told == ["stdin, line 1 is over", "stdin, line 3 is over"]


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["hi"], "--task"),
        (["hi", "--task", "spam", "--all"], "--task"),
        (["hi", "--task", "spam", "--file", "x"], "not both"),
        (["a", "b", "c", "--pair", "--task", "spam"], "two by two"),
        (["hi", "--task", "spam", "--top-k", "0"], "--top-k"),
        (["hi", "--task", "spam", "--url", "127.0.0.1:8000"], "http://"),
        (["hi", "--task", "spam", "--key", "a\nb"], "the key"),
    ],
)
def test_a_command_line_without_sense_ends_in_2(labelmux, args, problem):
    done = labelmux("classify", *args)
    assert (done.code, done.out) == (2, "")
    assert problem in done.err


def test_rows_are_read_as_they_come():
    def lines():
        yield b"first\n"
        raise AssertionError("read ahead")

    rows = rows_of_lines(lines(), "stdin", pair=False, form="auto")
    assert next(rows).text == "first"
