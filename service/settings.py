"""Every setting of the service: one frozen object, read once at the edge and passed down.

Precedence: command line > environment (`T2DIFF_` + the name in capitals) > settings file (TOML, named
by `--config` or `T2DIFF_CONFIG`) > default. Nothing else in the service reads the environment.
"""

from __future__ import annotations

import argparse
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings.exceptions import SettingsError as SourceError

from index_builder.milvus_access import MilvusAccess, check_milvus_url
from service.experiments import Experiment
from service.redis_url import check_url, is_tls
from service.trace import check_collector

ENVIRONMENT_PREFIX = "T2DIFF_"
_SECRETIVE = ("redis_url", "tracing_endpoint", "milvus_url", "milvus_token")
"""What may hold a password: a message does not repeat it."""


class SettingsError(ValueError):
    """A setting is wrong; the message is one line for people."""


class ServiceSettings(BaseSettings):
    """What the service can be told. Times carry their unit in the name. Keys: t2diff-serve keys --help."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        frozen=True,
        extra="forbid",
        cli_prog_name="t2diff-serve",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    config: Path | None = Field(None, description="Settings file (TOML, the names of this table).")
    bundles: str = Field(description="Bundle store: a folder or an fsspec URL such as s3://bucket/bundles.")
    signature_key: Path | None = Field(
        None, description="Key file: only bundles that are signed with it are served; see Signed bundles."
    )
    host: str = Field("127.0.0.1", description="Address that answers recall requests.")
    port: int = Field(8000, ge=0, le=65535, description="Port of the recall requests; 0 takes a free one.")
    admin_host: str = Field("127.0.0.1", description="Address of metrics and admin calls; keep it private.")
    admin_port: int = Field(
        8001, ge=0, le=65535, description="Port of metrics and admin; 0 takes a free one."
    )
    api_keys: Path | None = Field(
        None, description="File of API keys; without it whoever reaches the port may ask. See Access."
    )
    allow_anonymous: bool = Field(
        False, description="Serve an address that others can reach without API keys."
    )
    tls_certificate: Path | None = Field(
        None, description="TLS: certificate and chain (PEM); without it plain HTTP."
    )
    tls_key: Path | None = Field(None, description="TLS: the certificate's private key (PEM, unencrypted).")
    tls_client_ca: Path | None = Field(
        None, description="TLS: clients must show a certificate of this authority (PEM)."
    )
    state_dir: Path = Field(Path("state"), description="Folder for what the embedded Redis keeps on disk.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that is logged."
    )
    log_requests: Literal["all", "failed", "none"] = Field(
        "failed", description="Which requests get a log line: all, those answered 5xx, or none."
    )

    device: Literal["auto", "cpu", "cuda"] = Field(
        "cpu", description="Where user tower and index run; auto takes CUDA when there is a GPU."
    )
    torch_threads: int = Field(
        1, ge=1, le=256, description="Threads of torch and of the CPU index per batch."
    )
    tower_engine: Literal["auto", "eager", "exact", "fused", "fused_fp32", "graph", "persistent"] = Field(
        "auto", description="What runs the user tower: auto takes the fastest here; see Tower engines."
    )
    num_inference_steps: int | None = Field(
        None, ge=1, le=10_000, description="Diffusion steps per request; without it the bundle's own."
    )
    sampler: Literal["ddpm", "ddim"] | None = Field(
        None, description="ddpm draws noise at every step, ddim once; without it the bundle's own."
    )
    max_batch: int = Field(32, ge=1, le=1024, description="Most requests that share one batch on the device.")
    max_queue: int = Field(
        256, ge=1, le=100_000, description="Requests in work or waiting beside a full batch; more: 429."
    )
    soft_degradation: bool = Field(
        False, description="Under load fewer diffusion steps, then popular items; see Overload."
    )
    request_time: Literal["now", "none"] = Field(
        "now", description="Time of the request as the model sees it: the server's clock, or unknown."
    )
    wedge_timeout_s: float = Field(
        10.0, gt=0, le=600, description="A batch running longer than this makes liveness fail."
    )

    deadline_ms: int = Field(
        1000, ge=1, le=600_000, description="Time a request may take when it sends no X-Deadline-Ms."
    )
    on_deadline: Literal["fallback", "error"] = Field(
        "fallback",
        description="A request past its deadline gets the popular items (fallback) or 504 (error).",
    )
    max_body_bytes: int = Field(
        4 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024, description="Largest request body; more: 413."
    )
    receive_timeout_s: float = Field(
        10.0, gt=0, le=600, description="A body that takes longer than this to arrive gets 408."
    )
    header_timeout_s: float = Field(
        10.0,
        gt=0,
        le=600,
        description="The same for a request's headers; an answer not read meanwhile is given up.",
    )

    redis_url: SecretStr | None = Field(
        None,
        description="Your Redis (redis, rediss, unix, redis+sentinel or redis+cluster URL); "
        "without it one is embedded.",
    )
    redis_ca_file: Path | None = Field(
        None, description="PEM file of who may vouch for Redis (rediss://); without it the system's."
    )
    redis_cert_file: Path | None = Field(
        None, description="PEM file of the certificate shown to Redis (rediss://)."
    )
    redis_key_file: Path | None = Field(None, description="PEM file of that certificate's private key.")
    redis_namespace: str = Field(
        "t2diff", min_length=1, max_length=64, description="Prefix of every key that the service writes."
    )
    redis_read_timeout_ms: float = Field(
        25.0, gt=0, le=10_000, description="Time that Redis has for one read before the fallback answers."
    )
    redis_write_timeout_ms: float = Field(
        1000.0, gt=0, le=60_000, description="Longest wait for Redis to take events before 503."
    )
    redis_max_connections: int = Field(8, ge=2, le=1000, description="Connections to Redis at most.")
    breaker_threshold: int = Field(
        5, ge=1, le=1000, description="Consecutive Redis failures after which it is left alone."
    )
    breaker_cooldown_ms: float = Field(
        500.0, gt=0, le=60_000, description="How long a failing Redis is left alone before one try."
    )
    redis_fsync: Literal["always", "everysec", "no"] = Field(
        "always", description="Embedded Redis: when appended events reach the disk (its appendfsync)."
    )
    sequence_max_length: int = Field(
        200, ge=1, le=10_000, description="Behaviours kept per user; the oldest leave first."
    )
    sequence_cache_ms: float = Field(
        0.0,
        ge=0,
        le=60_000,
        description="How long this process may use again a sequence that it read; 0 never.",
    )
    sequence_ttl_days: float = Field(
        90.0, gt=0, le=36_500, description="A user without new events is forgotten after this."
    )

    tracing_endpoint: str | None = Field(
        None, description="Collector that gets spans by OTLP, such as http://collector:4318; see Tracing."
    )
    tracing_sample: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of the requests that are traced when their caller does not say (traceparent).",
    )
    tracing_service_name: str | None = Field(
        None,
        min_length=1,
        max_length=255,
        description="Name in the spans; without it OTEL_SERVICE_NAME, else t2diff-recall.",
    )

    milvus_url: str | None = Field(
        None, description="Where bundles of index kind milvus find Milvus; without it where they were built."
    )
    milvus_token: SecretStr | None = Field(
        None, description="What Milvus asks for: user:password, or an API key."
    )
    milvus_timeout_ms: float = Field(
        200.0, gt=0, le=60_000, description="Time that Milvus has for one search before the fallback answers."
    )

    experiment: Experiment | None = Field(
        None, description="Bundles served side by side, a table of the settings file; see Experiments."
    )
    reload_poll_s: float = Field(
        5.0, ge=0, le=86_400, description="How often the store is asked for a newer bundle; 0 never."
    )
    shutdown_delay_s: float = Field(
        0.5, ge=0, le=60, description="After SIGTERM: time between ready turning 503 and the last accept."
    )
    shutdown_timeout_s: int = Field(
        8, ge=1, le=600, description="After SIGTERM: longest wait for requests in flight."
    )

    @field_validator("redis_url", mode="after")
    @classmethod
    def _known_redis_scheme(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        check_url(value.get_secret_value())
        return value

    @field_validator("milvus_url")
    @classmethod
    def _usable_milvus_url(cls, value: str | None) -> str | None:
        if value:
            check_milvus_url(value)
        return value or None

    @property
    def milvus(self) -> MilvusAccess:
        """What opens the collections that bundles name."""
        token = "" if self.milvus_token is None else self.milvus_token.get_secret_value()
        return MilvusAccess(self.milvus_url, token)

    @field_validator("redis_ca_file", "redis_cert_file", "redis_key_file")
    @classmethod
    def _file_for_tls(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is None:
            return None
        url = info.data.get("redis_url")
        if url is None or not is_tls(url.get_secret_value()):
            raise ValueError(
                "needs a redis_url that begins with rediss://, rediss+sentinel:// or rediss+cluster://"
            )
        if not value.is_file():
            raise ValueError("must be a PEM file that can be read")
        return value

    @field_validator("tracing_endpoint")
    @classmethod
    def _collector(cls, value: str | None) -> str | None:
        return None if not value else check_collector(value)

    @field_validator("redis_namespace")
    @classmethod
    def _plain_namespace(cls, value: str) -> str:
        if not value.isascii() or not value.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise ValueError("must consist of letters, digits, '-', '_' and '.'")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Keyword arguments (tests) > environment > file; the command line is put in front by the parser."""
        file = TomlConfigSettingsSource(settings_cls, toml_file=settings_cls.model_config.get("toml_file"))
        return (init_settings, env_settings, file)


