from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from labelmux_encoder.batch import PackedRows, pack_rows, unpack
from labelmux_encoder.weights import LoadedEncoder
from labelmux_training import features as module
from labelmux_training.errors import CacheSpaceError
from labelmux_training.features import FeatureCache, by_length, default_cache_dir

TEXTS = [
    "the train to the coast leaves at nine",
    "a good film",
    "the soup was cold, the bread was stale and nobody cared!",
    ("two dogs play", "a man reads a newspaper"),
]
#: fp16 keeps 11 bits.
FP16_TOLERANCE = 2e-3


class CountingEncoder:
    """The tiny encoder, counting its passes."""

    def __init__(self, loaded: LoadedEncoder) -> None:
        self._encoder = loaded.encoder
        self.config = loaded.encoder.config
        self.fingerprint = loaded.encoder.fingerprint
        self.passes = 0
        self.before_pass: Callable[[], None] = lambda: None

    def __call__(self, rows: PackedRows) -> torch.Tensor:
        self.before_pass()
        self.passes += 1
        return self._encoder(rows)


@pytest.fixture
def counting(tiny_encoder: LoadedEncoder) -> LoadedEncoder:
    return LoadedEncoder("tiny", CountingEncoder(tiny_encoder), tiny_encoder.tokenizer)


def test_a_batch_is_what_the_encoder_gives(tiny_encoder: LoadedEncoder, tmp_path: Path) -> None:
    features = FeatureCache(tmp_path).features(tiny_encoder, TEXTS, 64)
    rows = [2, 0, 3]
    found, mask = features.batch(rows)
    tokens = tiny_encoder.tokenizer.encode([TEXTS[row] for row in rows], 64)
    packed = pack_rows(tokens)
    expected, expected_mask = unpack(tiny_encoder.encoder(packed), packed.lengths)
    assert torch.equal(mask, expected_mask)
    assert found.shape == expected.shape
    torch.testing.assert_close(found[:, mask], expected[:, mask], atol=5e-3, rtol=FP16_TOLERANCE)
    means = torch.stack([row[kept].mean(0) for row, kept in zip(found[-1], mask, strict=True)])
    torch.testing.assert_close(features.means()[rows], means)


def test_a_subset_is_the_same_rows(tiny_encoder: LoadedEncoder, tmp_path: Path) -> None:
    features = FeatureCache(tmp_path).features(tiny_encoder, TEXTS, 64)
    subset = features.subset([3, 1])
    for whole, part in zip(features.batch([1, 3]), subset.batch([1, 0]), strict=True):
        assert torch.equal(whole, part)
    assert torch.equal(features.means()[[3, 1]], subset.means())


def test_the_second_run_does_not_encode(counting: LoadedEncoder, tmp_path: Path) -> None:
    first = FeatureCache(tmp_path).features(counting, TEXTS, 64)
    passes = counting.encoder.passes
    second = FeatureCache(tmp_path).features(counting, TEXTS, 64)
    assert passes > 0
    assert counting.encoder.passes == passes
    assert torch.equal(first.values, second.values)


def test_another_limit_or_encoder_or_text_encodes_anew(
    counting: LoadedEncoder, tmp_path: Path
) -> None:
    cache = FeatureCache(tmp_path)
    cache.features(counting, TEXTS, 64)
    for texts, limit, fingerprint in (
        (TEXTS, 8, counting.encoder.fingerprint),
        (TEXTS[:3], 64, counting.encoder.fingerprint),
        (TEXTS, 64, "sha256:other"),
    ):
        before = counting.encoder.passes
        counting.encoder.fingerprint = fingerprint
        cache.features(counting, texts, limit)
        assert counting.encoder.passes > before


def test_truncated_texts_are_marked(tiny_encoder: LoadedEncoder, tmp_path: Path) -> None:
    features = FeatureCache(tmp_path).features(tiny_encoder, TEXTS, 8)
    assert features.truncated.tolist() == [True, False, True, True]
    assert int(features.lengths.max()) == 8


