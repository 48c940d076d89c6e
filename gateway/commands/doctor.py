"""`edge-gateway doctor`: checks the host, certificates, backends and broker of this configuration, with advice.

It changes nothing and sends no work: it resolves names, opens connections and reads certificates. Throughput is read
from the admin listener of a running gateway, which measures it by real uploads.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import resource
import shutil
import socket
import ssl
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

from gateway.commands.admin_client import authorization_from, get_status
from gateway.settings import Loaded, SettingsError, load
from gateway.tls import TlsInvalid, client_context

TIMEOUT_S = 3.0
MIN_VALID_DAYS = 14
MAX_DNS_S = 0.2
MAX_CLOCK_SKEW_S = 60.0
MIN_FREE_BYTES = 100 * 1024 * 1024
MIN_FDS = 4096
MIN_PLAUSIBLE_TIME = datetime(2026, 1, 1, tzinfo=UTC)  # a board without a clock battery starts in 1970

Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. advice: may be empty."""

    about: str
    verdict: Verdict
    found: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.verdict:8} {self.about}: {self.found}" + (f". {self.advice}" if self.advice else "")


def run(environ: Mapping[str, str], env_file: Path | None, key_file: Path | None, *, as_json: bool) -> int:
    """Print all findings; return 1 if there is a problem, 78 if the configuration is invalid.

    key_file: contains an API key with `admin`, if the admin listener requires one.
    """
    try:
        findings = list(examine(load(environ, env_file), env_file, key_file))
        code = 1 if any(finding.verdict == "problem" for finding in findings) else 0
    except SettingsError as exc:
        findings = [Finding(p.variable, "problem", p.message, p.fix) for p in exc.problems]
        code = 78
    if as_json:
        json.dump([asdict(finding) for finding in findings], sys.stdout, indent=1)
        print()
    else:
        print("\n".join(map(str, findings)))
    return code


def examine(loaded: Loaded, env_file: Path | None = None, key_file: Path | None = None) -> Iterator[Finding]:
    """Run all checks."""
    yield _parser()
    yield _loop()
    yield _clock()
    yield from _kernel()
    yield from _disk(loaded.settings.state_dir.expanduser())
    yield from _permissions(loaded, env_file)
    if (cert := loaded.settings.tls.cert_file) is not None:
        yield _expiry("TLS certificate", _first_certificate_in(cert))
    yield from _backends(loaded, key_file)
    if loaded.settings.mqtt.url is not None:
        yield _broker(loaded)


# ── this host ────────────────────────────────────────────────────────────────────────────────────


def _parser() -> Finding:
    from gateway.ingress.http.server import check_parser

    try:
        check_parser()
    except RuntimeError as exc:
        return Finding("HTTP parser", "problem", "aiohttp's pure-Python parser", str(exc))
    return Finding("HTTP parser", "ok", "aiohttp's compiled parser")


def _loop() -> Finding:
    uvloop = "is installed but not used" if find_spec("uvloop") else "is not installed and not needed"
    return Finding("event loop", "ok", f"asyncio's own; uvloop {uvloop}")


def _clock() -> Finding:
    now = datetime.now(UTC)
    if now < MIN_PLAUSIBLE_TIME:
        advice = "set it (NTP); with this clock, certificates are not yet valid"
        return Finding("clock", "problem", f"{now:%Y-%m-%d}", advice)
    return Finding("clock", "ok", f"{now:%Y-%m-%d %H:%M} UTC")


def _kernel() -> Iterator[Finding]:
    has_psi = Path("/proc/pressure/cpu").exists()
    advice = "" if has_psi else "boot with psi=1, so that predictions include the wait for a processor"
    verdict: Verdict = "ok" if has_psi else "warning"
    yield Finding("pressure (PSI)", verdict, "available" if has_psi else "not in this kernel", advice)
    has_options = hasattr(socket, "TCP_INFO") and hasattr(socket, "TCP_USER_TIMEOUT")
    verdict = "ok" if has_options else "warning"
    yield Finding("TCP_INFO, TCP_USER_TIMEOUT", verdict, "available" if has_options else "missing")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(soft, hard) if resource.RLIM_INFINITY not in (soft, hard) else MIN_FDS
    is_enough = limit >= MIN_FDS
    advice = "" if is_enough else "set LimitNOFILE=65536 in the unit, or use ulimit -n"
    yield Finding("file descriptors", "ok" if is_enough else "warning", f"{soft} (at most {hard})", advice)