def load_settings(arguments: Sequence[str]) -> ServiceSettings:
    """Merge command line, environment and settings file.

    Raises SettingsError naming the setting, the value and what is allowed; `--help` and an unknown flag
    leave by SystemExit, as argparse does.
    """
    path = _config_path(arguments)
    try:
        settings_class = _reading(path)
        command_line: CliSettingsSource = CliSettingsSource(settings_class, cli_parse_args=list(arguments))
        return settings_class(_cli_settings_source=command_line)  # type: ignore[call-arg]
    except ValidationError as error:
        raise SettingsError(_one_line(error)) from None
    except (SourceError, tomllib.TOMLDecodeError, OSError) as error:
        raise SettingsError(f"settings cannot be read: {error}") from None


def flag_of(name: str) -> str:
    """The command-line flag of a setting: `max_batch` -> `--max-batch`."""
    return "--" + name.replace("_", "-")


def environment_variable_of(name: str) -> str:
    """The environment variable of a setting: `max_batch` -> `T2DIFF_MAX_BATCH`."""
    return ENVIRONMENT_PREFIX + name.upper()


def _config_path(arguments: Sequence[str]) -> Path | None:
    """The settings file must be known before the other sources are merged."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    given = parser.parse_known_args(list(arguments))[0].config or os.environ.get(
        ENVIRONMENT_PREFIX + "CONFIG"
    )
    if not given:
        return None
    if not Path(given).is_file():
        raise SettingsError(f"config: {given} is not a file; name a TOML file or leave --config out")
    return Path(given)


def _reading(path: Path | None) -> type[ServiceSettings]:
    if path is None:
        return ServiceSettings
    return type("ServiceSettings", (ServiceSettings,), {"model_config": SettingsConfigDict(toml_file=path)})


def _one_line(error: ValidationError) -> str:
    """`port (--port, T2DIFF_PORT): got '70000': Input should be less than or equal to 65535`."""
    problems = []
    for entry in error.errors(include_url=False, include_context=False):
        name = str(entry["loc"][0]) if entry["loc"] else "settings"
        known = name in ServiceSettings.model_fields
        within = "".join(f".{part}" for part in entry["loc"][1:])
        where = f"{name}{within} ({flag_of(name)}, {environment_variable_of(name)})" if known else name
        if entry["type"] == "missing":
            problems.append(f"{where}: is required")
        elif entry["type"] == "extra_forbidden":
            problems.append(f"{where}: there is no such setting; see --help")
        else:
            hidden = name in _SECRETIVE or isinstance(entry["input"], dict)
            value = "" if hidden else f"got {str(entry['input'])[:80]!r}: "
            problems.append(f"{where}: {value}{entry['msg'].removeprefix('Value error, ')}")
    return "; ".join(problems)
