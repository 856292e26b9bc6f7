"""train, evaluate and inspect on a small encoder and a few rows."""

import dataclasses
import inspect
import json

import pytest

ROWS = [
    ("the train leaves at nine", "travel"),
    ("the bus to the coast at ten", "travel"),
    ("a train to the country", "travel"),
    ("the bus leaves for the capital", "travel"),
    ("a good film with a warm heart", "film"),
    ("a great and lovely film", "film"),
    ("a terrible film with a slow start", "film"),
    ("it's an awful film, nobody cared", "film"),
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A labelled CSV of 24 rows."""
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    lines = [f'"{text}{mark}",{label}' for mark in ("", "!", " now") for text, label in ROWS]
    path.write_text("text,label\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture
def quick(tiny_encoder_folder, tmp_path):
    """Options that make a training short."""
    return (
        *("--encoder", tiny_encoder_folder, "--cache-dir", tmp_path / "cache"),
        *("--epochs", 2, "--width", 8, "--heads", 2, "--max-tokens", 32),
    )


@pytest.mark.slow
def test_train_writes_an_adapter_that_evaluate_and_inspect_read(
    labelmux, rows, quick, tmp_path, tiny_encoder_folder
):
    out = tmp_path / "topic.safetensors"
    done = labelmux(
        *("train", "--task", "topic", "--train", rows, "--dev", rows, "--out", out),
        *(*quick, "--probe", "--note", "licence=ours", "--json"),
    )
    assert done.code == 0, done.err
    assert done.out.count("\n") == 1
    assert {"accuracy", "macro_f1", "ece", "rows", "task", "probe_dev"} <= done.json.keys()
    assert (done.json["rows"], done.json["labels"]) == (24, ["film", "travel"])
    assert out.stat().st_size == done.json["size_bytes"]
    assert (tmp_path / "report.html").is_file()
    assert "encode train: " in done.err

    scored = labelmux("evaluate", out, rows, "--encoder", tiny_encoder_folder, "--json")
    assert scored.code == 0, scored.err
    assert scored.json["accuracy"] == pytest.approx(done.json["accuracy"])
    assert scored.json["rows"] == 24
    people = labelmux("evaluate", out, rows, "--encoder", tiny_encoder_folder)
    assert "Accuracy" in people.out
    assert f"{done.json['accuracy']:.4f}" in people.out

    seen = labelmux("inspect", out, "--json").json
    assert seen["digest"] == done.json["digest"]
    assert seen["manifest"]["labels"] == ["film", "travel"]
    assert seen["manifest"]["card"]["licence"] == "ours"
    people = labelmux("inspect", out)
    assert "film, travel" in people.out
    assert "card: licence" in people.out


def test_train_tells_people_what_it_made_and_what_comes_next(
    labelmux, rows, quick, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    done = labelmux("train", "--task", "topic", "--train", rows, *quick)
    assert done.code == 0, done.err
    assert "Macro F1" in done.out
    assert "labelmux push topic.safetensors --task topic" in done.out
    assert "held out as dev" in done.err
    assert (tmp_path / "topic.safetensors").is_file()


def test_evaluate_asks_one_version_of_a_running_server(labelmux, server, tmp_path):
    data = tmp_path / "rows.jsonl"
    texts = [("win!", "spam"), ("hi", "ham"), ("hello!", "ham"), ("x" * 300, "ham")] * 20
    data.write_text("".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in texts))
    done = labelmux("evaluate", "--task", "spam", data, "--json", url=server.url)
    assert done.code == 0, done.err
    assert done.json["accuracy"] == 0.75
    assert done.json["ece"] == pytest.approx(0.0)
    assert (done.json["rows"], done.json["truncated"]) == (80, 20)
    bodies = [json.loads(body) for _, path, body in server.requests if path == "/v1/classify"]
    assert [body["task"] for body in bodies] == ["spam@1", "spam@1"]
    people = labelmux("evaluate", "--task", "spam@1", data, url=server.url)
    assert "20 texts were longer" in people.out


COMMON = {"truncated": False, "windows": 1, "calibrated": True}


def test_evaluate_counts_spans_and_labels_of_a_running_server(labelmux, server, tmp_path):
    names = server.tasks["spam"]
    names.kind, names.labels = "token", ["O", "B-person", "I-person"]
    span = {"label": "person", "start": 0, "end": 3, "text": "Ada", "score": 0.9}
    names.answer = COMMON | {"task_kind": "token", "spans": [span]}
    data = tmp_path / "rows.conll"
    data.write_text("Ada B-person\nran O\n\nAda B-person\nByron I-person\n")
    done = labelmux("evaluate", "--task", "spam", data, "--json", url=server.url)
    assert done.code == 0, done.err
    assert (done.json["f1"], done.json["rows"]) == (0.5, 2)
    assert "Span F1" in labelmux("evaluate", "--task", "spam", data, url=server.url).out

    names.kind, names.labels = "multi_label", ["joy", "fear"]
    labels = [{"label": "joy", "score": 0.9}, {"label": "fear", "score": 0.2}]
    names.answer = COMMON | {"task_kind": "multi_label", "labels": labels, "predicted": ["joy"]}
    data = tmp_path / "rows.csv"
    data.write_text("text,label\na,joy\nb,joy;fear\n")
    arguments = ("evaluate", "--task", "spam", data, "--label-delimiter", ";")
    done = labelmux(*arguments, "--json", url=server.url)
    assert done.code == 0, done.err
    assert (done.json["subset_accuracy"], done.json["macro_f1"]) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("args", "code", "problem"),
    [
        (["evaluate", "DATA"], 2, "ADAPTER.safetensors and DATA"),
        (["evaluate", "--task", "spam", "DATA", "DATA"], 2, "the labelled file alone"),
        (["evaluate", "DATA", "DATA"], 1, "safetensors"),
        (["evaluate", "none.safetensors", "DATA"], 1, "none.safetensors: no such file"),
        (["train", "--task", "x", "--train", "none.csv"], 1, "none.csv"),
        (["train", "--task", "x", "--train", "DATA", "--out", "x.bin"], 2, ".safetensors"),
        (["train", "--task", "x", "--train", "DATA", "--note", "free"], 2, "KEY=TEXT"),
        (["train", "--task", "x", "--train", "DATA", "--text-column", "no"], 1, "'no'"),
        (["train", "--task", "x", "--train", "DATA", "--learning-rate", "0"], 2, "learning_rate"),
        (["train", "--task", "x", "--train", "DATA", "--kind", "token"], 1, "is no list"),
        (["train", "--task", "x", "--train", "DATA", "--kind", "many"], 2, "--kind"),
        (["train", "--task", "x", "--train", "DATA", "--abstain-at-accuracy", "95"], 2, "0.95"),
        (["train", "--task", "x", "--train", "DATA", "--method", "mix"], 2, "unipelt"),
        (["train", "--task", "x", "--train", "DATA", "--rank", "4"], 2, "ytuning has no such"),
        (["train", "--task", "x", "--train", "DATA", "--pooling", "first"], 2, "pooling"),
        (
            ["train", "--task", "x", "--train", "DATA", "--method", "pasta", "--width", "8"],
            2,
            "pasta has no such size",
        ),
        (
            [
                "train",
                "--task",
                "x",
                "--train",
                "DATA",
                "--method",
                "ia3",
                "--token-dropout",
                "0.1",
            ],
            2,
            "token_dropout",
        ),
        (["train", "--task", "x"], 2, "--train"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(labelmux, rows, tmp_path, args, code, problem):
    arguments = [str(rows) if arg == "DATA" else arg for arg in args]
    done = labelmux(*arguments)
    assert done.code == code
    assert problem in done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    if code == 1:
        assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"junk", "not_safetensors"), (b"\xff" * 64, None), (b"\x02\0\0\0\0\0\0\0{}", None)],
)
def test_inspect_refuses_a_broken_file(labelmux, tmp_path, content, code):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    done = labelmux("inspect", path, "--json")
    assert done.code == 1
    assert done.json["error"]["code"] == code or code is None
    assert done.err.startswith(f"error: {path}: adapter file: ")
    assert done.err.count("\n") == 1


def test_inspect_does_not_read_a_file_that_is_far_too_large(labelmux, tmp_path):
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    done = labelmux("inspect", path, "--json")
    assert (done.code, done.json["error"]["code"]) == (1, "file_too_large")


def test_every_setting_of_the_trainer_is_an_option_and_the_method_has_its_default(labelmux):
    from labelmux_cli.train import _LEARNING_HELP, train
    from labelmux_training.options import DEFAULT_MAX_TOKENS, TrainOptions
    from labelmux_training.settings import TrainerSettings

    shown = {
        name: parameter.default for name, parameter in inspect.signature(train).parameters.items()
    }
    settings = {item.name: None for item in dataclasses.fields(TrainerSettings)}
    assert settings.items() <= shown.items()
    assert settings.keys() == _LEARNING_HELP.keys()
    for item in dataclasses.fields(TrainOptions):
        if item.name in shown and item.default is not dataclasses.MISSING:
            assert shown[item.name] == item.default, item.name
    text = labelmux("train", "--help").out
    assert f"; {DEFAULT_MAX_TOKENS} if left out" in text
    assert "--label-start" in text
    assert "0.0005, or by method" in " ".join(text.split())


def test_the_command_names_the_methods_that_there_are():
    from labelmux_adapters.methods import METHODS
    from labelmux_training.settings import METHOD_NAMES

    assert set(METHOD_NAMES) == set(METHODS)


def test_settings_of_the_trainer_reach_it(labelmux, rows, monkeypatch):
    from labelmux_training.errors import TrainingError

    found = []

    def train(options, progress):
        found.append(options)
        raise TrainingError("seen")

    monkeypatch.setattr("labelmux_training.train.train", train)
    arguments = ("--loss", "margin", "--margin", "2.5", "--kind", "multi_label")
    more = ("--label-delimiter", ";", "--abstain-at-accuracy", "0.9")
    done = labelmux("train", "--task", "x", "--train", rows, *arguments, *more)
    assert (done.code, done.err) == (1, "error: seen\n")
    assert (found[0].kind, found[0].columns.delimiter) == ("multi_label", ";")
    assert found[0].abstain_at_accuracy == 0.9
    assert (found[0].settings.loss, found[0].settings.margin) == ("margin", 2.5)
    assert found[0].out.name == "x.safetensors"
