"""compose.yaml beside the settings, and the configuration of the Prometheus that it starts."""

from __future__ import annotations

from pathlib import Path

import yaml

from labelmux_server.settings import Settings

ROOT = Path(__file__).parent.parent
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVER = COMPOSE["services"]["labelmux"]
PROMETHEUS = COMPOSE["services"]["prometheus"]


def test_the_server_has_time_to_drain_before_it_is_killed() -> None:
    settings = Settings.from_sources({}, SERVER["environment"] | {"LABELMUX_ADMIN_KEY": "k"})
    seconds = int(SERVER["stop_grace_period"].removesuffix("s"))
    assert seconds > settings.shutdown_delay_s + settings.shutdown_grace_s


def test_the_server_has_as_many_threads_as_processors() -> None:
    assert int(SERVER["environment"]["OMP_NUM_THREADS"]) == SERVER["cpus"]


def test_both_services_are_without_rights_and_within_limits() -> None:
    for service in (SERVER, PROMETHEUS):
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["mem_limit"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_prometheus_finds_the_server_the_rules_and_its_key() -> None:
    (mounted, _) = PROMETHEUS["volumes"]
    folder, inside, _ = mounted.split(":")
    config = yaml.safe_load((ROOT / folder / "prometheus.yml").read_text())
    assert f"--config.file={inside}/prometheus.yml" in PROMETHEUS["command"]
    assert [(ROOT / folder / name).is_file() for name in config["rule_files"]] == [True]
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["labelmux:8000"]}]
    (secret,) = PROMETHEUS["secrets"]
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
    assert COMPOSE["secrets"].keys() == {secret}
