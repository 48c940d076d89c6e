"""A stopping gateway removes only the Unix socket files that it created."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.service.sockets import bind
from gateway.settings import UnixListener
from gateway.testing import running_gateway
from support.wiring import STUB


async def test_socket_file_created_by_the_gateway_is_removed_at_the_stop(tmp_path: Path) -> None:
    data, admin = tmp_path / "http.sock", tmp_path / "admin.sock"
    async with running_gateway(**STUB, GATEWAY_LISTEN=f"unix:{data}", GATEWAY_ADMIN_LISTEN=f"unix:{admin}"):
        assert data.is_socket()
        assert admin.is_socket()
    assert os.listdir(tmp_path) == []


async def test_socket_file_passed_by_systemd_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "http.sock"
    passed = bind(UnixListener(str(path)), "GATEWAY_LISTEN")
    monkeypatch.setattr("gateway.service.systemd.passed_sockets", lambda: [passed])
    async with running_gateway(**STUB):
        pass
    assert path.is_socket()


async def test_socket_file_of_a_newer_gateway_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    async with running_gateway(**STUB, GATEWAY_LISTEN=f"unix:{path}"):
        path.rename(tmp_path / "was.sock")
        other = bind(UnixListener(str(path)), "GATEWAY_LISTEN")
    assert path.is_socket()
    other.close()
