"""What can go wrong on the way to an upstream and back, in the gateway's words.

Only here do aiohttp's and OpenSSL's exceptions have names. Messages reach clients: they hold the
upstream's host, never its key and never a body. Its own words are an error's `detail`, which no log has.
"""

from __future__ import annotations

import errno
import ssl
import time
from collections.abc import Callable
from types import TracebackType

import aiohttp

from gateway.plugin import BackendUnavailable, DeadlineExceeded, GatewayError

# OpenSSL x509_vfy.h: X509_V_ERR_*
CERTIFICATE_FAULTS = {
    9: "its certificate is not yet valid (check this host's clock)",
    10: "its certificate has expired (or this host's clock is wrong)",
    18: "its certificate is self-signed; set CA_FILE to trust it",
    19: "an authority unknown here signed its certificate (self-signed root); set CA_FILE to trust it",
    20: "an authority unknown here signed its certificate; set CA_FILE, or let it send its intermediates",
    21: "its certificate cannot be verified: an intermediate is missing",
    23: "its certificate was revoked",
    62: "its certificate is for another host",
    64: "its certificate is for another address",
}

CLOCK_S = 0.001  # a timer may fire this early
LINK_ERRNOS = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.ECONNABORTED: "reset",
    errno.EHOSTUNREACH: "no route",
    errno.ENETUNREACH: "no route",
    errno.ENETDOWN: "no route",
    errno.EHOSTDOWN: "no route",
    errno.ETIMEDOUT: "timed out",
}


def bad_response(
    what: str,
    *,
    status: int | None = None,
    retry_after_s: float | None = None,
    again: bool = True,
    said: str = "",
) -> BackendUnavailable:
    """The upstream answered, but not so that the answer could be passed on. said: its words; they may quote ours."""
    return BackendUnavailable(
        f"the upstream {what}",
        code="upstream_bad_response",
        status=status,
        retry_after_s=retry_after_s,
        again=again,
        detail=said,
    )


# Raised while connecting: no byte of a request had been sent, so it may be sent elsewhere without harm.
NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)


def translate(exc: BaseException, host: str) -> tuple[GatewayError, str | None]:
    """The gateway's error, and, where the network is at fault, in a word why."""
    error, link = _named(exc, host)
    error.began = not isinstance(exc, NOT_SENT)
    return error, link


def _named(exc: BaseException, host: str) -> tuple[GatewayError, str | None]:
    if (tls := _tls_cause(exc)) is not None:
        return tls_error(tls, host), None
    if isinstance(exc, aiohttp.ClientHttpProxyError):
        return _unavailable(f"the proxy refused to connect to {host} (status {exc.status})"), "proxy"
    if isinstance(exc, aiohttp.ClientResponseError):
        return bad_response(f"{host} does not answer in HTTP: {_first_line(exc.message)}"), None
    if isinstance(exc, aiohttp.ClientPayloadError):
        return bad_response(f"{host} broke its answer off"), None
    if isinstance(exc, aiohttp.ClientConnectorDNSError):
        return _unavailable(f"{host} has no address: {_os_text(exc.os_error)}"), "no address"
    if isinstance(exc, aiohttp.ServerTimeoutError | TimeoutError):
        return _unavailable(f"{host} did not answer in time"), "timed out"
    if isinstance(exc, aiohttp.ServerDisconnectedError):
        return _unavailable(f"{host} closed the connection without an answer"), None
    if isinstance(exc, aiohttp.ClientConnectorError):
        return _unavailable(f"cannot connect to {host}: {_os_text(exc.os_error)}"), _word(exc.os_error)
    if isinstance(exc, OSError):
        return _unavailable(f"the connection to {host} broke: {_os_text(exc)}"), _word(exc)
    return _unavailable(f"the connection to {host} broke"), "broken"


def tls_error(exc: ssl.SSLError, host: str) -> BackendUnavailable:
    """Why no secure connection came about, in words that say what to do."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        why = CERTIFICATE_FAULTS.get(exc.verify_code, exc.verify_message)
    elif exc.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        why = "it does not speak TLS on this port; is the URL's scheme http?"
    else:
        why = (exc.reason or "the handshake failed").replace("_", " ").lower()
    return BackendUnavailable(f"no secure connection to {host}: {why}", code="upstream_tls_error", again=False)


def _tls_cause(exc: BaseException) -> ssl.SSLError | None:
    """The TLS fault inside; a server may tell it only after the handshake, as the connection's end."""
    inside = (getattr(exc, "certificate_error", None), getattr(exc, "os_error", None), exc.__cause__, exc)
    for candidate in inside:
        if isinstance(candidate, ssl.SSLError) and not isinstance(candidate, ssl.SSLEOFError):
            return candidate
    return None


def _unavailable(message: str) -> BackendUnavailable:
    return BackendUnavailable(message)


def _word(exc: OSError) -> str:
    return LINK_ERRNOS.get(exc.errno or 0, "broken")


def _os_text(exc: OSError) -> str:
    return LINK_ERRNOS.get(exc.errno or 0) or _first_line(exc.strerror or str(exc))


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:120]


class map_exceptions:
    """`with Translated(...)`: what is raised inside becomes one of the gateway's errors.

    on_link_failure is told in a word why, where the network is at fault.
    """

    __slots__ = ("_deadline", "_host", "_on_link_failure")

    def __init__(self, host: str, deadline: float, on_link_failure: Callable[[str], None]) -> None:
        self._host = host
        self._deadline = deadline
        self._on_link_failure = on_link_failure

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(exc, aiohttp.ClientError | OSError):
            return
        if time.monotonic() >= self._deadline - CLOCK_S:
            raise DeadlineExceeded(f"the upstream {self._host} had not answered when the time was up") from exc
        error, link = translate(exc, self._host)
        if link is not None:
            self._on_link_failure(link)
        raise error from exc
