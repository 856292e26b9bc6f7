from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from labelmux_adapters.canaries import check_canaries
from labelmux_adapters.errors import ForeignEncoderError
from labelmux_adapters.files import read_adapter
from labelmux_encoder.weights import LoadedEncoder
from labelmux_training.columns import Columns
from labelmux_training.data import read_rows
from labelmux_training.errors import DataFileError, OptionsError, RowError, TooFewRowsError
from labelmux_training.evaluate import evaluate
from labelmux_training.options import TrainOptions
from labelmux_training.outputs import write_file
from labelmux_training.progress import NoProgress
from labelmux_training.serving import serve_texts
from labelmux_training.settings import TrainerSettings, settings_for
from labelmux_training.sizes import choose_sizes, share
from labelmux_training.train import TrainResult, train


class Saying(NoProgress):
    """Keeps what the user would be told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def test_the_file_serves_and_says_what_it_is(
    topics: TrainResult, tiny_encoder: LoadedEncoder, topics_train: Path
) -> None:
    adapter = read_adapter(topics.path.read_bytes())
    manifest = adapter.manifest
    check_canaries(adapter, tiny_encoder)
    assert adapter.digest == topics.adapter.digest
    assert manifest.labels == ("film", "food", "travel")
    assert manifest.metrics == topics.dev.to_json()
    assert manifest.data_digest == read_rows(topics_train).digest
    assert manifest.parameters == sum(t.numel() for t in adapter.tensors.values())
    assert 4 <= len(manifest.canaries) <= 8
    assert manifest.card["data"] == "our own"
    assert manifest.card["test"].startswith("accuracy ")
    assert topics.dev.accuracy >= 0.6  # by chance 0.33; what exactly depends on rounding
    assert topics.test is not None
    assert topics.probe_dev is not None
    assert topics.probe_test is not None


def test_evaluate_gives_the_metrics_of_the_manifest(
    topics: TrainResult, tiny_encoder: LoadedEncoder, topics_dev: Path
) -> None:
    found = evaluate(topics.path, topics_dev, loaded=tiny_encoder)
    assert found.metrics.rows == 12
    assert found.metrics.accuracy == topics.dev.accuracy
    assert found.metrics.macro_f1 == topics.dev.macro_f1
    # The features were cached in fp16, so scores differ a little.
    assert found.metrics.ece == pytest.approx(topics.dev.ece, abs=1e-2)
    assert found.to_json().keys() == {"accuracy", "macro_f1", "ece", "rows", "truncated"}


def test_evaluate_refuses_unknown_labels_and_other_encoders(
    topics: TrainResult, tiny_encoder: LoadedEncoder, tmp_path: Path
) -> None:
    strange = tmp_path / "strange.csv"
    strange.write_text("text,label\nthe soup was cold,drink\n")
    with pytest.raises(RowError, match="line 2: unknown label 'drink'"):
        evaluate(topics.path, strange, loaded=tiny_encoder)
    with pytest.raises(OptionsError, match="one text"):
        evaluate(topics.path, strange, Columns(pair="label"), loaded=tiny_encoder)
    other = LoadedEncoder("other", _Renamed(tiny_encoder), tiny_encoder.tokenizer)
    with pytest.raises(ForeignEncoderError):
        serve_texts(topics.adapter, other, ["the soup was cold"])


class _Renamed:
    """An encoder with another fingerprint."""

    def __init__(self, loaded: LoadedEncoder) -> None:
        self.fingerprint = "sha256:" + "f" * 64
        self.config = loaded.encoder.config


def test_the_report_is_one_page_that_needs_nothing(topics: TrainResult) -> None:
    page = topics.report.read_text()
    assert topics.report == topics.path.with_name("report.html")
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "linear probe, test" in page


def test_the_result_is_json(topics: TrainResult) -> None:
    found = json.loads(json.dumps(topics.to_json()))
    assert {"accuracy", "macro_f1", "ece", "rows", "test", "digest", "report"} <= found.keys()


@pytest.fixture
def options(topics_train: Path, tmp_path: Path, settings: TrainerSettings) -> TrainOptions:
    return TrainOptions(
        task="topics",
        train=topics_train,
        out=tmp_path / "made" / "topics.safetensors",
        cache_dir=tmp_path / "cache",
        settings=replace(settings, epochs=2),
        sizes={"width": 8},
    )


def test_equal_seeds_give_equal_files_apart_from_the_time(
    options: TrainOptions, tiny_encoder: LoadedEncoder
) -> None:
    first, second = (train(options, tiny_encoder) for _ in range(2))
    when = first.adapter.manifest.created_at
    assert first.adapter.manifest == second.adapter.manifest.model_copy(update={"created_at": when})
    for name, tensor in first.adapter.tensors.items():
        assert torch.equal(tensor, second.adapter.tensors[name])


def test_defaults_are_told(options: TrainOptions, tiny_encoder: LoadedEncoder) -> None:
    progress = Saying()
    result = train(options, tiny_encoder, progress)
    assert result.dev.rows == 3
    assert any("3 of 36 rows" in line and "seed" in line for line in progress.said)
    assert any("above 2%" in line for line in progress.said)


def test_truncation_is_told(options: TrainOptions, tiny_encoder: LoadedEncoder) -> None:
    progress = Saying()
    train(replace(options, max_tokens=6), tiny_encoder, progress)
    assert any("train texts cut to 6 tokens" in line for line in progress.said)


def test_labels_may_start_from_their_names_or_at_random(
    options: TrainOptions, tiny_encoder: LoadedEncoder
) -> None:
    starts = {}
    for start in ("random", "label_names", "class_means"):
        settings = replace(options.settings, label_start=start, epochs=1)
        result = train(replace(options, settings=settings), tiny_encoder)
        starts[start] = result.adapter.tensors["label_vectors"]
    assert not torch.equal(starts["random"], starts["label_names"])
    assert not torch.equal(starts["random"], starts["class_means"])


def test_pairs_train_and_evaluate(
    options: TrainOptions, tiny_encoder: LoadedEncoder, pairs_train: Path, topics_dev: Path
) -> None:
    result = train(replace(options, train=pairs_train, dev=pairs_train), tiny_encoder)
    assert result.adapter.manifest.pair
    assert all(canary.pair for canary in result.adapter.manifest.canaries)
    assert evaluate(result.path, pairs_train, loaded=tiny_encoder).metrics.rows == 12
    with pytest.raises(DataFileError, match="one text"):
        evaluate(result.path, topics_dev, loaded=tiny_encoder)


def test_canaries_can_be_given(options: TrainOptions, tiny_encoder: LoadedEncoder) -> None:
    texts = ("the soup", "the train", "a film", "the bus")
    result = train(replace(options, canaries=texts), tiny_encoder)
    assert tuple(canary.text for canary in result.adapter.manifest.canaries) == texts


def test_dev_with_another_label_or_kind_is_refused(
    options: TrainOptions, tiny_encoder: LoadedEncoder, tmp_path: Path, pairs_train: Path
) -> None:
    unknown = tmp_path / "dev.csv"
    unknown.write_text("text,label\na film,film\nthe snow,weather\n")
    with pytest.raises(RowError, match=r"dev\.csv, line 3: unknown label 'weather'"):
        train(replace(options, dev=unknown), tiny_encoder)
    paired = tmp_path / "paired.csv"
    paired.write_text("text,pair,label\na film,a film,film\n")
    with pytest.raises(DataFileError, match="two texts"):
        train(replace(options, dev=paired), tiny_encoder)


def test_too_few_texts_for_canaries_are_refused(
    options: TrainOptions, tiny_encoder: LoadedEncoder, tmp_path: Path
) -> None:
    small = tmp_path / "small.csv"
    small.write_text("text,label\na film,film\nthe soup,food\n")
    with pytest.raises(TooFewRowsError, match="2 different texts"):
        train(replace(options, train=small, dev=small), tiny_encoder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_tokens": 65}, "max_tokens"),
        ({"max_tokens": 2}, "max_tokens"),
        ({"sizes": {"width": 7}}, "width"),
    ],
)
def test_impossible_options_are_named(
    options: TrainOptions, tiny_encoder: LoadedEncoder, change: dict[str, int], named: str
) -> None:
    with pytest.raises(OptionsError, match=named):
        train(replace(options, **change), tiny_encoder)


@pytest.mark.parametrize(
    ("card", "problem"),
    [
        ({"data": "x" * 4001}, "the text of 'data' has 4001 characters; give at most 4000"),
        ({"k" * 201: "x"}, "has 201 characters; give 1 to 200"),
        ({"": "x"}, "has 0 characters; give 1 to 200"),
        ({str(n): "x" for n in range(63)}, "65 notes, .* not at most 64"),
        ({"data": "\udcff"}, "'data' has bytes that are no UTF-8"),
    ],
)
def test_a_card_that_no_file_takes_is_refused_at_once(
    options: TrainOptions, topics_dev: Path, card: dict[str, str], problem: str
) -> None:
    with pytest.raises(OptionsError, match=f"^note: .*{problem}"):
        replace(options, card=card, test=topics_dev, probe=True)


def test_a_card_of_the_largest_size_is_taken(
    options: TrainOptions, tiny_encoder: LoadedEncoder, topics_dev: Path
) -> None:
    card = {f"{n:200}": "x" * 4000 for n in range(62)}
    result = train(replace(options, card=card, test=topics_dev, probe=True), tiny_encoder)
    assert len(result.adapter.manifest.card) == 64


def test_the_file_name_must_say_what_it_is(options: TrainOptions) -> None:
    with pytest.raises(OptionsError, match=r"\.safetensors"):
        replace(options, out=Path("topics.bin"))


class _Sized:
    """An encoder of a given size, for choosing widths."""

    def __init__(self, loaded: LoadedEncoder, parameter_count: int) -> None:
        self.config = loaded.encoder.config
        self.parameter_count = parameter_count


@pytest.mark.parametrize("parameter_count", [1_000_000, 3_000_000, 500_000_000])
def test_the_chosen_width_keeps_within_two_percent(
    tiny_encoder: LoadedEncoder, parameter_count: int
) -> None:
    loaded = LoadedEncoder("sized", _Sized(tiny_encoder, parameter_count), tiny_encoder.tokenizer)
    sizes = choose_sizes(loaded, labels=5)
    assert share(loaded, sizes, 5) <= 0.02
    assert sizes.width >= 16


@pytest.mark.parametrize("option", ("out", "report"))
@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("folder.safetensors", "is a folder"),
        ("file.txt/a.safetensors", "cannot be written"),
        ("a" * 245 + ".safetensors", "cannot be written"),
    ],
)
def test_an_output_that_cannot_be_written_is_named_before_any_work(
    options: TrainOptions,
    tiny_encoder: LoadedEncoder,
    tmp_path: Path,
    option: str,
    given: str,
    problem: str,
) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file.txt").touch()
    progress = Saying()
    with pytest.raises(OptionsError, match=rf"{option}: '.*{given}' {problem}"):
        train(replace(options, **{option: tmp_path / given}), tiny_encoder, progress)
    assert progress.said == []
    assert not (tmp_path / "cache").exists()


def test_the_report_takes_the_place_of_no_other_file_of_the_run(
    options: TrainOptions, tiny_encoder: LoadedEncoder, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_bytes(options.train.read_bytes())
    asked = replace(options, train=mine)
    for taken in (mine, asked.out, asked.out.parent / ".." / "mine.jsonl"):
        with pytest.raises(OptionsError, match=r"^report: .* is another file of this run"):
            train(replace(asked, report=taken), tiny_encoder)
    assert mine.read_bytes() == options.train.read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")
    with pytest.raises(TypeError):
        write_file(path, "not bytes")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_encoders_name_of_any_length_ends_no_training(
    options: TrainOptions, tiny_encoder: LoadedEncoder
) -> None:
    longer = LoadedEncoder("e" * 230, tiny_encoder.encoder, tiny_encoder.tokenizer)
    assert train(options, longer).adapter.manifest.encoder == "e" * 200


@pytest.mark.parametrize("method", ["ytuning", "lora"])
def test_a_step_on_rows_without_a_word_that_is_read_teaches_nothing(
    tiny_encoder: LoadedEncoder, tiny_encoder_folder: Path, tmp_path: Path, method: str
) -> None:
    row = {"tokens": ["the", "soup", "was", "cold"], "tags": ["O", "B-meal", "O", "O"]}
    unseen = {"tokens": ["\u200b"], "tags": ["O"]}  # no token covers a space without width
    rows = [row | {"tokens": [*row["tokens"][:3], end]} for end in ("cold", "warm", "slow", "good")]
    path = tmp_path / "meals.jsonl"
    path.write_text("\n".join(json.dumps(item) for item in (*rows, unseen)))
    options = TrainOptions(
        task="meals",
        train=path,
        dev=path,
        out=tmp_path / "meals.safetensors",
        encoder=str(tiny_encoder_folder),
        cache_dir=tmp_path / "cache",
        method=method,
        settings=settings_for(method, epochs=1, least_steps=0, batch_rows=1),
    )
    assert train(options, tiny_encoder).dev.rows == 5
