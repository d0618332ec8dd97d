"""Settings: precedence, and errors that name the setting, the value and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import ServiceSettings, SettingsError, environment_variable_of, flag_of, load_settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ServiceSettings.model_fields:
        monkeypatch.delenv(environment_variable_of(name), raising=False)


def test_flags_win_over_environment_over_file_over_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('bundles = "from-file"\nport = 1\nmax_batch = 2\nmax_queue = 3\n')
    monkeypatch.setenv("T2DIFF_PORT", "11")
    monkeypatch.setenv("T2DIFF_MAX_BATCH", "12")
    settings = load_settings(["--config", str(file), "--port", "111"])
    assert settings.port == 111
    assert settings.max_batch == 12
    assert settings.max_queue == 3
    assert settings.bundles == "from-file"
    assert settings.deadline_ms == ServiceSettings.model_fields["deadline_ms"].default


def test_the_settings_file_can_be_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('bundles = "from-file"\n')
    monkeypatch.setenv("T2DIFF_CONFIG", str(file))
    assert load_settings([]).bundles == "from-file"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"bundles \(--bundles, T2DIFF_BUNDLES\): is required"),
        (["--bundles", "x", "--port", "70000"], r"port \(--port, T2DIFF_PORT\): got '70000'.*65535"),
        (["--bundles", "x", "--port", "http"], r"port .*got 'http'"),
        (["--bundles", "x", "--device", "tpu"], r"device .*'tpu'.*'auto', 'cpu' or 'cuda'"),
        (["--bundles", "x", "--max-batch", "0"], r"max_batch .*'0'.*greater than or equal to 1"),
        (
            ["--bundles", "x", "--redis-url", "http://h"],
            r"redis_url .*redis://, rediss://, unix://, redis\+sentinel://, ",
        ),
        (["--bundles", "x", "--redis-namespace", "a b"], r"redis_namespace .*'a b'.*letters"),
        (["--bundles", "x", "--milvus-url", "corpus.db"], r"milvus_url .*milvus-lite server"),
        (["--config", "/no/such/file"], r"config: /no/such/file is not a file"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_remedy(arguments: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as error:
        load_settings(arguments)
    assert "\n" not in str(error.value)


def test_an_error_does_not_repeat_a_password() -> None:
    with pytest.raises(SettingsError) as error:
        load_settings(["--bundles", "x", "--redis-url", "http://:hunter2@host"])
    assert "hunter2" not in str(error.value)


def test_an_error_does_not_repeat_the_password_in_the_url_of_milvus() -> None:
    with pytest.raises(SettingsError, match="T2DIFF_MILVUS_TOKEN") as error:
        load_settings(["--bundles", "x", "--milvus-url", "http://root:hunter2@host"])
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "secret",
    [("--redis-url", "redis://:hunter2@host"), ("--milvus-token", "root:hunter2")],
    ids=lambda flag: flag[0],
)
def test_settings_do_not_show_a_password(secret: tuple[str, str]) -> None:
    settings = load_settings(["--bundles", "x", *secret])
    assert "hunter2" not in repr(settings) + str(settings) + settings.model_dump_json()


@pytest.mark.parametrize(
    ("text", "message"), [("bundls = 'x'", "bundls: there is no such"), ("x =", "cannot be read")]
)
def test_a_wrong_settings_file_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=message):
        load_settings(["--config", str(file)])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("collector:4318", "http:// or https:// URL with a host"),
        ("grpc://collector:4317", "http:// or https:// URL with a host"),
        ("http://", "http:// or https:// URL with a host"),
        ("http://collector:port", "http:// or https:// URL with a host"),
        ("http://collector:70000", "http:// or https:// URL with a host"),
        ("http://me:hunter2@collector", "OTEL_EXPORTER_OTLP_HEADERS"),
        ("http://collector/v1/traces?key=hunter2", "OTEL_EXPORTER_OTLP_HEADERS"),
    ],
)
def test_a_malformed_collector_is_told_with_the_remedy_and_without_its_password(
    url: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=rf"tracing_endpoint \(--tracing-endpoint, .*{message}") as error:
        load_settings(["--bundles", "x", "--tracing-endpoint", url])
    assert "hunter2" not in str(error.value)


def test_an_empty_redis_url_means_the_embedded_one() -> None:
    assert load_settings(["--bundles", "x", "--redis-url", ""]).redis_url is None


def test_settings_cannot_be_changed() -> None:
    settings = load_settings(["--bundles", "x"])
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", ServiceSettings.model_fields)
def test_every_setting_is_described_in_one_line(name: str) -> None:
    description = ServiceSettings.model_fields[name].description
    assert description
    assert description.endswith(".")
    assert "\n" not in description
    assert flag_of(name).startswith("--")
