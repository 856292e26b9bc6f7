from __future__ import annotations

import re

import pytest

from labelmux_adapters import errors as adapter_errors
from labelmux_server import errors, statuses

#: Where the tree's classes are.
MODULES = {"labelmux_server.errors", "labelmux_server.release_errors"}


def _every(base):
    for kind in base.__subclasses__():
        if kind.__module__ in MODULES:
            yield kind
        yield from _every(kind)


def _leaves(base):
    for kind in base.__subclasses__():
        if kind.__module__ in MODULES and not kind.__subclasses__():
            yield kind
        yield from _leaves(kind)


SERVER_LEAVES = [
    kind for kind in _leaves(errors.ServerError) if not issubclass(kind, errors.StartError)
]
ADAPTER_LEAVES = [*statuses.leaves(adapter_errors.AdapterError)]


@pytest.mark.parametrize("kind", SERVER_LEAVES + ADAPTER_LEAVES, ids=lambda kind: kind.__name__)
def test_every_leaf_has_a_status_and_a_stable_code(kind):
    answer = statuses.TABLE[kind]
    assert 400 <= answer.status <= 599
    assert re.fullmatch(r"[a-z][a-z0-9_]*", answer.code)


def test_codes_of_the_adapters_room_are_its_own():
    for kind in ADAPTER_LEAVES:
        assert statuses.TABLE[kind].code == kind.code


def test_one_code_has_one_status():
    found: dict[str, set[int]] = {}
    for answer in statuses.TABLE.values():
        found.setdefault(answer.code, set()).add(answer.status)
    assert all(len(each) == 1 for each in found.values())


def test_the_drawn_tree_is_the_real_one():
    tree = errors.__doc__ or ""
    drawn = set(re.findall(r"[A-Z]\w+Error", tree))
    assert drawn - {"ServerError"} == {kind.__name__ for kind in _every(errors.ServerError)}


def test_an_unknown_error_is_ours_and_says_nothing_of_itself():
    part = statuses.error_part(ValueError("secret text of a user"))
    assert part["code"] == "internal"
    assert "secret" not in str(part)


def test_a_kind_below_a_known_one_is_answered_like_it():
    class Special(errors.TaskNotFoundError):
        pass

    assert statuses.answer_for(Special) == statuses.TABLE[errors.TaskNotFoundError]