def test_a_run_that_dies_leaves_nothing_that_is_used(
    counting: LoadedEncoder, tmp_path: Path
) -> None:
    def die() -> None:
        raise KeyboardInterrupt

    cache = FeatureCache(tmp_path)
    counting.encoder.before_pass = die
    with pytest.raises(KeyboardInterrupt):
        cache.features(counting, TEXTS, 64)
    assert list(cache.folder.iterdir()) == []


@pytest.mark.parametrize("name", ["values.npy", "rows.npy", "entry.json"])
def test_a_damaged_entry_is_made_again(counting: LoadedEncoder, tmp_path: Path, name: str) -> None:
    cache = FeatureCache(tmp_path)
    whole = cache.features(counting, TEXTS, 64).values.clone()
    entry = next(cache.folder.iterdir())
    damaged = entry / name
    damaged.write_bytes(damaged.read_bytes()[:-20])
    assert torch.equal(cache.features(counting, TEXTS, 64).values, whole)


@pytest.mark.parametrize("name", ["values.npy", "rows.npy", "entry.json"])
def test_an_entry_that_lacks_a_file_is_made_again(
    counting: LoadedEncoder, tmp_path: Path, name: str
) -> None:
    cache = FeatureCache(tmp_path)
    whole = cache.features(counting, TEXTS, 64).values.clone()
    (next(cache.folder.iterdir()) / name).unlink()
    assert torch.equal(cache.features(counting, TEXTS, 64).values, whole)
    (entry,) = cache.folder.iterdir()
    assert {path.name for path in entry.iterdir()} == {"values.npy", "rows.npy", "entry.json"}


def test_leftovers_of_dead_runs_are_removed_once_old(
    counting: LoadedEncoder, tmp_path: Path
) -> None:
    cache = FeatureCache(tmp_path)
    old, new = cache.folder / "old.tmp", cache.folder / "new.tmp"
    old.mkdir(parents=True)
    new.mkdir()
    long_ago = time.time() - 3 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    cache.features(counting, TEXTS, 64)
    assert not old.exists()
    assert new.exists()


def test_a_full_disk_is_found_before_encoding(
    counting: LoadedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(CacheSpaceError, match="another cache folder"):
        FeatureCache(tmp_path).features(counting, TEXTS, 64)
    assert counting.encoder.passes == 0


def test_the_disks_space_is_taken_before_encoding(counting: LoadedEncoder, tmp_path: Path) -> None:
    def look() -> None:
        (values,) = cache.folder.glob("*.tmp/values.npy")
        found = values.stat()
        assert found.st_blocks * 512 >= found.st_size > 0

    cache = FeatureCache(tmp_path)
    counting.encoder.before_pass = look
    cache.features(counting, TEXTS, 64)
    assert counting.encoder.passes == 1


def test_a_disk_that_another_run_filled_meanwhile_is_named(
    counting: LoadedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "posix_fallocate", full)
    cache = FeatureCache(tmp_path)
    with pytest.raises(CacheSpaceError, match="another cache folder"):
        cache.features(counting, TEXTS, 64)
    assert (counting.encoder.passes, list(cache.folder.iterdir())) == (0, [])


def test_batches_keep_to_the_budget_and_cover_all_rows() -> None:
    lengths = np.random.default_rng(0).integers(1, 90, 200)
    batches = list(by_length(lengths, budget_tokens=256, most_rows=12))
    assert sorted(index for batch in batches for index in batch) == list(range(200))
    assert all(max(lengths[batch]) * len(batch) <= 256 for batch in batches)
    assert max(map(len, batches)) == 12


def test_a_row_above_the_budget_has_its_own_batch() -> None:
    assert list(by_length(np.array([5, 300, 4]), budget_tokens=100)) == [[1], [0, 2]]


def test_the_cache_follows_the_xdg_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache_dir() == Path("/somewhere/labelmux")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "labelmux"
