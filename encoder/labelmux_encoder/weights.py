"""A checkpoint folder, a hub id or ``bundled``, read into an encoder and its tokenizer.

Published DeBERTa checkpoints come as ``pytorch_model.bin`` with ``spm.model``; newer ones as
safetensors, whole or sharded, with ``tokenizer.json``. All of them load. A ``.bin`` is read with
``weights_only=True`` and converted to safetensors once.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.errors import CheckpointError
from labelmux_encoder.frozen import Dtype, FrozenEncoder
from labelmux_encoder.storage import INT8_ROWS, unpack_int8_rows
from labelmux_encoder.tokenizer import Tokenizer

BUNDLED = "bundled"
#: The conversion of a ``.bin``, beside it or in the cache.
CONVERTED_NAME = "labelmux-encoder.safetensors"
#: What torch raises for a file of ``torch.save``'s that is cut short or changed.
_UNREADABLE = (
    *(OSError, RuntimeError, EOFError, pickle.UnpicklingError, struct.error),
    *(LookupError, ValueError, TypeError, AttributeError, AssertionError),
)
_CHECK_CONFIG = "check that config.json belongs to the weights"
_HUB_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "spm.model")
_HUB_BIN_FILES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True, slots=True)
class LoadedEncoder:
    """An encoder ready for its first pass, and the tokenizer that belongs to it."""

    #: What it was loaded from, for people: ``bundled``, a folder's name, or a hub id.
    name: str
    encoder: FrozenEncoder
    tokenizer: Tokenizer


def load_encoder(
    source: str = BUNDLED,
    *,
    device: str = "cpu",
    dtype: Dtype = "float32",
    cache_dir: Path | None = None,
) -> LoadedEncoder:
    """Load an encoder from ``bundled``, a folder in the Hugging Face layout, or a hub id.

    Args:
        source: what to load.
        device: where it runs, as torch names it; ``auto`` is a GPU if there is one.
        dtype: what the pass computes in; ``auto`` is the fastest of those whose features pass.
        cache_dir: where a converted ``.bin`` goes if its folder cannot be written to;
            ``~/.cache/labelmux`` by default.

    Raises:
        CheckpointError: something is missing or damaged, or there is no such device.
        UnsupportedEncoderError: a checkpoint that the pass cannot run.
        UnsupportedDtypeError: this machine cannot compute in ``dtype``.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise CheckpointError(source, f"device {device!r} is not there", "use cpu or auto")
    folder = _locate(source)
    config = EncoderConfig.from_checkpoint(_read_json(folder / "config.json"))
    state = _select(str(folder), config, _read_state(folder, cache_dir))
    tokenizer = _read_tokenizer(folder, config)
    fingerprint = fingerprint_of(config, state, tokenizer)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = FrozenEncoder(config, state, fingerprint, device, dtype)
    return LoadedEncoder(_name(source, folder), encoder, tokenizer)


def read_checkpoint(source: str) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """An encoder's config and fp32 tensors, for training; takes and raises as ``load_encoder``."""
    folder = _locate(source)
    config = EncoderConfig.from_checkpoint(_read_json(folder / "config.json"))
    return config, _select(str(folder), config, _read_state(folder, None))


