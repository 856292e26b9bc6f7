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
def freed():
    return []


@pytest.fixture
def registry(freed):
    return Registry(freed.append)


def version(task: str, number: int) -> Version:
    when = datetime(2026, 1, 1, tzinfo=UTC)
    slot = f"{task}{number}"
    return Version(task, number, f"sha256:{slot}", 1, when, None, slot)  # type: ignore[arg-type]


def test_a_lease_names_the_version_that_was_active_when_it_was_taken(registry):
    registry.add(version("t", 1))
    lease = registry.lease("t")
    registry.add(version("t", 2))
    assert lease.version.number == 1
    assert registry.lease("t").version.number == 2


def test_a_version_in_use_stays_until_its_last_lease_is_given_back(registry, freed):
    registry.add(version("t", 1))
    registry.add(version("t", 2))
    first, second = registry.lease("t@1"), registry.lease("t@1")
    registry.remove("t", 1)
    with pytest.raises(VersionNotFoundError):
        registry.lease("t@1")
    first.release()
    assert freed == []
    second.release()
    assert freed == ["t1"]


def test_a_lease_counts_once_however_often_it_is_released(registry, freed):
    registry.add(version("t", 1))
    first, second = registry.lease("t"), registry.lease("t")
    registry.remove("t")
    first.release()
    first.release()
    assert freed == []
    second.release()
    assert freed == ["t1"]


def test_a_version_that_nobody_uses_is_freed_at_once(registry, freed):
    registry.add(version("t", 1))
    registry.lease("t").release()
    registry.remove("t")
    assert freed == ["t1"]
    assert "t" not in registry
    assert len(registry) == 0


def test_a_task_deleted_and_made_again_does_not_touch_old_leases(registry, freed):
    registry.add(version("t", 1))
    lease = registry.lease("t")
    registry.remove("t")
    registry.add(version("t", 2))
    lease.release()
    assert freed == ["t1"]
    assert registry.get("t").number == 2


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
