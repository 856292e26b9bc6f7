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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, compress, count
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
        #: Longest part of a text, and what parts have in common, in tokens; None: texts stay whole.
        self._parts: tuple[int, int] | None = None
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

    def largest_id(self) -> int:
        """Of the tokens that rows can have; special ones that no row is given do not count."""
        added = self._backend.get_added_tokens_decoder()
        special = {index for index, token in added.items() if token.special}
        given = chain.from_iterable(row.token_ids for row in self.encode(_PROBES, 512))
        return max(chain(given, set(self._backend.get_vocab().values()) - special))

    def encode(
        self, texts: Sequence[TextInput], max_tokens: int, *, offsets: bool = False
    ) -> list[TokenRow]:
        """Token rows in the order of ``texts``; longer ones are cut to ``max_tokens`` and say so.

        A pair loses tokens from the longer of its texts first. Special tokens are never cut. With
        ``offsets``, rows say where their tokens lie.
        """
        return [
            _row(found, offsets) if len(found) <= max_tokens else _cut(found, max_tokens, offsets)
            for found in self._encode(texts, None, offsets)
        ]

    def windows(
        self, texts: Sequence[str], max_tokens: int, overlap_tokens: int, *, offsets: bool = False
    ) -> list[list[TokenRow]]:
        """Each text as rows of at most ``max_tokens`` that together hold all of it, in its order.

        Each begins with the last ``overlap_tokens`` that the one before it has of the text; more
        than a row can have but its special tokens is more than there may be.
        """
        return [
            [_row(part, offsets) for part in (found, *found.overflowing)]
            for found in self._encode(texts, (max_tokens, overlap_tokens), offsets)
        ]

    def _encode(
        self, texts: Sequence[TextInput], parts: tuple[int, int] | None, offsets: bool
    ) -> list[tokenizers.Encoding]:
        encode = self._backend.encode_batch_fast
        # Without offsets the library forgets which of a pair's texts a token is of, where no
        # post-processor says it again.
        if offsets or not all(isinstance(text, str) for text in texts):
            encode = self._backend.encode_batch
        with self._lock:
            if parts != self._parts:
                if parts is None:
                    self._backend.no_truncation()
                else:
                    self._backend.enable_truncation(parts[0], stride=parts[1])
                self._parts = parts
            encoded: list[tokenizers.Encoding] = encode(list(texts))
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


def _row(found: tokenizers.Encoding, offsets: bool) -> TokenRow:
    return TokenRow(
        tuple(found.ids),
        tuple(found.type_ids),
        False,
        tuple(compress(count(), found.special_tokens_mask)),
        tuple(found.offsets) if offsets else (),
    )


def _cut(found: tokenizers.Encoding, max_tokens: int, offsets: bool) -> TokenRow:
    """The row that the library's own truncation leaves, in time linear in the text.

    The library also builds what it cuts away: for a pair each piece of one text with each of the
    other, the square of the text.
    """
    places = list(chain.from_iterable(_kept(found.sequence_ids, max_tokens)))
    ids, type_ids, mask = found.ids, found.type_ids, found.special_tokens_mask
    return TokenRow(
        tuple([ids[at] for at in places]),
        tuple([type_ids[at] for at in places]),
        True,
        tuple([to for to, at in enumerate(places) if mask[at]]),
        # All of a long text's offsets are a tuple for each token; a special token has none.
        tuple([found.token_to_chars(at) or (0, 0) for at in places]) if offsets else (),
    )


def _kept(text_of: Sequence[int | None], max_tokens: int) -> Iterator[range]:
    """Where the tokens are that stay: the special ones and the first of each text.

    ``text_of`` has the text of each token, 0 or 1, and None where the token is special.
    """
    lengths = text_of.count(0), text_of.count(1)
    room = max(max_tokens - (len(text_of) - sum(lengths)), 0)
    gaps: list[tuple[int, int]] = []
    for text, (length, stay) in enumerate(zip(lengths, _shares(*lengths, room), strict=True)):
        if length:
            # A text's tokens stand together.
            begin = text_of.index(text)
            gaps.append((begin + stay, begin + length))
    edges = [0, *chain.from_iterable(sorted(gaps)), len(text_of)]
    return map(range, edges[::2], edges[1::2])


def _shares(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens stay of two texts that have more than ``room``: the longer one loses first.

    Of two that stay equally long the longer one, or else the second, has the odd token.
    """
    shorter = min(first, second, room // 2)
    return (room - shorter, shorter) if first > second else (shorter, room - shorter)


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

    raw = _settings(folder)
    kept = {key: raw[key] for key in ("do_lower_case", "split_by_punct") if key in raw}
    try:
        built = DebertaV2Tokenizer.from_pretrained(folder, local_files_only=True, **kept)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            str(folder), f"spm.model cannot be read ({error})", "replace the file"
        ) from error
    backend: tokenizers.Tokenizer = built.backend_tokenizer
    return tokenizers.Tokenizer.from_str(backend.to_str())


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(
            str(folder), f"{path.name} cannot be read ({error})", "replace the file"
        ) from error
    if not isinstance(raw, dict):
        raise CheckpointError(str(folder), f"{path.name} is not an object", "replace the file")
    return raw
