from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from labelmux_server import feature_cache
from labelmux_server.feature_cache import FeatureCache


@dataclass(frozen=True)
class Features:
    nbytes: int


def look(cache: FeatureCache[Features], key: str, size_bytes: int = 10) -> bool:
    """What the replica does with one row; whether it hit."""
    if cache.find(key) is not None:
        return True
    if cache.wants(key, size_bytes):
        cache.keep(key, Features(size_bytes))
    return False


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 40)), max_size=60), st.integers(0, 90))
def test_the_budget_holds_and_a_hit_is_what_was_kept(looks, budget_bytes):
    cache = FeatureCache[Features](budget_bytes)
    kept: dict[int, Features] = {}
    for key, size_bytes in looks:
        found = cache.find(key)
        assert found is None or found is kept[key]
        if found is None and cache.wants(key, size_bytes):
            kept[key] = Features(size_bytes)
            cache.keep(key, kept[key])
        assert cache.kept_bytes <= budget_bytes
    assert cache.hits + cache.misses == len(looks)


def test_a_second_look_hits_while_there_is_room():
    cache = FeatureCache[Features](20)
    assert [look(cache, key) for key in "abab"] == [False, False, True, True]
    assert (cache.hits, cache.misses, cache.evictions, cache.kept_bytes) == (2, 2, 0, 20)


def test_a_full_cache_gives_way_only_to_what_comes_again():
    cache = FeatureCache[Features](20)
    for key in "abcd":
        look(cache, key)
    assert [look(cache, key) for key in "ab"] == [True, True]
    assert [look(cache, "c"), look(cache, "c")] == [False, True]
    assert cache.evictions == 1


def test_the_least_recently_used_goes_first():
    cache = FeatureCache[Features](20)
    for key in "ab":
        look(cache, key)
    look(cache, "a")
    for _ in range(2):
        look(cache, "c")
    assert [look(cache, "a"), look(cache, "c")] == [True, True]
    assert not look(cache, "b")


def test_what_could_never_fit_is_not_wanted_and_moves_nothing():
    cache = FeatureCache[Features](20)
    look(cache, "a")
    assert [look(cache, "long", 21) for _ in range(3)] == [False] * 3
    assert look(cache, "a")


def test_what_two_threads_read_at_once_is_kept_once():
    cache = FeatureCache[Features](20)
    assert cache.wants("a", 10) and cache.wants("a", 10)
    for _ in range(2):
        cache.keep("a", Features(10))
    assert cache.kept_bytes == 10


def test_a_budget_of_nothing_keeps_nothing():
    cache = FeatureCache[Features](0)
    assert [look(cache, "a") for _ in range(3)] == [False] * 3
    assert (cache.kept_bytes, cache.misses) == (0, 3)


def test_sights_are_forgotten_in_time(monkeypatch):
    monkeypatch.setattr(feature_cache, "REMEMBERED", 2)
    cache = FeatureCache[Features](10)
    look(cache, "kept")
    for key in ("old", "b", "c", "d", "e"):
        look(cache, key)
    assert not cache.wants("old", 10)
    assert cache.wants("e", 10)