def read_rest(source: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a checkpoint holds besides its encoder: ``config.json`` as it is, and heads' tensors.

    Takes and raises as ``load_encoder``.
    """
    folder = _locate(source)
    raw = _read_json(folder / "config.json")
    expected = expected_shapes(EncoderConfig.from_checkpoint(raw))
    state = {name.removeprefix("deberta."): of for name, of in _read_state(folder, None).items()}
    return raw, {name: tensor for name, tensor in state.items() if name not in expected}


def bundled_folder() -> Path:
    """Where the encoder that ships with the package lies."""
    return Path(__file__).parent / "bundled"


def fingerprint_of(config: EncoderConfig, state: Mapping[str, Tensor], tokenizer: Tokenizer) -> str:
    """One digest over config, weights and tokenizer: equal exactly if the features are.

    Only tensors that the pass reads count, as fp32, so the same encoder has one fingerprint
    whatever its file format or the heads stored beside it.
    """
    digest = hashlib.sha256(config.canonical_json().encode())
    digest.update(tokenizer.digest().encode())
    for name in sorted(state):
        tensor = state[name].float().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return f"sha256:{digest.hexdigest()}"


def expected_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor the pass reads, by checkpoint name without the ``deberta.`` prefix."""
    hidden, inner, embedding = config.hidden_size, config.intermediate_size, config.embedding_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config.vocab_size, embedding)
    }
    if config.position_embeddings:
        shapes["embeddings.position_embeddings.weight"] = (config.position_embeddings, embedding)
    if config.type_vocab_size:
        shapes["embeddings.token_type_embeddings.weight"] = (config.type_vocab_size, embedding)
    if embedding != hidden:
        shapes["embeddings.embed_proj.weight"] = (hidden, embedding)
    shapes |= _norm_shapes("embeddings.LayerNorm", hidden)
    if config.relative_attention:
        shapes["encoder.rel_embeddings.weight"] = (2 * config.relative_span, hidden)
        if config.normalise_relative_table:
            shapes |= _norm_shapes("encoder.LayerNorm", hidden)
    if config.conv_kernel_size:
        width = (hidden, hidden // config.conv_groups, config.conv_kernel_size)
        shapes |= {"encoder.conv.conv.weight": width, "encoder.conv.conv.bias": (hidden,)}
        shapes |= _norm_shapes("encoder.conv.LayerNorm", hidden)
    projections = ["query_proj", "key_proj", "value_proj"]
    if config.relative_attention and not config.share_att_key:
        projections += ["pos_key_proj"] * config.c2p + ["pos_query_proj"] * config.p2c
    for layer in range(config.num_layers):
        prefix = f"encoder.layer.{layer}."
        for name in projections:
            shapes |= _dense_shapes(f"{prefix}attention.self.{name}", hidden, hidden)
        shapes |= _dense_shapes(f"{prefix}attention.output.dense", hidden, hidden)
        shapes |= _norm_shapes(f"{prefix}attention.output.LayerNorm", hidden)
        shapes |= _dense_shapes(f"{prefix}intermediate.dense", inner, hidden)
        shapes |= _dense_shapes(f"{prefix}output.dense", hidden, inner)
        shapes |= _norm_shapes(f"{prefix}output.LayerNorm", hidden)
    return shapes


def _dense_shapes(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _locate(source: str) -> Path:
    if source == BUNDLED:
        return bundled_folder()
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or not source:
        raise CheckpointError(
            source, "there is no such folder", "give a folder, a hub id, or 'bundled'"
        )
    return _download(source)


def _name(source: str, folder: Path) -> str:
    if source == BUNDLED or folder.name != Path(source).name:
        return source
    if folder.name in ("", ".."):  # "." has no name, and an adapter's manifest needs one
        return folder.resolve().name or source
    return folder.name


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=list(_HUB_FILES)))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(hub_id, allow_patterns=[*_HUB_FILES, *_HUB_BIN_FILES]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            hub_id,
            f"neither a folder nor to be had from the hub ({type(error).__name__})",
            "check the name and the network, or give a folder",
        ) from error
    return folder


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            str(path.parent), f"{path.name} is missing", "give a checkpoint in Hugging Face layout"
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            str(path.parent), f"{path.name} cannot be read ({error})", "replace the file"
        ) from error
    if not isinstance(raw, dict):
        raise CheckpointError(str(path.parent), f"{path.name} is not an object", "replace the file")
    return raw


def _read_state(folder: Path, cache_dir: Path | None) -> dict[str, Tensor]:
    whole = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    if whole.is_file():
        return _read_safetensors(whole)
    if index.is_file():
        return _merge(_read_safetensors(folder / part) for part in _shards(index))
    parts = [folder / "pytorch_model.bin"]
    if not parts[0].is_file():
        index = folder / "pytorch_model.bin.index.json"
        if not index.is_file():
            raise CheckpointError(
                str(folder),
                "no weights: neither model.safetensors nor pytorch_model.bin, whole or sharded",
                "add one of them",
            )
        parts = [folder / part for part in _shards(index)]
    return _read_bin(folder, parts, cache_dir)


