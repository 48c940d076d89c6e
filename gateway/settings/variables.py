"""Reads `GATEWAY_…` variables from the process environment and an environment file, as text with an origin.

A variable of the process environment overrides the file. Names are converted to upper case, and empty values count as
unset. A JSON object for a whole group (`GATEWAY_POLICY='{"usd": 1}'`) is expanded into the variables that it stands
for, so that the modules above see one form only.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dotenv.parser import Binding, parse_stream

from gateway.settings.messages import Problem, nearest
from gateway.settings.tree import PREFIX

BACKENDS = f"{PREFIX}BACKENDS"

# What Docker links and Kubernetes services named `gateway` or `gateway-x` inject, and CGI's GATEWAY_INTERFACE.
_INJECTED = re.compile(rf"{PREFIX}(INTERFACE|(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_\w+)?))", re.ASCII)


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable's text and its origin. The text of a credential is empty until gateway.settings.secrets reads it."""

    text: str
    origin: str


Variables = dict[str, Variable]


def read_variables(
    environ: Mapping[str, str], env_file: Path | None, groups: Iterable[str], known: Iterable[str]
) -> tuple[Variables, list[Problem]]:
    """Return all `GATEWAY_…` variables and credentials by upper-case name, and the problems found.

    groups: variables that stand for several settings, besides the backends. known: names that never count as injected.
    """
    known = frozenset(known)
    problems: list[Problem] = []
    layers = [_read_file(env_file, known, problems)] if env_file else []
    layers.append(
        _gateway_variables(((name, Variable(text, "environment")) for name, text in environ.items()), known, problems)
    )
    merged: Variables = {}
    for layer in layers:
        merged |= _expand_groups(layer, frozenset(groups), problems)
    found = {name: variable for name, variable in merged.items() if variable.text}
    return _credentials(environ.get("CREDENTIALS_DIRECTORY")) | found, problems


def _credentials(folder: str | None) -> Variables:
    """The credentials with a `GATEWAY_…` name. A folder that cannot be listed has none: reading them would fail too."""
    try:
        names = os.listdir(folder) if folder else []
    except OSError:
        names = []
    return {name: Variable("", f"credential {Path(folder or '', name)}") for name in names if name.startswith(PREFIX)}


def is_injected(name: str) -> bool:
    """Whether a container engine sets a variable of this name; such names have no double underscore."""
    return "__" not in name and _INJECTED.fullmatch(name) is not None


def _gateway_variables(
    pairs: Iterable[tuple[str, Variable]], known: frozenset[str], problems: list[Problem]
) -> Variables:
    found: dict[str, tuple[str, Variable]] = {}
    for written, variable in pairs:
        name = written.upper()
        if name.startswith(PREFIX) and (problem := _not_ascii(written)):
            problems.append(problem)
            continue
        if not name.startswith(PREFIX) or (name not in known and is_injected(name)):
            continue
        if name in found and found[name][0] != written:
            problems.append(Problem(written, f"is also set as {found[name][0]}", "keep one of the two"))
        found[name] = (written, variable)
    return {name: variable for name, (_, variable) in found.items()}


def _not_ascii(written: str) -> Problem | None:
    """A problem if the name is not ASCII: upper case changes some letters (ß to SS), and a shell drops such names."""
    if written.isascii():
        return None
    shown = written.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return Problem(
        shown, "is not a valid variable name", "use letters, digits and underscores of ASCII, such as GPU_BOX"
    )


# ── the environment file ─────────────────────────────────────────────────────────────────────────


def _read_file(path: Path, known: frozenset[str], problems: list[Problem]) -> Variables:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        problems.append(
            Problem("--env-file", f"{path} cannot be read: {_reason(exc)}", "name a text file this user may read")
        )
        return {}
    pairs = list(_bindings(path, text, problems))
    problems += [problem for name, variable in pairs if (problem := _misspelt_prefix(name, variable))]
    return _gateway_variables(pairs, known, problems)


