"""Sockets that are bound: what stands in the place of a Unix socket goes only where it is a socket nobody uses."""

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
def test_what_is_no_socket_is_left_alone_and_told(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    make(path)
    with pytest.raises(OSError, match=r"^GATEWAY_LISTEN: .* unix:.*: there is something that is no socket"):
        bind(UnixListener(str(path)), "GATEWAY_LISTEN")
    assert path.is_dir() or path.read_text() == "precious"


def test_the_socket_of_a_gateway_that_is_gone_gives_way(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    with bind(UnixListener(str(path)), "GATEWAY_LISTEN") as bound:
        assert name_of(bound) == f"unix:{path}"


def test_a_socket_somebody_listens_at_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(OSError, match="in use"):
            bind(UnixListener(str(path)), "GATEWAY_LISTEN")
    assert path.is_socket()
