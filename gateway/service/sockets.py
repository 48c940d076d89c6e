"""The sockets a gateway listens on: bound by its settings, or passed by systemd, and what they are called."""

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
    """A listening socket. Raises OSError that names the setting.

    group: the group that may connect to a Unix socket beside our own user.
    """
    try:
        return _bound(listener, group)
    except OSError as exc:
        raise OSError(
            f"{variable}: cannot listen on {listener}: {exc.strerror}; choose another with {variable}"
        ) from exc


def _bound(listener: Listener, group: str | None) -> socket.socket:
    """A listening socket; a Unix one takes the place of one nobody listens at any more."""
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
    """Bind a Unix socket that only our user can connect to, from its first instant; and then the group.

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
        raise OSError(errno.EINVAL, f"GATEWAY_SOCKET_GROUP names {name!r}, and there is no such group") from None


def refuse_less_tls(listening: Sequence[socket.socket], before: Settings, after: Settings) -> None:
    """TLS, and asking for certificates, are not taken off a socket that others can reach, as long as it listens.

    A line that was lost must not open it; whoever means it can restart. Raises SettingsError.
    """
    public = _public(listening)
    lost = [
        Problem(f"GATEWAY_TLS__{name.upper()}", f"it is gone, and {', '.join(public)} would {then}", fix)
        for name, then, fix in (
            ("cert_file", "go on without TLS", "set it again; or restart, to listen without TLS"),
            ("client_ca_file", "ask nobody for a certificate", "set it again; or restart, to ask for none"),
        )
        if public and getattr(before.tls, name) is not None and getattr(after.tls, name) is None
    ]
    if lost:
        raise SettingsError(lost)


def _public(listening: Sequence[socket.socket]) -> list[str]:
    return [name_of(sock) for sock in listening if not parse_listener(name_of(sock)).is_local]


def refuse_public(listening: Sequence[socket.socket], settings: Settings) -> None:
    """What holds for GATEWAY_LISTEN holds for the sockets that are there: systemd's, and after a reload the old ones.

    Raises SettingsError.
    """
    if settings.keys_file is not None or settings.allow_unauthenticated:
        return
    public = _public(listening)
    if public:
        what = f"{', '.join(public)} can be reached from other machines as it is, and nobody would be asked for a key"
        fix = "set GATEWAY_KEYS_FILE, or listen elsewhere (ListenStream= in edge-gateway.socket) and restart"
        raise SettingsError([Problem("GATEWAY_LISTEN", what, fix)])


def _remove_stale(path: str) -> None:
    """Only a socket nobody listens at is taken away. Raises OSError where there is anything else."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "there is something that is no socket, which is left alone; move it away")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
        except FileNotFoundError:
            pass


def file_of(sock: socket.socket) -> tuple[str, int] | None:
    """The path and inode of the file a socket of our own making is bound to; None where there is none."""
    path = sock.getsockname()
    return (path, os.lstat(path).st_ino) if sock.family == socket.AF_UNIX else None


def remove(file: tuple[str, int]) -> None:
    """Take the file away, unless it is another's by now. Do it while the socket still listens: who finds nobody
    there puts a file of their own in its place."""
    path, inode = file
    with suppress(OSError):
        if os.lstat(path).st_ino == inode:
            os.unlink(path)


def name_of(sock: socket.socket) -> str:
    """Where it listens, as GATEWAY_LISTEN would say it."""
    address = sock.getsockname()
    if not isinstance(address, tuple):
        return f"unix:{address}"
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


def host_of(sock: socket.socket) -> str:
    """The address it is bound to."""
    address = sock.getsockname()
    return address[0] if isinstance(address, tuple) else "localhost"
