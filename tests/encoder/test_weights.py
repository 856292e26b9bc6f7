"""One encoder from any source and format is one encoder: same features, same fingerprint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

from labelmux_encoder.batch import pack_rows
from labelmux_encoder.errors import CheckpointError, UnsupportedEncoderError
from labelmux_encoder.storage import INT8_ROWS, pack_int8_rows, unpack_int8_rows
from labelmux_encoder.tokenizer import Tokenizer
from labelmux_encoder.weights import (
    CONVERTED_NAME,
    LoadedEncoder,
    bundled_folder,
    load_encoder,
    load_plain,
    read_checkpoint,
)


@pytest.fixture
def folder(tiny_encoder_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may change."""
    return Path(shutil.copytree(tiny_encoder_folder, tmp_path / "encoder"))


def to_bin(folder: Path) -> None:
    """Leave the folder as Microsoft publishes: a .bin with prefixed names and a head beside."""
    state = load_file(folder / "model.safetensors")
    named = {f"deberta.{name}": tensor for name, tensor in state.items()}
    named["lm_predictions.lm_head.bias"] = torch.zeros(5)
    named["deberta.embeddings.position_embeddings.weight"] = torch.zeros(64, 32)
    torch.save(named, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def to_sharded_safetensors(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    weight_map = {}
    for index, (name, tensor) in enumerate(sorted(state.items())):
        shard = f"model-{index % 3 + 1:05d}-of-00003.safetensors"
        weight_map[name] = shard
        path = folder / shard
        part = load_file(path) if path.exists() else {}
        save_file({**part, name: tensor}, path)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def to_sharded_bin(folder: Path) -> None:
    state = sorted(load_file(folder / "model.safetensors").items())
    names = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    half = len(state) // 2
    for name, part in zip(names, (state[:half], state[half:]), strict=True):
        torch.save(dict(part), folder / name)
    weight_map = {name: names[index >= half] for index, (name, _) in enumerate(state)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("convert", [to_bin, to_sharded_safetensors, to_sharded_bin])
def test_every_weight_format_gives_one_encoder(
    folder: Path, tiny_encoder: LoadedEncoder, convert: Callable[[Path], None]
) -> None:
    convert(folder)
    loaded = load_encoder(str(folder))
    assert loaded.encoder.fingerprint == tiny_encoder.encoder.fingerprint
    rows = pack_rows(tiny_encoder.tokenizer.encode(["the train", "a good film"], 64))
    ours, theirs = (e.encoder(rows) for e in (loaded, tiny_encoder))
    assert torch.equal(ours, theirs)


def test_a_folder_as_published_loads_and_equals_its_modern_form(
    folder: Path, spm_folder: Path, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_folder(spm_folder)
    vocab_size = len(tokenizer._backend.get_vocab())
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": vocab_size}
    (folder / "config.json").write_text(json.dumps(config))
    state = load_file(folder / "model.safetensors")
    words = "embeddings.word_embeddings.weight"
    state[words] = torch.randn(vocab_size, 32)
    save_file(state, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text(tokenizer._source)
    modern = load_encoder(str(folder))

    to_bin(folder)
    (folder / "tokenizer.json").unlink()
    for name in ("spm.model", "tokenizer_config.json"):
        shutil.copy(spm_folder / name, folder)
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "pytorch_model.bin",
        "spm.model",
        "tokenizer_config.json",
    }
    published = load_encoder(str(folder))
    assert published.encoder.fingerprint == modern.encoder.fingerprint
    texts = ["the quick brown fox", ("many tasks", "at once [SEP] here")]
    assert published.tokenizer.encode(texts, 32) == modern.tokenizer.encode(texts, 32)
    rows = pack_rows(published.tokenizer.encode(texts, 32))
    assert torch.equal(published.encoder(rows), modern.encoder(rows))


def test_a_bin_is_converted_once_and_again_when_it_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_bin(folder)
    first = load_encoder(str(folder)).encoder.fingerprint
    assert (folder / CONVERTED_NAME).is_file()
    with monkeypatch.context() as patched:
        patched.setattr(torch, "load", None)
        assert load_encoder(str(folder)).encoder.fingerprint == first
    changed = torch.load(folder / "pytorch_model.bin", weights_only=True)
    changed["deberta.embeddings.word_embeddings.weight"] += 1
    torch.save(changed, folder / "pytorch_model.bin")
    assert load_encoder(str(folder)).encoder.fingerprint != first


def test_the_conversion_goes_to_the_cache_where_the_folder_cannot_be_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_bin(folder)
    cache = tmp_path / "cache"
    blocked = folder / CONVERTED_NAME
    blocked.mkdir()
    first = load_encoder(str(folder), cache_dir=cache)
    assert [path.name.endswith(CONVERTED_NAME) for path in cache.iterdir()] == [True]
    monkeypatch.setattr(torch, "load", None)
    second = load_encoder(str(folder), cache_dir=cache)
    assert second.encoder.fingerprint == first.encoder.fingerprint


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_bin_is_named_however_it_is_damaged(folder: Path, zipped: bool) -> None:
    state = {"deberta.embeddings.LayerNorm.bias": torch.zeros(32)}
    damaged = folder / "pytorch_model.bin"
    torch.save(state, damaged, _use_new_zipfile_serialization=zipped)
    whole = damaged.read_bytes()
    for at in range(0, len(whole), 7):
        for data in (whole[:at], whole[:at] + b"\x80" + whole[at + 1 :]):
            damaged.write_bytes(data)
            try:
                load_plain(damaged)
            except CheckpointError as error:
                assert "pytorch_model.bin cannot be read" in str(error)


@pytest.mark.parametrize("kept_bytes", [0, 5, 5000])
def test_a_damaged_conversion_is_made_again(
    folder: Path, tiny_encoder: LoadedEncoder, kept_bytes: int
) -> None:
    to_bin(folder)
    load_encoder(str(folder))
    converted = folder / CONVERTED_NAME
    whole = converted.read_bytes()
    converted.write_bytes(whole[:kept_bytes])
    again = load_encoder(str(folder))
    assert again.encoder.fingerprint == tiny_encoder.encoder.fingerprint
    assert len(converted.read_bytes()) == len(whole)


def test_a_bin_that_would_run_code_is_refused(folder: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return (Path.touch, (str(folder / "ran"),))

    (folder / "model.safetensors").unlink()
    torch.save({"x": Hostile()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be read as plain tensors"):
        load_encoder(str(folder))
    assert not (folder / "ran").exists()


def test_a_hub_id_is_served_from_the_hub_cache_offline(
    folder: Path, tiny_encoder: LoadedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    hub = tmp_path / "hub"
    repository = hub / "models--someone--tiny-deberta"
    snapshot = repository / "snapshots" / ("a" * 40)
    shutil.copytree(folder, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    loaded = load_encoder("someone/tiny-deberta")
    assert loaded.name == "someone/tiny-deberta"
    assert loaded.encoder.fingerprint == tiny_encoder.encoder.fingerprint
    with pytest.raises(CheckpointError, match="neither a folder nor to be had from the hub"):
        load_encoder("someone/absent")


def test_the_bundled_encoder_saved_as_fp32_has_the_bundled_fingerprint(tmp_path: Path) -> None:
    bundled = load_encoder("bundled")
    _, state = read_checkpoint("bundled")
    save_file(state, tmp_path / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(bundled_folder() / name, tmp_path / name)
    assert load_encoder(str(tmp_path)).encoder.fingerprint == bundled.encoder.fingerprint
    assert bundled.name == "bundled"


def test_the_fingerprint_changes_with_config_weights_and_tokenizer(
    folder: Path, tiny_encoder: LoadedEncoder
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-6}))
    seen = {tiny_encoder.encoder.fingerprint, load_encoder(str(folder)).encoder.fingerprint}
    (folder / "config.json").write_text(json.dumps(config))
    state = load_file(folder / "model.safetensors")
    nudged = {**state, "encoder.layer.1.output.dense.bias": torch.ones(32)}
    save_file(nudged, folder / "model.safetensors")
    seen.add(load_encoder(str(folder)).encoder.fingerprint)
    save_file(state, folder / "model.safetensors")
    tokenizer = (
        (folder / "tokenizer.json").read_text().replace('"lowercase":true', '"lowercase":false')
    )
    tokenizer = tokenizer.replace('"lowercase": true', '"lowercase": false')
    (folder / "tokenizer.json").write_text(tokenizer)
    seen.add(load_encoder(str(folder)).encoder.fingerprint)
    assert len(seen) == 4


def test_int8_rows_keep_every_value_within_half_a_step() -> None:
    state = {
        "matrix": torch.randn(20, 30) * torch.logspace(-3, 3, 20)[:, None],
        "bias": torch.randn(7),
    }
    restored = unpack_int8_rows(pack_int8_rows(state))
    step = state["matrix"].abs().amax(1, keepdim=True) / 127
    assert bool(((restored["matrix"] - state["matrix"]).abs() <= 0.5001 * step).all())
    assert torch.equal(restored["bias"], state["bias"])


def test_a_file_marked_as_int8_rows_is_read_as_fp32(folder: Path) -> None:
    packed = pack_int8_rows(load_file(folder / "model.safetensors"))
    save_file(packed, folder / "model.safetensors", metadata={"labelmux.storage": INT8_ROWS})
    _, state = read_checkpoint(str(folder))
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), "is not an object"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights"),
        (lambda f: (f / "model.safetensors").write_bytes(b"junk"), "cannot be read"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
    ],
)
def test_a_damaged_folder_is_named(
    folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(str(folder))


def test_a_tokenizer_with_tokens_that_have_no_embedding_is_refused(folder: Path) -> None:
    path = str(folder / "tokenizer.json")
    backend = tokenizers.Tokenizer.from_file(path)
    backend.add_special_tokens(["[NEVER]"])  # beyond the embeddings, and given to no row
    backend.save(path)
    load_encoder(str(folder))
    backend.add_tokens(["<user>"])
    backend.save(path)
    with pytest.raises(CheckpointError, match=r"token of id \d+, the encoder embeddings for \d+"):
        load_encoder(str(folder))


@pytest.mark.parametrize("source", [".", "./", "../encoder", "../encoder/."])
def test_an_encoder_has_its_folders_name_however_it_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(folder)
    assert load_encoder(source).name == "encoder"


def test_missing_and_misshapen_tensors_are_named(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    save_file({k: v for k, v in state.items() if k != name}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name}' is missing"):
        load_encoder(str(folder))
    save_file({**state, name: torch.zeros(3, 3)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has shape \(3, 3\)"):
        load_encoder(str(folder))


def test_an_absent_folder_is_refused_without_asking_the_hub(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such folder"):
        load_encoder(str(tmp_path / "nowhere"))


def test_deberta_v1_is_refused_by_name(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "deberta"}))
    with pytest.raises(UnsupportedEncoderError, match="DeBERTa v1 is not"):
        load_encoder(str(folder))
