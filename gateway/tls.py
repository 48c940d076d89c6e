"""TLS contexts from certificate files, for the gateway as a server and as a client.

The certificate of a server context can be replaced while it is in use.
"""

from __future__ import annotations

import ssl
from pathlib import Path


class TlsInvalid(ValueError):
    """A certificate, key or CA file cannot be used; the message names the file and the reason."""


def server_context(cert: Path, key: Path | None = None, client_ca: Path | None = None) -> ssl.SSLContext:
    """A server context for TLS 1.2 or later. Raises TlsInvalid.

    client_ca: clients must present a certificate that this CA has signed.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    load_certificate(context, cert, key)
    if client_ca is not None:
        _load_authority(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(ca: Path | None = None, cert: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """A client context for TLS 1.2 or later. Raises TlsInvalid.

    ca: the CA that must have signed the server's certificate; None: the CAs of the system.
    cert, key: the client's own certificate, if the server asks for one.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca is None:
        context.load_default_certs()
    else:
        _load_authority(context, ca)
    if cert is not None:
        load_certificate(context, cert, key)
    return context


def _load_authority(context: ssl.SSLContext, ca: Path) -> None:
    try:
        context.load_verify_locations(cafile=ca)
    except (OSError, ssl.SSLError) as exc:
        raise TlsInvalid(f"{ca} holds no certificate authority: {_reason(exc)}") from None


def load_certificate(context: ssl.SSLContext, cert: Path, key: Path | None = None) -> None:
    """Use this certificate from the next connection on. Raises TlsInvalid."""
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (OSError, ssl.SSLError, ValueError) as exc:
        raise TlsInvalid(
            f"{cert} and {key or 'the same file'} hold no certificate with its key: {_reason(exc)}"
        ) from None


def _no_password() -> str:
    raise ValueError("the private key is encrypted; provide it without a password")


def _reason(exc: Exception) -> str:
    if isinstance(exc, ssl.SSLError):
        return (exc.reason or "not in PEM format").lower().replace("_", " ")
    return (exc.strerror or str(exc)).lower() if isinstance(exc, OSError) else str(exc)
