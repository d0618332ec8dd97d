"""TLS of the listeners: certificate and key checked before anything starts, then handed to uvicorn."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.settings import ServiceSettings, environment_variable_of, flag_of


@dataclass(frozen=True)
class TlsFiles:
    """client_ca: whose certificates clients must show, None for no matter"""

    certificate: Path
    key: Path
    client_ca: Path | None

    def uvicorn_options(self) -> dict[str, Any]:
        """As `uvicorn.Config` names them."""
        options: dict[str, Any] = {"ssl_certfile": str(self.certificate), "ssl_keyfile": str(self.key)}
        if self.client_ca is not None:
            options |= {"ssl_ca_certs": str(self.client_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
        return options


def tls_files(settings: ServiceSettings) -> TlsFiles | None:
    """What the settings name, None without. Raises ValueError naming the setting when it cannot be used."""
    certificate, key, client_ca = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
    if certificate is None and key is None:
        if client_ca is not None:
            raise _wrong("tls_client_ca", "says nothing without tls_certificate and tls_key; add them")
        return None
    if certificate is None or key is None:
        missing = "tls_certificate" if certificate is None else "tls_key"
        raise _wrong(missing, "is missing; TLS needs the certificate and its key")
    for name, path in (("tls_certificate", certificate), ("tls_key", key), ("tls_client_ca", client_ca)):
        _check_readable(name, path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load_certificate(context, certificate, key)
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except ssl.SSLError:
            raise _wrong("tls_client_ca", f"{client_ca} holds no certificate in PEM form") from None
    return TlsFiles(certificate, key, client_ca)


def _load_certificate(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        # Without a password OpenSSL would ask for that of an encrypted key at the terminal.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise _wrong("tls_key", f"{key} is not the key of the certificate {certificate}") from None
        _check_certificate(certificate)
        raise _wrong("tls_key", f"{key} holds no unencrypted private key in PEM form") from None


def _check_certificate(certificate: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certificate)
    except ssl.SSLError:
        raise _wrong("tls_certificate", f"{certificate} holds no certificate in PEM form") from None


def _check_readable(name: str, path: Path | None) -> None:
    if path is None:
        return
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise _wrong(name, f"{path} cannot be read: {error.strerror or error}") from None


def _wrong(name: str, text: str) -> ValueError:
    return ValueError(f"{name} ({flag_of(name)}, {environment_variable_of(name)}): {text}")
