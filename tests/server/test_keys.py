from __future__ import annotations

import sqlite3

import pytest

from labelmux_server.errors import KeysError, StateError
from labelmux_server.keys import EVERY_RIGHT, Keys, Rights, digest_of_key, id_of_key, opened_keys

CLASSIFY = Rights(frozenset({"classify"}))


@pytest.fixture
def keys(tmp_path):
    with opened_keys(tmp_path, create=True) as opened:
        yield opened


def live(keys: Keys) -> dict[str, int]:
    """How many live keys each name has."""
    found: dict[str, int] = {}
    for record in keys.all():
        found[record.name] = found.get(record.name, 0) + record.live
    return found


def test_a_key_is_stored_as_its_digest_alone(tmp_path, keys):
    made = keys.create("shop", CLASSIFY)
    (record,) = keys.all()
    assert record.digest == digest_of_key(made.encode())
    assert record.id == id_of_key(made)
    with sqlite3.connect(tmp_path / "labelmux.sqlite") as connection:
        (row,) = connection.execute("select * from keys").fetchall()
    connection.close()
    secret = made.split("_", 2)[2]
    assert len(secret) >= 43
    assert secret not in str(row)


def test_no_two_keys_are_alike(keys):
    made = {keys.create(f"k{number}", CLASSIFY) for number in range(50)}
    assert len({key.split("_", 2)[2] for key in made}) == 50


def test_what_is_made_is_there_after_closing(tmp_path, keys):
    rights = Rights(frozenset({"admin", "classify"}), ("a-*", "b"), 10, 0)
    keys.create("shop", rights)
    keys.create("every", EVERY_RIGHT)
    with opened_keys(tmp_path) as again:
        assert {record.name: record.rights for record in again.all()} == {
            "shop": rights,
            "every": EVERY_RIGHT,
        }


def test_rotation_ends_the_key_before_at_once_or_after_its_grace(keys):
    keys.create("shop", CLASSIFY)
    keys.rotate("shop")
    assert live(keys) == {"shop": 1}
    keys.rotate("shop", grace_s=600)
    assert live(keys) == {"shop": 2}
    keys.rotate("shop")
    assert live(keys) == {"shop": 1}
    assert {record.rights for record in keys.all()} == {CLASSIFY}


def test_a_longer_grace_does_not_lengthen_an_earlier_one(keys):
    keys.create("shop", CLASSIFY)
    keys.rotate("shop", grace_s=600)
    before = keys.all()[0].ends_at
    keys.rotate("shop", grace_s=6000)
    assert keys.all()[0].ends_at == before


def test_revoking_ends_every_key_of_the_name_for_good(keys):
    keys.create("shop", CLASSIFY)
    keys.create("bank", CLASSIFY)
    keys.rotate("shop", grace_s=600)
    keys.revoke("shop")
    assert live(keys) == {"shop": 0, "bank": 1}
    for change in (keys.revoke, keys.rotate):
        with pytest.raises(KeysError, match="no live key 'shop'"):
            change("shop")
    with pytest.raises(KeysError, match="history"):
        keys.create("shop", CLASSIFY)


@pytest.mark.parametrize(
    ("name", "rights", "words"),
    [
        ("", CLASSIFY, "name"),
        ("a b", CLASSIFY, "name"),
        ("(admin-key)", CLASSIFY, "name"),
        ("x" * 65, CLASSIFY, "name"),
        ("x", Rights(frozenset()), "scopes"),
        ("x", Rights(frozenset({"root"})), "scopes"),  # type: ignore[arg-type]
        ("x", Rights(frozenset({"admin"}), ("a b",)), "pattern"),
        ("x", Rights(frozenset({"admin"}), ("[a]",)), "pattern"),
    ],
)
def test_what_cannot_be_is_refused_by_name(keys, name, rights, words):
    with pytest.raises(KeysError, match=words):
        keys.create(name, rights)
    assert keys.all() == []


@pytest.mark.parametrize(
    ("patterns", "task", "covered"),
    [
        (("*",), "any.thing", True),
        (("shop-*",), "shop-", True),
        (("shop-*",), "Shop-a", False),
        (("shop-*",), "a-shop-a", False),
        (("a?",), "ab", True),
        (("a?",), "a", False),
        (("a", "b"), "b", True),
        (("a.c",), "abc", False),
    ],
)
def test_patterns_cover_whole_names(patterns, task, covered):
    assert Rights(frozenset(), patterns).covers(task) is covered


def test_a_folder_that_is_not_there_is_made_only_for_a_new_key(tmp_path):
    with pytest.raises(StateError, match="--state-dir"), opened_keys(tmp_path / "none"):
        pass
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StateError, match="cannot be used"),
        opened_keys(tmp_path / "file", create=True),
    ):
        pass


def test_a_database_that_another_holds_is_told_of(tmp_path, keys):
    keys.create("shop", CLASSIFY)
    with sqlite3.connect(tmp_path / "labelmux.sqlite", isolation_level=None) as other:
        other.execute("begin exclusive")
        with pytest.raises(StateError, match="locked"):
            keys.create("bank", CLASSIFY)
        other.execute("rollback")
    other.close()
    assert live(keys) == {"shop": 1}


def test_a_folder_of_an_earlier_release_gets_what_is_new(tmp_path):
    with sqlite3.connect(tmp_path / "labelmux.sqlite") as connection:
        connection.execute(
            "create table history (id integer primary key, task varchar not null, at varchar not "
            "null, action varchar not null, version integer not null, digest varchar not null)"
        )
        connection.execute("insert into history values (1, 't', '2026-01-01', 'upload', 1, 'd')")
    with opened_keys(tmp_path) as keys:
        keys.create("shop", CLASSIFY)
    rows = connection.execute('select task, "by" from history').fetchall()
    connection.close()
    assert rows == [("t", None)]
