"""``labelmux keys``: on the state folder, also of a server that runs."""

from __future__ import annotations

import pytest

from labelmux_server.keys import digest_of_key, opened_keys


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("LABELMUX_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def test_a_new_key_is_alone_on_stdout_and_shown_once(labelmux, state):
    done = labelmux("keys", "create", "shop")
    assert done.code == 0, done.err
    key = done.out.strip()
    assert key.startswith("lmx_")
    assert "shown once" in done.err
    assert (
        key not in done.err + labelmux("keys", "list").out + labelmux("keys", "list", "--json").out
    )
    with opened_keys(state) as keys:
        assert [record.digest for record in keys.all()] == [digest_of_key(key.encode())]


def test_what_a_key_opens_is_said_and_listed(labelmux, state):
    labelmux(
        *("keys", "create", "shop", "--scope", "admin", "--scope", "classify"),
        *("--task", "shop-*", "--task", "mood", "--requests-per-minute", 5),
        *("--tokens-per-minute", 0),
    )
    (key,) = labelmux("keys", "list", "--json").json["keys"]
    assert (key["name"], key["scopes"], key["live"]) == ("shop", ["admin", "classify"], True)
    assert (key["tasks"], key["requests_per_minute"]) == (["shop-*", "mood"], 5)
    row = labelmux("keys", "list").out.splitlines()[1]
    assert row.startswith("shop  admin, classify  shop-*, mood  5             any")
    labelmux("keys", "revoke", "shop")
    assert "ended" in labelmux("keys", "list").out


def test_rotation_gives_another_key_and_says_until_when_the_first_is_in_force(labelmux, state):
    first = labelmux("keys", "create", "shop", "--json").json
    second = labelmux("keys", "rotate", "shop", "--grace-s", 600, "--json").json
    assert first["name"] == second["name"] == "shop"
    assert first["key"] != second["key"]
    assert [key["live"] for key in labelmux("keys", "list", "--json").json["keys"]] == [True, True]
    assert labelmux("keys", "rotate", "shop").code == 0
    assert labelmux("keys", "revoke", "shop", "--json").json == {"name": "shop", "revoked": True}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["create", "a b"], "name"),
        (["create", "x", "--scope", "root"], "classify, admin, metrics"),
        (["create", "x", "--task", "[a]"], "pattern"),
        (["rotate", "absent"], "keys list"),
        (["revoke", "absent"], "keys list"),
    ],
)
def test_what_cannot_be_ends_in_1_and_says_why(labelmux, state, args, words):
    labelmux("keys", "create", "there")
    done = labelmux("keys", *args)
    assert done.code == 1
    assert words in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "args",
    [
        ["rotate", "there", "--grace-s", "inf"],
        ["rotate", "there", "--grace-s", "nan"],
        ["rotate", "there", "--grace-s", "1e300"],
        ["rotate", "there", "--grace-s", "-1"],
        ["create", "x", "--requests-per-minute", "9" * 23],
        ["create", "x", "--tokens-per-minute", "9" * 23],
    ],
)
def test_numbers_beyond_all_reason_end_in_2_and_name_the_option(labelmux, state, args):
    labelmux("keys", "create", "there")
    done = labelmux("keys", *args)
    assert (done.code, done.out) == (2, "")
    assert args[2] in done.err
    (key,) = labelmux("keys", "list", "--json").json["keys"]
    assert (key["name"], key["live"]) == ("there", True)


def test_a_folder_that_is_no_state_folder_is_told_of(labelmux, state):
    done = labelmux("keys", "list")
    assert done.code == 1
    assert "--state-dir" in done.err
    assert not state.exists()


@pytest.mark.parametrize("command", ["create", "list", "rotate", "revoke"])
def test_every_command_has_help_with_an_example(labelmux, command):
    done = labelmux("keys", command, "--help")
    assert done.code == 0
    assert f"labelmux keys {command}" in done.out.split("Example:")[1]
    assert "--json" in done.out
