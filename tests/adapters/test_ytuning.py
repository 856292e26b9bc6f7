"""The trainable form: shapes, losses, starts, and what masks and gradients reach."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from labelmux_adapters.ytuning import (
    YTuning,
    YTuningSizes,
    expected_tensors,
    from_tensors,
    margin_loss,
    parameter_count,
    to_tensors,
)

SIZES = YTuningSizes(hidden=16, states=3, width=8, heads=2, ffn=12)


def batch(rows: int = 4, tokens: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(3, rows, tokens, 16, generator=generator)
    lengths = torch.tensor([tokens, 3, 1, 4])[:rows]
    return features, torch.arange(tokens)[None] < lengths[:, None]


def test_tensors_are_those_the_file_format_states() -> None:
    module = YTuning(SIZES, 5)
    found = {name: tuple(tensor.shape) for name, tensor in to_tensors(module).items()}
    assert found == expected_tensors(SIZES, 5)
    assert sum(p.numel() for p in module.parameters()) == parameter_count(SIZES, 5)


def test_saved_tensors_give_the_same_logits() -> None:
    torch.manual_seed(0)
    module = YTuning(SIZES, 3).eval()
    again = from_tensors(SIZES, 3, to_tensors(module))
    assert torch.equal(again(*batch()), module(*batch()))


def test_padding_does_not_reach_the_logits() -> None:
    torch.manual_seed(0)
    module = YTuning(SIZES, 3).eval()
    features, mask = batch()
    noisy = torch.where(mask[None, :, :, None], features, torch.randn_like(features) * 50)
    assert torch.allclose(module(features, mask), module(noisy, mask), atol=1e-6)
    alone = module(features[:, 1:2, :3], mask[1:2, :3])
    assert torch.allclose(alone[0], module(features, mask)[1], atol=1e-6)


def test_every_parameter_gets_a_gradient_and_the_features_none() -> None:
    torch.manual_seed(0)
    module = YTuning(SIZES, 3)
    features, mask = batch()
    loss = torch.nn.functional.cross_entropy(module(features, mask), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    without = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    # A key bias adds one constant to a softmax, so its gradient is zero by construction.
    assert set(without) <= {"self_key.bias"}


def test_label_start_ranks_each_class_mean_first() -> None:
    torch.manual_seed(0)
    module = YTuning(SIZES, 4).eval()
    means = torch.randn(4, 16) * 3
    module.start_labels(means)
    pooled = module.pooled(means)
    similarity = (
        torch.nn.functional.normalize(pooled)
        @ torch.nn.functional.normalize(module.label_vectors).T
    )
    assert similarity.argmax(1).tolist() == [0, 1, 2, 3]


def test_a_label_of_which_nothing_is_known_starts_between_the_others() -> None:
    module = YTuning(SIZES, 3)
    known = torch.randn(2, 16)
    module.start_labels(torch.cat([known, torch.full((1, 16), torch.nan)]))
    assert module.label_vectors[2].eq(0).all()
    assert torch.allclose(module.pooled(known.mean(0)), torch.zeros(SIZES.width), atol=1e-5)
    assert not module.label_vectors.isnan().any()


def test_a_silenced_readout_gives_each_label_the_texts_like_it() -> None:
    torch.manual_seed(0)
    module = YTuning(SIZES, 4).eval()
    like = torch.randn(4, 1, 16) * 3  # one text of one token for each label
    features = like.expand(SIZES.states, 4, 1, 16)
    module.start_labels(module.mixed(features)[:, 0].detach())
    module.silence()
    logits = module(features, torch.ones(4, 1, dtype=torch.bool))
    assert logits.argmax(1).tolist() == [0, 1, 2, 3]


def test_the_margin_loss_is_the_papers_formula() -> None:
    logits = torch.tensor([[2.0, 1.5, -1.0], [0.0, 3.0, 2.9]])
    gold = torch.tensor([0, 2])
    by_hand = ((1.5 - 2 + 1) + 0 + (0) + (3.0 - 2.9 + 1)) / 3 / 2
    assert margin_loss(logits, gold, 1.0).item() == pytest.approx(by_hand, abs=1e-6)
    assert margin_loss(torch.tensor([[5.0, 0.0]]), torch.tensor([0]), 1.0).item() == 0


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden": 16, "states": 3, "width": 8, "heads": 2}, "'ffn' is missing"),
        ({"hidden": 16, "states": 3, "width": 8, "heads": 3, "ffn": 4}, "multiple of heads"),
        ({"hidden": 0, "states": 3, "width": 8, "heads": 2, "ffn": 4}, "'hidden' is 0"),
        ({"hidden": 1, "states": 3, "width": 8, "heads": 2, "ffn": 4, "x": 1}, "'x' is unknown"),
    ],
)
def test_impossible_sizes_are_named(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        YTuningSizes.from_mapping(sizes)


def test_reading_an_adapter_does_not_import_torchs_compiler() -> None:
    code = (
        "import sys\n"
        "from labelmux_adapters.ytuning import YTuning, YTuningSizes, from_tensors, to_tensors\n"
        "sizes = YTuningSizes(states=3, hidden=32, width=8, heads=2, ffn=16)\n"
        "from_tensors(sizes, 4, to_tensors(YTuning(sizes, 4)))\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
