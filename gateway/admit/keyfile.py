"""The keys file on disk: read and replaced as a whole, with a lock for changes. A new file has mode 0600."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gateway.admit.keys import Key, KeysInvalid, parse_keys, render_keys


def read_keys(path: Path) -> dict[str, Key]:
    """Read the keys, by id. Raises KeysInvalid if the file is invalid, unreadable or writable by every user."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IWOTH:
                raise KeysInvalid(f"{path} is writable by every user; run `chmod 600` on it")
            data = file.read()
    except OSError as exc:
        raise KeysInvalid(f"{path} cannot be read: {(exc.strerror or str(exc)).lower()}") from None
    try:
        return parse_keys(data)
    except KeysInvalid as exc:
        raise KeysInvalid(f"{path}: {exc}") from None


@contextmanager
def editing_keys(path: Path, *, may_be_new: bool = False) -> Iterator[dict[str, Key]]:
    """Yield the keys; write them back if the block raises no exception. Other writers wait until it ends.

    may_be_new: the file need not exist. Raises KeysInvalid.
    """
    with _lock(path.resolve().parent):
        keys = {} if may_be_new and not path.exists() else read_keys(path)
        yield keys
        write_keys(path, keys)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lock the folder: each change replaces the file, and a separate lock file would remain on the disk."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as exc:
        raise KeysInvalid(
            f"{folder} cannot be used as the folder of a keys file: {(exc.strerror or str(exc)).lower()}"
        ) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def write_keys(path: Path, keys: Mapping[str, Key]) -> None:
    """Replace the file: write a new file beside it, then rename, so that a power cut leaves the old file or the new.

    Owner and mode are preserved. For a symbolic link, its target is replaced. Raises KeysInvalid.
    """
    data = render_keys(keys)
    parse_keys(data)  # refuse to write an invalid file
    path = path.resolve()
    fd, new_file = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            _preserve_access(path, file.fileno())
            os.fsync(file.fileno())
        os.replace(new_file, path)
    except BaseException:
        os.unlink(new_file)
        raise


def _preserve_access(path: Path, fd: int) -> None:
    """Preserve owner and mode: the service must be able to read a file that root or a member of its group edited."""
    exists = path.exists()
    before = os.stat(path if exists else path.parent)
    is_root = os.geteuid() == 0
    if is_root:
        os.fchown(fd, before.st_uid, before.st_gid)
    if exists:
        os.fchmod(fd, stat.S_IMODE(before.st_mode) if is_root or _set_group(fd, before.st_gid) else 0o600)


def _set_group(fd: int, group: int) -> bool:
    """Set the file's group; False if that is not permitted. The rights of one group must not pass to another."""
    try:
        os.fchown(fd, -1, group)
    except PermissionError:
        return False
    return True