def _disk(state: Path) -> Iterator[Finding]:
    existing = next(folder for folder in (state, *state.parents) if folder.exists())  # the gateway creates the rest
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        advice = "make it writable for the gateway's user, or set GATEWAY_STATE_DIR"
        yield Finding("state directory", "problem", f"{state}: {existing} is not writable", advice)
        return
    free = shutil.disk_usage(existing).free
    verdict: Verdict = "ok" if free >= MIN_FREE_BYTES else "problem"
    advice = "" if verdict == "ok" else "free some space: the measurements cannot be saved"
    yield Finding("state directory", verdict, f"{state}: {free // 2**20} MiB free", advice)


def _permissions(loaded: Loaded, env_file: Path | None) -> Iterator[Finding]:
    keys = loaded.settings.keys_file
    if keys is not None:
        yield _file_mode("keys file", keys, advice=f"chmod 600 {keys}")
    if env_file is not None and re.search(r"(?m)^GATEWAY_\w*(API_KEY|PASSWORD)=\S", env_file.read_text()):
        yield _file_mode("environment file with secrets", env_file, advice="use …_FILE or systemd credentials")
    if (key := loaded.settings.tls.key_file) is not None:
        yield _file_mode("TLS key", key, advice=f"chmod 600 {key}")


def _file_mode(about: str, path: Path, *, advice: str) -> Finding:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        return Finding(about, "warning", f"{path} is accessible to all users ({mode:o})", advice)
    return Finding(about, "ok", f"{path} ({mode:o})")


# ── certificates ─────────────────────────────────────────────────────────────────────────────────

# RFC 5280 §4.1.2.5: notBefore, then notAfter, each a UTCTime or a GeneralizedTime; the first match counts.
_VALIDITY = re.compile(rb"(?:\x17\x0d(\d{12}Z)|\x18\x0f(\d{14}Z))(?:\x17\x0d(\d{12}Z)|\x18\x0f(\d{14}Z))")