def _shards(index: Path) -> list[str]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(str(index.parent), f"{index.name} has no weight_map", "replace it")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise CheckpointError(str(index.parent), f"shard {name!r} is missing", "add the file")
    return names


def _read_tokenizer(folder: Path, config: EncoderConfig) -> Tokenizer:
    tokenizer = Tokenizer.from_folder(folder)
    # A text with a token that has no embedding would fail all the texts of its batch.
    if (largest := tokenizer.largest_id()) >= config.vocab_size:
        raise CheckpointError(
            str(folder),
            f"the tokenizer has a token of id {largest}, the encoder embeddings for "
            f"{config.vocab_size}",
            "give the tokenizer that belongs to the weights",
        )
    return tokenizer


def _merge(parts: Any) -> dict[str, Tensor]:
    merged: dict[str, Tensor] = {}
    for part in parts:
        merged |= part
    return merged


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            str(path.parent), f"{path.name} cannot be read ({error})", "replace the file"
        ) from error
    return unpack_int8_rows(state) if metadata.get("labelmux.storage") == INT8_ROWS else state


def _read_bin(folder: Path, parts: list[Path], cache_dir: Path | None) -> dict[str, Tensor]:
    stamp = json.dumps([[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in parts])
    key = hashlib.sha256(f"{folder.resolve()}{stamp}".encode()).hexdigest()[:16]
    cache = cache_dir or Path.home() / ".cache" / "labelmux"
    places = (folder / CONVERTED_NAME, cache / f"{key}-{CONVERTED_NAME}")
    for place in places:
        if place.is_file() and (converted := _read_conversion(place, stamp)) is not None:
            return converted
    state = _merge(_load_bin(part) for part in parts)
    _save_conversion(state, stamp, places)
    return state


def _read_conversion(place: Path, stamp: str) -> dict[str, Tensor] | None:
    """None where it is of other weights, or damaged: then it is made again."""
    try:
        with safe_open(place, framework="pt") as file:
            if (file.metadata() or {}).get("labelmux.source") != stamp:
                return None
        return _read_safetensors(place)
    except (OSError, SafetensorError, CheckpointError):
        return None


def load_plain(path: Path) -> Any:
    """What ``torch.save`` wrote, on the CPU, if that is tensors and plain values alone.

    The one place where anything of pickle's is read; no code in the file runs.

    Raises:
        CheckpointError: it cannot be read, or holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise CheckpointError(
            str(path.parent),
            f"{path.name} cannot be read as plain tensors ({type(error).__name__})",
            "use a safetensors checkpoint",
        ) from error


def _load_bin(path: Path) -> dict[str, Tensor]:
    loaded = load_plain(path)
    if not isinstance(loaded, dict):
        raise CheckpointError(str(path.parent), f"{path.name} holds no tensors", "replace it")
    return {
        str(name): tensor.detach().clone().contiguous()
        for name, tensor in loaded.items()
        if isinstance(tensor, Tensor)
    }


def _save_conversion(state: dict[str, Tensor], stamp: str, places: tuple[Path, ...]) -> None:
    """Write the conversion to the first place that can be written; serving does not need it."""
    for place in places:
        partial = place.with_name(f"{place.name}.{os.getpid()}.part")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            save_file(state, partial, metadata={"labelmux.source": stamp})
            partial.replace(place)
        except (OSError, SafetensorError):
            partial.unlink(missing_ok=True)
        else:
            return


def _select(source: str, config: EncoderConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors the pass reads, in fp32; heads stored beside them are left out."""
    bare = {name.removeprefix("deberta."): tensor for name, tensor in state.items()}
    selected: dict[str, Tensor] = {}
    for name, shape in expected_shapes(config).items():
        if name not in bare:
            raise CheckpointError(
                source,
                f"tensor {name!r} is missing",
                _CHECK_CONFIG,
            )
        tensor = bare[name]
        if name == "encoder.rel_embeddings.weight" and tensor.shape[0] > shape[0]:
            tensor = tensor[: shape[0]]
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                source,
                f"tensor {name!r} has shape {tuple(tensor.shape)}, config.json implies {shape}",
                _CHECK_CONFIG,
            )
        selected[name] = tensor.float()
    return selected
