"""The keys file on disk: read whole, written whole, readable by its owner alone."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
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


def write_keys(path: Path, keys: Mapping[str, Key]) -> None:
    """Write beside it, then rename: a reader, or a power cut, finds the old file or the new. Its owner stays."""
    fd, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(render_keys(keys))
            file.flush()
            _keep_owner(path, file.fileno())
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except BaseException:
        os.unlink(fresh)
        raise


def _keep_owner(path: Path, fd: int) -> None:
    """Where root edits a service's file, the service must be able to read it afterwards."""
    if os.geteuid() == 0:
        was = os.stat(path if path.exists() else path.parent)
        os.fchown(fd, was.st_uid, was.st_gid)