def _first_certificate_in(path: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(re.sub(r"(?s)(-----END CERTIFICATE-----).*", r"\1", path.read_text()))


def not_after(der: bytes) -> datetime | None:
    """The time when a certificate expires; None if it cannot be read."""
    found = _VALIDITY.search(der)
    if found is None:
        return None
    short, long = found[3], found[4]
    form = "%y%m%d%H%M%SZ" if short else "%Y%m%d%H%M%SZ"
    return datetime.strptime((short or long).decode(), form).replace(tzinfo=UTC)


def _expiry(about: str, der: bytes) -> Finding:
    until = not_after(der)
    if until is None:
        return Finding(about, "warning", "the expiry date cannot be read")
    advice = "renew it, then: systemctl reload edge-gateway"
    days = (until - datetime.now(UTC)).days
    if days < 0:
        return Finding(about, "problem", f"expired on {until:%Y-%m-%d}", advice)
    if days < MIN_VALID_DAYS:
        return Finding(about, "warning", f"valid for {days} days", advice)
    return Finding(about, "ok", f"valid for {days} days")


# ── backends ─────────────────────────────────────────────────────────────────────────────────────


def _backends(loaded: Loaded, key_file: Path | None) -> Iterator[Finding]:
    try:
        measured = _measured(loaded, authorization_from(key_file))
    except OSError as exc:
        measured = None
        yield Finding(
            "--key-file", "problem", f"{key_file}: {(exc.strerror or str(exc)).lower()}", "name a readable file"
        )
    for problem in loaded.broken:
        yield Finding(problem.variable, "problem", problem.message, problem.fix)
    for name, config in loaded.backends.items():
        url = getattr(config.settings, "url", None)
        if url is None:
            continue
        yield from _reach(name, config.settings, urlsplit(str(url)))
        yield _throughput(name, measured)


def _reach(name: str, settings: Any, url: SplitResult) -> Iterator[Finding]:
    """Check the connection to a backend, or to its proxy if it has one."""
    if (proxy := getattr(settings, "proxy", None)) is not None:
        yield from _connect(f"{name}, proxy", urlsplit(proxy.get_secret_value()), None)
        return
    files = getattr(settings, "ca_file", None), getattr(settings, "client_cert_file", None)
    try:
        context = client_context(*files) if url.scheme == "https" else None
    except TlsInvalid as exc:
        yield Finding(f"{name}: TLS", "problem", str(exc), "check CA_FILE and CLIENT_CERT_FILE")
        return
    yield from _connect(name, url, context)


def _connect(name: str, url: SplitResult, context: ssl.SSLContext | None) -> Iterator[Finding]:
    host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
    began = time.monotonic()
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as exc:
        yield Finding(
            f"{name}: DNS", "problem", f"{host}: {exc.strerror}", "check the name and the resolver of this host"
        )
        return
    took_s = time.monotonic() - began
    is_slow = took_s > MAX_DNS_S
    advice = "use a caching resolver on this host (systemd-resolved)" if is_slow else ""
    yield Finding(f"{name}: DNS", "warning" if is_slow else "ok", f"{host} in {took_s * 1000:.0f} ms", advice)
    try:
        yield _tcp(name, host, port)
        if context is not None:
            yield from _tls(name, host, port, context)
        yield from _http(name, url, host, port, context)
    except OSError as exc:
        cause = exc.verify_message if isinstance(exc, ssl.SSLCertVerificationError) else (exc.strerror or str(exc))
        is_tls = isinstance(exc, ssl.SSLError)
        advice = (
            "the clock, CA_FILE and the backend's certificate" if is_tls else "the address, firewalls and the backend"
        )
        yield Finding(f"{name}: {'TLS' if is_tls else 'connection'}", "problem", str(cause), f"check {advice}")


def _tcp(name: str, host: str, port: int) -> Finding:
    best_s = min(_timed(lambda: socket.create_connection((host, port), TIMEOUT_S).close()) for _ in range(3))
    return Finding(f"{name}: round trip", "ok", f"{best_s * 1000:.1f} ms to connect")


def _timed(action: Callable[[], object]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


def _tls(name: str, host: str, port: int, context: ssl.SSLContext) -> Iterator[Finding]:
    with (
        socket.create_connection((host, port), TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        yield _expiry(f"{name}: certificate", secured.getpeercert(binary_form=True) or b"")


def _http(name: str, url: SplitResult, host: str, port: int, context: ssl.SSLContext | None) -> Iterator[Finding]:
    """Send one HEAD request on a warm connection; report the response time and the difference of the clocks."""
    connection = (
        http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
        if context is not None
        else http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    )
    try:
        connection.connect()
        began = time.monotonic()
        connection.request("HEAD", url.path or "/")
        response = connection.getresponse()
        took_ms = (time.monotonic() - began) * 1000
        yield Finding(f"{name}: HTTP", "ok", f"responds in {took_ms:.1f} ms (status {response.status})")
        yield from _skew(name, response.headers.get("Date"))
    except http.client.HTTPException as exc:
        yield Finding(f"{name}: HTTP", "problem", f"not HTTP: {exc!r}", "check the URL's scheme and port")
    finally:
        connection.close()


def _skew(name: str, date: str | None) -> Iterator[Finding]:
    with suppress(TypeError, ValueError):
        skew_s = abs(time.time() - parsedate_to_datetime(date or "").timestamp())
        if skew_s > MAX_CLOCK_SKEW_S:
            advice = "set this host's clock (NTP), or the backend's"
            yield Finding(f"{name}: clock", "warning", f"differs by {skew_s:.0f} s from this host's clock", advice)


def _measured(loaded: Loaded, key: Mapping[str, str]) -> Mapping[str, Any] | None:
    with suppress(OSError, ValueError, KeyError):
        return dict((get_status(loaded.settings.admin_listen, key) or {})["backends"])
    return None


def _throughput(name: str, measured: Mapping[str, Any] | None) -> Finding:
    if measured is None:
        return Finding(f"{name}: throughput", "ok", "unknown: no running gateway gave access; see --key-file")
    link = ((measured.get(name) or {}).get("measured") or {}).get("link") or {}
    rates = {name: (link.get(f"{name}_bytes_per_s") or {}).get("value") for name in ("uplink", "downlink")}
    text = ", ".join(f"{name} {rate * 8 / 1e6:.2f} Mbit/s" for name, rate in rates.items() if rate is not None)
    return Finding(f"{name}: throughput", "ok", text or "no large body has been sent yet")


# ── the broker ───────────────────────────────────────────────────────────────────────────────────


def _broker(loaded: Loaded) -> Finding:
    mqtt = loaded.settings.mqtt
    try:
        took_s = asyncio.run(_connect_to_broker(mqtt))
    except Exception as exc:
        advice = "check that the broker runs, and GATEWAY_MQTT__URL, user, password and certificates"
        return Finding("broker", "problem", f"{mqtt.url}: {exc}", advice)
    return Finding("broker", "ok", f"{mqtt.url}: connected in {took_s * 1000:.0f} ms")


async def _connect_to_broker(mqtt: Any) -> float:
    import aiomqtt

    context = client_context(mqtt.ca_file, mqtt.cert_file, mqtt.key_file) if mqtt.url.is_tls else None
    began = time.monotonic()
    async with aiomqtt.Client(
        mqtt.url.host,
        mqtt.url.port,
        username=mqtt.username,
        password=mqtt.password and mqtt.password.get_secret_value(),
        identifier=f"edge-gateway-doctor-{os.getpid()}",
        timeout=TIMEOUT_S,
        tls_context=context,
    ):
        return time.monotonic() - began
