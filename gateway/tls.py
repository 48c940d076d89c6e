"""TLS: contexts made of files, for those who connect to us (certificates can be changed meanwhile) and for us."""

from __future__ import annotations

import ssl
from pathlib import Path


class TlsInvalid(ValueError):
    """The files do not make a TLS server, or client; the message says which and why."""


def server_context(cert: Path, key: Path | None = None, client_ca: Path | None = None) -> ssl.SSLContext:
    """TLS 1.2 or later with this certificate; client_ca: clients must show one signed by it. Raises TlsInvalid."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    load_certificate(context, cert, key)
    if client_ca is not None:
        _load_authority(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(ca: Path | None = None, cert: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """TLS 1.2 or later to a server whose certificate `ca` (else the system's) has signed. Raises TlsInvalid."""
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
        raise TlsInvalid(f"{ca} holds no certificate authority: {_why(exc)}") from None


def load_certificate(context: ssl.SSLContext, cert: Path, key: Path | None = None) -> None:
    """Show this certificate from the next connection on. Raises TlsInvalid."""
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (OSError, ssl.SSLError, ValueError) as exc:
        raise TlsInvalid(f"{cert} and {key or 'the same file'} are no certificate with its key: {_why(exc)}") from None


def _no_password() -> str:
    raise ValueError("the key is encrypted, and nobody is there to type its password")


def _why(exc: Exception) -> str:
    if isinstance(exc, ssl.SSLError):
        return (exc.reason or "not in PEM format").lower().replace("_", " ")
    return (exc.strerror or str(exc)).lower() if isinstance(exc, OSError) else str(exc)
