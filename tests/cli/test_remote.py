"""push, tasks, versions, activate, rollback, delete, download against a server."""

import json


def test_push_names_the_task_after_the_file(labelmux, server, adapter_file):
    done = labelmux("push", adapter_file, url=server.url)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("tone: version 1 is active (sha256:")
    assert server.tasks["tone"].files == [b"adapter tone"]


def test_push_json_is_one_object(labelmux, server, adapter_file):
    first = labelmux("push", adapter_file, "--task", "spam", "--json", url=server.url)
    again = labelmux("push", adapter_file, "--task", "spam", "--json", url=server.url)
    digest = server.tasks["spam"].digest(2)
    expected = {"task": "spam", "version": 2, "digest": digest, "active": True, "created": True}
    expected["gate"] = None
    assert first.json == expected
    assert again.json == expected | {"created": False}


def test_push_create_only_refuses_a_task_that_exists(labelmux, server, adapter_file):
    done = labelmux("push", adapter_file, "--task", "spam", "--create-only", url=server.url)
    assert done.code == 1
    assert done.out == ""
    assert "push without --create-only" in done.err


def test_push_of_a_bad_file_says_what_the_server_said(labelmux, server, tmp_path):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"junk")
    done = labelmux("push", bad, "--json", url=server.url)
    assert done.code == 1
    assert done.json["error"]["code"] == "not_safetensors"
    assert done.json["error"]["request_id"] == "r-1"
    assert done.err.count("\n") == 1


def test_push_of_an_absent_file_names_it(labelmux, server, tmp_path):
    done = labelmux("push", tmp_path / "none.safetensors", url=server.url)
    assert done.code == 1
    assert "none.safetensors: no such file" in done.err
    assert server.requests == []


def test_tasks_lists_what_is_there(labelmux, server):
    done = labelmux("tasks", url=server.url)
    assert done.code == 0
    header, row = done.out.splitlines()
    assert header.split()[:2] == ["Task", "Labels"]
    assert "spam" in row and "spam, ham" in row and "0.900" in row and "2 KiB" in row
    assert labelmux("tasks", "--json", url=server.url).json["tasks"][0]["labels"] == ["spam", "ham"]


def test_tasks_of_an_empty_server_says_what_to_do(labelmux, server):
    server.tasks.clear()
    assert "labelmux push" in labelmux("tasks", url=server.url).out
    assert labelmux("tasks", "--json", url=server.url).json == {"tasks": []}


def test_names_from_a_server_cannot_style_or_steer_the_terminal(labelmux, server):
    server.tasks["spam"].labels = ["[red]a[/red]", "\x1b[2Jb"]
    out = labelmux("tasks", url=server.url).out
    assert "[red]a[/red]" in out
    assert "\x1b" not in out


def test_versions_activate_rollback(labelmux, server, adapter_file):
    labelmux("push", adapter_file, "--task", "spam", url=server.url)
    done = labelmux("versions", "spam", url=server.url)
    assert [line.split()[:2] for line in done.out.splitlines()[2:]] == [["2", "active"]]
    assert labelmux("versions", "spam", "--json", url=server.url).json["active"] == 2
    history = labelmux("history", "spam", url=server.url).out
    assert [line.split()[2:4] for line in history.splitlines()[1:]] == [
        ["upload", "1"],
        ["upload", "2"],
    ]
    assert history.count("ci") == 2
    listed = labelmux("history", "spam", "--json", url=server.url).json
    assert (listed["task"], [entry["by"] for entry in listed["history"]]) == ("spam", ["ci", "ci"])

    assert labelmux("rollback", "spam", url=server.url).out == "spam: back at version 1\n"
    assert labelmux("activate", "spam", 2, url=server.url).out == "spam: version 2 is active\n"
    assert labelmux("activate", "spam", 1, "--json", url=server.url).json["version"] == 1
    done = labelmux("rollback", "spam", "--json", url=server.url)
    assert (done.code, done.json["error"]["code"]) == (1, "no_previous_version")


def test_delete_asks_unless_told_not_to(labelmux, server):
    done = labelmux("delete", "spam", url=server.url)
    assert done.code == 2
    assert "--yes" in done.err
    assert "spam" in server.tasks
    done = labelmux("delete", "spam", "--yes", url=server.url)
    assert (done.code, done.out) == (0, "deleted task 'spam' with all its versions\n")
    assert server.tasks == {}


def test_delete_one_version(labelmux, server):
    done = labelmux("delete", "spam", "--version", 1, "--yes", url=server.url)
    assert done.code == 1
    assert "another one first" in done.err
    assert server.requests[-1][:2] == ("DELETE", "/v1/tasks/spam/versions/1")


def test_download_writes_the_bytes(labelmux, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert labelmux("download", "spam", url=server.url).code == 0
    assert (tmp_path / "spam.safetensors").read_bytes() == b"adapter one"
    done = labelmux("download", "spam", url=server.url)
    assert done.code == 1
    assert "--force" in done.err
    server.tasks["spam"].files[0] = b"adapter new"
    done = labelmux("download", "spam", "--force", "--version", 1, "--json", url=server.url)
    assert done.json == {"task": "spam", "file": "spam.safetensors", "size_bytes": 11}
    assert [path.name for path in tmp_path.iterdir()] == ["spam.safetensors"]
    assert (tmp_path / "spam.safetensors").read_bytes() == b"adapter new"


def test_download_of_an_unknown_task_leaves_no_file(labelmux, server, tmp_path):
    out = tmp_path / "x.safetensors"
    done = labelmux("download", "x", "--out", out, url=server.url)
    assert done.code == 1
    assert "`labelmux tasks`" in done.err
    assert list(tmp_path.iterdir()) == []


def test_download_into_a_folder_that_is_not_there_asks_nobody(labelmux, server, tmp_path):
    done = labelmux("download", "spam", "--out", tmp_path / "none" / "x", url=server.url)
    assert done.code == 1
    assert "no such folder" in done.err
    assert server.requests == []


def test_the_key_comes_from_the_option_or_the_environment(
    labelmux, server, adapter_file, monkeypatch
):
    server.key = "k-1"
    done = labelmux("push", adapter_file, url=server.url)
    assert done.code == 1
    assert "LABELMUX_KEY" in done.err
    assert labelmux("push", adapter_file, "--key", "k-1", url=server.url).code == 0
    monkeypatch.setenv("LABELMUX_KEY", "k-1")
    monkeypatch.setenv("LABELMUX_URL", server.url)
    assert labelmux("push", adapter_file).code == 0


def test_every_json_answer_is_one_line(labelmux, server, adapter_file):
    for args in (["tasks"], ["push", adapter_file], ["versions", "spam"], ["tasks", "--url", "x"]):
        end = [] if "--url" in args else ["--url", server.url]
        out = labelmux(*args, "--json", *end).out
        assert out.count("\n") == 1
        assert isinstance(json.loads(out), dict)
