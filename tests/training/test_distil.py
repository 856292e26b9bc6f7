"""The bundled encoder's recipe: it starts as the teacher, a stopped run goes on, it loads."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.model import derive, run_padded
from labelmux_encoder.weights import load_encoder
from labelmux_training.bundle import write_bundle
from labelmux_training.corpus import LONG_TOKENS, SHORT_TOKENS, Corpus, read_lines
from labelmux_training.distil import Distillation
from labelmux_training.student import student_config, warm_start

TOLERANCE = 1e-4


def give_positions_of_their_own(teacher: Path) -> None:
    """What a student has to learn."""
    state = load_file(teacher / "model.safetensors")
    state["embeddings.position_embeddings.weight"].normal_()
    save_file(state, teacher / "model.safetensors", metadata={"format": "pt"})


def arguments(teacher: Path, corpus: Path, out: Path, **changes: Any) -> argparse.Namespace:
    values = {
        "teacher": teacher,
        "corpus": [corpus],
        "out": out,
        "tokens": 3000,
        "batch_tokens": 512,
        "learning_rate": 1e-3,
        "save_every_s": 1e9,
        "long_share": 0.2,
        "start_from": None,
        "seed": 13,
    }
    return argparse.Namespace(**values | changes)


def test_without_position_terms_the_start_equals_the_teacher(teacher: Path) -> None:
    raw = student_config(json.loads((teacher / "config.json").read_text()))
    state = warm_start(raw, load_file(teacher / "model.safetensors"), seed=0)
    state = {n: torch.zeros_like(t) if "pos_" in n else t for n, t in state.items()}
    config = EncoderConfig.from_checkpoint(raw)
    ids = torch.randint(5, config.vocab_size, (3, 12))
    mask = torch.arange(12)[None] < torch.tensor([12, 7, 1])[:, None]
    bert = BertModel.from_pretrained(teacher, add_pooling_layer=False).eval()
    with torch.no_grad():
        theirs = bert(
            input_ids=ids, attention_mask=mask.long(), output_hidden_states=True
        ).hidden_states
        ours = run_padded(config, derive(config, state), ids, mask)
    for found, expected in zip(ours, theirs, strict=True):
        assert (found - expected)[mask].abs().max().item() < TOLERANCE


def test_a_run_learns_stops_and_goes_on_where_it_was(
    teacher: Path, corpus_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    give_positions_of_their_own(teacher)
    Distillation(arguments(teacher, corpus_file, out)).run()
    first = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    scored = [line["short_token"] for line in first if "short_token" in line]
    assert scored[0] < 0.99
    assert scored[-1] > scored[0]
    seen = torch.load(out / "checkpoint.pt", weights_only=True)["tokens_seen"]
    resumed = Distillation(arguments(teacher, corpus_file, out, tokens=seen + 1000))
    resumed.run()
    later = torch.load(out / "checkpoint.pt", weights_only=True)["tokens_seen"]
    assert later >= seen + 1000
    stage = arguments(teacher, corpus_file, tmp_path / "two", start_from=out / "checkpoint.pt")
    started = Distillation(stage).state
    saved = torch.load(out / "checkpoint.pt", weights_only=True)["state"]
    assert all(torch.equal(started[name], saved[name]) for name in saved)


def test_a_bundle_loads_as_an_encoder_with_the_stored_weights(
    teacher: Path, corpus_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    Distillation(arguments(teacher, corpus_file, out, tokens=600)).run()
    stored = write_bundle(out / "checkpoint.pt", teacher, tmp_path / "bundle")
    loaded = load_encoder(str(tmp_path / "bundle"))
    assert loaded.encoder.parameter_count == sum(t.numel() for t in stored.values())
    assert (tmp_path / "bundle" / "model.safetensors").stat().st_mode & 0o044 == 0o044


def test_batches_are_whole_rows_within_the_budget(teacher: Path, corpus_file: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(teacher / "tokenizer.json"))
    lines = read_lines([corpus_file])
    corpus = Corpus(lines, tokenizer, batch_tokens=1024, seed=0, long_share=0.5)
    lengths = set[int]()
    for _, batch in zip(range(40), corpus.batches(), strict=False):
        rows, tokens = batch.token_ids.shape
        assert rows == 1 or rows * tokens <= 1024
        assert bool(batch.mask[:, 0].all()) and bool(batch.mask.any(0).all())
        lengths.add(tokens)
    assert min(lengths) <= SHORT_TOKENS and 256 <= max(lengths) <= LONG_TOKENS
