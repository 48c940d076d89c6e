"""Fills a settings model from variables, and describes invalid values in terms of the variables.

pydantic-settings parses the values (nested groups, JSON). This module adds errors for unknown variables and accepts
lists without brackets. It is used for the gateway's own tree and for each plugin's settings.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

from pydantic import BaseModel, HttpUrl, SecretBytes, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource

from gateway.settings.messages import Problem, nearest, nearest_of_all, quote, redact_urls, render
from gateway.settings.variables import Variable, Variables, suggested_variable

M = TypeVar("M", bound=BaseModel)

_MEANT_AS_JSON = re.compile(r"\s*(\{|\[\s*[\[{\"])")  # not `[2001:db8::1]:80`, which is a listener

_UNITS = {"s": "s", "ms": "ms", "bytes": "bytes", "watts": "W"}  # by the last word of a name


@dataclass(frozen=True, slots=True)
class Leaf:
    """One setting: its variable, its path in the model, and its field."""

    variable: str
    path: tuple[str, ...]
    field: FieldInfo

    @property
    def is_secret(self) -> bool:
        """Whether the value is redacted in all output and may be read from a file."""
        return SecretStr in types_in(self.field.annotation)

    @property
    def unit(self) -> str:
        """The unit, from the field or the end of its name; empty if the setting is not a quantity."""
        extra = self.field.json_schema_extra
        if isinstance(extra, dict) and extra.get("unit"):
            return str(extra["unit"])
        return _UNITS.get(self.path[-1].rpartition("_")[2], "")

    @property
    def default(self) -> str:
        """The value of an unset setting, as text; empty if it has none."""
        return "" if self.field.is_required() else render(self.field.get_default(call_default_factory=True))

    @property
    def example(self) -> str:
        """A valid value: the author's example, else the default, else, for a required setting, a guess by type."""
        if self.field.examples:
            return render(self.field.examples[0])
        return _guess(self) if self.field.is_required() else self.default

    def value_in(self, settings: Any) -> Any:
        """The setting's value in a model; None if the model does not have it."""
        for name in self.path:
            settings = getattr(settings, name, None)
        return settings


def _guess(leaf: Leaf) -> str:
    """A value of the right type, for a required setting without an example."""
    kind = next(iter(types_in(leaf.field.annotation)))
    name = leaf.path[-1]
    if get_origin(kind) is Literal:
        return str(get_args(kind)[0])
    if (get_origin(kind) or kind) is dict:
        return json.dumps({name: name})
    guesses = {int: "1", float: "1", bool: "false", HttpUrl: "https://api.example.com"}
    return guesses.get(kind, name)


def leaves_of(model: type[BaseModel], prefix: str) -> Iterator[Leaf]:
    """Every setting of a model and of its groups, in the order of declaration."""
    for name, field in model.model_fields.items():
        variable = f"{prefix}{name.upper()}"
        group = _group_in(field.annotation)
        if group is None:
            yield Leaf(variable, (name,), field)
        else:
            for leaf in leaves_of(group, f"{variable}__"):
                yield Leaf(leaf.variable, (name, *leaf.path), leaf.field)


def groups_of(model: type[BaseModel], prefix: str) -> frozenset[str]:
    """The variables that stand for a group of settings of a model."""
    return frozenset(f"{prefix}{name.upper()}" for name, f in model.model_fields.items() if _group_in(f.annotation))


def types_in(annotation: Any) -> tuple[Any, ...]:
    """The types that a value may have: the members of a union, or the single type."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for each in get_args(annotation) for member in types_in(each))
    return (annotation,)


def mentions_secret(annotation: Any) -> bool:
    """Whether a type contains a secret, also as the values of a map."""
    return annotation in (SecretStr, SecretBytes) or any(mentions_secret(part) for part in get_args(annotation))


def _group_in(annotation: Any) -> type[BaseModel] | None:
    return next((t for t in types_in(annotation) if isinstance(t, type) and issubclass(t, BaseModel)), None)


class _Source(EnvSettingsSource):
    """pydantic-settings' reader for any model, on the given variables. Lists may be comma separated."""

    def __init__(self, model: type[BaseModel], prefix: str, variables: Mapping[str, str]) -> None:
        super().__init__(cast("type[BaseSettings]", model), env_prefix=prefix, env_nested_delimiter="__")
        self.env_vars = {name.lower(): text for name, text in variables.items()}

    def decode_complex_value(self, field_name: str, field: FieldInfo | None, value: Any) -> Any:
        """Decode JSON or a comma separated list; return other text unchanged, for validation to report."""
        if not isinstance(value, str):
            return value
        decoded, broken = _read_json(value)
        if decoded is not None:
            return decoded
        if broken or not _is_list(field):
            return value
        return [part.strip() for part in value.split(",") if part.strip()]


