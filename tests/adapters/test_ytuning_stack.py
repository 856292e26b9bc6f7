"""Readouts of a realistic width, in both forms of attention, beside the plain module."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from labelmux_adapters import kernels
from labelmux_adapters.kernel_stack import KernelStack, fits
from labelmux_adapters.texts import TextBatch
from labelmux_adapters.ytuning import YTuning, YTuningSizes
from labelmux_adapters.ytuning_constants import StackShape, constants_of
from labelmux_adapters.ytuning_stack import YTuningStack
from labelmux_encoder.batch import unpack

SIZES = YTuningSizes(hidden=48, states=4, width=64, heads=2, ffn=96)
LENGTHS = (9, 4, 1, 7, 9, 2)
EQUAL_LENGTHS = (5, 5, 5, 5)
CPU = torch.device("cpu")


def module(labels: int, seed: int) -> YTuning:
    torch.manual_seed(seed)
    made = YTuning(SIZES, labels).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def features(lengths: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(SIZES.states, sum(lengths), SIZES.hidden, generator=generator)


def plain(of: YTuning, packed: torch.Tensor, lengths: tuple[int, ...]) -> np.ndarray:
    with torch.no_grad():
        return of(*unpack(packed, lengths)).numpy()


Kind = type[YTuningStack]
both_kinds = pytest.mark.parametrize("kind", [YTuningStack, KernelStack])


def stack_of(
    modules: list[tuple[YTuning, int]],
    capacity: int,
    dtype: torch.dtype = torch.float32,
    kind: Kind = YTuningStack,
) -> tuple[YTuningStack, list[int]]:
    shape = StackShape(SIZES, capacity)
    if kind is KernelStack and not kernels.serves(CPU, dtype):
        pytest.skip(f"no kernels for {dtype} here")
    assert fits(shape)
    stack = kind(shape, CPU, dtype)
    return stack, [stack.add(labels, constants_of(made, shape)) for made, labels in modules]


def test_odd_sizes_are_left_to_plain_torch() -> None:
    assert not fits(StackShape(YTuningSizes(hidden=48, states=4, width=6, heads=2, ffn=96), 4))
    assert not fits(StackShape(YTuningSizes(hidden=48, states=4, width=64, heads=2, ffn=97), 4))
    assert not fits(StackShape(YTuningSizes(hidden=48, states=65, width=64, heads=2, ffn=96), 4))


def test_few_labels_absorb_the_keys_and_many_do_not() -> None:
    assert StackShape(SIZES, 4).absorbs_keys
    assert not StackShape(SIZES, 32).absorbs_keys


@both_kinds
@pytest.mark.parametrize("lengths", [LENGTHS, EQUAL_LENGTHS, (6,), (300, 2, 70)])
@pytest.mark.parametrize(("labels", "capacity"), [(2, 4), (4, 4), (2, 32), (17, 32), (150, 160)])
def test_a_stack_equals_the_plain_modules(
    labels: int, capacity: int, lengths: tuple[int, ...], kind: Kind
) -> None:
    modules = [(module(count, count), count) for count in (labels, 2, labels)]
    stack, slots = stack_of(modules, capacity, kind=kind)
    packed = features(lengths)
    texts = TextBatch(packed, lengths)
    expected = [plain(made, packed, lengths) for made, _ in modules]
    chooser = random.Random(labels)
    every = [(text, which) for text in range(len(lengths)) for which in range(3)]
    mixed = [(chooser.randrange(len(lengths)), chooser.randrange(3)) for _ in range(20)]
    for rows in (every, [(0, 2)], mixed, [(text, 1) for text, _ in mixed]):
        found = stack.readout(
            texts,
            np.array([text for text, _ in rows]),
            np.array([slots[which] for _, which in rows]),
        )
        for (text, which), logits in zip(rows, found, strict=True):
            assert logits.shape == expected[which][text].shape
            assert np.abs(logits - expected[which][text]).max() < 1e-4


@both_kinds
@pytest.mark.parametrize("capacity", [4, 32])
def test_bfloat16_weights_stay_near(capacity: int, kind: Kind) -> None:
    modules = [(module(4, seed), 4) for seed in range(4)]
    stack, slots = stack_of(modules, capacity, torch.bfloat16, kind)
    packed = features(LENGTHS).bfloat16()
    rows = np.repeat(np.arange(len(LENGTHS)), 4)
    found = stack.readout(TextBatch(packed, LENGTHS), rows, np.tile(slots, len(LENGTHS)))
    expected = [plain(made, packed.float(), LENGTHS) for made, _ in modules]
    for at, logits in enumerate(found):
        scale = np.abs(expected[at % 4][rows[at]]).max()
        assert np.abs(logits - expected[at % 4][rows[at]]).max() < 1e-2 * max(scale, 1)


@both_kinds
def test_a_padded_label_never_matters(kind: Kind) -> None:
    made = module(3, 0)
    packed = features(LENGTHS)
    texts = TextBatch(packed, LENGTHS)
    rows = np.arange(len(LENGTHS))
    (tight, [first]), (loose, [second]) = (stack_of([(made, 3)], c, kind=kind) for c in (3, 7))
    for one, other in zip(
        tight.readout(texts, rows, np.full_like(rows, first)),
        loose.readout(texts, rows, np.full_like(rows, second)),
        strict=True,
    ):
        assert np.abs(one - other).max() < 1e-5


@both_kinds
def test_trimming_gives_memory_back_and_moves_nobody(kind: Kind) -> None:
    modules = [(module(2, seed), 2) for seed in range(40)]
    stack, slots = stack_of(modules, 4, kind=kind)
    packed = features(LENGTHS)
    texts = TextBatch(packed, LENGTHS)
    for slot in slots[3:]:
        stack.remove(slot)
    roomy = stack.slots
    for _ in range(5):
        stack.trim()
    assert stack.slots < roomy
    for which in range(3):
        (found,) = stack.readout(texts, np.array([1]), np.array([slots[which]]))
        assert np.abs(found - plain(modules[which][0], packed, LENGTHS)[1]).max() < 1e-4
    for slot in slots[:3]:
        stack.remove(slot)
    stack.trim()
    assert stack.slots == 0
