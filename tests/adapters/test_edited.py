"""Methods that change the pass: their sizes, their files, and their rows in mixed batches."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from labelmux_adapters.bank import Bank
from labelmux_adapters.canaries import check_canaries
from labelmux_adapters.edit_stack import EditStack
from labelmux_adapters.edited import ENCODER_SIZES
from labelmux_adapters.errors import CanaryMismatchError, ManifestError, SizeMisfitError
from labelmux_adapters.files import Adapter
from labelmux_adapters.heads import head_logits
from labelmux_adapters.methods import METHODS
from labelmux_encoder.batch import pack_rows
from labelmux_encoder.edits import Gate, LowRank, Placed, tensors_of
from labelmux_encoder.model import derive, run_pass
from labelmux_encoder.weights import LoadedEncoder, read_checkpoint

MakeAdapter = Callable[..., Adapter]
Logits = NDArray[np.float32]
TOLERANCE = 1e-3
ROW_TOLERANCE = 1e-4
EDITED = [name for name, method in METHODS.items() if method.edited is not None]
TAGS = ("O", "B-x", "I-x")
TEXTS = ("alpha beta", "gamma", "one two three four five", "delta alpha beta gamma")
#: What DeBERTa-v3-base has.
V3_BASE = dict(zip(ENCODER_SIZES, (12, 768, 3072), strict=True))


def serve(
    loaded: LoadedEncoder, adapters: list[Adapter], rows: list[tuple[int, str]]
) -> list[Logits]:
    """Logits of each (adapter, text), all in one batch."""
    bank = Bank.beside(loaded.encoder)
    slots = [bank.add(adapter) for adapter in adapters]
    batch = pack_rows(loaded.tokenizer.encode([text for _, text in rows], 64))
    features = loaded.encoder(batch, bank.edits([slots[which].edit for which, _ in rows]))
    wanted = [(row, slots[which]) for row, (which, _) in enumerate(rows)]
    return bank.readout(features, batch.lengths, wanted)


def plain(loaded: LoadedEncoder, folder: Path, adapter: Adapter, text: str) -> Logits:
    """The same by the differentiable form that training has."""
    config, state = read_checkpoint(str(folder))
    method = METHODS[adapter.manifest.method].edited
    assert method is not None
    _, parts = method.read(adapter.manifest.sizes)
    rows = pack_rows(loaded.tokenizer.encode([text], 64))
    with torch.no_grad():
        edits = [Placed(part.place(adapter.tensors), (0,)) for part in parts]
        hidden = run_pass(config, derive(config, state), rows, edits)[-1]
        pooled = {"mean": hidden.mean(0), "first": hidden[0], None: hidden}
        return head_logits(adapter.tensors, pooled[adapter.manifest.pooling]).numpy()


def of_every_method(make_adapter: MakeAdapter) -> list[Adapter]:
    """Two of each; heads on every pooling, some with a pooler."""
    adapters = []
    for seed, method in enumerate((*EDITED, *EDITED)):
        sizes = {"key": 3, "ffn_in": 5, "ffn_out": 2} if method == "lora" and seed % 2 else {}
        sizes |= {"pooler": 32} if seed % 3 == 0 else {}
        labels = ("a", "b", "c")[: 2 + seed % 2]
        pooling = ("mean", "first")[seed % 2]
        adapters.append(
            make_adapter(labels, seed=seed, method=method, sizes=sizes, pooling=pooling)
        )
    return adapters


@pytest.mark.parametrize("method", EDITED)
@pytest.mark.parametrize("kind", ("single_label", "multi_label", "token"))
def test_what_is_served_is_what_training_computes(
    tiny_encoder: LoadedEncoder,
    tiny_encoder_folder: Path,
    make_adapter: MakeAdapter,
    method: str,
    kind: str,
) -> None:
    adapter = make_adapter(TAGS, method=method, task_kind=kind, seed=3)
    found = serve(tiny_encoder, [adapter], [(0, text) for text in TEXTS])
    for text, logits in zip(TEXTS, found, strict=True):
        expected = plain(tiny_encoder, tiny_encoder_folder, adapter, text)
        assert logits.shape == expected.shape
        assert np.abs(logits - expected).max() < TOLERANCE


def test_a_row_alone_equals_the_row_in_a_batch_of_every_method(
    tiny_encoder: LoadedEncoder, make_adapter: MakeAdapter
) -> None:
    adapters = [*of_every_method(make_adapter), make_adapter(seed=50), make_adapter(seed=51)]
    rows = [(which, text) for text in TEXTS for which in range(len(adapters))]
    together = serve(tiny_encoder, adapters, rows)
    for (which, text), logits in zip(rows, together, strict=True):
        alone = serve(tiny_encoder, [adapters[which]], [(0, text)])[0]
        assert np.abs(alone - logits).max() < ROW_TOLERANCE, adapters[which].manifest.method


def test_canaries_hold_and_an_edit_that_was_lost_is_noticed(
    tiny_encoder: LoadedEncoder, make_adapter: MakeAdapter
) -> None:
    for adapter in of_every_method(make_adapter):
        check_canaries(adapter, tiny_encoder)
        if adapter.manifest.method == "linear":
            continue
        without = {
            name: tensor if name.startswith(("head", "pooler")) else torch.zeros_like(tensor)
            for name, tensor in adapter.tensors.items()
        }
        with pytest.raises(CanaryMismatchError):
            check_canaries(replace(adapter, tensors=without), tiny_encoder)


def test_slots_are_reused_and_neighbours_keep_their_answers(
    tiny_encoder: LoadedEncoder, make_adapter: MakeAdapter
) -> None:
    bank = Bank.beside(tiny_encoder.encoder)
    kept = make_adapter(method="lora", seed=1)
    slot = bank.add(kept)
    others = [bank.add(make_adapter(method="lora", seed=seed)) for seed in range(2, 30)]
    for other in others:
        bank.remove(other)
    again = bank.add(make_adapter(method="lora", seed=40))
    assert again.edit in {other.edit for other in others}
    batch = pack_rows(tiny_encoder.tokenizer.encode([TEXTS[0]], 64))
    features = tiny_encoder.encoder(batch, bank.edits([slot.edit]))
    found = bank.readout(features, batch.lengths, [(0, slot)])[0]
    expected = serve(tiny_encoder, [kept], [(0, TEXTS[0])])[0]
    assert np.abs(found - expected).max() < ROW_TOLERANCE


@pytest.mark.parametrize("gate", [None, Gate(torch.ones(1, 2, 8), torch.ones(1, 2))])
def test_a_stack_keeps_the_shape_of_its_first_edits_and_not_their_tensors(
    gate: Gate | None,
) -> None:
    edit = LowRank("query", torch.ones(1, 2, 3, 8), torch.ones(1, 2, 8, 3), gate)
    first = [weakref.ref(edit.down), weakref.ref(edit.up)]
    stack = EditStack([edit])
    slot = stack.add([edit])
    del edit
    stack.remove(slot)
    stack.trim()
    gc.collect()
    assert [tensor() for tensor in first] == [None, None]
    other = LowRank("query", torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 8, 3), gate)
    slot = stack.add([other])
    (placed,) = stack.placed((slot,))
    assert isinstance(placed.edit, LowRank)
    assert placed.edit.site == "query"
    for name, tensor in tensors_of(other).items():
        assert torch.equal(tensors_of(placed.edit)[name][slot], tensor[0])


def test_what_an_adapter_takes_is_known_before_it_is_read(make_adapter: MakeAdapter) -> None:
    bank = Bank()
    adapter = make_adapter(method="unipelt")
    edits = sum(
        tensor.nbytes for name, tensor in adapter.tensors.items() if not name.startswith("head")
    )
    assert bank.bytes_of(adapter.manifest) == edits + 4 * 4 * (32 + 1)


def test_the_sizes_that_the_papers_state() -> None:
    def values(name: str, **sizes: int) -> int:
        method = METHODS[name].edited
        assert method is not None
        return method.edit_values(V3_BASE | (sizes or method.defaults))

    assert values("pasta", slots=2) == 18_432
    assert values("pasta", slots=3) == 27_648
    assert values("prefix") == 184_320
    assert values("lora") == 294_912
    assert values("bottleneck") == 894_528
    assert values("unipelt") == 1_410_672
    assert values("unipelt", prefix=10, bottleneck=48) == 1_097_304
    assert values("bitfit") == 12 * (3 * 768 + 768 + 768 + 3072 + 768 + 768) == 101_376
    assert values("ia3") == 12 * (768 + 768 + 3072) == 55_296


@pytest.mark.parametrize(
    ("method", "sizes", "named"),
    (
        ("pasta", {"slots": 2, "hidden": 32, "layers": 2}, "intermediate"),
        ("pasta", {**V3_BASE}, "slots"),
        ("lora", {**V3_BASE, "query": 8, "depth": 3}, "depth"),
        ("lora", {**V3_BASE, "query": 8, "pooler": 5}, "pooler"),
        ("lora", {**V3_BASE}, "query, key, value"),
        ("ia3", {**V3_BASE, "key": 2}, "key"),
    ),
)
def test_wrong_sizes_are_named(method: str, sizes: dict[str, int], named: str) -> None:
    with pytest.raises(ManifestError, match=named):
        METHODS[method].expected_tensors(sizes, 2)


def test_an_adapter_for_another_depth_is_refused(
    tiny_encoder: LoadedEncoder, make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter(method="ia3")
    sizes = {**adapter.manifest.sizes, "layers": 3}
    other = replace(adapter, manifest=adapter.manifest.model_copy(update={"sizes": sizes}))
    with pytest.raises(SizeMisfitError, match=r"sizes\.layers"):
        check_canaries(other, tiny_encoder)


def test_the_method_that_the_documentation_adds_is_served(
    tiny_encoder: LoadedEncoder,
    tiny_encoder_folder: Path,
    make_adapter: MakeAdapter,
) -> None:
    document = Path(__file__).parents[2] / "docs" / "methods.md"
    code = document.read_text().split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) < 40
    try:
        exec(compile(code, str(document), "exec"), {})
        adapter = make_adapter(method="ssf", seed=3)
        check_canaries(adapter, tiny_encoder)
        others = [make_adapter(method="lora"), adapter, make_adapter()]
        found = serve(tiny_encoder, others, [(0, TEXTS[0]), (1, TEXTS[1]), (2, TEXTS[2])])
        expected = plain(tiny_encoder, tiny_encoder_folder, adapter, TEXTS[1])
        assert np.abs(found[1] - expected).max() < TOLERANCE
    finally:
        METHODS.pop("ssf")


def test_an_adapter_whose_edits_find_no_memory_leaves_nothing_in_the_bank(
    tiny_encoder: LoadedEncoder, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = Bank.beside(tiny_encoder.encoder)
    adapter = make_adapter(method="pasta")

    def full(*_: object) -> int:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(EditStack, "add", full)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="allocate"):
                bank.add(adapter)
    # Low places are taken first.
    assert bank.add(adapter).place == 0
