"""The pass equals the published implementation, and a row does not depend on its neighbours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DebertaV2Config, DebertaV2Model

from labelmux_encoder.batch import PackedRows, pack_rows, unpack
from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.errors import InputTooLongError
from labelmux_encoder.model import derive, run_padded
from labelmux_encoder.tokenizer import TokenRow
from labelmux_encoder.weights import LoadedEncoder, bundled_folder, load_encoder, read_checkpoint

PARITY_TOLERANCE = 1e-4
BATCH_TOLERANCE = 1e-5

BASE: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "relative_attention": True,
    "position_buckets": 256,
    "max_relative_positions": -1,
    "max_position_embeddings": 512,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "layer_norm_eps": 1e-7,
    "pad_token_id": 0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "v3": {},
    "own-position-projections": {"share_att_key": False},
    "small-buckets": {"position_buckets": 32},
    "no-buckets": {"position_buckets": -1},
    "no-table-norm": {"norm_rel_ebd": "none"},
    "convolution-gelu": {"conv_kernel_size": 3, "conv_act": "gelu"},
    "convolution-wide-groups": {"conv_kernel_size": 5, "conv_act": "tanh", "conv_groups": 2},
    "absolute-positions-and-types": {"position_biased_input": True, "type_vocab_size": 2},
    "narrow-embedding": {"embedding_size": 32},
    "c2p-only": {"pos_att_type": "c2p"},
    "p2c-only-own-projection": {"pos_att_type": ["p2c"], "share_att_key": False},
    "terms-as-a-string": {"pos_att_type": "p2c|c2p"},
    "no-relative-attention": {
        "relative_attention": False,
        "pos_att_type": None,
        "position_biased_input": True,
    },
    "gelu-new": {"hidden_act": "gelu_new"},
    "relu-and-a-width-of-no-block": {"hidden_act": "relu", "intermediate_size": 150},
}
SHAPES = ((1, 1), (2, 2), (3, 17), (4, 40), (2, 130), (2, 300), (1, 512))


def stock(variant: dict[str, Any]) -> tuple[DebertaV2Model, EncoderConfig]:
    torch.manual_seed(3)
    config = DebertaV2Config(**{**BASE, **variant})
    model = DebertaV2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model, EncoderConfig.from_checkpoint(config.to_dict())


def random_batch(rows: int, tokens: int, vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and a mask with a full row first, then shorter and shorter ones."""
    ids = torch.randint(1, vocab, (rows, tokens))
    lengths = torch.tensor([max(1, tokens - row * tokens // rows) for row in range(rows)])
    return ids, torch.arange(tokens)[None] < lengths[:, None]


@pytest.mark.parametrize("name", VARIANTS)
def test_all_hidden_states_equal_transformers(name: str) -> None:
    model, config = stock(VARIANTS[name])
    tensors = derive(config, model.state_dict())
    for rows, tokens in SHAPES:
        ids, mask = random_batch(rows, tokens, config.vocab_size)
        types = torch.randint(0, 2, ids.shape) if config.type_vocab_size else None
        with torch.no_grad():
            theirs = model(
                input_ids=ids,
                attention_mask=mask.long(),
                token_type_ids=types,
                output_hidden_states=True,
            ).hidden_states
            ours = run_padded(config, tensors, ids, mask, types)
        assert len(ours) == len(theirs) == config.num_layers + 1
        for state, reference in zip(ours, theirs, strict=True):
            difference = (state - reference)[mask].abs().max().item()
            assert difference < PARITY_TOLERANCE, (name, rows, tokens)


def test_the_bundled_encoder_equals_transformers() -> None:
    config, state = read_checkpoint("bundled")
    model = DebertaV2Model(DebertaV2Config.from_pretrained(bundled_folder())).eval()
    missing, unexpected = model.load_state_dict(state, strict=True)
    assert not missing and not unexpected
    tensors = derive(config, state)
    for rows, tokens in ((1, 7), (3, 40), (2, 300), (1, 512)):
        ids, mask = random_batch(rows, tokens, config.vocab_size)
        with torch.no_grad():
            theirs = model(
                input_ids=ids, attention_mask=mask.long(), output_hidden_states=True
            ).hidden_states
            ours = run_padded(config, tensors, ids, mask)
        for found, reference in zip(ours, theirs, strict=True):
            assert (found - reference)[mask].abs().max().item() < PARITY_TOLERANCE


@pytest.mark.parametrize("name", ["v3", "convolution-gelu", "absolute-positions-and-types"])
def test_a_row_alone_equals_the_row_in_any_batch(name: str) -> None:
    model, config = stock(VARIANTS[name])
    tensors = derive(config, model.state_dict())
    lengths = (1, 2, 9, 33, 140, 300)
    rows = [torch.randint(1, config.vocab_size, (length,)) for length in lengths]
    with torch.no_grad():
        alone = [
            run_padded(config, tensors, row[None], torch.ones(1, len(row), dtype=torch.bool))
            for row in rows
        ]
        for order in ((0, 1, 2, 3, 4, 5), (5, 2, 2, 0), (3, 1)):
            padded = torch.nn.utils.rnn.pad_sequence([rows[i] for i in order], batch_first=True)
            mask = torch.arange(padded.shape[1])[None] < torch.tensor(
                [lengths[i] for i in order]
            ).unsqueeze(1)
            together = run_padded(config, tensors, padded, mask)
            for place, index in enumerate(order):
                for layer, state in enumerate(together):
                    found = state[place, : lengths[index]]
                    difference = (found - alone[index][layer][0]).abs().max().item()
                    assert difference < BATCH_TOLERANCE


def test_the_bundled_row_alone_equals_the_row_in_a_batch() -> None:
    loaded = load_encoder("bundled")
    texts = ["short", "a text of middling length, with a comma", "long " * 200]
    rows = loaded.tokenizer.encode(texts, 512)
    batch = pack_rows(rows)
    together = loaded.encoder(batch).split(batch.lengths, dim=1)
    for row, found in zip(rows, together, strict=True):
        alone = loaded.encoder(pack_rows([row]))
        assert (found - alone).abs().max().item() < BATCH_TOLERANCE


def test_derived_constants_are_differentiable_and_equal_for_any_longest_row() -> None:
    model, config = stock(VARIANTS["own-position-projections"])
    state = {name: t.detach().clone().requires_grad_() for name, t in model.state_dict().items()}
    ids, mask = random_batch(2, 20, config.vocab_size)
    short = run_padded(config, derive(config, state, max_tokens=20), ids, mask)[-1]
    full = run_padded(config, derive(config, state), ids, mask)[-1]
    assert torch.equal(short[mask], full[mask])
    short[mask].square().sum().backward()
    for name, tensor in state.items():
        assert tensor.grad is not None, name
        assert bool(tensor.grad.isfinite().all()), name


def test_features_of_the_frozen_encoder_carry_no_gradient(tiny_encoder: LoadedEncoder) -> None:
    features = tiny_encoder.encoder(pack_rows([TokenRow((2, 9, 3), (0, 0, 0), False)]))
    assert features.shape == (3, 3, 32)
    assert not features.requires_grad


def test_a_row_longer_than_the_encoder_is_refused(tiny_encoder: LoadedEncoder) -> None:
    ids = torch.ones(67, dtype=torch.long)
    with pytest.raises(InputTooLongError, match=r"65 tokens.* at most 64"):
        tiny_encoder.encoder(PackedRows(ids, ids, (2, 65)))


def test_packed_rows_follow_each_other_and_unpack_to_the_longest() -> None:
    rows = [TokenRow((5, 6, 7), (0, 0, 1), False), TokenRow((8,), (0,), False)]
    batch = pack_rows(rows)
    assert batch.token_ids.tolist() == [5, 6, 7, 8]
    assert batch.type_ids.tolist() == [0, 0, 1, 0]
    assert batch.lengths == (3, 1)
    padded, mask = unpack(batch.token_ids[None, :, None].float(), batch.lengths)
    assert padded[0, :, :, 0].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False]]
