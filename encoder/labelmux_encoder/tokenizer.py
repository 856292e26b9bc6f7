"""Texts and pairs to token ids.

Text is text: a literal ``[SEP]`` in a user's text is split like any other word, never read as the
special token. Truncation is reported per row. A tokenizer serves one call at a time, since the fast
tokenizers keep mutable settings; ``clone`` makes one for each thread, and takes 20 ms of the lock
that all of Python's threads share.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, count
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import pre_tokenizers

from labelmux_encoder.errors import CheckpointError

#: One text, or two that the task reads together.
TextInput = str | tuple[str, str]

#: Their ids stand for the tokenizer's behaviour in its digest: case, accents, punctuation, spaces,
#: numbers, unknown characters, special tokens written as text, and pairs.
_PROBES: tuple[TextInput, ...] = (
    "The quick brown fox, jumping over 12,345 lazy dogs!",
    "Ünïcödé   spaces\tand\nlines -- naïve café",
    "literal [SEP] and [CLS] and [MASK] in text",
    "mixedCASE don't co-operate e-mail@example.com #tag 🙂 漢字",
    ("first text", "second text"),
    "",
)


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One text or pair as the encoder reads it, special tokens included."""

    token_ids: tuple[int, ...]
    #: 0 for the first text and its special tokens, 1 for the second's.
    type_ids: tuple[int, ...]
    truncated: bool
    #: Positions of the special tokens, by the tokenizer's own mask.
    special: tuple[int, ...] = ()
    #: Where each token begins and ends, in characters of its text; only where asked for.
    offsets: tuple[tuple[int, int], ...] = ()


class Tokenizer:
    """A checkpoint's tokenizer. Any thread may call it; calls wait for each other."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._source = backend.to_str()
        self._backend = backend
        self._backend.encode_special_tokens = True
        self._backend.pre_tokenizer = _without_special_pieces(backend)
        self._backend.no_padding()
        self._backend.no_truncation()
        #: Longest row, and what the parts of a longer one have in common; in tokens.
        self._cut_tokens: tuple[int, int] | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read ``tokenizer.json``, or build the same tokenizer from ``spm.model``.

        Raises:
            CheckpointError: neither file is there, or one cannot be read.
        """
        ready = folder / "tokenizer.json"
        if ready.is_file():
            try:
                return cls(tokenizers.Tokenizer.from_file(str(ready)))
            except Exception as error:
                raise CheckpointError(
                    str(folder), f"tokenizer.json cannot be read ({error})", "replace the file"
                ) from error
        if (folder / "spm.model").is_file():
            return cls(_from_sentencepiece(folder))
        raise CheckpointError(
            str(folder), "no tokenizer.json and no spm.model", "add one of these files"
        )

    def clone(self) -> Tokenizer:
        """An equal tokenizer that another thread may use."""
        return Tokenizer(tokenizers.Tokenizer.from_str(self._source))

    def encode(
        self, texts: Sequence[TextInput], max_tokens: int, *, offsets: bool = False
    ) -> list[TokenRow]:
        """Token rows in the order of ``texts``; longer ones are cut to ``max_tokens`` and say so.

        A pair loses tokens from the longer of its texts first. Special tokens are never cut. With
        ``offsets``, rows say where their tokens lie.
        """
        encoded = self._encode(texts, max_tokens, 0)
        return [_row(found, bool(found.overflowing), offsets) for found in encoded]

    def windows(
        self, texts: Sequence[str], max_tokens: int, overlap_tokens: int, *, offsets: bool = False
    ) -> list[list[TokenRow]]:
        """Each text as rows of at most ``max_tokens`` that together hold all of it, in its order.

        Each begins with the last ``overlap_tokens`` that the one before it has of the text; more
        than a row can have but its special tokens is more than there may be.
        """
        return [
            [_row(part, False, offsets) for part in (found, *found.overflowing)]
            for found in self._encode(texts, max_tokens, overlap_tokens)
        ]

    def _encode(
        self, texts: Sequence[TextInput], max_tokens: int, overlap_tokens: int
    ) -> list[tokenizers.Encoding]:
        with self._lock:
            if (max_tokens, overlap_tokens) != self._cut_tokens:
                self._backend.enable_truncation(
                    max_tokens, stride=overlap_tokens, strategy="longest_first"
                )
                self._cut_tokens = (max_tokens, overlap_tokens)
            encoded: list[tokenizers.Encoding] = self._backend.encode_batch(list(texts))
        return encoded

    def digest(self) -> str:
        """SHA-256 over the vocabulary in id order and the ids of fixed probe texts.

        Equal for one tokenizer read from ``tokenizer.json`` or from ``spm.model``, and stable over
        releases of the tokenizer library as long as they tokenise alike.
        """
        by_id = sorted((index, token) for token, index in self._backend.get_vocab().items())
        probes = [row.token_ids for row in self.encode(_PROBES, 512)]
        text = json.dumps([by_id, probes], ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _row(found: tokenizers.Encoding, truncated: bool, offsets: bool) -> TokenRow:
    return TokenRow(
        tuple(found.ids),
        tuple(found.type_ids),
        truncated,
        tuple(compress(count(), found.special_tokens_mask)),
        tuple(found.offsets) if offsets else (),
    )


def _without_special_pieces(backend: tokenizers.Tokenizer) -> pre_tokenizers.PreTokenizer:
    """The backend's pre-tokenizer, and a cut inside whatever is written like a special token.

    A unigram vocabulary lists the special tokens as pieces and would find them in a user's text;
    SentencePiece itself never does. No piece spans a cut.
    """
    steps = [backend.pre_tokenizer] if backend.pre_tokenizer is not None else []
    special = [token.content for token in backend.get_added_tokens_decoder().values()]
    cuts = [f"{re.escape(of[0])}(?={re.escape(of[1:])})" for of in special if len(of) > 1]
    if cuts:
        # One expression: a split for each token would be a third of what tokenising costs.
        steps.append(pre_tokenizers.Split(tokenizers.Regex("|".join(cuts)), "isolated"))
    return pre_tokenizers.Sequence(steps)


def _from_sentencepiece(folder: Path) -> tokenizers.Tokenizer:
    from transformers import DebertaV2Tokenizer

    settings = folder / "tokenizer_config.json"
    raw: dict[str, Any] = json.loads(settings.read_text()) if settings.is_file() else {}
    kept = {key: raw[key] for key in ("do_lower_case", "split_by_punct") if key in raw}
    try:
        built = DebertaV2Tokenizer.from_pretrained(folder, local_files_only=True, **kept)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            str(folder), f"spm.model cannot be read ({error})", "replace the file"
        ) from error
    backend: tokenizers.Tokenizer = built.backend_tokenizer
    return tokenizers.Tokenizer.from_str(backend.to_str())
