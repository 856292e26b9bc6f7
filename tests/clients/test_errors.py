"""Which class an answer is raised as, and that the README says the same."""

import re
from pathlib import Path

import httpx2
import pytest

import labelmux_client
from labelmux_client import AnswerError, LabelmuxError, StatusError, TransportError, _errors

README = Path(__file__).parents[2] / "clients" / "python" / "README.md"


def tree(base):
    """The class and all below it."""
    return {base}.union(*(tree(kind) for kind in base.__subclasses__()))


@pytest.mark.parametrize(("code", "kind"), _errors.CODES.items())
def test_the_code_decides_whatever_the_status(ask, wire, code, kind):
    with pytest.raises(StatusError) as caught:
        ask(wire.server(wire.refusal(418, code, "because", field="top_k")), "tasks")
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.code, error.message) == (418, code, "because")
    assert error.request_id == "r-2"
    assert error.fields == {"field": "top_k"}
    assert str(error) == f"because [{code}]"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *_errors.STATUSES.items(),
        (400, _errors.InvalidRequestError),
        (422, _errors.InvalidRequestError),
        (500, _errors.ServerFailureError),
        (502, _errors.ServerFailureError),
    ],
)
def test_the_status_decides_where_the_code_is_unknown(ask, wire, status, kind):
    server = wire.server(wire.refusal(status, "of_a_newer_server"))
    with pytest.raises(StatusError) as caught:
        ask(server, "tasks", options={"max_retries": 0})
    assert type(caught.value) is kind


def test_an_error_page_of_a_proxy_is_raised_by_status(ask, wire):
    page = httpx2.Response(502, html="<h1>Bad Gateway</h1>", headers={"X-Request-Id": "p-1"})
    with pytest.raises(_errors.ServerFailureError, match="Bad Gateway") as caught:
        ask(wire.server(page), "tasks")
    assert (caught.value.code, caught.value.request_id) == ("http_502", "p-1")


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (200, {"html": "<h1>It works!</h1>"}),
        (200, {"json": {"items": []}}),
        (200, {"json": ["tasks"]}),
        (200, {"json": {"tasks": [{"task": "spam"}]}}),
        (302, {"headers": {"Location": "https://login.test/"}}),
    ],
    ids=["page", "other", "array", "half", "redirect"],
)
def test_an_answer_of_something_else_is_told_apart(ask, wire, status, content):
    with pytest.raises(AnswerError, match="GET /v1/tasks"):
        ask(wire.server(httpx2.Response(status, **content)), "tasks")


def test_no_answer_names_the_address_and_keeps_the_cause(ask, wire):
    cause = httpx2.ConnectError("Connection refused")
    with pytest.raises(TransportError, match=r"refused.*http://labelmux.test:8000") as caught:
        ask(wire.server(cause), "tasks", options={"max_retries": 0})
    assert caught.value.__cause__ is cause


def test_every_class_but_the_bases_is_raised_for_some_answer():
    raised = {*_errors.CODES.values(), *_errors.STATUSES.values()}
    bases = {LabelmuxError, StatusError, TransportError, AnswerError}
    assert tree(LabelmuxError) == raised | bases


def test_every_class_is_public_and_drawn_in_the_tree():
    names = {kind.__name__ for kind in tree(LabelmuxError)}
    assert names == set(_errors.__all__)
    assert names <= set(labelmux_client.__all__)
    assert names == set(re.findall(r"(\w+Error)\b", _errors.__doc__))


def test_the_readme_has_every_class_with_its_codes():
    rows = re.findall(r"^\| `(\w+Error)` \|([^|]*)\|", README.read_text(), re.MULTILINE)
    told = {name: set(re.findall(r"`(\w+)`", codes)) for name, codes in rows}
    assert told == {
        kind.__name__: {code for code, found in _errors.CODES.items() if found is kind}
        for kind in tree(LabelmuxError)
    }


def test_every_code_of_the_server_has_a_class():
    statuses = pytest.importorskip("labelmux_server.statuses")
    answers = statuses.TABLE.values()
    read = {answer.code for answer in answers if answer.status != 499}  # the caller has left
    assert read == set(_errors.CODES)
