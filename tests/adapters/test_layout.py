from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from labelmux_adapters.layout import lay_out

ROWS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=60)


@given(ROWS)
def test_every_row_lies_once_in_a_group_of_its_adapter(rows: list[tuple[int, int]]) -> None:
    texts, slots = (np.array(column) for column in zip(*rows, strict=True))
    layout = lay_out(texts, slots)
    size = layout.texts.shape[1]
    assert len(set(layout.places.tolist())) == len(rows)
    assert (layout.slots[layout.places // size] == slots).all()
    assert (layout.texts.ravel()[layout.places] == texts).all()
    assert (np.diff(layout.slots) >= 0).all()
    assert layout.texts.size <= 2 * len(rows) + size


def test_one_text_for_many_tasks_and_many_texts_for_one_share_their_texts() -> None:
    tasks, texts = 4, 3
    text, slot = np.repeat(np.arange(texts), tasks), np.tile(np.arange(tasks), texts)
    layout = lay_out(text, slot)
    assert layout.is_shared
    assert layout.texts[0].tolist() == [0, 1, 2]
    assert lay_out(np.arange(texts), np.zeros(texts, np.int64)).is_shared
    assert not lay_out(np.arange(texts), np.arange(texts)).is_shared
