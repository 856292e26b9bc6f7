"""Names in the environment that nothing reads."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from labelmux_server.environment import slips
from labelmux_server.settings import Settings

ROOT = Path(__file__).parents[2]
ADDRESS = "tcp://10.0.0.5:8000"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("LABELMUX_MAX_BATCH_TOKEN", "LABELMUX_MAX_BATCH_TOKENS"),
        ("LABELMUX_ADMINKEY", "LABELMUX_ADMIN_KEY"),
        ("LABELMUX_DEFAULT_TASKS", "LABELMUX_DEFAULT_TASK"),
        ("LABELMUX_HTTP_PORT", "LABELMUX_PORT"),
        ("LABELMUX_ZZZ", None),
    ],
)
def test_a_slip_is_told_with_the_nearest_setting_and_without_its_value(name, nearest):
    (told,) = slips({name: "hunter2", "PATH": "/bin", "OTHERMUX_PORT": "1"})
    assert told.startswith(f"{name} is set, but there is no such setting: ")
    assert told.endswith(f"the nearest is {nearest}" if nearest else "lists those that there are")
    assert "hunter2" not in told


def test_what_stands_in_the_code_the_docs_and_the_deployment_is_no_slip():
    listed = subprocess.run(
        ["git", "grep", "-hoE", r"\bLABELMUX_[A-Z_]+", "--", ":!tests", ":!CHANGELOG.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = {*listed.stdout.split(), *(knob.env for knob in Settings.knobs())}
    assert {"LABELMUX_URL", "LABELMUX_KEY", "LABELMUX_PORT"} <= names
    assert list(slips(dict.fromkeys(names, "1"))) == []


def test_what_kubernetes_sets_for_a_service_is_no_slip():
    """For Services called labelmux and labelmux-metrics, as `kubectl exec … env` prints them."""
    found = {"LABELMUX_HOSTNAME": ""}
    for service in ("LABELMUX", "LABELMUX_METRICS"):
        found |= {
            f"{service}_SERVICE_HOST": "10.0.0.5",
            f"{service}_SERVICE_PORT": "8000",
            f"{service}_SERVICE_PORT_HTTP": "8000",
            f"{service}_PORT": ADDRESS,
            f"{service}_PORT_8000_TCP": ADDRESS,
            f"{service}_PORT_8000_TCP_PROTO": "tcp",
            f"{service}_PORT_8000_TCP_PORT": "8000",
            f"{service}_PORT_8000_TCP_ADDR": "10.0.0.5",
        }
    assert list(slips(found)) == []
