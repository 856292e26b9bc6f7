"""Edits do what their formulas say, to the rows that carry them, and to no other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.encoder.edits_oracle import oracle_states, random_edits
from tests.encoder.test_model import VARIANTS, stock

from labelmux_encoder.batch import PackedRows, pack_rows
from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.edits import Edit, Placed, SpecialTokenShift, tensors_of, with_tensors
from labelmux_encoder.model import EncoderTensors, derive, run_pass
from labelmux_encoder.weights import load_encoder

TOLERANCE = 1e-4
ROW_TOLERANCE = 1e-5
LENGTHS = (3, 17, 40, 17, 9, 130)
#: Two special tokens in some rows, three in others, as in single texts and pairs.
SPECIAL = ((0, 2), (0, 8, 16), (0, 39), (0, 16), (0, 4, 8), (0, 60, 129))
#: Which adapter of the stack each row carries; -1: none.
ENTRIES = (1, -1, 0, 2, 0, -1)
RELATIVE = ("v3", "own-position-projections", "small-buckets")


def made(name: str) -> tuple[Any, EncoderConfig, EncoderTensors]:
    model, config = stock(VARIANTS[name])
    with torch.no_grad():
        return model, config, derive(config, model.state_dict())


def batch(config: EncoderConfig) -> PackedRows:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(1, config.vocab_size, (sum(LENGTHS),), generator=generator)
    return PackedRows(ids, torch.zeros_like(ids), LENGTHS, SPECIAL)


def one_row(rows: PackedRows, row: int) -> PackedRows:
    start = sum(rows.lengths[:row])
    part = slice(start, start + rows.lengths[row])
    special = (rows.special[row],)
    return PackedRows(rows.token_ids[part], rows.type_ids[part], (rows.lengths[row],), special)


def states(
    config: EncoderConfig, tensors: EncoderTensors, rows: PackedRows, edits: list[Placed]
) -> list[torch.Tensor]:
    """Every row's states. B of [L+1, T, H]"""
    with torch.no_grad():
        found = torch.stack(run_pass(config, tensors, rows, edits))
    return list(found.split(rows.lengths, 1))


def each_alone(config: EncoderConfig) -> list[list[Edit]]:
    """Every primitive by itself, then all of them together."""
    edits = random_edits(config, 3, seed=5)
    return [[edit] for edit in edits] + [edits]


@pytest.mark.parametrize("name", RELATIVE)
def test_every_edit_follows_its_formula(name: str) -> None:
    model, config, tensors = made(name)
    rows = batch(config)
    for edits in each_alone(config):
        placed = [Placed(edit, ENTRIES) for edit in edits]
        found = states(config, tensors, rows, placed)
        for row in range(len(LENGTHS)):
            with torch.no_grad():
                expected = torch.stack(oracle_states(model, rows, row, placed))
            difference = (found[row] - expected).abs().max().item()
            assert difference < TOLERANCE, (edits, row)


def test_rows_without_an_edit_keep_every_bit() -> None:
    _, config, tensors = made("v3")
    rows = batch(config)
    plain = states(config, tensors, rows, [])
    for edits in each_alone(config):
        found = states(config, tensors, rows, [Placed(edit, ENTRIES) for edit in edits])
        for row, entry in enumerate(ENTRIES):
            assert torch.equal(found[row], plain[row]) == (entry < 0), (edits, row)


def test_a_row_alone_equals_the_row_in_a_mixed_batch() -> None:
    _, config, tensors = made("v3")
    rows = batch(config)
    for edits in each_alone(config):
        together = states(config, tensors, rows, [Placed(edit, ENTRIES) for edit in edits])
        for row, entry in enumerate(ENTRIES):
            own = [Placed(edit, (entry,)) for edit in edits]
            alone = states(config, tensors, one_row(rows, row), own)[0]
            assert (alone - together[row]).abs().max().item() < ROW_TOLERANCE, (edits, row)


def test_tasks_with_different_edits_share_a_batch() -> None:
    model, config, tensors = made("v3")
    rows = batch(config)
    edits = random_edits(config, 3, seed=9)
    # Neighbours carry different primitives: rows 0 and 2 the even ones, 3 and 4 the odd ones.
    placed = [
        Placed(edit, (1, -1, 0, -1, -1, -1) if place % 2 else (-1, -1, -1, 2, 0, -1))
        for place, edit in enumerate(edits)
    ]
    found = states(config, tensors, rows, placed)
    for row in range(len(LENGTHS)):
        with torch.no_grad():
            expected = torch.stack(oracle_states(model, rows, row, placed))
        assert (found[row] - expected).abs().max().item() < TOLERANCE


@pytest.mark.parametrize("name", ("v3", "convolution-gelu", "no-relative-attention"))
def test_edits_of_zeros_leave_the_plain_pass(name: str) -> None:
    _, config, tensors = made(name)
    rows = batch(config)
    plain = states(config, tensors, rows, [])
    neutral: list[Edit] = []
    for edit in random_edits(config, 3, seed=5):
        if type(edit).__name__ == "Prefix":
            continue  # zero keys still draw weight: that is the published method
        fields = tensors_of(edit)

        def rest(name: str, tensor: torch.Tensor, fields: Any = fields) -> torch.Tensor:
            if name in ("vectors", "up", "up_bias"):
                return torch.zeros_like(tensor)
            return torch.ones_like(tensor) if name == "factors" else tensor

        neutral.append(with_tensors(edit, rest))
    found = states(config, tensors, rows, [Placed(edit, (0,) * len(LENGTHS)) for edit in neutral])
    for row in range(len(LENGTHS)):
        assert (found[row] - plain[row]).abs().max().item() < ROW_TOLERANCE


def test_gradients_reach_every_tensor_of_every_edit() -> None:
    _, config, tensors = made("v3")
    edits = [
        with_tensors(edit, lambda _, tensor: tensor.requires_grad_())
        for edit in random_edits(config, 3, seed=5)
    ]
    found = run_pass(config, tensors, batch(config), [Placed(edit, ENTRIES) for edit in edits])
    found[-1].pow(2).sum().backward()  # type: ignore[no-untyped-call]
    for edit in edits:
        for name, tensor in tensors_of(edit).items():
            assert tensor.grad is not None and bool(tensor.grad.abs().sum() > 0), (edit, name)


def test_a_special_token_shift_equals_a_hook_before_every_layer() -> None:
    model, config, tensors = made("v3")
    rows = one_row(batch(config), 1)
    vectors = torch.randn(1, config.num_layers, 3, config.hidden_size)
    for index, layer in enumerate(model.encoder.layer):

        def shifted(_: Any, given: tuple[Any, ...], index: int = index) -> tuple[Any, ...]:
            hidden = given[0].clone()
            hidden[0, list(rows.special[0])] += vectors[0, index]
            return (hidden, *given[1:])

        layer.register_forward_pre_hook(shifted)
    with torch.no_grad():
        expected = model(input_ids=rows.token_ids[None]).last_hidden_state[0]
    found = states(config, tensors, rows, [Placed(SpecialTokenShift(vectors), (0,))])[0]
    assert (found[-1] - expected).abs().max().item() < TOLERANCE


def test_a_separator_written_by_a_user_is_not_shifted() -> None:
    loaded = load_encoder("bundled")
    written = pack_rows(loaded.tokenizer.encode(["one [SEP] two"], 64))
    assert written.special == ((0, written.lengths[0] - 1),)
    pair = pack_rows(loaded.tokenizer.encode([("one", "two")], 64))
    assert len(pair.special[0]) == 3
