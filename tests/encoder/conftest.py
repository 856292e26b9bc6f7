"""A real SentencePiece model, trained on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece

SENTENCES = (
    "the quick brown fox jumps over the lazy dog",
    "frozen encoders serve many tasks at once",
    "a pair of texts is read together by the encoder",
    "numbers such as 12 or 345 and marks, like these; appear!",
    "where do rivers begin and where do they end?",
)


@pytest.fixture(scope="session")
def spm_sentences() -> tuple[str, ...]:
    """What the SentencePiece model was trained on."""
    return SENTENCES


@pytest.fixture(scope="session")
def spm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as DeBERTa v3 is published: spm.model, tokenizer_config.json, no tokenizer.json."""
    folder = tmp_path_factory.mktemp("spm")
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(SENTENCES * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "spm"),
        vocab_size=120,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
        user_defined_symbols=["[MASK]"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    corpus.unlink()
    settings = {"do_lower_case": False, "vocab_type": "spm"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
