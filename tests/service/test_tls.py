"""TLS files that cannot be used are told in one line that names the setting, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.settings import ServiceSettings
from service.tls import tls_files
from tests.certificates import Authority


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder)
    certificate, key = authority.issue("server")
    _, other_key = authority.issue("other")
    nonsense = folder / "nonsense"
    nonsense.write_text("no certificate")
    return {
        "authority": authority.certificate,
        "certificate": certificate,
        "key": key,
        "other": other_key,
        "encrypted": authority.encrypted_key(),
        "nonsense": nonsense,
        "missing": folder / "missing",
    }


def settings_of(files: dict[str, Path], **named: str) -> ServiceSettings:
    values: dict[str, Any] = {f"tls_{name}": files[file] for name, file in named.items()}
    return ServiceSettings(bundles="x", **values)


def test_what_fits_together_is_taken(files: dict[str, Path]) -> None:
    assert tls_files(settings_of(files)) is None
    taken = tls_files(settings_of(files, certificate="certificate", key="key", client_ca="authority"))
    assert taken is not None
    assert (taken.certificate, taken.client_ca) == (files["certificate"], files["authority"])


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"certificate": "certificate"}, r"^tls_key \(--tls-key, T2DIFF_TLS_KEY\): is missing"),
        ({"key": "key"}, r"^tls_certificate .*is missing"),
        ({"client_ca": "authority"}, r"^tls_client_ca .*says nothing without"),
        ({"certificate": "missing", "key": "key"}, r"^tls_certificate .*cannot be read: No such file"),
        ({"certificate": "certificate", "key": "missing"}, r"^tls_key .*cannot be read: No such file"),
        (
            {"certificate": "certificate", "key": "other"},
            r"^tls_key .*other.key is not the key of the certif",
        ),
        ({"certificate": "nonsense", "key": "key"}, r"^tls_certificate .*holds no certificate in PEM form"),
        ({"certificate": "certificate", "key": "nonsense"}, r"^tls_key .*holds no unencrypted private key"),
        ({"certificate": "certificate", "key": "encrypted"}, r"^tls_key .*holds no unencrypted private key"),
        (
            {"certificate": "certificate", "key": "key", "client_ca": "nonsense"},
            r"^tls_client_ca .*holds no certificate in PEM form",
        ),
    ],
)
def test_what_does_not_is_named_in_one_line(
    files: dict[str, Path], named: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        tls_files(settings_of(files, **named))
    assert "\n" not in str(error.value)
