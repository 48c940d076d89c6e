"""A Unix socket's file goes with the gateway that made it; systemd's stays, and another gateway's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.settings import UnixListener
from gateway.sockets import bind
from gateway.testing import running_gateway
from support.wiring import STUB


async def test_a_gateways_own_socket_goes_with_it(tmp_path: Path) -> None:
    data, admin = tmp_path / "http.sock", tmp_path / "admin.sock"
    async with running_gateway(**STUB, GATEWAY_LISTEN=f"unix:{data}", GATEWAY_ADMIN_LISTEN=f"unix:{admin}"):
        assert data.is_socket()
        assert admin.is_socket()
    assert os.listdir(tmp_path) == []


async def test_a_socket_that_was_passed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "http.sock"
    passed = bind(UnixListener(str(path)), "GATEWAY_LISTEN")
    monkeypatch.setattr("gateway.systemd.sockets", lambda: [passed])
    async with running_gateway(**STUB):
        pass
    assert path.is_socket()


async def test_the_socket_of_who_came_after_stays(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    async with running_gateway(**STUB, GATEWAY_LISTEN=f"unix:{path}"):
        path.rename(tmp_path / "was.sock")
        other = bind(UnixListener(str(path)), "GATEWAY_LISTEN")
    assert path.is_socket()
    other.close()
