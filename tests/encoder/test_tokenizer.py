"""Text is text, truncation is told, and two file formats of one tokenizer agree."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
import sentencepiece

from labelmux_encoder.errors import CheckpointError
from labelmux_encoder.tokenizer import Tokenizer
from labelmux_encoder.weights import LoadedEncoder, load_encoder


def test_a_sentencepiece_folder_tokenises_as_sentencepiece_does(
    spm_folder: Path, spm_sentences: tuple[str, ...]
) -> None:
    tokenizer = Tokenizer.from_folder(spm_folder)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(spm_folder / "spm.model"))
    for sentence in spm_sentences:
        (row,) = tokenizer.encode([sentence], 128)
        assert list(row.token_ids[1:-1]) == reference.encode(sentence)
        assert row.token_ids[0] == 1 and row.token_ids[-1] == 2


def test_tokenizer_json_and_spm_model_of_one_tokenizer_have_one_digest(
    spm_folder: Path, tmp_path: Path
) -> None:
    from_spm = Tokenizer.from_folder(spm_folder)
    (tmp_path / "tokenizer.json").write_text(from_spm._source)
    assert Tokenizer.from_folder(tmp_path).digest() == from_spm.digest()


@pytest.mark.parametrize("special", ["[SEP]", "[CLS]", "[MASK]", "[PAD]"])
def test_a_special_token_written_as_text_is_text(special: str, spm_folder: Path) -> None:
    for tokenizer in (Tokenizer.from_folder(spm_folder), load_encoder("bundled").tokenizer):
        plain, literal = tokenizer.encode(["a b", f"a {special} b"], 64)
        first, last = plain.token_ids[0], plain.token_ids[-1]
        special_id = tokenizer._backend.token_to_id(special)
        assert special_id not in literal.token_ids[1:-1]
        assert (literal.token_ids[0], literal.token_ids[-1]) == (first, last)
        assert len(literal.token_ids) > len(plain.token_ids)


@pytest.mark.parametrize("special", ["[SEP]", "[CLS]", "[MASK]", "[PAD]"])
def test_special_positions_are_those_that_the_tokenizer_added(
    special: str, spm_folder: Path
) -> None:
    for tokenizer in (Tokenizer.from_folder(spm_folder), load_encoder("bundled").tokenizer):
        single, pair, cut = (
            tokenizer.encode([text], limit)[0]
            for text, limit in (
                (f"{special} a {special} b {special}", 64),
                ((f"a {special}", f"{special} b"), 64),
                ((f"{special} a b c d e f g", f"{special} a b c d e f g"), 12),
            )
        )
        for row, count in ((single, 2), (pair, 3), (cut, 3)):
            assert len(row.special) == count
            assert (row.special[0], row.special[-1]) == (0, len(row.token_ids) - 1)
        for row in (pair, cut):
            assert row.special[1] == row.type_ids.index(1) - 1
        assert cut.truncated


def test_offsets_are_characters_of_the_text(spm_folder: Path) -> None:
    text = "Ünïcödé 漢字 fox 🙂 dog"
    for tokenizer in (Tokenizer.from_folder(spm_folder), load_encoder("bundled").tokenizer):
        (row,) = tokenizer.encode([text], 64, offsets=True)
        assert tokenizer.encode([text], 64)[0].offsets == ()
        assert len(row.offsets) == len(row.token_ids)
        content = [place for at, place in enumerate(row.offsets) if at not in row.special]
        assert content == sorted(content)
        covered = {at for place in row.offsets for at in range(*place)}
        assert covered >= {at for at, sign in enumerate(text) if not sign.isspace()}


def test_a_literal_special_token_is_split_as_sentencepiece_splits_it(spm_folder: Path) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(spm_folder / "spm.model"))
    (row,) = Tokenizer.from_folder(spm_folder).encode(["fox [SEP] dog"], 64)
    unknown = reference.unk_id()
    merged = [
        a
        for a, b in zip(row.token_ids, (*row.token_ids[1:], None), strict=True)
        if not a == b == unknown
    ]
    assert merged[1:-1] == reference.encode("fox [SEP] dog")


def test_truncation_is_reported_and_keeps_the_special_tokens(tiny_encoder: LoadedEncoder) -> None:
    short, long = tiny_encoder.tokenizer.encode(["the train", "the train " * 40], 16)
    assert not short.truncated
    assert long.truncated and len(long.token_ids) == 16
    assert long.token_ids[0] == short.token_ids[0] and long.token_ids[-1] == short.token_ids[-1]


def test_a_pair_has_two_types_and_loses_tokens_of_the_longer_text(
    tiny_encoder: LoadedEncoder,
) -> None:
    (row,) = tiny_encoder.tokenizer.encode([("the train", "the bus " * 30)], 20)
    separator = row.token_ids[-1]
    assert row.truncated and len(row.token_ids) == 20
    assert row.token_ids.count(separator) == 2
    first = row.type_ids.count(0)
    assert row.type_ids == (0,) * first + (1,) * (20 - first)
    assert row.token_ids.index(separator) == first - 1 == 3


def test_an_empty_text_is_only_special_tokens(tiny_encoder: LoadedEncoder) -> None:
    (row,) = tiny_encoder.tokenizer.encode([""], 16)
    assert len(row.token_ids) == 2 and not row.truncated


def test_clones_encode_alike_in_threads(tiny_encoder: LoadedEncoder) -> None:
    texts = ["the train to the coast leaves at nine " * n for n in range(1, 6)]
    expected = {limit: tiny_encoder.tokenizer.encode(texts, limit) for limit in (8, 16, 64)}
    wrong: list[int] = []

    def work(limit: int) -> None:
        own = tiny_encoder.tokenizer.clone()
        for _ in range(50):
            if own.encode(texts, limit) != expected[limit]:
                wrong.append(limit)

    threads = [threading.Thread(target=work, args=(limit,)) for limit in (8, 16, 64, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json and no spm\.model"):
        Tokenizer.from_folder(tmp_path)


def test_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("said", [b"{", b"[]", b"null", b"\xff"])
def test_damaged_settings_of_a_tokenizer_are_named(
    spm_folder: Path, tmp_path: Path, said: bytes
) -> None:
    shutil.copy(spm_folder / "spm.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(said)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json (cannot be read|is not an)"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("overlap_tokens", [0, 3, 6])
def test_windows_hold_the_whole_text_and_share_the_overlap(
    overlap_tokens: int, spm_folder: Path
) -> None:
    text = "the quick brown fox jumps over the lazy dog, " * 3
    for tokenizer in (Tokenizer.from_folder(spm_folder), load_encoder("bundled").tokenizer):
        (whole,) = tokenizer.encode([text], 512, offsets=True)
        short, windows = tokenizer.windows(["a dog", text], 16, overlap_tokens, offsets=True)
        assert short == [tokenizer.encode(["a dog"], 16, offsets=True)[0]]
        assert len(windows) > 2
        assert all(len(row.token_ids) <= 16 and not row.truncated for row in windows)
        assert all(row.special == (0, len(row.token_ids) - 1) for row in windows)
        ids, places = list(windows[0].token_ids[1:-1]), list(windows[0].offsets[1:-1])
        for row in windows[1:]:
            assert list(row.token_ids[1 : 1 + overlap_tokens]) == ids[len(ids) - overlap_tokens :]
            ids += row.token_ids[1 + overlap_tokens : -1]
            places += row.offsets[1 + overlap_tokens : -1]
        assert ids == list(whole.token_ids[1:-1])
        assert places == list(whole.offsets[1:-1])
        assert tokenizer.encode([text], 16)[0].truncated
