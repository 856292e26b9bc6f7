"""Every text's features, computed once and kept on disk.

One entry of the cache holds all layers of the real tokens of one list of texts, packed in fp16, and
the row where each text starts. Its name is a digest of what the features depend on: encoder, texts
and token limit; labels do not enter. An entry is made under another name and renamed when whole, so
one that exists is complete, also after a crash or with two runs at once. Entries may be deleted at
any time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelmux_adapters.kinds import Pooling
from labelmux_adapters.ytuning import normalise_states
from labelmux_encoder.batch import pack_rows
from labelmux_encoder.tokenizer import TextInput, TokenRow
from labelmux_encoder.weights import LoadedEncoder
from labelmux_training.errors import CacheSpaceError
from labelmux_training.progress import NoProgress, Progress

#: Padded tokens in one pass of the encoder.
PASS_TOKENS = 4096
#: Enters every entry's name; raised when the layout changes.
_LAYOUT = 2
_TOKENISED_AT_ONCE = 1024
_LARGEST_FP16 = 65504.0
#: A temporary entry older than this was left by a run that died.
_STALE_S = 24 * 3600.0

Indices = Sequence[int] | npt.NDArray[np.int64]


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/labelmux``, or ``~/.cache/labelmux``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "labelmux"


@dataclass(frozen=True)
class Features:
    """The features of a list of texts, read from disk as they are needed."""

    values: Tensor  # [tokens, (L+1) * H] fp16
    starts: Tensor  # [rows] int64
    lengths: Tensor  # [rows] int64
    states: int
    #: Which texts were cut to the token limit. [rows] bool
    truncated: Tensor

    def subset(self, rows: Indices) -> Features:
        """The features of these texts, in this order; nothing is copied."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        return Features(
            self.values,
            self.starts[index],
            self.lengths[index],
            self.states,
            self.truncated[index],
        )

    def batch(self, rows: Indices) -> tuple[Tensor, Tensor]:
        """Features of these texts in fp32 and the mask of their real tokens.

        Positions outside the mask hold another token's features, so a reader that forgets the mask
        is soon found out. [L+1, B, T, H], [B, T]
        """
        index = torch.as_tensor(rows, dtype=torch.int64)
        lengths = self.lengths[index]
        positions = torch.arange(int(lengths.max()))
        mask = positions < lengths[:, None]
        tokens = (self.starts[index][:, None] + positions).clamp_(max=self.values.shape[0] - 1)
        gathered = self.values[tokens.flatten()].float()
        features = gathered.view(*mask.shape, self.states, -1).permute(2, 0, 1, 3)
        return features, mask

    def packed(self, rows: Indices) -> Tensor:
        """The same, one text's tokens after the other's, as the bank reads them. [L+1, N, H]"""
        features, mask = self.batch(rows)
        return features[:, mask]

    def pooled(self, pooling: Pooling | None) -> Tensor:
        """What a linear head reads of the last state. [rows, H]; None: every token's. [N, H]"""
        if pooling == "mean":
            return self.means()
        hidden = self.values.shape[1] // self.states
        tokens = self.starts
        if pooling is None:
            ends = self.lengths.cumsum(0)
            first = (self.starts - ends + self.lengths).repeat_interleave(self.lengths)
            tokens = first + torch.arange(int(ends[-1]))
        return self.values[tokens, -hidden:].float()

    def means(self) -> Tensor:
        """Mean of the last state over each text's real tokens. [rows, H]"""
        return self._token_means(lambda states: states[:, -1])

    def mixed_means(self, mix: Tensor) -> Tensor:
        """The same of a mix of all states, each normalised: what a new adapter pools.

        Args:
            mix: how much of each state. [L+1]
        """
        return self._token_means(lambda states: _mixed(states, mix))

    def mixed_sums(self, tokens: Tensor, classes: Tensor, count: int, mix: Tensor) -> Tensor:
        """Sums over tokens of one class of a mix of all states, each normalised. [count, H]

        Args:
            tokens: rows of ``values``. [n]
            classes: of each, below ``count``. [n]
            count: how many classes there are.
            mix: how much of each state. [L+1]
        """
        sums = torch.zeros(count, self.values.shape[1] // self.states)
        for part, of in zip(tokens.split(PASS_TOKENS), classes.split(PASS_TOKENS), strict=True):
            states = self.values[part].float().unflatten(1, (self.states, -1))
            sums.index_add_(0, of, _mixed(states, mix))
        return sums

    def _token_means(self, read: Callable[[Tensor], Tensor]) -> Tensor:
        """Mean over each text's tokens of what ``read`` makes of [tokens, L+1, H]. [rows, H]"""
        hidden = self.values.shape[1] // self.states
        means = torch.zeros(len(self.lengths), hidden)
        for rows in by_length(self.lengths.numpy(), PASS_TOKENS):
            lengths = self.lengths[rows]
            owner = torch.arange(len(rows)).repeat_interleave(lengths)
            first = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
            tokens = self.starts[rows].repeat_interleave(lengths) + torch.arange(len(owner)) - first
            states = self.values[tokens].float().view(len(tokens), self.states, hidden)
            sums = torch.zeros(len(rows), hidden)
            sums.index_add_(0, owner, read(states))
            means[rows] = sums / lengths[:, None]
        return means


def _mixed(states: Tensor, mix: Tensor) -> Tensor:
    """[tokens, L+1, H], [L+1] -> [tokens, H]"""
    return torch.einsum("tlh,l->th", normalise_states(states), mix)


def by_length(
    lengths: npt.NDArray[np.int64], budget_tokens: int, most_rows: int = 1024
) -> Iterator[list[int]]:
    """Row indices in batches of near-equal length, each within the budget once padded.

    Longest first, so that a batch that does not fit in memory is found at once. A row longer than
    the budget is a batch of its own.
    """
    batch: list[int] = []
    for index in np.argsort(-lengths, kind="stable").tolist():
        full = batch and int(lengths[batch[0]]) * (len(batch) + 1) > budget_tokens
        if full or len(batch) == most_rows:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


class FeatureCache:
    """Features on disk, in entries under ``folder``."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = (folder or default_cache_dir()) / "features"

    def features(
        self,
        loaded: LoadedEncoder,
        texts: Sequence[TextInput],
        max_tokens: int,
        progress: Progress | None = None,
        stage: str = "encode",
    ) -> Features:
        """The features of ``texts``, from the cache or computed now.

        Raises:
            CacheSpaceError: they do not fit on the disk.
        """
        entry = self.folder / _entry_name(loaded, texts, max_tokens)
        found = _open_entry(entry)
        if found is not None:
            return found
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_stale()
        made = Path(tempfile.mkdtemp(suffix=".tmp", dir=self.folder))
        try:
            _compute(made, loaded, texts, max_tokens, progress or NoProgress(), stage)
            _put(made, entry)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        found = _open_entry(entry)
        assert found is not None
        return found

    def _remove_stale(self) -> None:
        oldest = time.time() - _STALE_S
        for left in self.folder.glob("*.tmp"):
            with suppress(FileNotFoundError):
                if left.stat().st_mtime < oldest:
                    shutil.rmtree(left, ignore_errors=True)


def _entry_name(loaded: LoadedEncoder, texts: Sequence[TextInput], max_tokens: int) -> str:
    hasher = hashlib.sha256()
    hasher.update(json.dumps([_LAYOUT, loaded.encoder.fingerprint, max_tokens]).encode())
    for text in texts:
        hasher.update(b"\n" + json.dumps(text).encode())
    return hasher.hexdigest()


def _open_entry(entry: Path) -> Features | None:
    """The entry if it is there and whole."""
    if not entry.is_dir():
        return None
    try:
        # Copy-on-write rather than read-only: torch wants writable memory, and nobody writes.
        values = np.load(entry / "values.npy", mmap_mode="c", allow_pickle=False)
        rows = np.load(entry / "rows.npy", allow_pickle=False)
        said = json.loads((entry / "entry.json").read_text())
    except (OSError, ValueError, EOFError):
        # Damaged from outside, or short of a file that something which clears caches took: as good
        # as absent, and what stays would keep a new entry from its place.
        shutil.rmtree(entry, ignore_errors=True)
        return None
    return Features(
        values=torch.from_numpy(values),
        starts=torch.from_numpy(rows[0]),
        lengths=torch.from_numpy(rows[1]),
        states=int(said["states"]),
        truncated=torch.from_numpy(rows[2] != 0),
    )


def _put(made: Path, entry: Path) -> None:
    try:
        made.rename(entry)
    except OSError:
        if not entry.is_dir():  # another run was faster: its entry is equal
            raise


def _compute(
    folder: Path,
    loaded: LoadedEncoder,
    texts: Sequence[TextInput],
    max_tokens: int,
    progress: Progress,
    stage: str,
) -> None:
    rows = _tokenise(loaded, texts, max_tokens)
    lengths = np.array([len(row.token_ids) for row in rows], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    config = loaded.encoder.config
    states = config.num_layers + 1
    shape = (int(lengths.sum()), states * config.hidden_size)
    _check_space(folder, shape[0] * shape[1] * 2)
    values = np.lib.format.open_memmap(
        folder / "values.npy", mode="w+", dtype=np.float16, shape=shape
    )
    _reserve(folder / "values.npy")
    progress.start(stage, total=shape[0], unit="tokens")
    for batch in by_length(lengths, PASS_TOKENS):
        features = loaded.encoder(pack_rows([rows[index] for index in batch]))
        features = features.transpose(0, 1).flatten(1).clamp(-_LARGEST_FP16, _LARGEST_FP16)
        packed = features.half().cpu().numpy()  # [tokens of the batch, (L+1) * H]
        ends = np.cumsum(lengths[batch])
        for index, part in zip(batch, np.split(packed, ends[:-1]), strict=True):
            values[starts[index] : starts[index] + lengths[index]] = part
        progress.advance(int(ends[-1]))
    values.flush()
    truncated = np.array([row.truncated for row in rows], dtype=np.int64)
    np.save(folder / "rows.npy", np.stack([starts, lengths, truncated]))
    (folder / "entry.json").write_text(json.dumps({"states": states}))
    progress.done()


def _tokenise(loaded: LoadedEncoder, texts: Sequence[TextInput], max_tokens: int) -> list[TokenRow]:
    rows: list[TokenRow] = []
    for first in range(0, len(texts), _TOKENISED_AT_ONCE):
        rows += loaded.tokenizer.encode(texts[first : first + _TOKENISED_AT_ONCE], max_tokens)
    return rows


def _check_space(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise CacheSpaceError(folder.parent, needed_bytes, free_bytes)


def _reserve(path: Path) -> None:
    """Take the space of a mapped file: where there is none as it is written, the process dies."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    needed_bytes = path.stat().st_size
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, needed_bytes)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            free_bytes = shutil.disk_usage(path).free
            raise CacheSpaceError(path.parent.parent, needed_bytes, free_bytes) from error
