"""Loads a function that an operator names as `package.module:function`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from gateway.plugin.errors import BackendUnavailable


def load_function(target: str, setting: str) -> Callable[..., Any]:
    """Import the function named by `target`, `package.module:function`.

    setting: the setting or task that contains `target`; error messages begin with it.
    Raises BackendUnavailable if the import fails or the object is not callable.
    """
    module, _, path = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for attribute in path.split("."):
            found = getattr(found, attribute)
    except Exception as exc:
        raise BackendUnavailable(f"{setting}: `{target}` cannot be imported: {type(exc).__name__}: {exc}") from exc
    if not callable(found):
        raise BackendUnavailable(f"{setting}: `{target}` is {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]
