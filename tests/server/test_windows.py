"""What windows say is put together: one window is no windows, each word has the best context."""

from __future__ import annotations

import numpy as np

from labelmux_adapters.iob2 import word_tokens, words_of
from labelmux_server.windows import aggregate, of_words

TEXT = "the train to the coast leaves at nine and the bus at ten, two dogs play in the snow"


def test_one_window_is_no_windows() -> None:
    logits = np.array([1.0, -2.0], np.float32)
    for how in ("mean", "max"):
        assert aggregate([logits], how) is logits


def test_logits_are_put_together_label_by_label() -> None:
    windows = [np.array([1.0, -2.0], np.float32), np.array([3.0, -6.0], np.float32)]
    assert aggregate(windows, "mean").tolist() == [2.0, -4.0]
    assert aggregate(windows, "max").tolist() == [3.0, -2.0]


def test_each_word_is_read_where_most_of_the_text_is_around_it(tiny_encoder) -> None:
    tokenizer = tiny_encoder.tokenizer
    (rows,) = tokenizer.windows([TEXT], 12, 5, offsets=True)
    words = words_of(TEXT)
    # Logits that say which window and token they are of.
    windows = [
        np.array([[number, token] for token in range(len(row.token_ids))], np.float32)
        for number, row in enumerate(rows)
    ]
    read, logits = of_words(words, rows, windows)
    assert read.all()
    for (first, end), (number, token) in zip(words, logits.astype(int).tolist(), strict=True):
        start, stop = rows[number].offsets[token]
        assert start == first and stop <= end
        chosen = min(token, len(rows[number].token_ids) - 1 - token)
        for row in rows:
            for at, place in enumerate(row.offsets):
                if at not in row.special and place[0] == first:
                    assert min(at, len(row.token_ids) - 1 - at) <= chosen


def test_a_word_is_looked_for_only_in_windows_near_it(tiny_encoder, monkeypatch) -> None:
    text = " ".join([TEXT] * 20)
    (rows,) = tiny_encoder.tokenizer.windows([text], 12, 5, offsets=True)
    words = words_of(text)
    windows = [np.arange(len(row.token_ids), dtype=np.float32)[:, None] for row in rows]
    everywhere = np.stack([word_tokens(words, row.offsets, row.special) for row in rows])
    lengths = np.array([[len(row.token_ids)] for row in rows])
    around = np.where(everywhere < 0, -1, np.minimum(everywhere, lengths - 1 - everywhere))
    expected = everywhere[around.argmax(0), np.arange(len(words))]
    looked = []

    def counted(near, *rest):
        looked.append(len(near))
        return word_tokens(near, *rest)

    monkeypatch.setattr("labelmux_server.windows.word_tokens", counted)
    read, logits = of_words(words, rows, windows)
    assert read.all()
    assert logits[:, 0].tolist() == expected.tolist()
    assert len(rows) > 50 and sum(looked) < 3 * len(words)


def test_words_behind_the_cut_are_not_read(tiny_encoder) -> None:
    rows = tiny_encoder.tokenizer.encode([TEXT], 12, offsets=True)
    words = words_of(TEXT)
    read, _ = of_words(words, rows, [np.zeros((len(rows[0].token_ids), 3), np.float32)])
    assert read.tolist() == [first < rows[0].offsets[-2][1] for first, _ in words]


def test_a_text_without_words_has_none(tiny_encoder) -> None:
    rows = tiny_encoder.tokenizer.encode([" "], 12, offsets=True)
    read, logits = of_words([], rows, [np.zeros((len(rows[0].token_ids), 3), np.float32)])
    assert read.shape == (0,) and logits.shape == (0, 3)
