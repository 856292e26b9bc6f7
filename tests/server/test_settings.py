from __future__ import annotations

from pathlib import Path

import pytest

from labelmux_server.errors import SettingsError
from labelmux_server.settings import Settings, docs_table


def test_defaults_bind_loopback_and_work():
    settings = Settings.from_sources({}, {})
    assert settings == Settings()
    assert settings.host == "127.0.0.1"


def test_flags_win_over_the_environment_and_the_environment_over_defaults():
    environ = {"LABELMUX_PORT": "9000", "LABELMUX_MAX_WAIT_MS": "7.5", "OTHER": "x"}
    settings = Settings.from_sources({"port": 9001, "host": None}, environ)
    assert (settings.port, settings.max_wait_ms, settings.host) == (9001, 7.5, "127.0.0.1")


def test_text_is_read_as_the_settings_type():
    environ = {"LABELMUX_NO_DEMO": "yes", "LABELMUX_STATE_DIR": "/tmp/x", "LABELMUX_DEMO_DIR": "d"}
    settings = Settings.from_sources({"shutdown_grace_s": "5"}, environ)
    assert settings.no_demo is True
    assert settings.state_dir == Path("/tmp/x")
    assert settings.demo_dir == Path("d")
    assert settings.shutdown_grace_s == 5


def test_the_environment_is_read_only_when_given(monkeypatch):
    monkeypatch.setenv("LABELMUX_PORT", "1")
    assert Settings.from_sources({}).port == 8000


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({"port": 70_000}, "port"),
        ({"port": -1}, "port"),
        ({"port": "many"}, "--port"),
        ({"max_batch_tokens": 0}, "max_batch_tokens"),
        ({"max_wait_ms": float("nan")}, "max_wait_ms"),
        ({"log_format": "xml"}, "log_format"),
        ({"no_demo": "perhaps"}, "--no-demo"),
        ({"admin_key": " "}, "admin_key"),
        ({"admin_key": "two words"}, "admin_key"),
        ({"admin_key": "sécret"}, "admin_key.*ASCII"),
        ({"admin_key": "a\x7fb"}, "admin_key.*ASCII"),
        ({"admin_key": "sha256:abc"}, "admin_key"),
        ({"max_requests_per_minute": -1}, "max_requests_per_minute"),
        ({"max_text_tokens": 7}, "max_text_tokens"),
        ({"max_adapter_labels": 1}, "max_adapter_labels"),
        ({"nonsense": 1}, "nonsense"),
        ({"tokenizer_threads": 1.5}, "tokenizer_threads"),
        ({"max_queue_tokens": 100}, "max_batch_tokens"),
        ({"max_queue_rows": 10}, "max_client_batch_size"),
        ({"max_queue_tokens": 100, "max_batch_tokens": 50}, "max_client_batch_size"),
        ({"max_body_bytes": 1000}, "max_text_chars"),
        ({"max_queue_s": 31}, "request_timeout_s"),
        ({"max_wait_ms": 5001}, "max_queue_s"),
        ({"feature_cache_bytes": -1}, "feature_cache_bytes"),
    ],
)
def test_what_cannot_work_is_refused_by_name(flags, names):
    with pytest.raises(SettingsError, match=names):
        Settings.from_sources(flags, {})


def test_a_batch_must_hold_the_encoders_longest_row():
    settings = Settings(max_batch_tokens=256)
    settings.check_encoder(256, token_bytes=1)
    with pytest.raises(SettingsError, match="512"):
        settings.check_encoder(512, token_bytes=1)


def test_a_feature_cache_must_hold_the_encoders_longest_row_or_be_off():
    settings = Settings(feature_cache_bytes=1000)
    settings.check_encoder(10, token_bytes=100)
    with pytest.raises(SettingsError, match="feature_cache_bytes"):
        settings.check_encoder(10, token_bytes=101)
    Settings(feature_cache_bytes=0).check_encoder(10, token_bytes=101)


def test_the_key_is_never_shown():
    settings = Settings(admin_key="hunter2")
    assert "hunter2" not in repr(settings)
    assert settings.describe()["admin_key"] == "set"


def test_every_setting_has_a_flag_an_environment_name_and_help():
    table = docs_table()
    for knob in Settings.knobs():
        assert knob.help.endswith(".")
        assert f"`{knob.flag}`" in table
        assert f"`{knob.env}`" in table


def test_the_address_of_a_kubernetes_service_is_known_for_what_it_is():
    with pytest.raises(SettingsError, match="enableServiceLinks: false"):
        Settings.from_sources({}, {"LABELMUX_PORT": "tcp://10.0.0.5:8000"})
    with pytest.raises(SettingsError, match=r"it takes a whole number$"):
        Settings.from_sources({}, {"LABELMUX_PORT": "8e3"})
