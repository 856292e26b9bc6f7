"""Stacked readouts equal one-by-one readouts, whatever shares the batch or came and went."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from labelmux_adapters import kernels
from labelmux_adapters.bank import Bank, Slot
from labelmux_adapters.files import Adapter
from labelmux_adapters.ytuning import YTuningSizes, from_tensors
from labelmux_encoder.batch import unpack

TOLERANCE = 1e-4
BATCH_TOLERANCE = 1e-5
MakeAdapter = Callable[..., Adapter]


LENGTHS = (9, 4, 1, 7, 9, 2)


def texts() -> torch.Tensor:
    return torch.randn(3, sum(LENGTHS), 32, generator=torch.Generator().manual_seed(2))


def plain(adapter: Adapter, features: torch.Tensor) -> NDArray[np.float32]:
    sizes = YTuningSizes.from_mapping(adapter.manifest.sizes)
    module = from_tensors(sizes, len(adapter.manifest.labels), adapter.tensors)
    with torch.no_grad():
        return module(*unpack(features, LENGTHS)).numpy()


def test_a_mixed_batch_equals_the_plain_modules(make_adapter: MakeAdapter) -> None:
    bank = Bank()
    features = texts()
    adapters = [
        make_adapter(tuple(f"l{i}" for i in range(count)), seed=seed, width=width)
        for seed, (count, width) in enumerate(
            [(2, 8), (3, 8), (5, 8), (4, 8), (2, 8), (40, 8), (3, 16), (2, 16), (8, 8), (2, 8)]
        )
    ]
    slots = [bank.add(adapter) for adapter in adapters]
    expected = [plain(adapter, features) for adapter in adapters]
    chooser = random.Random(1)
    for rows_wanted in (1, 3, 40, 200):
        chosen = [(chooser.randrange(6), chooser.randrange(10)) for _ in range(rows_wanted)]
        found = bank.readout(features, LENGTHS, [(text, slots[which]) for text, which in chosen])
        for (text, which), logits in zip(chosen, found, strict=True):
            assert logits.shape == expected[which][text].shape
            assert np.abs(logits - expected[which][text]).max() < TOLERANCE


def test_a_row_does_not_depend_on_its_neighbours(make_adapter: MakeAdapter) -> None:
    bank = Bank()
    features = texts()
    slots = [bank.add(make_adapter(("a", "b", "c"), seed=seed)) for seed in range(4)]
    (alone,) = bank.readout(features[:, 9:13], [4], [(0, slots[2])])
    crowd = [(text, slot) for text in range(6) for slot in slots] * 3
    found = bank.readout(features, LENGTHS, crowd)
    same = [logits for row, logits in zip(crowd, found, strict=True) if row == (1, slots[2])]
    assert len(same) == 3
    for logits in same:
        assert np.abs(logits - alone).max() < BATCH_TOLERANCE


def test_one_task_far_more_often_than_the_others_is_right(make_adapter: MakeAdapter) -> None:
    bank = Bank()
    features = texts()
    adapters = [make_adapter(seed=seed) for seed in range(5)]
    slots = [bank.add(adapter) for adapter in adapters]
    chosen = [(row % 6, 0) for row in range(50)] + [(row, row) for row in range(1, 5)]
    found = bank.readout(features, LENGTHS, [(text, slots[which]) for text, which in chosen])
    for (text, which), logits in zip(chosen, found, strict=True):
        expected = plain(adapters[which], features)[text]
        assert np.abs(logits - expected).max() < TOLERANCE


@pytest.mark.parametrize("kernels_serve", [True, False])
@pytest.mark.parametrize("kind", ["single_label", "token"])
@pytest.mark.parametrize("method", ["ytuning", "linear"])
def test_any_share_of_a_batch_is_read_by_its_own_adapter(
    make_adapter: MakeAdapter,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    kind: str,
    kernels_serve: bool,
) -> None:
    """One adapter's rows may take as many groups as there are adapters between it and another."""
    if not kernels_serve:
        monkeypatch.setattr(kernels, "serves", lambda *_: False)
    bank = Bank()
    features = texts()
    labels = ("O", "B-x", "I-x")
    slots = [
        bank.add(make_adapter(labels, seed=seed, method=method, task_kind=kind))
        for seed in range(4)
    ]
    alone = [
        [bank.readout(features, LENGTHS, [(text, slot)])[0] for text in range(6)] for slot in slots
    ]
    for counts in itertools.product(range(4), repeat=4):
        chosen = [(at % 6, which) for which in range(4) for at in range(counts[which])]
        if not chosen:
            continue
        found = bank.readout(features, LENGTHS, [(text, slots[which]) for text, which in chosen])
        for (text, which), logits in zip(chosen, found, strict=True):
            assert np.abs(logits - alone[which][text]).max() < BATCH_TOLERANCE, counts


def test_a_slot_given_back_serves_the_next_adapter(make_adapter: MakeAdapter) -> None:
    bank = Bank()
    features = texts()
    kept = make_adapter(seed=100)
    kept_slot = bank.add(kept)
    places: set[Slot] = set()
    for seed in range(20):
        adapter = make_adapter(seed=seed)
        slot = bank.add(adapter)
        places.add(slot)
        found = bank.readout(features, LENGTHS, [(3, slot), (3, kept_slot)])
        assert np.abs(found[0] - plain(adapter, features)[3]).max() < TOLERANCE
        assert np.abs(found[1] - plain(kept, features)[3]).max() < TOLERANCE
        bank.remove(slot)
    assert len(places) == 1


def test_adding_while_reading_changes_no_answer(make_adapter: MakeAdapter) -> None:
    bank = Bank()
    features = texts()
    adapter = make_adapter(("a", "b"), seed=1)
    slot = bank.add(adapter)
    expected = plain(adapter, features)
    others = [make_adapter(("a", "b"), seed=seed) for seed in range(2, 12)]
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for taken in [bank.add(other) for other in others]:
                bank.remove(taken)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(100):
            found = bank.readout(features, LENGTHS, [(text, slot) for text in range(6)])
            for text in range(6):
                assert np.abs(found[text] - expected[text]).max() < TOLERANCE
    finally:
        stop.set()
        thread.join()


def test_features_may_be_of_any_float_dtype(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(("a", "b", "c"), seed=3)
    features = texts().bfloat16()
    expected = plain(adapter, features.float())
    bank = Bank()
    slot = bank.add(adapter)
    found = bank.readout(features, LENGTHS, [(text, slot) for text in range(6)])
    assert np.abs(np.stack(found) - expected).max() < TOLERANCE


def test_bytes_are_those_of_the_resident_weights(make_adapter: MakeAdapter) -> None:
    few, many = make_adapter(("a", "b")), make_adapter(tuple(f"l{at}" for at in range(40)))
    assert Bank().bytes_of(few.manifest) < Bank().bytes_of(many.manifest)
    half = Bank(dtype=torch.bfloat16).bytes_of(few.manifest)
    assert half < Bank().bytes_of(few.manifest) <= 2 * half
