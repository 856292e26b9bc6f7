"""Several labels, and tags of words: from files to metrics, and adapters trained on them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import f1_score as span_f1
from seqeval.metrics import precision_score as span_precision
from seqeval.metrics import recall_score as span_recall
from sklearn.metrics import f1_score

from labelmux_adapters.canaries import check_canaries
from labelmux_adapters.iob2 import runs_of, words_of
from labelmux_adapters.manifest import Calibration
from labelmux_encoder.weights import LoadedEncoder
from labelmux_training.calibration import fit_abstain, fit_label_temperature, fit_thresholds
from labelmux_training.columns import Columns
from labelmux_training.data import Dataset, read_rows
from labelmux_training.errors import LabelsError, OptionsError, RowError
from labelmux_training.evaluate import FoundSpan, evaluate, score_labels, score_spans
from labelmux_training.features import FeatureCache
from labelmux_training.kinds import KINDS, Logits, WordTags
from labelmux_training.labels import check_known, choose_labels, label_flags, split_dev
from labelmux_training.metrics import LabelMetrics, SpanMetrics, measure_labels, measure_spans
from labelmux_training.options import TrainOptions
from labelmux_training.serving import serve_texts
from labelmux_training.settings import TrainerSettings, settings_for
from labelmux_training.train import TrainResult, train

PLACES = ("coast", "country", "snow")
MEALS = ("soup", "bread", "prize")
FILLER = ("the", "train", "to", "and", "a", "was", "cold", "reads", "it's", "bus,")
SETTINGS = TrainerSettings(epochs=12, batch_rows=8, learning_rate=5e-3)

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(name: str, *rows: object) -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n")
        return path

    return make


def tagged(count: int, seed: int) -> list[dict[str, list[str]]]:
    chooser = random.Random(seed)
    rows = []
    for _ in range(count):
        tokens = chooser.choices((*PLACES, *MEALS, *FILLER), k=8)
        tags = ["B-place" if t in PLACES else "B-meal" if t in MEALS else "O" for t in tokens]
        rows.append({"tokens": tokens, "tags": tags})
    return rows


def spans_of(
    dataset: Dataset, gold: WordTags, logits: Sequence[Logits], labels: Sequence[str]
) -> list[list[FoundSpan]]:
    """What a server answers."""
    found = []
    for row, of_row, tokens in zip(dataset.rows, logits, gold.tokens, strict=True):
        words = words_of(row.text)
        runs = runs_of([labels[at] for at in of_row[tokens].argmax(1)])
        found.append([(r.label, words[r.first][0], words[r.end - 1][1]) for r in runs])
    return found


def several(count: int, seed: int) -> list[dict[str, object]]:
    rows = []
    for row in tagged(count, seed):
        text = " ".join(row["tokens"])
        rows.append({"text": text, "labels": sorted({t[2:] for t in row["tags"] if t != "O"})})
    return rows


def test_rows_may_have_any_number_of_labels(write: Write) -> None:
    jsonl = write(
        "a.jsonl",
        {"text": "one", "labels": ["joy", "fear", "joy"]},
        {"text": "two", "labels": []},
        {"text": "three", "labels": ["fear"]},
    )
    found = read_rows(jsonl)
    assert found.kind == "multi_label"
    assert [row.labels for row in found.rows] == [("joy", "fear"), (), ("fear",)]
    csv = write("a.csv", "text,label", "one,joy | fear", "two,", "three,fear")
    told = read_rows(csv, Columns(), "multi_label")
    assert [row.labels for row in told.rows] == [row.labels for row in found.rows]
    assert told.digest == found.digest
    other = write("b.csv", "text,label", "one,joy;fear", "three,fear")
    by_sign = read_rows(other, Columns(delimiter=";"), "multi_label")
    assert [row.labels for row in by_sign.rows] == [("joy", "fear"), ("fear",)]
    assert read_rows(other).kind == "single_label"
    labels = choose_labels(found)
    assert labels == ("fear", "joy")
    assert label_flags(found, labels).tolist() == [[True, True], [False, False], [True, False]]


def test_tags_are_those_of_words(write: Write) -> None:
    path = write(
        "a.jsonl",
        {"tokens": ["New-York", "'s", "mayor", "A.B."], "tags": ["B-loc", "O", "O", "I-per"]},
    )
    (row,) = read_rows(path).rows
    assert row.text == "New-York 's mayor A.B."
    words = [row.text[slice(*place)] for place in words_of(row.text)]
    assert list(zip(words, row.labels, strict=True)) == [
        ("New", "B-loc"),
        ("-", "I-loc"),
        ("York", "I-loc"),
        ("'", "O"),
        ("s", "O"),
        ("mayor", "O"),
        ("A", "B-per"),
        (".", "I-per"),
        ("B", "I-per"),
        (".", "I-per"),
    ]
    assert row.firsts == (0, 3, 5, 6)


@pytest.mark.parametrize("tokens", ["tokens", "words", "Tokens"])
def test_tokens_with_tags_are_read_though_the_text_stands_beside_them(
    write: Write, tokens: str
) -> None:
    row = {"id": 0, "text": "Ada wrote", tokens: ["Ada", "wrote"], "tags": ["B-person", "O"]}
    found = read_rows(write("a.jsonl", row | {"pair": "in Rome"}))
    assert (found.kind, found.pair) == ("token", False)
    assert found.rows[0].labels == ("B-person", "O")
    assert read_rows(write("b.jsonl", row), Columns(text="text")).kind == "multi_label"
    assert read_rows(write("c.jsonl", row), kind="multi_label").rows[0].text == "Ada wrote"
    labelled = write("d.jsonl", row | {"label": "past"})
    assert read_rows(labelled).rows[0].labels == ("past",)
    asked = read_rows(labelled, kind="token")
    assert (asked.rows[0].text, asked.rows[0].labels) == ("Ada wrote", ("B-person", "O"))


def test_labels_of_a_text_are_no_tags_of_fewer_words(write: Write) -> None:
    row = {"text": "one", "words": ["one"], "labels": ["joy", "fear"]}
    assert read_rows(write("a.jsonl", row)).kind == "multi_label"


def test_conll_files_say_the_same_as_jsonl(write: Write) -> None:
    rows = tagged(5, 0)
    lines = ["-DOCSTART- -X- O O", ""]
    for row in rows:
        lines += [f"{t} NN {tag}" for t, tag in zip(row["tokens"], row["tags"], strict=True)]
        lines.append("")
    found = read_rows(write("a.conll", *lines))
    assert found.kind == "token"
    assert found.digest == read_rows(write("a.jsonl", *rows)).digest
    assert found.rows[1].line == 12
    tabs = write("b.bio", "a b\tB-x", "c\tO")
    assert read_rows(tabs).rows[0].labels == ("B-x", "I-x", "O")


def test_tags_sort_outside_first_then_by_type(write: Write) -> None:
    path = write("a.jsonl", {"tokens": ["a", "b-c"], "tags": ["B-z", "B-a"]})
    assert choose_labels(read_rows(path)) == ("O", "B-a", "I-a", "B-z", "I-z")


def test_a_tag_that_begins_spans_can_go_on_with_them(write: Write) -> None:
    names = write("a.jsonl", {"tokens": ["Ada", "spoke"], "tags": ["B-x", "O"]})
    longer = write("b.jsonl", {"tokens": ["O'Brien", "spoke"], "tags": ["B-x", "O"]})
    rows = read_rows(names)
    for wanted in (None, ("O", "B-x"), ("O", "B-x", "I-x"), ("B-x",)):
        labels = choose_labels(rows, wanted)
        assert labels == ("O", "B-x", "I-x")
        check_known(read_rows(longer), labels)
    assert choose_labels(read_rows(longer), ("B-x", "O")) == ("B-x", "I-x", "O")
    for strange in ("B-y", "I-y"):
        with pytest.raises(LabelsError, match=f"no row has the label '{strange}'"):
            choose_labels(rows, ("O", "B-x", strange))


@pytest.mark.parametrize("method", ["ytuning", "linear", "lora"])
def test_a_tag_without_rows_is_learned_as_rare(
    tiny_encoder: LoadedEncoder, tiny_encoder_folder: Path, tmp_path: Path, method: str
) -> None:
    rows: list[dict[str, object]] = [
        {"tokens": [name, "spoke", "here"], "tags": ["B-x", "O", "O"]}
        for name in ("Ada", "Grace", "Emmy", "Mary", "Lise", "Rosa")
    ]
    asked = {"method": method, "encoder": str(tiny_encoder_folder), "sizes": {}}
    short = replace(settings_for(method), epochs=2, least_steps=4)
    found = trained(tmp_path, rows, tiny_encoder, **asked, settings=short).adapter
    assert found.manifest.labels == ("O", "B-x", "I-x")
    assert all(tensor.isfinite().all() for tensor in found.tensors.values())


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens and 1 tags"),
        ({"tokens": [], "tags": []}, "0 tokens"),
        ({"tokens": ["a"], "tags": ["S-x"]}, "the tag 'S-x'"),
        ({"tokens": ["a"], "tags": [7]}, "the tag '7'"),
        ({"tokens": [" "], "tags": ["O"]}, "'tokens' is empty"),
        ({"tokens": "a", "tags": ["O"]}, "'tokens' is no list"),
        ({"tokens": ["a"], "tags": "O"}, "'tags' is no list"),
    ],
)
def test_a_row_that_cannot_be_tagged_is_named(write: Write, row: object, problem: str) -> None:
    path = write("a.jsonl", {"tokens": ["a"], "tags": ["O"]}, row)
    with pytest.raises(RowError, match=f"line 2: {problem}"):
        read_rows(path)


def test_a_line_without_a_tag_is_named(write: Write) -> None:
    with pytest.raises(RowError, match="line 2: no tag: 'alone'"):
        read_rows(write("a.conll", "a O", "alone"))


def test_rows_without_any_span_make_no_task(write: Write) -> None:
    with pytest.raises(LabelsError, match="at least two labels"):
        choose_labels(read_rows(write("a.conll", "a O", "", "b O")))


def test_dev_is_held_out_by_the_rarest_label(write: Write) -> None:
    rows = [{"text": f"t{at}", "labels": ["common"]} for at in range(50)]
    rows += [{"text": f"u{at}", "labels": ["common", "rare"]} for at in range(5)]
    rows += [{"text": f"v{at}", "labels": []} for at in range(5)]
    found = read_rows(write("a.jsonl", *rows))
    kept, held_out = split_dev(found, seed=1)
    assert sorted(kept + held_out) == list(range(60))
    rare = [at for at in held_out if "rare" in found.rows[at].labels]
    assert len(rare) == 1 and any(not found.rows[at].labels for at in held_out)


@given(st.integers(1, 30), st.integers(0, 10_000))
def test_numbers_of_several_labels_are_those_of_sklearn(rows: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    gold, found = generator.random((2, rows, 4)) < 0.4
    metrics = measure_labels(gold, found)
    there = gold.any(0) | found.any(0)
    if there.any():
        macro = f1_score(gold[:, there], found[:, there], average="macro", zero_division=0)
        assert metrics.macro_f1 == pytest.approx(macro)
        micro = f1_score(gold, found, average="micro", zero_division=0)
        assert metrics.micro_f1 == pytest.approx(micro)
    assert metrics.subset_accuracy == (gold == found).all(1).mean()


TAGS = st.lists(
    st.lists(st.sampled_from(["O", "B-x", "I-x", "B-y", "I-y"]), min_size=5, max_size=5),
    min_size=2,
    max_size=6,
)


@pytest.mark.filterwarnings("ignore")
@given(TAGS)
def test_numbers_of_spans_are_those_of_seqeval(rows: list[list[str]]) -> None:
    half = len(rows) // 2
    gold, found = rows[:half], rows[half : 2 * half]
    metrics = measure_spans(gold, found)
    if any(list(runs_of(row)) for row in gold + found):
        assert metrics.f1 == pytest.approx(float(span_f1(gold, found)))
        assert metrics.precision == pytest.approx(float(span_precision(gold, found)))
        assert metrics.recall == pytest.approx(float(span_recall(gold, found)))


def test_no_threshold_is_better_for_its_label() -> None:
    generator = np.random.default_rng(0)
    gold = generator.random((200, 3)) < (0.5, 0.1, 0.0)
    scores = np.clip(generator.normal(0.3, 0.2, (200, 3)) + 0.3 * gold, 0.01, 0.99).round(2)
    thresholds = fit_thresholds(gold, scores)
    assert thresholds[2] == 0.5
    for label in (0, 1):

        def f1(threshold: float, label: int = label) -> float:
            return float(f1_score(gold[:, label], scores[:, label] >= threshold, zero_division=0))

        assert f1(thresholds[label]) >= max(f1(t) for t in np.linspace(0.005, 0.995, 199)) - 1e-9


def test_one_temperature_serves_all_labels() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (400, 5))
    gold = generator.random((400, 5)) < 1 / (1 + np.exp(-logits))
    assert fit_label_temperature(gold, logits) == pytest.approx(1, abs=0.15)
    assert fit_label_temperature(gold, 3 * logits) == pytest.approx(3, abs=0.45)


def test_what_is_answered_is_right_as_often_as_asked() -> None:
    generator = np.random.default_rng(0)
    best = generator.uniform(0.5, 1, 500)
    gold = (generator.random(500) > best).astype(np.int64)
    scores = np.stack([best, 1 - best], 1)
    found = fit_abstain(gold, scores, 0.9)
    assert found is not None
    answered = best >= found
    assert 0.1 < answered.mean() < 0.9
    assert (gold[answered] == 0).mean() >= 0.9
    assert fit_abstain(gold, scores, 0.5) is None
    with pytest.raises(OptionsError, match="the surest 10 of 500 reach 0;"):
        fit_abstain(np.ones(500, np.int64), scores, 0.5)


def test_an_accuracy_that_is_not_reached_says_which_is() -> None:
    best = np.linspace(0.9, 0.6, 12)
    gold = np.array([0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1])
    scores = np.stack([best, 1 - best], 1)
    with pytest.raises(OptionsError, match=r"the surest 10 of 12 reach 0\.9;") as caught:
        fit_abstain(gold, scores, 0.95)
    assert "ask for no more than that" in str(caught.value)
    assert fit_abstain(gold, scores, 0.9) == pytest.approx((best[9] + best[10]) / 2, abs=1e-6)


def test_too_few_rows_to_abstain_by_are_refused_before_training(
    tiny_encoder: LoadedEncoder, tmp_path: Path
) -> None:
    rows: list[dict[str, object]] = [{"text": f"t{at}", "label": f"{at % 2}"} for at in range(9)]
    with pytest.raises(OptionsError, match=r"dev has 9 rows of .*at least 10 .*--dev"):
        trained(tmp_path, rows, tiny_encoder, abstain_at_accuracy=0.9)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(OptionsError, match=r"dev has 2 rows held out of"):
        trained(tmp_path, rows, tiny_encoder, abstain_at_accuracy=0.9, dev=None)


def trained(
    folder: Path, rows: list[dict[str, object]], loaded: LoadedEncoder, **options: object
) -> TrainResult:
    folder.mkdir(exist_ok=True)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = TrainOptions(
        task="t",
        train=path,
        test=path,
        out=folder / "t.safetensors",
        cache_dir=folder / "cache",
        **{"settings": SETTINGS, "sizes": {"width": 16}, "dev": path, **options},  # type: ignore[arg-type]
    )
    return train(asked, loaded)


@pytest.fixture(scope="module")
def names(
    tiny_encoder: LoadedEncoder, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainResult, Path]:
    folder = tmp_path_factory.mktemp("names")
    return trained(folder, tagged(60, 1), tiny_encoder), folder / "rows.jsonl"  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def moods(
    tiny_encoder: LoadedEncoder, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainResult, Path]:
    folder = tmp_path_factory.mktemp("moods")
    return trained(folder, several(60, 1), tiny_encoder), folder / "rows.jsonl"


def test_a_token_task_is_trained_and_serves(
    names: tuple[TrainResult, Path], tiny_encoder: LoadedEncoder
) -> None:
    result, path = names
    manifest = result.adapter.manifest
    check_canaries(result.adapter, tiny_encoder)
    assert manifest.task_kind == "token"
    assert manifest.labels == ("O", "B-meal", "I-meal", "B-place", "I-place")
    assert isinstance(result.dev, SpanMetrics) and result.dev.f1 > 0.5
    assert evaluate(result.path, path, loaded=tiny_encoder).metrics == result.dev
    page = result.report.read_text()
    assert "By type" in page and "place" in page


def test_a_multi_label_task_is_trained_and_serves(
    moods: tuple[TrainResult, Path], tiny_encoder: LoadedEncoder
) -> None:
    result, path = moods
    manifest = result.adapter.manifest
    check_canaries(result.adapter, tiny_encoder)
    assert (manifest.task_kind, manifest.labels) == ("multi_label", ("meal", "place"))
    assert manifest.calibration.thresholds is not None
    assert isinstance(result.dev, LabelMetrics) and result.dev.macro_f1 > 0.7
    found = evaluate(result.path, path, loaded=tiny_encoder).metrics
    assert found.to_json() == pytest.approx(result.dev.to_json(), abs=0.05)
    page = result.report.read_text()
    assert "threshold" in page and "meal" in page


def test_spans_and_labels_from_elsewhere_score_alike(
    names: tuple[TrainResult, Path],
    moods: tuple[TrainResult, Path],
    tiny_encoder: LoadedEncoder,
) -> None:
    result, path = names
    dataset = read_rows(path)
    kind, labels = KINDS["token"], result.adapter.manifest.labels
    gold = kind.gold(dataset, labels, tiny_encoder.tokenizer, 64)
    logits = serve_texts(result.adapter, tiny_encoder, dataset.texts).logits
    assert score_spans(dataset, spans_of(dataset, gold, logits, labels)) == result.dev
    rows = read_rows(moods[1])
    everything = [row.labels for row in rows.rows]
    assert score_labels(rows, everything, ("meal", "place")).subset_accuracy == 1


def test_tags_that_change_within_a_token_score_as_the_spans_of_the_answer(
    tiny_encoder: LoadedEncoder, write: Write
) -> None:
    rows = [
        {"tokens": ["it's", "the", "A.B.", "cold-bus"], "tags": ["O", "O", "B-place", "O"]}
    ] * 40
    dataset = read_rows(write("a.jsonl", *rows))
    kind, labels = KINDS["token"], ("O", "B-place", "I-place")
    gold = kind.gold(dataset, labels, tiny_encoder.tokenizer, 64)
    rng = np.random.default_rng(3)
    logits = [rng.normal(size=(places.max() + 1, 3)).astype("f4") for places in gold.tokens]
    found = kind.measure(gold, logits, labels, Calibration())
    assert found == score_spans(dataset, spans_of(dataset, gold, logits, labels))


def test_class_means_are_over_what_has_the_label(
    tiny_encoder: LoadedEncoder, write: Write, tmp_path: Path
) -> None:
    for rows in (tagged(6, 2), several(6, 2)):
        dataset: Dataset = read_rows(write("a.jsonl", *rows))
        labels = choose_labels(dataset)
        kind = KINDS[dataset.kind]
        gold = kind.gold(dataset, labels, tiny_encoder.tokenizer, 64)
        features = FeatureCache(tmp_path).features(tiny_encoder, dataset.texts, 64)
        mix = torch.tensor([0.5, 0.3, 0.2])
        found = kind.class_means(features, gold, len(labels), mix)
        sums, counts = torch.zeros_like(found), torch.zeros(len(labels), 1)
        for at in range(len(dataset.rows)):
            states, _ = features.batch([at])
            normal = torch.nn.functional.layer_norm(states, states.shape[-1:])
            mixed = (normal * mix.view(-1, 1, 1, 1)).sum(0)[0]
            if dataset.kind == "token":
                for token, tag in zip(gold.tokens[at], gold.tags[at], strict=True):
                    sums[tag] += mixed[token]
                    counts[tag] += 1
            else:
                for label in np.flatnonzero(gold[at]):
                    sums[label] += mixed.mean(0)
                    counts[label] += 1
        assert torch.allclose(found, sums / counts, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("make", [tagged, several])
def test_no_constant_answer_is_better_than_the_start(
    make: Callable[[int, int], list[object]], tiny_encoder: LoadedEncoder, write: Write
) -> None:
    dataset = read_rows(write("a.jsonl", *make(200, 3)))
    labels = choose_labels(dataset)
    kind = KINDS[dataset.kind]
    gold = kind.gold(dataset, labels, tiny_encoder.tokenizer, 64)
    rows, start = range(len(dataset.rows)), kind.start_logits(gold, len(labels))

    def loss(answer: torch.Tensor) -> float:
        shape = (len(rows), 64, len(labels)) if kind.name == "token" else (len(rows), len(labels))
        return float(kind.loss(answer.expand(shape), gold, rows, SETTINGS))

    least = loss(start)
    torch.manual_seed(4)
    for _ in range(20):
        assert loss(start + 0.3 * torch.randn(len(labels))) > least
    assert loss(torch.zeros(len(labels))) > least


def test_the_head_of_a_method_that_changes_the_pass_starts_there(
    tiny_encoder: LoadedEncoder, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    rows = several(60, 1)
    still = TrainerSettings(epochs=1, learning_rate=1e-9, precision="float32")
    asked = {"encoder": str(tiny_encoder_folder), "method": "pasta", "sizes": {}}
    result = trained(tmp_path, rows, tiny_encoder, **asked, settings=still)
    found = result.adapter.tensors["head.bias"].float()
    flags = [[name in str(row["labels"]) for name in ("meal", "place")] for row in rows]
    shares = np.mean(flags, axis=0, dtype=np.float32)
    assert torch.allclose(found.sigmoid(), torch.from_numpy(shares), atol=0.02)


def test_abstaining_is_for_single_labels(tiny_encoder: LoadedEncoder, tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="single labels"):
        trained(tmp_path, several(12, 1), tiny_encoder, abstain_at_accuracy=0.9)
    with pytest.raises(OptionsError, match="margin"):
        asked = TrainerSettings(loss="margin")
        KINDS["multi_label"].check(asked)
    rows: list[dict[str, object]] = [
        {"text": row["text"], "label": "meal" if "meal" in row["labels"] else "none"}
        for row in several(60, 3)
    ]
    result = trained(tmp_path / "sure", rows, tiny_encoder, abstain_at_accuracy=0.99)
    abstain = result.adapter.manifest.calibration.abstain
    assert abstain is None or 0 < abstain < 1
