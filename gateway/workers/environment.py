"""The environment of worker processes: an allow-list, so that no secret of the gateway or the operator is inherited."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping

from gateway.plugin.settings import is_of_gateway

# Paths, locale, the interpreter, and what numerical libraries read about threads and devices.
INHERITED = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR"),
    *("PYTHON*", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "XDG_CACHE_HOME"),
    *("OMP_*", "MKL_*", "OPENBLAS_*", "CUDA_*", "NVIDIA_*", "ROCR_*", "HIP_*"),
)


def worker_environment(allowed: Iterable[str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that a worker inherits: those of INHERITED and `allowed`.

    A `*` at the end of an allowed name stands for any rest. PYTHONPATH is our import path, so that a worker finds the
    same plugins and modules as the gateway.
    """
    names = (*INHERITED, *allowed)
    exact = {name for name in names if not name.endswith("*")}
    prefixes = tuple(name[:-1] for name in names if name.endswith("*"))
    inherited = {
        name: value
        for name, value in environ.items()
        if (name in exact or name.startswith(prefixes)) and not is_of_gateway(name)
    }
    paths = [os.path.abspath(entry) for entry in sys.path]
    return inherited | {"PYTHONPATH": os.pathsep.join(paths)}
