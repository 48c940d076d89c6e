"""The keys file on disk: read whole, written whole, changed by one at a time; a new one its owner alone may read."""

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
    """The keys in the file, by id. Raises KeysInvalid, also where it cannot be read or anybody may write to it."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IWOTH:
                raise KeysInvalid(f"{path} may be written by anybody; chmod 600 it")
            data = file.read()
    except OSError as exc:
        raise KeysInvalid(f"{path} cannot be read: {(exc.strerror or str(exc)).lower()}") from None
    try:
        return parse_keys(data)
    except KeysInvalid as exc:
        raise KeysInvalid(f"{path}: {exc}") from None


@contextmanager
def changing_keys(path: Path, *, may_be_new: bool = False) -> Iterator[dict[str, Key]]:
    """The keys in the file, written back when the block ends well; who else would change them waits until then.

    may_be_new: there need not be a file yet. Raises KeysInvalid.
    """
    with _alone_in(path.resolve().parent):
        keys = {} if may_be_new and not path.exists() else read_keys(path)
        yield keys
        write_keys(path, keys)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """The lock is the folder's: the file is replaced at each change, and a file to be locked would stay behind."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as exc:
        raise KeysInvalid(f"{folder} is no folder to keep keys in: {(exc.strerror or str(exc)).lower()}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def write_keys(path: Path, keys: Mapping[str, Key]) -> None:
    """Write beside it, then rename: a reader, or a power cut, finds the old file or the new.

    Who may read it stays as it was, and a symbolic link stays one: what it points to is written. Raises KeysInvalid.
    """
    data = render_keys(keys)
    parse_keys(data)  # what nobody could read again is not written
    path = path.resolve()
    fd, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            _keep_access(path, file.fileno())
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except BaseException:
        os.unlink(fresh)
        raise


def _keep_access(path: Path, fd: int) -> None:
    """The service must be able to read afterwards what root, or another of its group, edits."""
    exists = path.exists()
    was = os.stat(path if exists else path.parent)
    is_root = os.geteuid() == 0
    if is_root:
        os.fchown(fd, was.st_uid, was.st_gid)
    if exists:
        os.fchmod(fd, stat.S_IMODE(was.st_mode) if is_root or _give_to_group(fd, was.st_gid) else 0o600)


def _give_to_group(fd: int, group: int) -> bool:
    """Whether it could be done; rights of a group must not go to another."""
    try:
        os.fchown(fd, -1, group)
    except PermissionError:
        return False
    return True