def _read_json(text: str) -> tuple[Any, str | None]:
    """The list or map that a text encodes, else None; and the error if the text begins like JSON but is invalid."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        return None, f"this is not valid JSON: {exc}" if _MEANT_AS_JSON.match(text) else None
    return value if isinstance(value, list | dict) else None, None


def _is_list(field: FieldInfo | None) -> bool:
    kinds = types_in(field.annotation) if field else ()
    return any((get_origin(kind) or kind) in (list, tuple, set, frozenset) for kind in kinds)


def fill(
    model: type[M], prefix: str, variables: Variables, context: Mapping[str, Any] | None = None
) -> tuple[M | None, list[Problem]]:
    """Make a `model` from the variables under `prefix`; return it with all problems of the variables.

    An invalid setting keeps its default, so that later checks see the rest. An invalid required setting has none: the
    model is None then. context: passed to the model's validators.
    """
    leaves = {leaf.variable: leaf for leaf in leaves_of(model, prefix)}
    settable = leaves.keys() | groups_of(model, prefix)
    known = {name: variable.text for name, variable in variables.items() if name in settable and variable.text}
    problems = [_unknown(name, variables[name], settable, prefix) for name in variables if name not in known]
    try:
        return _make(model, prefix, known, context), problems
    except ValidationError as exc:
        wrong = exc.errors(include_url=False, include_context=False)
    problems += [_describe(error, prefix, leaves, variables) for error in wrong]
    invalid = {_variable(error, prefix, leaves) for error in wrong}
    try:
        return _make(model, prefix, {n: t for n, t in known.items() if n not in invalid}, context), problems
    except ValidationError:
        return None, problems


def _make(model: type[M], prefix: str, texts: Mapping[str, str], context: Mapping[str, Any] | None) -> M:
    return model.model_validate(_Source(model, prefix, texts)(), context=context)


# ── problems ─────────────────────────────────────────────────────────────────────────────────────


def _unknown(name: str, variable: Variable, settable: Iterable[str], prefix: str) -> Problem:
    """The problem of an unknown variable. Names are compared without the prefix that they all share."""
    rest = name.removeprefix(prefix)
    rests = [other.removeprefix(prefix) for other in settable if other != name]
    near = nearest(rest, rests)
    suggestion = suggested_variable(name) or (near and prefix + near)
    fix = f"did you mean {suggestion}?"
    if not suggestion:
        fix = f"remove it (the nearest is {prefix}{nearest_of_all(rest, rests)}); `edge-gateway config --env` lists all"
    return Problem(name, "is not a setting" if variable.text else f"is not a setting ({variable.origin})", fix)


def _variable(error: ErrorDetails, prefix: str, leaves: Mapping[str, Leaf]) -> str:
    """The variable an error is about: the longest prefix of the error's location that is a setting."""
    location = [str(part).upper() for part in error["loc"]]
    for end in range(len(location), 0, -1):
        if (name := prefix + "__".join(location[:end])) in leaves:
            return name
    return prefix + "__".join(location) if location else prefix.rstrip("_")


def _describe(error: ErrorDetails, prefix: str, leaves: Mapping[str, Leaf], variables: Variables) -> Problem:
    name = _variable(error, prefix, leaves)
    leaf, variable = leaves.get(name), variables.get(name)
    message = "is not set, and has no default" if error["type"] == "missing" else _message(error)
    if variable and leaf and not mentions_secret(leaf.field.annotation):
        broken = _read_json(variable.text)[1]
        if broken or error["type"] != "value_error":  # the messages of our own validators quote the value
            message = f"{_shorten(redact_urls(variable.text))!r}: {broken or message}"
    return Problem(name, message, _fix(name, leaf))


def _message(error: ErrorDetails) -> str:
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ").rstrip(".")
    return f"it{message.removeprefix('Input')}" if message.startswith("Input ") else message


def _fix(name: str, leaf: Leaf | None) -> str:
    if leaf is None:
        return "change one of the settings named here; `edge-gateway config --env` explains each"
    about = f"{leaf.field.description or 'see the documentation'}{f'; unit: {leaf.unit}' if leaf.unit else ''}"
    return f"write it like {name}={quote(leaf.example)} ({about})" if leaf.example else f"correct it: {about}"


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
