"""Where secrets come from: systemd's credentials, else a file named by `X_FILE`, else the variable `X` itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from gateway.settings.messages import Problem
from gateway.settings.model import Leaf
from gateway.settings.variables import Variable, Variables


def with_secrets(
    variables: Variables, leaves: Iterable[Leaf], environ: Mapping[str, str]
) -> tuple[Variables, list[Problem]]:
    """The variables with every secret read from where it is kept, its `X_FILE` gone; and what could not be read.

    A setting that is itself called `…_FILE` is a setting, not a secret's file. A credential no setting is called like
    stays, without a text, to be told like any unknown variable.
    """
    by_name = {leaf.variable: leaf for leaf in leaves}
    found = {name: variable for name, variable in variables.items() if variable.text or name not in by_name}
    problems = [
        _not_a_secret(name, variables[name]) for name in variables.keys() - found if not by_name[name].is_secret
    ]
    for name, named in _secret_files(by_name).items():
        pointer = found.pop(named) if named in found and found[named].text else None
        source = _source(name, pointer, environ.get("CREDENTIALS_DIRECTORY"))
        if source:
            path, origin = source
            try:
                found[name] = Variable(_secret_in(path), origin)
            except (OSError, ValueError) as exc:
                problems.append(_unreadable(named if pointer else name, path, exc))
    return found, problems


def _not_a_secret(name: str, credential: Variable) -> Problem:
    return Problem(
        name,
        f"is no secret, so it is not taken from {credential.origin}",
        f"set {name} itself, also where it names a file",
    )


def _secret_files(by_name: Mapping[str, Leaf]) -> dict[str, str]:
    """The variables of secrets, and for each the variable that may name its file; empty where that is a setting."""
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
        raise ValueError("it is empty")
    return secret


def _unreadable(variable: str, path: Path, exc: Exception) -> Problem:
    """Never quotes what the file holds; a UnicodeDecodeError would."""
    why = (exc.strerror or "cannot be opened").lower() if isinstance(exc, OSError) else "no text, or empty"
    return Problem(variable, f"{path} cannot be read: {why}", "name a file of one line of text this user may read")
