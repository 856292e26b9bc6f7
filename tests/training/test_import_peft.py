"""An imported PEFT adapter answers what PEFT answers, or is refused by the name of what it has."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.training.peft_models import adapted, answers, rewrite, write_base

from labelmux_adapters.canaries import check_canaries, serve_logits
from labelmux_adapters.errors import LabelsError
from labelmux_adapters.methods import METHODS
from labelmux_encoder.batch import pack_rows
from labelmux_encoder.edits import Placed
from labelmux_encoder.model import derive, run_pass
from labelmux_encoder.weights import load_encoder, read_checkpoint
from labelmux_training.errors import (
    OptionsError,
    PeftFolderError,
    PeftRefusedError,
    TooFewRowsError,
)
from labelmux_training.import_peft import ImportOptions, import_peft

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TOLERANCE = 1e-4
TEXTS = [
    "the train to the coast leaves at nine",
    "two dogs",
    "it's bad, awful, terrible; it's great, lovely, wonderful, and the soup was cold",
    "win",
]
PAIRS = [("the soup was cold", "the bread was stale"), ("two dogs", "what is the capital?")]
LABELS = ("no", "yes", "maybe")
TAGS = ("O", "B-place", "I-place")
LINEAR = ["query_proj", "key_proj", "value_proj", "dense"]
OUTER = [*LINEAR, "output.dense"]
ALL = [*OUTER, "pos_query_proj", "pos_key_proj"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A classifier's and a tagger's checkpoint, with shared position projections and without."""
    found = {}
    for task_type, labels in (("SEQ_CLS", LABELS), ("TOKEN_CLS", TAGS)):
        for shared in (True, False):
            folder = tmp_path_factory.mktemp(f"base-{task_type}-{shared}")
            found[task_type, shared] = write_base(folder, task_type, labels, share_att_key=shared)
    return found


