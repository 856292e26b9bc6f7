"""Proof that an adapter acts here as it did where it was trained.

An adapter file carries a few texts with the logits that its trainer got. Running them through the
serving path shows that the file, this encoder and this code agree.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from labelmux_adapters.bank import Bank, EditSlot, Slot
from labelmux_adapters.errors import CanaryMismatchError, ForeignEncoderError, SizeMisfitError
from labelmux_adapters.files import Adapter
from labelmux_adapters.manifest import Manifest
from labelmux_encoder.batch import pack_rows
from labelmux_encoder.frozen import FrozenEncoder
from labelmux_encoder.tokenizer import TextInput
from labelmux_encoder.weights import LoadedEncoder

#: What an encoder below float32 may add to a tolerance, as a share of the range of all canaries'
#: logits: so much, and twice its own rounding, which is 0.013 of the bundled one in bfloat16 and
#: 0.06 in int8. The demo adapters need 0.004 and 0.021 at most, 60 of random weights 0.026 and
#: 0.029; without what it does to the pass each demo adapter that does is off by 0.36 and more.
_LEAST_SHARE, _ROUNDINGS = 0.04, 2.0
#: Of features of canaries' texts; eight short ones of the bundled encoder are 1 MiB.
_KEPT_BYTES = 16 * 1024 * 1024

_TextsKey = tuple[tuple[TextInput, ...], int]


class _Read(NamedTuple):
    features: Tensor  # [L+1, N, H]
    lengths: tuple[int, ...]


def check_fit(adapter: Adapter, encoder: FrozenEncoder) -> None:
    """Return if the adapter was made for this encoder and its sizes agree with that.

    Raises:
        ForeignEncoderError: it was trained on another encoder.
        SizeMisfitError: the fingerprint is right, a size is not.
    """
    manifest, config = adapter.manifest, encoder.config
    if manifest.encoder_fingerprint != encoder.fingerprint:
        raise ForeignEncoderError(manifest.encoder_fingerprint, encoder.fingerprint)
    for size, needed in (
        ("hidden", config.hidden_size),
        ("states", config.num_layers + 1),
        ("layers", config.num_layers),
        ("intermediate", config.intermediate_size),
    ):
        if manifest.sizes.get(size, needed) != needed:
            raise SizeMisfitError(f"sizes.{size}", manifest.sizes[size], str(needed))
    if manifest.max_tokens > config.max_tokens:
        raise SizeMisfitError("max_tokens", manifest.max_tokens, f"at most {config.max_tokens}")


def check_canaries(adapter: Adapter, loaded: LoadedEncoder) -> None:
    """Return if the adapter fits this encoder and gives its canaries' logits. For any thread.

    Raises:
        CanaryMismatchError, AdapterMisfitError: as ``Admission.admit``.
    """
    Admission(loaded, Bank.beside(loaded.encoder)).admit(adapter)


class Admission:
    """The way into a bank, past the canaries. Not for two threads at once."""

    def __init__(self, loaded: LoadedEncoder, bank: Bank) -> None:
        """``bank``: beside this encoder."""
        self._loaded = loaded
        self._bank = bank
        #: A task's versions mostly bring the same canaries.
        self._kept: OrderedDict[_TextsKey, _Read] = OrderedDict()

    def admit(self, adapter: Adapter) -> Slot:
        """The adapter's slot, once it gives its canaries' logits there.

        Whatever is raised, it is not in the bank then.

        Raises:
            CanaryMismatchError: a logit is not finite, or differs by more than the manifest's
                tolerance.
            AdapterMisfitError: as ``check_fit`` raises.
        """
        check_fit(adapter, self._loaded.encoder)
        with ExitStack() as undo:
            slot = self._bank.add(adapter)
            undo.callback(self._bank.remove, slot)
            self._compare(adapter.manifest, slot)
            undo.pop_all()
        return slot

    def logits(
        self, manifest: Manifest, slot: Slot, texts: Sequence[TextInput]
    ) -> list[NDArray[np.float32]]:
        """Uncalibrated logits of the texts in one batch, by the path that serves requests."""
        read = self._encode(tuple(texts), manifest.max_tokens, slot.edit)
        rows = [(index, slot) for index in range(len(texts))]
        return self._bank.readout(read.features, read.lengths, rows)

    def _compare(self, manifest: Manifest, slot: Slot) -> None:
        texts = [(c.text, c.pair) if c.pair is not None else c.text for c in manifest.canaries]
        found = self.logits(manifest, slot, texts)
        expected = [np.asarray(canary.logits, np.float32) for canary in manifest.canaries]
        span = float(np.ptp(np.concatenate(expected).astype(np.float64)))
        tolerance = manifest.canary_tolerance + _rounding(self._loaded.encoder) * span
        for index, (wanted, logits) in enumerate(zip(expected, found, strict=True)):
            same_tokens = logits.size == wanted.size
            difference = float(np.abs(logits.ravel() - wanted).max()) if same_tokens else math.inf
            if not (math.isfinite(difference) and difference <= tolerance):
                raise CanaryMismatchError(index, difference, tolerance)

    def _encode(
        self, texts: tuple[TextInput, ...], max_tokens: int, edit: EditSlot | None
    ) -> _Read:
        key = (texts, max_tokens)
        if edit is None and key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        batch = pack_rows(self._loaded.tokenizer.encode(texts, max_tokens))
        features = self._loaded.encoder(batch, self._bank.edits([edit] * len(texts)))
        read = _Read(features, batch.lengths)
        if edit is None:
            self._keep(key, read)
        return read

    def _keep(self, key: _TextsKey, read: _Read) -> None:
        self._kept[key] = read
        while sum(each.features.nbytes for each in self._kept.values()) > _KEPT_BYTES:
            self._kept.popitem(last=False)


def _rounding(encoder: FrozenEncoder) -> float:
    exact = encoder.precision == "float32"
    return 0.0 if exact else _LEAST_SHARE + _ROUNDINGS * encoder.rounding


def serve_logits(
    adapter: Adapter, loaded: LoadedEncoder, texts: Sequence[TextInput]
) -> list[NDArray[np.float32]]:
    """Uncalibrated logits of ``texts`` in one batch, by the path that serves requests.

    Each [K], or [T, K] of a token task, special tokens included. Any thread may call it.
    """
    bank = Bank.beside(loaded.encoder)
    return Admission(loaded, bank).logits(adapter.manifest, bank.add(adapter), texts)