def _misspelt_prefix(name: str, variable: Variable) -> Problem | None:
    """A problem if a name of the environment file has almost the prefix `GATEWAY_`."""
    head, _, rest = name.upper().partition("_")
    if f"{head}_" == PREFIX or not nearest(f"{head}_", [PREFIX], cutoff=0.85):
        return None
    return Problem(name, f"is not a setting ({variable.origin})", f"did you mean {PREFIX}{rest}?")


def _bindings(path: Path, text: str, problems: list[Problem]) -> Iterator[tuple[str, Variable]]:
    for binding in _parsed(text):
        where = f"{path}, line {_line(binding)}"
        if binding.error or (binding.key is not None and binding.value is None):
            fix = "write NAME=value, NAME='value with # or spaces', or # a comment; end every quote"
            problems.append(Problem("--env-file", f"{where} is not NAME=value", fix))
        elif binding.key is not None and binding.value is not None:
            yield binding.key, Variable(binding.value, where)


def _parsed(text: str) -> Iterator[Binding]:
    """Parse an environment file in which comments begin with `;` as well, as for systemd; python-dotenv knows only `#`.

    Inside a quoted value neither begins a comment.
    """
    at = 0
    for binding in parse_stream(io.StringIO(re.sub(r"(?m)^([ \t]*);", r"\1#", text))):
        end = at + len(binding.original.string)
        if "\n" in (binding.value or ""):
            (as_written,) = parse_stream(io.StringIO(text[at:end]))
            binding = binding._replace(value=as_written.value)
        yield binding
        at = end


def _line(binding: Binding) -> int:
    """The line number of the binding; the parser's number is that of the blank lines before it."""
    leading = binding.original.string[: -len(binding.original.string.lstrip()) or None]
    return binding.original.line + leading.count("\n")


def _reason(exc: OSError | UnicodeDecodeError) -> str:
    return (exc.strerror or str(exc)).lower() if isinstance(exc, OSError) else "it is not UTF-8 text"


# ── groups written as JSON ───────────────────────────────────────────────────────────────────────


def _expand_groups(layer: Variables, groups: frozenset[str], problems: list[Problem]) -> Variables:
    """Replace each group by its variables; a variable that is set itself overrides its group."""
    opened: Variables = {}
    for name in sorted(layer, key=lambda name: name.count("__")):
        opened |= dict(_expand(name, layer[name], groups, problems))
    return opened


def _expand(
    name: str, variable: Variable, groups: frozenset[str], problems: list[Problem]
) -> Iterator[tuple[str, Variable]]:
    if not variable.text or not _is_group(name, groups):
        yield name, variable
        return
    try:
        content = json.loads(variable.text)
    except (ValueError, RecursionError) as exc:
        content, message = None, f"is not a JSON object ({exc})"
    else:
        message = "is not a JSON object"
    if not isinstance(content, dict):
        problems.append(Problem(name, message, _group_fix(name)))
        return
    for key, value in content.items():
        if problem := _not_ascii(f"{name}__{key}"):
            problems.append(problem)
            continue
        yield from _expand(f"{name}__{key.upper()}", Variable(_as_text(value), variable.origin), groups, problems)


def _is_group(name: str, groups: frozenset[str]) -> bool:
    return name in groups or name == BACKENDS or (name.startswith(f"{BACKENDS}__") and name.count("__") == 1)


def _group_fix(name: str) -> str:
    backend, _, rest = name.removeprefix(f"{BACKENDS}__").partition("_")
    if name.startswith(f"{BACKENDS}__") and rest:
        return f"did you mean {BACKENDS}__{backend}__{rest}? Two underscores separate a backend's name from its setting"
    return f"set each {name}__… variable, or write a JSON object"


def suggested_variable(name: str) -> str | None:
    """The nearest variable of a backend for an unknown name: `BACKEND` for `BACKENDS`, or an underscore missing."""
    word, _, rest = name.removeprefix(PREFIX).partition("_")
    if name.startswith(f"{BACKENDS}__") or not nearest(word, ["BACKENDS"], cutoff=0.75):
        return None
    rest = rest.strip("_")
    backend, _, setting = rest.partition("__" if "__" in rest else "_")
    return "__".join(part for part in (BACKENDS, backend, setting) if part)


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)