@pytest.fixture(scope="module")
def saved(bases, tmp_path_factory):
    """The folder of a LoRA adapter of query and value, with its pooler."""
    folder = tmp_path_factory.mktemp("saved")
    modules = ["classifier", "pooler"]
    adapted(bases["SEQ_CLS", False], "lora", "SEQ_CLS", modules_to_save=modules).save_pretrained(
        folder
    )
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to be spoilt."""
    return shutil.copytree(saved, tmp_path / "adapter")


def imported(folder, base, **options):
    return import_peft(ImportOptions(folder, encoder=str(base), **options))


@pytest.mark.parametrize("shared", (True, False), ids=("shared", "own-projections"))
@pytest.mark.parametrize(
    ("method", "task_type", "settings"),
    (
        ("lora", "SEQ_CLS", {"r": 4, "lora_alpha": 16}),
        ("lora", "TOKEN_CLS", {"target_modules": ALL, "r": 3}),
        ("lora", "SEQ_CLS", {"target_modules": "all-linear", "use_rslora": True}),
        ("lora", "SEQ_CLS", {"target_modules": ["output.dense"], "modules_to_save": ["pooler"]}),
        ("lora", "SEQ_CLS", {"target_modules": r".*\.1\..*key_proj"}),
        (
            "lora",
            "TOKEN_CLS",
            {
                "target_modules": LINEAR,
                "layers_to_transform": [1],
                "exclude_modules": ["intermediate.dense"],
            },
        ),
        (
            "lora",
            "TOKEN_CLS",
            {
                "target_modules": LINEAR,
                "rank_pattern": {"key_proj": 2, "layer.0.attention.self.query_proj": 5},
                "alpha_pattern": {"value_proj": 3, r".*layer\.1\.output\.dense": 20},
            },
        ),
        ("ia3", "TOKEN_CLS", {}),
        ("ia3", "SEQ_CLS", {"modules_to_save": ["classifier", "pooler"]}),
        ("ia3", "SEQ_CLS", {"target_modules": OUTER, "feedforward_modules": ["output.dense"]}),
        (
            "ia3",
            "SEQ_CLS",
            {
                "target_modules": ["query_proj", *OUTER, "pooler.dense", "1.output.dense"],
                "feedforward_modules": ["pooler.dense", "1.output.dense"],
            },
        ),
    ),
)
def test_logits_are_pefts(bases, tmp_path, method, task_type, settings, shared):
    base = bases[task_type, shared]
    model = adapted(base, method, task_type, **settings)
    model.save_pretrained(tmp_path)
    loaded = load_encoder(str(base))
    result = imported(tmp_path, base)
    assert result.adapter.manifest.method == method
    check_canaries(result.adapter, loaded)
    found = serve_logits(result.adapter, loaded, TEXTS)
    model.disable_adapter_layers()
    unchanged = answers(model, loaded, TEXTS)
    model.enable_adapter_layers()
    for logits, expected, plain in zip(
        found, answers(model, loaded, TEXTS), unchanged, strict=True
    ):
        assert torch.from_numpy(logits).sub(expected).abs().max() < TOLERANCE
        assert expected.sub(plain).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("shared", (True, False), ids=("shared", "own-projections"))
@pytest.mark.parametrize("method", ("lora", "ia3"))
def test_edits_give_pefts_states_in_every_layer(bases, tmp_path, method, shared):
    base = bases["TOKEN_CLS", shared]
    targets = {"target_modules": ALL}
    if method == "ia3":
        targets["feedforward_modules"] = ["output.dense"]
    model = adapted(base, method, "TOKEN_CLS", **targets)
    model.save_pretrained(tmp_path)
    adapter = imported(tmp_path, base).adapter
    _, parts = METHODS[method].edited.read(adapter.manifest.sizes)
    config, state = read_checkpoint(str(base))
    batch = pack_rows(load_encoder(str(base)).tokenizer.encode(TEXTS, 64))
    edits = [Placed(part.place(adapter.tensors), (0,) * len(TEXTS)) for part in parts]
    with torch.no_grad():
        states = torch.stack(run_pass(config, derive(config, state), batch, edits))
        for ids, found in zip(
            batch.token_ids.split(batch.lengths), states.split(batch.lengths, 1), strict=True
        ):
            expected = model(input_ids=ids[None], output_hidden_states=True).hidden_states
            assert found.sub(torch.cat(expected)).abs().max() < TOLERANCE


def test_a_pair_task_is_pefts(bases, saved):
    base = bases["SEQ_CLS", False]
    import peft
    from transformers import DebertaV2ForSequenceClassification

    model = DebertaV2ForSequenceClassification.from_pretrained(base)
    model = peft.PeftModel.from_pretrained(model, saved).eval()
    loaded = load_encoder(str(base))
    adapter = imported(saved, base, pair=True, max_tokens=32).adapter
    assert (adapter.manifest.pair, adapter.manifest.max_tokens) == (True, 32)
    found = serve_logits(adapter, loaded, PAIRS)
    for logits, expected in zip(found, answers(model, loaded, PAIRS), strict=True):
        assert torch.from_numpy(logits).sub(expected).abs().max() < TOLERANCE


def test_the_file_says_what_it_was_made_of(bases, folder):
    rewrite(folder, base_model_name_or_path="microsoft/deberta-v3-base")
    result = imported(folder, bases["SEQ_CLS", False], texts=tuple(TEXTS))
    manifest = result.adapter.manifest
    assert manifest.card["imported from"] == "PEFT LORA"
    assert manifest.card["base model"] == "microsoft/deberta-v3-base"
    assert "microsoft/deberta-v3-base" in result.doubts[0]
    assert [canary.text for canary in manifest.canaries] == TEXTS
    assert manifest.labels == LABELS
    assert result.labels_from == "the encoder's config.json"
    assert (manifest.sizes["query"], manifest.sizes["value"]) == (8, 8)
    assert manifest.pooling == "first"


def test_labels_are_those_given_then_the_folders_then_the_encoders(bases, folder):
    base = bases["SEQ_CLS", False]
    (folder / "config.json").write_text('{"id2label": {"0": "x", "1": "y", "2": "z"}}')
    assert imported(folder, base).adapter.manifest.labels == ("x", "y", "z")
    given = imported(folder, base, labels=("p", "q", "r"))
    assert (given.adapter.manifest.labels, given.labels_from) == (("p", "q", "r"), "--labels")
    (folder / "config.json").write_text('{"problem_type": "multi_label_classification"}')
    assert imported(folder, base).adapter.manifest.task_kind == "multi_label"


def test_a_label_that_is_no_text_is_named(bases, folder):
    with pytest.raises(OptionsError, match=r"labels: 'a.udcff' of --labels holds half a character"):
        imported(folder, bases["SEQ_CLS", False], labels=("a\udcff", "b", "c"))


def test_labels_that_nobody_names_are_asked_for(bases, folder, tiny_encoder_folder):
    base = bases["SEQ_CLS", False]
    with pytest.raises(OptionsError, match="labels: 2 names for 3 logits"):
        imported(folder, base, labels=("a", "b"))
    unnamed = shutil.copytree(base, folder / "base")
    config = json.loads((unnamed / "config.json").read_text())
    (unnamed / "config.json").write_text(json.dumps(config | {"id2label": {"0": "a"}}))
    with pytest.raises(OptionsError, match="nothing names the head's 3 logits; give the names"):
        imported(folder, unnamed)


def test_tags_of_a_token_task_must_be_iob2(bases, tmp_path):
    base = bases["TOKEN_CLS", False]
    adapted(base, "lora", "TOKEN_CLS").save_pretrained(tmp_path)
    with pytest.raises(LabelsError):
        imported(tmp_path, base, labels=("O", "place", "person"))


def test_the_kind_of_task_is_asked_for_where_nothing_says_it(bases, folder):
    base = bases["SEQ_CLS", False]
    rewrite(folder, task_type=None)
    with pytest.raises(OptionsError, match="task-kind"):
        imported(folder, base)
    assert (
        imported(folder, base, task_kind="multi_label").adapter.manifest.task_kind == "multi_label"
    )
    rewrite(folder, auto_mapping={"base_model_class": "DebertaV2ForSequenceClassification"})
    assert imported(folder, base).adapter.manifest.task_kind == "single_label"
    with pytest.raises(OptionsError, match="task-kind: token, the adapter is of single_label"):
        imported(folder, base, task_kind="token")


@pytest.mark.parametrize(
    ("settings", "named"),
    (
        ({"peft_type": "LOHA"}, "peft_type: 'LOHA'"),
        ({"task_type": "CAUSAL_LM"}, "task_type: 'CAUSAL_LM'"),
        ({"use_dora": True}, "use_dora: True"),
        ({"bias": "lora_only"}, "bias: 'lora_only'"),
        ({"lora_bias": True}, "lora_bias: True"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out: True"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication:"),
        ({"target_parameters": ["a.b"]}, "target_parameters:"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices:"),
        ({"something_new": 3}, "something_new: 3"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa'"),
        ({"modules_to_save": ["classifier", "embeddings"]}, "modules_to_save: 'embeddings'"),
        ({"r": "eight"}, "r: 'eight'"),
        ({"r": 5}, "r: 5, the tensors of .* have 8"),
        ({"alpha_pattern": {"(": 2}}, r"alpha_pattern: .* no regular expression"),
        ({"target_modules": ["query_proj"]}, "target_modules: .*value_proj has tensors"),
        ({"layers_to_transform": [0]}, "target_modules: .*layer.1.* has tensors and is not named"),
    ),
)
def test_a_setting_that_cannot_be_carried_over_is_named(bases, folder, settings, named):
    rewrite(folder, **settings)
    with pytest.raises(PeftRefusedError, match=named):
        imported(folder, bases["SEQ_CLS", False])


@pytest.mark.parametrize(
    ("settings", "named"),
    (
        ({"use_dora": True}, "use_dora: True"),
        ({"lora_bias": True}, "lora_bias: True"),
        ({"target_modules": ["word_embeddings"]}, "LoRA of an embedding"),
        ({"target_modules": ["embed_proj"]}, "module deberta.embeddings.embed_proj"),
        ({"modules_to_save": ["pooler", "LayerNorm"]}, "modules_to_save: 'LayerNorm'"),
    ),
)
def test_what_peft_can_do_and_an_adapter_file_cannot_is_named(tmp_path, settings, named):
    base = write_base(tmp_path, "SEQ_CLS", LABELS, embedding_size=24)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT has doubts about some of them itself
        adapted(base, "lora", "SEQ_CLS", **settings).save_pretrained(tmp_path / "adapter")
    with pytest.raises(PeftRefusedError, match=named):
        imported(tmp_path / "adapter", base)


@pytest.mark.parametrize("method", ("PROMPT_TUNING", "VERA"))
def test_another_method_is_refused_by_its_name_whatever_its_tensors_are_called(
    bases, folder, method
):
    rewrite(folder, peft_type=method)
    tensors = {"prompt_embeddings": torch.ones(4, 32), "base_model.vera_A.default": torch.ones(2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(PeftRefusedError, match=f"peft_type: '{method}' is neither LORA nor IA3"):
        imported(folder, bases["SEQ_CLS", False])


def test_a_regression_is_no_classifier_unless_it_is_said_to_be_one(tmp_path):
    base = write_base(tmp_path, "SEQ_CLS", LABELS, problem_type="regression")
    saved = tmp_path / "adapter"
    modules = ["classifier", "pooler"]
    adapted(base, "lora", "SEQ_CLS", modules_to_save=modules).save_pretrained(saved)
    with pytest.raises(PeftRefusedError, match="problem_type: 'regression'"):
        imported(saved, base)
    found = imported(saved, base, task_kind="single_label").adapter
    assert found.manifest.task_kind == "single_label"


def test_tensors_of_dora_are_named_though_the_settings_are_silent(bases, tmp_path):
    base = bases["SEQ_CLS", False]
    adapted(base, "lora", "SEQ_CLS", use_dora=True).save_pretrained(tmp_path)
    rewrite(tmp_path, use_dora=False)
    with pytest.raises(PeftRefusedError, match="DoRA"):
        imported(tmp_path, base)


def test_ia3_of_what_others_read_too_is_named(bases, tmp_path):
    base = bases["SEQ_CLS", False]
    targets = {"target_modules": ["dense"], "feedforward_modules": ["dense"]}
    adapted(base, "ia3", "SEQ_CLS", **targets).save_pretrained(tmp_path)
    with pytest.raises(PeftRefusedError, match=r"feedforward_modules: what .*intermediate.dense"):
        imported(tmp_path, base)


def test_a_pooler_that_nobody_kept_is_named(bases, tmp_path, tiny_encoder_folder):
    model = adapted(bases["SEQ_CLS", False], "lora", "SEQ_CLS")
    model.save_pretrained(tmp_path)
    with pytest.raises(PeftRefusedError, match=r"pooler.dense: .* name it in modules_to_save"):
        imported(tmp_path, tiny_encoder_folder, labels=LABELS)


def test_a_head_that_was_not_saved_is_named(bases, tmp_path):
    base = bases["SEQ_CLS", False]
    adapted(base, "lora", None, target_modules=["query_proj"]).save_pretrained(tmp_path)
    with pytest.raises(PeftRefusedError, match=r"classifier.weight: .* name it in modules_to_save"):
        imported(tmp_path, base)


def changed_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


ONE = "base_model.model.deberta.encoder.layer.1.attention.self.value_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "named"),
    (
        (lambda held: held.pop(ONE), "its tensors are lora_B.weight"),
        (lambda held: held.update({ONE: torch.ones(8, 31)}), "shape .8, 31."),
        (lambda held: held.update({ONE: torch.ones(7, 32)}), "value_proj"),
        (lambda held: held.update({"base_model.model.odd": torch.ones(1)}), "tensor odd"),
        (
            lambda held: [
                held.pop(name) for name in list(held) if "1.attention.self.value" in name
            ],
            "layer.1.attention.self.value_proj is named and has no tensors",
        ),
        (
            lambda held: held.update(
                {name.replace("layer.1", "layer.7"): held.pop(name) for name in list(held)}
            ),
            "the encoder has 2 layers",
        ),
    ),
)
def test_tensors_that_do_not_fit_are_named(bases, folder, change, named):
    changed_tensors(folder, change)
    with pytest.raises(PeftRefusedError, match=named):
        imported(folder, bases["SEQ_CLS", False])


def test_a_damaged_folder_says_which_file_and_what_to_do(bases, folder):
    base = bases["SEQ_CLS", False]
    tensors, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    whole = tensors.read_bytes()

    def refused(match):
        with pytest.raises(PeftFolderError, match=match):
            imported(folder, base)

    changed_tensors(folder, lambda held: held.update({ONE: torch.full((8, 32), torch.nan)}))
    refused("NaN")
    changed_tensors(folder, lambda held: held.update({ONE: torch.ones(8, 32, dtype=torch.int8)}))
    refused("dtype torch.int8")
    tensors.write_bytes(whole)
    changed_tensors(folder, lambda held: held.update({"odd": torch.ones(1)}))
    refused("'odd' does not begin")
    tensors.write_bytes(whole[:-4])
    refused(r"adapter_model.safetensors: .* save the adapter again")
    tensors.rename(folder / "adapter_model.bin")
    refused(r"adapter_model.bin: a pickle.*safe_serialization")
    config.write_text('{"r": 1, "r": 2}')
    refused("'r' stands twice")
    config.write_text("[" * 100_000)
    refused("adapter_config.json: no JSON")
    config.write_text(" " * 2_000_000)
    refused("2000000 bytes, the limit is")
    config.unlink()
    refused("adapter_config.json: the file is missing")
    with pytest.raises(PeftFolderError, match="no such folder"):
        imported(folder / "nowhere", base)


def test_canary_texts_are_checked(bases, folder):
    with pytest.raises(TooFewRowsError, match=r"t.txt: 1 different texts, at least 4"):
        imported(folder, bases["SEQ_CLS", False], texts=("one", "one"), texts_path=Path("t.txt"))
    with pytest.raises(TooFewRowsError, match=r"t.txt: 0 different texts, at least 4"):
        imported(folder, bases["SEQ_CLS", False], texts=(), texts_path=Path("t.txt"))
    with pytest.raises(OptionsError, match="max-tokens: 65, not 4 to 64"):
        imported(folder, bases["SEQ_CLS", False], max_tokens=65)
