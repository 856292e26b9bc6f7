"""``labelmux import-peft``: from PEFT's folder to answers of a real server."""

import json

import pytest
import torch
from tests.training.peft_models import adapted, answers, write_base

from labelmux_client import Client
from labelmux_encoder.weights import load_encoder

TEXTS = ["the train to the coast", "two dogs play in the snow", "it's bad, awful, terrible"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A classifier whose queries and keys make its position tables, as every DeBERTa v3."""
    folder = tmp_path_factory.mktemp("base")
    return write_base(folder, "SEQ_CLS", ("ham", "spam"), share_att_key=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_imported_adapter_is_pushed_and_answers_as_peft_does(
    labelmux, base, start_server, tmp_path
):
    model = adapted(base, "lora", "SEQ_CLS", target_modules="all-linear", r=4)
    model.save_pretrained(tmp_path / "mails")
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join([*TEXTS, "the soup was cold"]))
    out = tmp_path / "mails.safetensors"
    done = labelmux(
        *("import-peft", tmp_path / "mails", "--encoder", base, "--out", out, "--texts", texts),
        "--json",
    )
    assert done.code == 0, done.err
    assert done.json["manifest"]["labels"] == ["ham", "spam"]
    assert done.json["labels_from"] == "the encoder's config.json"
    assert done.json["size_bytes"] == out.stat().st_size
    server = start_server("--encoder", str(base), "--dtype", "float32")
    assert labelmux("push", out, "--json", url=server.url).code == 0
    with Client(base_url=server.url) as client:
        found = client.classify(TEXTS, task="mails", raw_scores=True)
    expected = answers(model, load_encoder(str(base)), TEXTS)
    for text, logits in zip(found, expected, strict=True):
        scores = {label.label: label.score for label in text["mails"].labels}
        given = torch.tensor([scores["ham"], scores["spam"]])
        assert given.sub(logits).abs().max() < 1e-4


def test_what_cannot_be_carried_over_ends_in_1_and_is_named(labelmux, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LOHA"}))
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    done = labelmux("import-peft", tmp_path, "--json")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "a pickle" in done.json["error"]["message"]
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    done = labelmux("import-peft", tmp_path)
    assert done.code == 1
    assert "peft_type: 'LOHA' is neither LORA nor IA3" in done.err
