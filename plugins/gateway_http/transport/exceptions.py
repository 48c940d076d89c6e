"""Map exceptions of aiohttp and OpenSSL to the gateway's errors.

No other module names those exceptions. Messages reach clients: they hold the upstream's host, but neither its API key
nor a body. Text written by the upstream goes into an error's `detail`, which is never logged.
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
    19: "its certificate was signed by an unknown authority (self-signed root); set CA_FILE to trust it",
    20: "its certificate was signed by an unknown authority; set CA_FILE, or let it send its intermediates",
    21: "its certificate cannot be verified: an intermediate is missing",
    23: "its certificate was revoked",
    62: "its certificate is for another host",
    64: "its certificate is for another address",
}

TIMER_SLACK_S = 0.001  # a timer may fire this much early
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
    fault: str,
    *,
    status: int | None = None,
    retry_after_s: float | None = None,
    again: bool = True,
    detail: str = "",
) -> BackendUnavailable:
    """Return the error for a response that cannot be passed on.

    fault: completes the sentence "the upstream …". detail: the upstream's own text, which may quote the request.
    """
    return BackendUnavailable(
        f"the upstream {fault}",
        code="upstream_bad_response",
        status=status,
        retry_after_s=retry_after_s,
        again=again,
        detail=detail,
    )


def key_rejected(status: int) -> BackendUnavailable:
    """Return the error for a rejected API key of the gateway (status 401 or 403)."""
    return BackendUnavailable(
        f"the upstream does not accept this gateway's key (status {status}); check API_KEY",
        code="upstream_auth",
        again=False,
    )


# Raised while connecting: the gateway has sent no byte of the request, so another backend may receive it safely.
NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)


def to_gateway_error(exc: BaseException, host: str) -> tuple[GatewayError, str | None]:
    """Return the gateway's error, and a word or two if the network is at fault."""
    error, link_fault = _classify(exc, host)
    error.began = not isinstance(exc, NOT_SENT)
    return error, link_fault


def _classify(exc: BaseException, host: str) -> tuple[GatewayError, str | None]:
    if (tls := _tls_cause(exc)) is not None:
        return tls_error(tls, host), None
    if isinstance(exc, aiohttp.ClientHttpProxyError):
        message = f"the proxy refused to connect to {host} (status {exc.status}); check PROXY"
        return BackendUnavailable(message), "proxy"
    if isinstance(exc, aiohttp.ClientResponseError):
        return bad_response(f"{host} does not answer in HTTP: {_first_line(exc.message)}; check the URL"), None
    if isinstance(exc, aiohttp.ClientPayloadError):
        return bad_response(f"{host} broke off its response before the end"), None
    if isinstance(exc, aiohttp.ClientConnectorDNSError):
        return BackendUnavailable(f"{host} has no address: {_os_reason(exc.os_error)}"), "no address"
    if isinstance(exc, aiohttp.ServerTimeoutError | TimeoutError):
        return BackendUnavailable(f"{host} did not answer in time"), "timed out"
    if isinstance(exc, aiohttp.ServerDisconnectedError):
        return BackendUnavailable(f"{host} closed the connection without a response"), None
    if isinstance(exc, aiohttp.ClientConnectorError):
        return BackendUnavailable(f"cannot connect to {host}: {_os_reason(exc.os_error)}"), _link_fault(exc.os_error)
    if isinstance(exc, OSError):
        return BackendUnavailable(f"the connection to {host} broke: {_os_reason(exc)}"), _link_fault(exc)
    return BackendUnavailable(f"the connection to {host} broke"), "broken"


def tls_error(exc: ssl.SSLError, host: str) -> BackendUnavailable:
    """Return the error for a failed TLS handshake.

    Its message names the setting to change.
    """
    if isinstance(exc, ssl.SSLCertVerificationError):
        reason = CERTIFICATE_FAULTS.get(exc.verify_code, exc.verify_message)
    elif exc.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        reason = "it does not speak TLS on this port; is the URL's scheme http?"
    else:
        reason = (exc.reason or "the handshake failed").replace("_", " ").lower()
    return BackendUnavailable(f"no secure connection to {host}: {reason}", code="upstream_tls_error", again=False)


def _tls_cause(exc: BaseException) -> ssl.SSLError | None:
    """Return the TLS fault inside `exc`.

    A server may report it after the handshake, as the reason why the connection ends.
    """
    causes = (getattr(exc, "certificate_error", None), getattr(exc, "os_error", None), exc.__cause__, exc)
    for cause in causes:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
            return cause
    return None


def _link_fault(exc: OSError) -> str:
    return LINK_ERRNOS.get(exc.errno or 0, "broken")


def _os_reason(exc: OSError) -> str:
    return LINK_ERRNOS.get(exc.errno or 0) or _first_line(exc.strerror or str(exc))


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:120]


class map_exceptions:
    """Re-raises exceptions of aiohttp and OSError as the gateway's errors.

    deadline: monotonic time in seconds; an exception after it becomes DeadlineExceeded.
    on_link_failure: receives the reason in a word or two when the network is at fault.
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
        if time.monotonic() >= self._deadline - TIMER_SLACK_S:
            raise DeadlineExceeded(f"the upstream {self._host} had not answered when the time was up") from exc
        error, link_fault = to_gateway_error(exc, self._host)
        if link_fault is not None:
            self._on_link_failure(link_fault)
        raise error from exc
