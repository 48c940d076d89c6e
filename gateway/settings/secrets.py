"""Reads a secret `X` from a systemd credential, else from the file named by `X_FILE`, else from the variable `X`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from gateway.settings.messages import Problem
from gateway.settings.model import Leaf
from gateway.settings.variables import Variable, Variables


def with_secrets(
    variables: Variables, leaves: Iterable[Leaf], environ: Mapping[str, str]
) -> tuple[Variables, list[Problem]]:
    """Return the variables with every secret's value and without its `X_FILE`, and the problems found.

    A variable `…_FILE` that is a setting itself does not name a secret's file. A credential that is not named like a
    setting stays, without a text, and is reported like any unknown variable.
    """
    by_name = {leaf.variable: leaf for leaf in leaves}
    found = {name: variable for name, variable in variables.items() if variable.text or name not in by_name}
    problems = [
        _not_a_secret(name, variables[name]) for name in variables.keys() - found if not by_name[name].is_secret
    ]
    for name, file_variable in _secret_files(by_name).items():
        pointer = found.pop(file_variable) if file_variable in found and found[file_variable].text else None
        source = _source(name, pointer, environ.get("CREDENTIALS_DIRECTORY"))
        if source:
            path, origin = source
            try:
                found[name] = Variable(_secret_in(path), origin)
            except (OSError, ValueError) as exc:
                problems.append(_unreadable(file_variable if pointer else name, path, exc))
    return found, problems


def _not_a_secret(name: str, credential: Variable) -> Problem:
    return Problem(
        name,
        f"is not a secret, so it is not read from {credential.origin}",
        f"set {name} itself; to the credential's path if the setting names a file",
    )


def _secret_files(by_name: Mapping[str, Leaf]) -> dict[str, str]:
    """For each secret the variable that may name its file; empty if a setting has that name."""
    return {
        name: "" if f"{name}_FILE" in by_name else f"{name}_FILE" for name, leaf in by_name.items() if leaf.is_secret
    }


def _source(name: str, pointer: Variable | None, credentials: str | None) -> tuple[Path, str] | None:
    if credentials and (credential := Path(credentials, name)).is_file():
        return credential, f"credential {credential}"
    if pointer:
        return Path(pointer.text), f"file {pointer.text}"
    return None


def _secret_in(path: Path) -> str:
    secret = path.read_text(encoding="utf-8").rstrip("\r\n")
    if not secret:
        raise ValueError("the file is empty")
    return secret


def _unreadable(variable: str, path: Path, exc: Exception) -> Problem:
    """The problem, without the file's content: the text of a UnicodeDecodeError would quote it."""
    why = (exc.strerror or "cannot be opened").lower() if isinstance(exc, OSError) else "it is empty, or not UTF-8 text"
    return Problem(variable, f"{path} cannot be read: {why}", "name a file of one line of text this user may read")
