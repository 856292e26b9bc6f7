"""What PEFT's ``save_pretrained`` wrote, read as a stranger's: sizes first, no pickle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from labelmux_adapters.errors import DuplicateKeyError, printable
from labelmux_adapters.strict_json import load_object
from labelmux_training.errors import PeftFolderError
from labelmux_training.peft_settings import PeftSettings, read_settings

CONFIG_NAME, TENSORS_NAME = "adapter_config.json", "adapter_model.safetensors"
_PICKLED_NAME = "adapter_model.bin"
_MOST_CONFIG_BYTES = 1 << 20
_MOST_TENSOR_BYTES = 512 << 20
#: Ahead of every tensor's name.
_PREFIX = "base_model.model."
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_SAVE_AGAIN = "save the adapter again with save_pretrained"


@dataclass(frozen=True, slots=True)
class PeftFolder:
    """A PEFT adapter as its folder holds it."""

    path: Path
    #: Of ``adapter_config.json``.
    settings: PeftSettings
    #: By the name of the module and the tensor's own, in fp32.
    tensors: Mapping[str, Tensor]
    #: ``sha256:`` and the hex digest of the tensors' file.
    digest: str


def read_peft_folder(path: Path) -> PeftFolder:
    """The adapter in a folder.

    Settings come first: tensors of a method that cannot be carried over have names of their own.

    Raises:
        PeftFolderError: a file is missing, too large or damaged.
        PeftRefusedError: a setting cannot be carried over.
    """
    if not path.is_dir():
        raise PeftFolderError(path, "there is no such folder", "give the one that PEFT wrote")
    config = read_json(path / CONFIG_NAME)
    if not (path / TENSORS_NAME).is_file() and (path / _PICKLED_NAME).is_file():
        raise PeftFolderError(
            path / _PICKLED_NAME,
            "a pickle, which may run code as it is read",
            "load the adapter with PEFT and save it with save_pretrained(..., "
            "safe_serialization=True)",
        )
    settings = read_settings(config)
    data = _read_bytes(path / TENSORS_NAME, _MOST_TENSOR_BYTES)
    try:
        stored = load(data)
    except SafetensorError as error:
        raise PeftFolderError(path / TENSORS_NAME, str(error), _SAVE_AGAIN) from error
    tensors = {}
    for name, tensor in stored.items():
        _check_tensor(path / TENSORS_NAME, name, tensor)
        tensors[name.removeprefix(_PREFIX)] = tensor.float()
    return PeftFolder(path, settings, tensors, f"sha256:{hashlib.sha256(data).hexdigest()}")


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object.

    Raises:
        PeftFolderError: it is missing, too large, or not a strict JSON object.
    """
    data = _read_bytes(path, _MOST_CONFIG_BYTES)
    try:
        return load_object(data.decode("utf-8"), path.name)
    except DuplicateKeyError as error:
        problem = f"the key '{error.key}' stands twice in one object"
        raise PeftFolderError(path, problem, "write it once") from error
    except ValueError as error:
        raise PeftFolderError(path, f"no JSON: {error}", _SAVE_AGAIN) from error


def _read_bytes(path: Path, most_bytes: int) -> bytes:
    if not path.is_file():
        raise PeftFolderError(
            path, "the file is missing", "give the folder that PEFT's save_pretrained wrote"
        )
    size_bytes = path.stat().st_size
    if size_bytes > most_bytes:
        raise PeftFolderError(
            path, f"{size_bytes} bytes, the limit is {most_bytes}", "give a smaller adapter"
        )
    return path.read_bytes()


def _check_tensor(path: Path, name: str, tensor: Tensor) -> None:
    shown = f"tensor '{printable(name)}'"
    if not name.startswith(_PREFIX):
        raise PeftFolderError(path, f"{shown} does not begin with {_PREFIX}", _SAVE_AGAIN)
    if tensor.dtype not in _DTYPES:
        raise PeftFolderError(path, f"{shown} has dtype {tensor.dtype}", "save it as float32")
    if not bool(tensor.isfinite().all()):
        raise PeftFolderError(
            path, f"{shown} has values that are NaN or infinite", "train it again"
        )
