"""Listening sockets: bound by the settings or passed by systemd, their names, and checks of their exposure."""

from __future__ import annotations

import errno
import grp
import os
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gateway.ingress.http.listener import BACKLOG
from gateway.settings import Listener, Problem, Settings, SettingsError, UnixListener, parse_listener

UNIX_MODE, UNIX_GROUP_MODE = 0o600, 0o660


def bind(listener: Listener, variable: str, group: str | None = None) -> socket.socket:
    """Bind a listening socket. variable: the setting, which the message of a raised OSError names.

    group: the group that may connect to a Unix socket beside the gateway's own user.
    """
    try:
        return _bind(listener, group)
    except OSError as exc:
        raise OSError(
            f"{variable}: cannot listen on {listener}: {exc.strerror}; choose another with {variable}"
        ) from exc


def _bind(listener: Listener, group: str | None) -> socket.socket:
    if isinstance(listener, UnixListener):
        _remove_stale(listener.path)
        sock = socket.socket(socket.AF_UNIX)
        try:
            _bind_private(sock, listener.path, group)
        except OSError:
            sock.close()
            raise
    else:
        family = socket.AF_INET6 if ":" in listener.host else socket.AF_INET
        sock = socket.create_server((listener.host, listener.port), family=family, backlog=BACKLOG)
    sock.setblocking(False)
    return sock


def _bind_private(sock: socket.socket, path: str, group: str | None) -> None:
    """Bind a Unix socket to which only the gateway's user, and then the group, can connect.

    Linux takes the mode of the file from that of the unbound socket (unix(7), fchmod before bind) and the umask. The
    umask alone would belong to all threads.
    """
    group_id = None if group is None else _group_id(group)
    os.fchmod(sock.fileno(), UNIX_MODE)
    sock.bind(path)
    if group_id is None:
        os.chmod(path, UNIX_MODE)  # a umask may have taken the owner's rights
        return
    try:
        os.chown(path, -1, group_id, follow_symlinks=False)
        os.chmod(path, UNIX_GROUP_MODE)
    except OSError:
        os.unlink(path)
        raise


def _group_id(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise OSError(errno.EINVAL, f"GATEWAY_SOCKET_GROUP names {name!r}; no group has this name") from None


def refuse_tls_removal(listening: Sequence[socket.socket], before: Settings, after: Settings) -> None:
    """Raise SettingsError if a reload would remove TLS or client certificates from a public listener.

    A lost line in the environment file must not silently expose the listener: removing TLS takes a restart.
    """
    public = _public_addresses(listening)
    lost = [
        Problem(f"GATEWAY_TLS__{name.upper()}", f"was removed: {', '.join(public)} would {effect}", fix)
        for name, effect, fix in (
            ("cert_file", "continue without TLS", "set it again; or restart, to listen without TLS"),
            ("client_ca_file", "accept clients without a certificate", "set it again; or restart, to accept them"),
        )
        if public and getattr(before.tls, name) is not None and getattr(after.tls, name) is None
    ]
    if lost:
        raise SettingsError(lost)


def _public_addresses(listening: Sequence[socket.socket]) -> list[str]:
    return [name_of(sock) for sock in listening if not parse_listener(name_of(sock)).is_local]


def refuse_unauthenticated_public(listening: Sequence[socket.socket], settings: Settings) -> None:
    """Raise SettingsError if a socket can be reached from other machines and neither keys nor consent are set.

    The check of GATEWAY_LISTEN does not see sockets passed by systemd, nor after a reload those bound at the start.
    """
    if settings.keys_file is not None or settings.allow_unauthenticated:
        return
    public = _public_addresses(listening)
    if public:
        message = f"{', '.join(public)} can be reached from other machines, and no API key would be required"
        fix = "set GATEWAY_KEYS_FILE, or listen elsewhere (ListenStream= in edge-gateway.socket) and restart"
        raise SettingsError([Problem("GATEWAY_LISTEN", message, fix)])


def _remove_stale(path: str) -> None:
    """Remove the file of a socket that no process listens on. Raises OSError if the file is not a socket."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "this file exists and is not a socket; move it away")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
        except FileNotFoundError:
            pass


def socket_file_of(sock: socket.socket) -> tuple[str, int] | None:
    """The path and inode of the file that a Unix socket is bound to; None for other sockets."""
    path = sock.getsockname()
    return (path, os.lstat(path).st_ino) if sock.family == socket.AF_UNIX else None


def remove_socket_file(file: tuple[str, int]) -> None:
    """Remove the socket file unless another process has replaced it.

    Call it while the socket still listens: another gateway replaces the file only if no process listens on it.
    """
    path, inode = file
    with suppress(OSError):
        if os.lstat(path).st_ino == inode:
            os.unlink(path)


def name_of(sock: socket.socket) -> str:
    """The socket's address, written as in GATEWAY_LISTEN."""
    address = sock.getsockname()
    if not isinstance(address, tuple):
        return f"unix:{address}"
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


def host_of(sock: socket.socket) -> str:
    """The IP address that the socket is bound to, or `localhost` for a Unix socket."""
    address = sock.getsockname()
    return address[0] if isinstance(address, tuple) else "localhost"
