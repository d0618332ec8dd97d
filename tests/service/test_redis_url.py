"""URLs of Redis and of sentinels: what they mean, and what is refused with its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.redis_url import Address, SentinelUrl, check_url, node_url, parse_sentinel_url, seeds_of, shown
from service.settings import SettingsError, load_settings


def test_a_sentinel_url_has_several_sentinels_a_service_and_a_database() -> None:
    url = "redis+sentinel://me:p%40ss@a:26380,b,[::1]:7,[::2]/recall/3?sentinel_password=s%26t"
    assert parse_sentinel_url(url) == SentinelUrl(
        sentinels=[("a", 26380), ("b", 26379), ("::1", 7), ("::2", 26379)],
        service="recall",
        db=3,
        username="me",
        password="p@ss",
        sentinel_username=None,
        sentinel_password="s&t",
    )


def test_a_cluster_url_has_some_of_its_nodes_and_each_is_entered_in_the_same_way() -> None:
    url = "rediss+cluster://me:p%40ss@a:7000,b,[::1]:7?ssl_check_hostname=false"
    assert seeds_of(url) == [Address("a", 7000), Address("b", 6379), Address("::1", 7)]
    assert node_url(url, Address("c", 7001)) == "rediss://me:p%40ss@c:7001?ssl_check_hostname=false"
    assert node_url("redis+cluster://a,b", Address("::2", 1)) == "redis://[::2]:1"


def test_what_is_shown_of_a_url_has_no_password() -> None:
    assert shown("redis://me:hunter2@h:1/0") == "redis://h:1/0"
    assert shown("redis+cluster://me:hunter2@h:1,i") == "redis+cluster://h:1,i"
    assert shown("unix:///run/redis?password=hunter2") == "unix:///run/redis"
    assert (
        shown("rediss+sentinel://:hunter2@a:1,b:2/s?sentinel_password=hunter2")
        == "rediss+sentinel://a:1,b:2/s"
    )


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://h", "must start with redis://"),
        ("redis://h:hunter2", "port between"),
        ("redis://h:70000/0", "port between"),
        ("redis://h/zero", "number of a database"),
        ("redis://h/0?socket_timeout=60", "unknown option 'socket_timeout'"),
        ("redis://h/0?max_connections=10000", "unknown option"),
        ("redis://h/0?ssl_ca_certs=x", "unknown option"),
        ("redis+sentinel://h:26379", "name the service"),
        ("redis+sentinel://h:26379/", "name the service"),
        ("redis+sentinel://a:1,b:x/s", "list sentinels as"),
        ("redis+sentinel://a:1,,b:1/s", "list sentinels as"),
        ("redis+sentinel://a:0/s", "list sentinels as"),
        ("redis+sentinel://a/s/x", "/SERVICE/DB"),
        ("redis+cluster://a:1,b:hunter2", "list nodes as"),
        ("redis+cluster://", "list nodes as"),
        ("redis+cluster://a:1/0", "one database only"),
        ("redis+cluster://a?db=1", "unknown option 'db'; there are none"),
        ("rediss+cluster://a?db=1", "unknown option 'db'; there are ssl_ca_certs"),
    ],
)
def test_a_url_that_cannot_work_is_refused_with_its_remedy(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check_url(url)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://h",
        "redis+cluster://:p@h:1,[::1]/",
        "redis://h",
        "redis://:p@h:1/2",
        "rediss://h?ssl_ca_certs=x",
        "unix:///run/s?db=1",
        "REDIS://[::1]:1/0",
    ],
)
def test_a_url_that_works_passes(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--redis-url", "redis://h?x=1"], r"redis_url \(--redis-url, T2DIFF_REDIS_URL\): has the unknown"),
        (["--redis-ca-file", "{file}"], "redis_ca_file .*rediss://"),
        (["--redis-url", "redis://h", "--redis-cert-file", "{file}"], "redis_cert_file .*rediss://"),
        (
            ["--redis-url", "rediss://h", "--redis-key-file", "/no/such"],
            "redis_key_file .*/no/such.*PEM file",
        ),
    ],
)
def test_settings_that_do_not_fit_the_url_are_named(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("")
    with pytest.raises(SettingsError, match=message):
        load_settings(["--bundles", "x", *(word.replace("{file}", str(file)) for word in arguments)])


def test_files_for_tls_are_taken_with_a_url_for_tls(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("")
    url = "rediss+sentinel://a,b/recall"
    settings = load_settings(["--bundles", "x", "--redis-url", url, "--redis-ca-file", str(file)])
    assert settings.redis_ca_file == file
