"""The one table of endpoints of the data listener, and how a method and a path find their row.

A path is split before it is percent-decoded, so `%2F` never moves a boundary. A parameter is always last
and takes the rest of the path, because model names hold slashes (`meta-llama/Llama-3.1-8B`). OpenAI's
endpoints answer without their `/v1` too: clients differ in what they call the base URL.

What a rule was held against is what an upstream must read. So nothing is let in that somebody on the way may cut off
or read otherwise: no fragment, no path parameter, nothing that has to be escaped and is not.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from urllib.parse import quote, unquote

from gateway.plugin import GatewayError, Kind, TaskInvalid

# A name longer than any path here resembles none of them, and difflib's cost grows with its square.
NEAREST_LOOKS_AT_CHARS = 120

# RFC 3986 §3.3, §3.4. `;` begins a parameter of a path segment, which some servers drop before they look for the path.
# Of what has no place in a query, browsers escape only some (URL Standard, query percent-encode set): we do the rest.
_OF_A_QUERY = "-._~!$&'()*+,;=:@/?%"
_OF_A_PATH = _OF_A_QUERY.replace(";", "").replace("?", "")
_RAW_IN_A_QUERY = "[]{}|^`\\"
_NOT_OF_A_PATH, _NOT_OF_A_QUERY = (
    re.compile(rf"[^A-Za-z0-9\x80-\U0010ffff{re.escape(allowed)}]")
    for allowed in (_OF_A_PATH, _OF_A_QUERY + _RAW_IN_A_QUERY)
)
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PLAIN = ":@!$&'()*+,="  # RFC 3986 §3.3: what a segment holds as it is; an escaped slash stays one
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]*")
_CONTROL_OR_SURROGATE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class MethodNotAllowed(GatewayError):
    """The path exists, the method does not. `allow` holds those that do, for the `Allow` header."""

    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allow = allow


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint.

    kind: the family of work, as it is logged. operation: its unique name, `operationId` in openapi.json.
    needs_body: whether the client sends one. is_openai: also answered without the leading `/v1`.
    is_health: needs no key and has no log line.
    """

    method: str
    path: str
    kind: Kind
    operation: str
    summary: str
    _: KW_ONLY
    needs_body: bool = False
    is_openai: bool = False
    is_health: bool = False

    @property
    def parameter(self) -> str | None:
        """The name of the path's parameter, where it has one."""
        return self.path.rpartition("{")[2].rstrip("}") if self.path.endswith("}") else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A route, and the request's path as a backend shall see it: with `/v1`, in the one ASCII spelling; and its query.

    What may be spelt in many ways is judged once, here: rules and upstreams see the same.
    """

    route: Route
    path: str
    query: str = ""
    params: Mapping[str, str] = field(default_factory=dict)


def _work(path: str, kind: Kind, operation: str, summary: str, *, is_openai: bool = True) -> Route:
    return Route("POST", path, kind, operation, summary, needs_body=True, is_openai=is_openai)


def _list(path: str, kind: Kind, operation: str, summary: str, *, is_openai: bool = False) -> Route:
    return Route("GET", path, kind, operation, summary, is_openai=is_openai)


def _health(path: str, operation: str, summary: str) -> Route:
    return Route("GET", path, "other", operation, summary, is_health=True)


ROUTES: tuple[Route, ...] = (
    _work("/v1/chat/completions", "chat", "create_chat_completion", "Answer a conversation."),
    _work("/v1/completions", "completion", "create_completion", "Continue a text."),
    _work("/v1/embeddings", "embeddings", "create_embeddings", "Turn texts or tokens into vectors."),
    _work("/v1/audio/transcriptions", "transcription", "create_transcription", "Turn speech into text."),
    _work("/v1/audio/translations", "other", "create_translation", "Relayed to a backend that has it."),
    _work("/v1/audio/speech", "other", "create_speech", "Relayed to a backend that has it."),
    _work("/v1/images/{operation}", "other", "create_image", "Relayed to a backend that has it."),
    _work("/v1/responses", "other", "create_response", "Relayed to a backend that has it."),
    _work("/v1/messages", "other", "create_message", "Relayed to a backend that has it."),
    _work("/v1/tasks/{task}", "task", "run_task", "Run one task.", is_openai=False),
    _list("/v1/tasks", "task", "list_tasks", "The tasks that can be run, and where."),
    _list("/v1/models", "models", "list_models", "The models that can be asked for.", is_openai=True),
    _list("/v1/models/{id}", "models", "get_model", "One model.", is_openai=True),
    _list("/openapi.json", "other", "openapi", "This description."),
    _health("/livez", "livez", "Whether the gateway's loop turns."),
    _health("/healthz", "healthz", "The same as /livez."),
    _health("/readyz", "readyz", "Whether it accepts work; 503 while it drains."),
)


def _segments(path: str) -> tuple[str, ...]:
    return tuple(path.split("/")[1:])


def _index() -> tuple[dict[tuple[str, ...], dict[str, Route]], dict[tuple[str, ...], dict[str, Route]]]:
    """Routes by their fixed segments: those that end there, and those whose parameter follows."""
    exact: dict[tuple[str, ...], dict[str, Route]] = {}
    open_ended: dict[tuple[str, ...], dict[str, Route]] = {}
    for route in ROUTES:
        key = _segments(route.path)
        if route.parameter:
            open_ended.setdefault(key[:-1], {})[route.method] = route
        else:
            exact.setdefault(key, {})[route.method] = route
    return exact, open_ended


_EXACT, _OPEN_ENDED = _index()


def match(method: str, target: str) -> Match:
    """The route of a request, its target as it stood on the request line.

    Raises TaskInvalid for a path that cannot be decoded, or a character that has no place there; GatewayError
    `not_found` naming the nearest endpoint; MethodNotAllowed naming the methods. HEAD is answered where GET is.
    """
    path, _, query = target.partition("?")
    _check(path, _NOT_OF_A_PATH, "path")
    _check(query, _NOT_OF_A_QUERY, "query")
    segments = tuple(_decoded(segment) for segment in _segments(path))
    found = _find(segments)
    if found is None and (aliased := _find(("v1", *segments))) and _all_openai(aliased[0]):
        found, segments = aliased, ("v1", *segments)
    if found is None or not path.startswith("/"):
        raise GatewayError(_unknown(method, path), code="not_found")
    routes, rest = found
    route = routes.get("GET" if method == "HEAD" else method)
    if route is None:
        raise _wrong_method(method, path, routes)
    params = {route.parameter: rest} if route.parameter else {}
    return Match(
        route=route, path=_spelt(segments), query=quote(query, _OF_A_QUERY) if query.isascii() else query, params=params
    )


def _spelt(segments: tuple[str, ...]) -> str:
    return "".join("/" + (each if _UNRESERVED.fullmatch(each) else quote(each, _PLAIN)) for each in segments)


def _check(text: str, wrong: re.Pattern[str], what: str) -> None:
    if (found := wrong.search(text)) is not None:
        raise TaskInvalid(f"the {what} has {found[0]!r} as it is; write it as `{quote(found[0], safe='')}`")


def _find(segments: tuple[str, ...]) -> tuple[dict[str, Route], str] | None:
    """The routes at these segments by method, and what the parameter takes; None where there are none."""
    if routes := _EXACT.get(segments):
        return routes, ""
    for cut in range(len(segments) - 1, 0, -1):
        if routes := _OPEN_ENDED.get(segments[:cut]):
            rest = segments[cut:]
            # Empty and dotted segments name nothing, and would walk about in an upstream's paths.
            return None if {"", ".", ".."} & set("/".join(rest).split("/")) else (routes, "/".join(rest))
    return None


def _all_openai(routes: dict[str, Route]) -> bool:
    return all(route.is_openai for route in routes.values())


def _decoded(segment: str) -> str:
    try:
        text = unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise TaskInvalid("the path is not UTF-8 once its percent escapes are decoded") from None
    if _BROKEN_ESCAPE.search(segment):
        raise TaskInvalid("the path has a `%` that begins no escape; write it as `%25`")
    if _CONTROL_OR_SURROGATE.search(text):
        raise TaskInvalid("the path holds a control character or bytes that are not UTF-8")
    return text


def _unknown(method: str, path: str) -> str:
    shown = path[:NEAREST_LOOKS_AT_CHARS]
    nearest = difflib.get_close_matches(shown, _known_paths(method) or _known_paths(None), n=1, cutoff=0.0)[0]
    return f"there is no endpoint {shown!r}; the nearest is {nearest} (all are in /openapi.json)"


def _known_paths(method: str | None) -> list[str]:
    return [route.path for route in ROUTES if method in (None, route.method)]


def _wrong_method(method: str, path: str, routes: dict[str, Route]) -> MethodNotAllowed:
    allow = tuple(sorted({*routes, "HEAD"} if "GET" in routes else routes))
    shown = path[:NEAREST_LOOKS_AT_CHARS]
    message = f"{method[:20]} is not a method of {shown}; use {' or '.join(allow)}"
    return MethodNotAllowed(message, allow=allow)
