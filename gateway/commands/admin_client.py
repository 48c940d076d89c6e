"""A client of the gateway's admin listener, for the commands."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gateway.settings import Listener, UnixListener

TIMEOUT_S = 10.0
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # a listener on every address is reached by loopback


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


def authorization_from(key_file: Path | None) -> dict[str, str]:
    """The header with the API key in a file; empty without a file. Raises OSError if it cannot be read."""
    return {} if key_file is None else {"Authorization": f"Bearer {key_file.read_text().strip()}"}


def post_explain(admin: Listener, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
    """POST /explain: the status and the JSON of the response. Raises OSError if no gateway answers."""
    return _fetch(admin, "POST", f"/explain?path={quote(path)}", body, headers)


def get_status(admin: Listener, headers: Mapping[str, str]) -> dict[str, Any] | None:
    """GET /status; None if the gateway refuses access. Raises OSError if no gateway answers."""
    code, status = _fetch(admin, "GET", "/status", b"", headers)
    return status if code == 200 else None


def _fetch(admin: Listener, method: str, target: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, Any]:
    connection = (
        _UnixConnection(admin.path)
        if isinstance(admin, UnixListener)
        else http.client.HTTPConnection(LOOPBACK.get(admin.host, admin.host), admin.port, timeout=TIMEOUT_S)
    )
    try:
        connection.request(method, target, body, dict(headers))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except (http.client.HTTPException, ValueError) as exc:
        raise OSError(f"the server at this address is not an edge-gateway: {exc!r}") from exc
    finally:
        connection.close()
