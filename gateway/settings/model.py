"""Fills any settings model from variables, and says in an operator's words what does not fit.

pydantic-settings reads the values (nested groups, JSON); what it lets pass silently, such as variables that
are no field and lists without brackets, is settled here. Used alike for the gateway's own tree and for
each plugin's settings.
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

_MEANT_AS_JSON = re.compile(r"\s*(\{|\[\s*[\[{\"])")  # `[2001:db8::1]:80` is a listener

_UNITS = {"s": "s", "ms": "ms", "bytes": "bytes", "watts": "W"}  # by the last word of a name


@dataclass(frozen=True, slots=True)
class Leaf:
    """One setting: its variable, where it sits in the model, and the field itself."""

    variable: str
    path: tuple[str, ...]
    field: FieldInfo

    @property
    def is_secret(self) -> bool:
        """Whether its value is never shown, and may come from a file."""
        return SecretStr in types_in(self.field.annotation)

    @property
    def unit(self) -> str:
        """What it is counted in: said by the field, else by the end of its name; empty where it is no quantity."""
        extra = self.field.json_schema_extra
        if isinstance(extra, dict) and extra.get("unit"):
            return str(extra["unit"])
        return _UNITS.get(self.path[-1].rpartition("_")[2], "")

    @property
    def default(self) -> str:
        """What holds where nothing is set; empty where that is nothing."""
        return "" if self.field.is_required() else render(self.field.get_default(call_default_factory=True))

    @property
    def example(self) -> str:
        """A value that may be set: the author's example, else the default, else (where one is needed) a guess."""
        if self.field.examples:
            return render(self.field.examples[0])
        return _guess(self) if self.field.is_required() else self.default


def _guess(leaf: Leaf) -> str:
    """A value of the right type, for settings that need one and whose author shows none."""
    kind = next(iter(types_in(leaf.field.annotation)))
    name = leaf.path[-1]
    if get_origin(kind) is Literal:
        return str(get_args(kind)[0])
    if (get_origin(kind) or kind) is dict:
        return json.dumps({name: name})
    guesses = {int: "1", float: "1", bool: "false", HttpUrl: "https://api.example.com"}
    return guesses.get(kind, name)


def leaves_of(model: type[BaseModel], prefix: str) -> Iterator[Leaf]:
    """Every setting of a model, groups opened; in the order in which they are declared."""
    for name, field in model.model_fields.items():
        variable = f"{prefix}{name.upper()}"
        group = _group_in(field.annotation)
        if group is None:
            yield Leaf(variable, (name,), field)
        else:
            for leaf in leaves_of(group, f"{variable}__"):
                yield Leaf(leaf.variable, (name, *leaf.path), leaf.field)


def groups_of(model: type[BaseModel], prefix: str) -> frozenset[str]:
    """The variables that stand for several settings of a model."""
    return frozenset(f"{prefix}{name.upper()}" for name, f in model.model_fields.items() if _group_in(f.annotation))


def types_in(annotation: Any) -> tuple[Any, ...]:
    """The types a value may have: the members of a union, or the one type."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for each in get_args(annotation) for member in types_in(each))
    return (annotation,)


def mentions_secret(annotation: Any) -> bool:
    """Whether a secret is anywhere in a type, in a map's values as well."""
    return annotation in (SecretStr, SecretBytes) or any(mentions_secret(part) for part in get_args(annotation))


def _group_in(annotation: Any) -> type[BaseModel] | None:
    return next((t for t in types_in(annotation) if isinstance(t, type) and issubclass(t, BaseModel)), None)


class _Source(EnvSettingsSource):
    """pydantic-settings' reader, on variables we give it, for any model. Lists may be comma separated."""

    def __init__(self, model: type[BaseModel], prefix: str, variables: Mapping[str, str]) -> None:
        super().__init__(cast("type[BaseSettings]", model), env_prefix=prefix, env_nested_delimiter="__")
        self.env_vars = {name.lower(): text for name, text in variables.items()}

    def decode_complex_value(self, field_name: str, field: FieldInfo | None, value: Any) -> Any:
        """What does not decode goes on as it is, so that validation names it with all the others."""
        if not isinstance(value, str):
            return value
        decoded, broken = _read_json(value)
        if decoded is not None:
            return decoded
        if broken or not _is_list(field):
            return value
        return [part.strip() for part in value.split(",") if part.strip()]


