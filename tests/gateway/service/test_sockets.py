"""Binding of Unix sockets: only an unused socket file is replaced."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.service.sockets import bind, name_of
from gateway.settings import UnixListener


def a_file(path: Path) -> None:
    path.write_text("precious")


def a_link_to_a_file(path: Path) -> None:
    a_file(path.with_name("precious"))
    path.symlink_to("precious")


@pytest.mark.parametrize("make", [a_file, a_link_to_a_file, Path.mkdir])
def test_path_that_is_not_a_socket_is_kept_and_reported(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    make(path)
    with pytest.raises(OSError, match=r"^GATEWAY_LISTEN: .* unix:.*: there is something that is no socket"):
        bind(UnixListener(str(path)), "GATEWAY_LISTEN")
    assert path.is_dir() or path.read_text() == "precious"


def test_stale_socket_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    with bind(UnixListener(str(path)), "GATEWAY_LISTEN") as bound:
        assert name_of(bound) == f"unix:{path}"


def test_socket_with_an_active_listener_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(OSError, match="in use"):
            bind(UnixListener(str(path)), "GATEWAY_LISTEN")
    assert path.is_socket()
