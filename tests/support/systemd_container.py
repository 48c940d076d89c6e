"""A Debian container with its own systemd.

It is created once by debootstrap, boots in two seconds, and is then discarded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from support.documents import ROOT
from support.programs import find

BOX = Path(__file__).with_name("systemd_container.sh")
BOX_ROOT = Path(__file__).with_name("debian_root.sh")
NEEDS = ("debootstrap", "systemd-nspawn", "dpkg-deb", "nsenter", "unshare", "ps")
# A prepared root file system; if unset, one is created.
PREPARED = os.environ.get("EDGE_GATEWAY_BOX_ROOT")


def missing_prerequisites() -> str | None:
    """Return the missing prerequisite, or None."""
    if os.geteuid() != 0:
        return "needs root"
    absent = [name for name in NEEDS if find(name) is None]
    return f"program not found: {', '.join(absent)}" if absent else None


def make_root(folder: Path) -> Path | None:
    """Create a fresh root file system.

    Returns None if the package source does not answer.
    """
    root = folder / "root"
    if PREPARED:
        subprocess.run(["cp", "-a", PREPARED, str(root)], check=True)  # with its devices
        return root
    done = subprocess.run(["sh", str(BOX_ROOT), str(root)], capture_output=True, timeout=300, check=False)
    return root if done.returncode == 0 else None


def build_deb(folder: Path, suffix: str = "") -> Path:
    """Build the package of this checkout; `suffix` is appended to its version."""
    environ = os.environ | {"VERSION_SUFFIX": suffix}
    done = subprocess.run(
        ["sh", str(ROOT / "deploy" / "build_deb.sh"), str(folder)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().splitlines()[-1])


def run_in(root: Path, script: Path) -> subprocess.CompletedProcess[str]:
    """Boot the container, run a Python program in it, power off."""
    shutil.copy(script, root / "root" / script.name)
    command = ["bash", str(BOX), str(root), "/usr/bin/python3", f"/root/{script.name}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
