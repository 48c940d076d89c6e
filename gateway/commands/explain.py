"""Asks the running gateway: what it would decide for a request (shown as a table), and how it is."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gateway.settings import Listener, UnixListener

TIMEOUT_S = 10.0
HERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # who is bound to every address is asked on this host
COLUMNS = ("wait_s", "upload_s", "service_s", "p95_s", "t_s", "j", "usd", "joule", "samples")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


def key_in(file: Path | None) -> dict[str, str]:
    """The header that shows the API key in a file; none without a file. Raises OSError where it cannot be read."""
    return {} if file is None else {"Authorization": f"Bearer {file.read_text().strip()}"}


def ask(admin: Listener, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
    """POST /explain on the admin listener. Raises OSError where no gateway answers."""
    return _fetch(admin, "POST", f"/explain?path={quote(path)}", body, headers)


def status(admin: Listener, headers: Mapping[str, str]) -> dict[str, Any] | None:
    """GET /status on the admin listener; None where it is not told to us. Raises OSError where no gateway answers."""
    code, answer = _fetch(admin, "GET", "/status", b"", headers)
    return answer if code == 200 else None


def _fetch(admin: Listener, method: str, target: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, Any]:
    connection = (
        _UnixConnection(admin.path)
        if isinstance(admin, UnixListener)
        else http.client.HTTPConnection(HERE.get(admin.host, admin.host), admin.port, timeout=TIMEOUT_S)
    )
    try:
        connection.request(method, target, body, dict(headers))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except (http.client.HTTPException, ValueError) as exc:
        raise OSError(f"who answers there is no gateway: {exc!r}") from exc
    finally:
        connection.close()


def table(explained: dict[str, Any]) -> Iterator[str]:
    """The explanation, line by line: the sentence, then one row for each backend, best first."""
    yield explained["why"]
    candidates = explained["candidates"]
    order = [*explained["order"], *(name for name in candidates if name not in explained["order"])]
    width = max(map(len, order), default=7)
    yield f"{'backend':{width}}  {'site':6}  " + "  ".join(f"{column:>9}" for column in COLUMNS)
    for name in order:
        row = candidates[name]
        if "refused" in row:
            yield f"{name:{width}}  {row['site']:6}  refused: {row['refused']}"
        else:
            yield f"{name:{width}}  {row['site']:6}  " + "  ".join(f"{row[column]:9.4g}" for column in COLUMNS)
