"""Stacked readouts of token tasks equal the plain modules, whatever shares the batch."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from labelmux_adapters.bank import Bank
from labelmux_adapters.files import Adapter
from labelmux_adapters.texts import TextBatch
from labelmux_adapters.ytuning import (
    TokenYTuning,
    YTuningSizes,
    expected_tensors,
    parameter_count,
    to_tensors,
    token_from_tensors,
)
from labelmux_adapters.ytuning_token_stack import TokenShape, TokenStack, token_constants_of

SIZES = YTuningSizes(hidden=48, states=4, width=64, heads=2, ffn=96)
LENGTHS = (9, 4, 1, 7, 9, 2)
CPU = torch.device("cpu")


def module(labels: int, seed: int) -> TokenYTuning:
    torch.manual_seed(seed)
    made = TokenYTuning(SIZES, labels).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def features(lengths: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(SIZES.states, sum(lengths), SIZES.hidden, generator=generator)


def plain(of: TokenYTuning, packed: torch.Tensor, lengths: tuple[int, ...]) -> list[np.ndarray]:
    with torch.no_grad():
        return [of(text.unsqueeze(1))[0].numpy() for text in packed.split(lengths, 1)]


def stack_of(
    modules: list[tuple[TokenYTuning, int]], capacity: int, dtype: torch.dtype = torch.float32
) -> tuple[TokenStack, list[int]]:
    shape = TokenShape(SIZES, capacity)
    stack = TokenStack(shape, CPU, dtype)
    return stack, [stack.add(labels, token_constants_of(made, shape)) for made, labels in modules]


def test_tensors_are_those_the_file_format_states() -> None:
    made = module(5, 0)
    found = {name: tuple(tensor.shape) for name, tensor in to_tensors(made).items()}
    assert found == expected_tensors(SIZES, 5, tokens=True)
    assert sum(p.numel() for p in made.parameters()) == parameter_count(SIZES, 5, tokens=True)
    again = token_from_tensors(SIZES, 5, to_tensors(made))
    packed = features((6,)).unsqueeze(1)
    assert torch.equal(again(packed), made(packed))


def test_every_parameter_gets_a_gradient() -> None:
    made = module(3, 0).train()
    made(features((6,)).unsqueeze(1)).square().sum().backward()
    without = [n for n, p in made.named_parameters() if p.grad is None or not p.grad.any()]
    # A key bias adds one constant to a softmax, so its gradient is zero by construction.
    assert set(without) <= {"self_key.bias"}


@pytest.mark.parametrize("lengths", [LENGTHS, (5, 5, 5, 5), (6,), (300, 2, 70)])
@pytest.mark.parametrize(("labels", "capacity"), [(2, 4), (3, 4), (17, 32), (150, 160)])
def test_a_stack_equals_the_plain_modules(
    labels: int, capacity: int, lengths: tuple[int, ...]
) -> None:
    modules = [(module(count, count), count) for count in (labels, 2, labels)]
    stack, slots = stack_of(modules, capacity)
    packed = features(lengths)
    texts = TextBatch(packed, lengths)
    expected = [plain(made, packed, lengths) for made, _ in modules]
    chooser = random.Random(labels)
    every = [(text, which) for text in range(len(lengths)) for which in range(3)]
    by_task = [(text, which) for which in range(3) for text in range(len(lengths))]
    mixed = [(chooser.randrange(len(lengths)), chooser.randrange(3)) for _ in range(20)]
    for rows in (every, by_task, [(0, 2)], mixed, [(text, 1) for text, _ in mixed]):
        found = stack.readout(
            texts,
            np.array([text for text, _ in rows]),
            np.array([slots[which] for _, which in rows]),
        )
        for (text, which), logits in zip(rows, found, strict=True):
            assert logits.shape == expected[which][text].shape
            assert np.abs(logits - expected[which][text]).max() < 1e-4


def test_bfloat16_weights_stay_near() -> None:
    modules = [(module(4, seed), 4) for seed in range(4)]
    stack, slots = stack_of(modules, 4, torch.bfloat16)
    packed = features(LENGTHS).bfloat16()
    rows = np.repeat(np.arange(len(LENGTHS)), 4)
    found = stack.readout(TextBatch(packed, LENGTHS), rows, np.tile(slots, len(LENGTHS)))
    expected = [plain(made, packed.float(), LENGTHS) for made, _ in modules]
    for at, logits in enumerate(found):
        wanted = expected[at % 4][rows[at]]
        assert np.abs(logits - wanted).max() < 1e-2 * max(np.abs(wanted).max(), 1)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    modules = [(module(3, seed), 3) for seed in range(4)]
    stack, slots = stack_of(modules, 4)
    packed = features(LENGTHS)
    alone = TextBatch(packed[:, 9:13], (4,))
    (wanted,) = stack.readout(alone, np.array([0]), np.array([slots[2]]))
    rows = [(text, slot) for text in range(6) for slot in slots] * 3
    texts, of = (np.array(part) for part in zip(*rows, strict=True))
    found = stack.readout(TextBatch(packed, LENGTHS), texts, of)
    same = [logits for row, logits in zip(rows, found, strict=True) if row == (1, slots[2])]
    assert len(same) == 3
    for logits in same:
        assert np.abs(logits - wanted).max() < 1e-5


def test_a_bank_reads_token_tasks_beside_others(make_adapter) -> None:
    bank = Bank()
    generator = torch.Generator().manual_seed(2)
    packed = torch.randn(3, sum(LENGTHS), 32, generator=generator)
    tags: Adapter = make_adapter(("O", "B-x", "I-x"), task_kind="token")
    texts: Adapter = make_adapter(("a", "b"))
    of_tags, of_texts = bank.add(tags), bank.add(texts)
    assert bank.bytes_of(tags.manifest) > 0
    rows = [(at, slot) for at in range(6) for slot in (of_tags, of_texts)]
    found = bank.readout(packed, LENGTHS, rows)
    assert [logits.shape for logits in found[::2]] == [(length, 3) for length in LENGTHS]
    assert [logits.shape for logits in found[1::2]] == [(2,)] * 6
    sizes = YTuningSizes.from_mapping(tags.manifest.sizes)
    made = token_from_tensors(sizes, 3, tags.tensors)
    with torch.no_grad():
        expected = [made(text.unsqueeze(1))[0].numpy() for text in packed.split(LENGTHS, 1)]
    for logits, wanted in zip(found[::2], expected, strict=True):
        assert np.abs(logits - wanted).max() < 1e-4
