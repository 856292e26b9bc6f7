from __future__ import annotations

from datetime import UTC, datetime

import pytest

from labelmux_server.errors import (
    InvalidRequestError,
    TaskNotFoundError,
    VersionNotFoundError,
)
from labelmux_server.registry import Registry, Version, check_task_name, parse_name


@pytest.fixture
def registry():
    return Registry()


def version(task: str, number: int, digest: str = "") -> Version:
    when = datetime(2026, 1, 1, tzinfo=UTC)
    return Version(task, number, digest or f"sha256:{task}{number}", 1, when, False, read_manifest)


def read_manifest(_digest):
    raise AssertionError("no manifest is needed here")


def test_a_name_means_the_active_version_or_the_one_it_pins(registry):
    registry.add(version("t", 1))
    registry.add(version("t", 2))
    assert registry.resolve("t").number == 2
    assert registry.resolve("t@1").number == 1
    registry.remove("t", 1)
    with pytest.raises(VersionNotFoundError):
        registry.resolve("t@1")


def test_a_digest_is_named_until_its_last_version_is_gone(registry):
    registry.add(version("t", 1, "same"))
    registry.add(version("t", 2, "other"))
    registry.add(version("u", 1, "same"))
    assert registry.remove("t") == ["other"]
    assert registry.names_digest("same")
    assert not registry.names_digest("other")
    assert registry.remove("u", 1) == ["same"]
    assert not registry.names_digest("same")


def test_a_deleted_task_is_not_there(registry):
    registry.add(version("t", 1))
    registry.remove("t")
    assert "t" not in registry
    assert len(registry) == 0


def test_activate_moves_the_pointer_to_a_version_that_is_there(registry):
    registry.add(version("t", 1))
    registry.add(version("t", 2))
    registry.activate("t", 1)
    assert registry.get("t").number == 1
    with pytest.raises(VersionNotFoundError):
        registry.activate("t", 3)
    assert registry.get("t").number == 1


def test_versions_and_tasks_are_listed_in_order(registry):
    for task, number in (("b", 2), ("b", 1), ("a", 1)):
        registry.add(version(task, number))
    assert [v.number for v in registry.versions("b")] == [1, 2]
    assert [(v.task, v.number) for v in registry.active()] == [("a", 1), ("b", 1)]
    with pytest.raises(TaskNotFoundError):
        registry.versions("c")


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("t", ("t", None)),
        ("t@3", ("t", 3)),
        ("t@0", ("t@0", None)),
        ("t@", ("t@", None)),
        ("t@1@2", ("t@1@2", None)),
        ("t@" + "9" * 50, ("t@" + "9" * 50, None)),
    ],
)
def test_names_may_pin_a_version(name, parsed):
    assert parse_name(name) == parsed


@pytest.mark.parametrize("name", ["", ".", "..", "-a", "a/b", "a@1", "a b", "é", "a\n", "a" * 129])
def test_names_that_no_task_may_have(name):
    with pytest.raises(InvalidRequestError):
        check_task_name(name)


@pytest.mark.parametrize("name", ["a", "7", "spam-v2.1_x", "a" * 128])
def test_names_that_a_task_may_have(name):
    assert check_task_name(name) == name