def _read_json(text: str) -> tuple[Any, str | None]:
    """The list or map a text is, else None; and what is wrong with it, where it was meant to be one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        return None, f"this is no valid JSON: {exc}" if _MEANT_AS_JSON.match(text) else None
    return value if isinstance(value, list | dict) else None, None


def _is_list(field: FieldInfo | None) -> bool:
    kinds = types_in(field.annotation) if field else ()
    return any((get_origin(kind) or kind) in (list, tuple, set, frozenset) for kind in kinds)


def fill(
    model: type[M], prefix: str, variables: Variables, context: Mapping[str, Any] | None = None
) -> tuple[M | None, list[Problem]]:
    """A `model` made from the variables under `prefix`, and everything that is wrong with them.

    What is wrong is left at its default, so that the rest can be looked at as well; the model is None where
    that is not possible. context: passed to the model's validators.
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
    spoilt = {_variable(error, prefix, leaves) for error in wrong}
    try:
        return _make(model, prefix, {n: t for n, t in known.items() if n not in spoilt}, context), problems
    except ValidationError:
        return None, problems


def _make(model: type[M], prefix: str, texts: Mapping[str, str], context: Mapping[str, Any] | None) -> M:
    return model.model_validate(_Source(model, prefix, texts)(), context=context)


# ── what is wrong, in words ──────────────────────────────────────────────────────────────────────


def _unknown(name: str, variable: Variable, settable: Iterable[str], prefix: str) -> Problem:
    """What all names have in common says nothing: they are compared by the rest."""
    rest = name.removeprefix(prefix)
    rests = [other.removeprefix(prefix) for other in settable if other != name]
    near = nearest(rest, rests)
    meant = suggested_variable(name) or (near and prefix + near)
    fix = f"did you mean {meant}?"
    if not meant:
        far = prefix + nearest_of_all(rest, rests)
        fix = f"remove it (the nearest there is: {far}); `edge-gateway config --env` lists all"
    return Problem(name, "is no setting" if variable.text else f"is no setting ({variable.origin})", fix)


def _variable(error: ErrorDetails, prefix: str, leaves: Mapping[str, Leaf]) -> str:
    """The variable an error is about: the longest start of its place that is a setting of ours."""
    place = [str(part).upper() for part in error["loc"]]
    for end in range(len(place), 0, -1):
        if (name := prefix + "__".join(place[:end])) in leaves:
            return name
    return prefix + "__".join(place) if place else prefix.rstrip("_")


def _describe(error: ErrorDetails, prefix: str, leaves: Mapping[str, Leaf], variables: Variables) -> Problem:
    name = _variable(error, prefix, leaves)
    leaf, variable = leaves.get(name), variables.get(name)
    message = "is not set, and has no default" if error["type"] == "missing" else _message(error)
    if variable and leaf and not mentions_secret(leaf.field.annotation):
        broken = _read_json(variable.text)[1]
        if broken or error["type"] != "value_error":  # our own validators name the culprit themselves
            message = f"{_shorten(redact_urls(variable.text))!r}: {broken or message}"
    return Problem(name, message, _fix(name, leaf))


def _message(error: ErrorDetails) -> str:
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ").rstrip(".")
    return f"it{message.removeprefix('Input')}" if message.startswith("Input ") else message


def _fix(name: str, leaf: Leaf | None) -> str:
    if leaf is None:
        return "change one of the settings this is about; `edge-gateway config --env` explains each"
    about = f"{leaf.field.description or 'see the documentation'}{f'; unit: {leaf.unit}' if leaf.unit else ''}"
    return f"write it like {name}={quote(leaf.example)} ({about})" if leaf.example else f"set it right: {about}"


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
