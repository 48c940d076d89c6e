"""The endpoints of the data listener, and the lookup of a method and path.

A path is split before it is percent-decoded, so `%2F` is never a separator. A parameter is always last and takes the
rest of the path, because model names contain slashes (`meta-llama/Llama-3.1-8B`). OpenAI's endpoints also work without
their `/v1`: clients differ in whether the base URL includes it.

An upstream must read the same path that a policy rule was checked against (parser differential). So a target is
rejected if a server on the path may cut it or read it differently: a fragment, a path parameter, and any character that
must be escaped and is not.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from urllib.parse import quote, unquote

from gateway.plugin import GatewayError, Kind, TaskInvalid

# A longer path resembles no endpoint, and difflib's cost grows with the square of the length.
MAX_COMPARED_CHARS = 120

# RFC 3986 §3.3, §3.4. `;` begins a parameter of a path segment, which some servers remove before they look up the path.
# Of the characters not allowed in a query, browsers escape only some (URL Standard, query percent-encode set). The
# gateway escapes the others.
_QUERY_CHARS = "-._~!$&'()*+,;=:@/?%"
_PATH_CHARS = _QUERY_CHARS.replace(";", "").replace("?", "")
_UNESCAPED_IN_QUERY = "[]{}|^`\\"
_NOT_PATH_CHARS, _NOT_QUERY_CHARS = (
    re.compile(rf"[^A-Za-z0-9\x80-\U0010ffff{re.escape(allowed)}]")
    for allowed in (_PATH_CHARS, _QUERY_CHARS + _UNESCAPED_IN_QUERY)
)
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PLAIN = ":@!$&'()*+,="  # RFC 3986 §3.3: allowed unescaped in a segment; an escaped slash stays escaped
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]*")
_SEPARATOR = re.compile(r"[/\\%;?#]")
_CONTROL_OR_SURROGATE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class MethodNotAllowed(GatewayError):
    """The path exists, but not with this method.

    `allow`: the methods of the path, for the `Allow` header.
    """

    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allow = allow


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint.

    kind: the family of work, as it is logged. operation: its unique name, `operationId` in openapi.json.
    needs_body: the client sends a body. is_openai: also works without the leading `/v1`.
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
        """The name of the path's parameter, if it has one."""
        return self.path.rpartition("{")[2].rstrip("}") if self.path.endswith("}") else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A route, and the request's path and query as a backend receives them.

    The path begins with `/v1` and is in a normalized ASCII spelling, so that policy rules and upstreams read the same.
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
    _work("/v1/audio/translations", "other", "create_translation", "Relayed to a backend that supports it."),
    _work("/v1/audio/speech", "other", "create_speech", "Relayed to a backend that supports it."),
    _work("/v1/images/{operation}", "other", "create_image", "Relayed to a backend that supports it."),
    _work("/v1/responses", "other", "create_response", "Relayed to a backend that supports it."),
    _work("/v1/messages", "other", "create_message", "Relayed to a backend that supports it."),
    _work("/v1/tasks/{task}", "task", "run_task", "Run one task.", is_openai=False),
    _list("/v1/tasks", "task", "list_tasks", "List the tasks and the backends that run them."),
    _list("/v1/models", "models", "list_models", "List the models.", is_openai=True),
    _list("/v1/models/{id}", "models", "get_model", "Describe one model.", is_openai=True),
    _list("/openapi.json", "other", "openapi", "This description."),
    _health("/livez", "livez", "Whether the gateway's event loop runs."),
    _health("/healthz", "healthz", "The same as /livez."),
    _health("/readyz", "readyz", "Whether the gateway accepts work; 503 while it drains."),
)


def _segments(path: str) -> tuple[str, ...]:
    return tuple(path.split("/")[1:])


def _index() -> tuple[dict[tuple[str, ...], dict[str, Route]], dict[tuple[str, ...], dict[str, Route]]]:
    """Return the routes by their fixed segments, without and with a parameter."""
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
    """Return the route of a request. target: from the request line, unchanged.

    HEAD matches the routes of GET. Raises TaskInvalid for a path that cannot be decoded or has a character that is not
    allowed; GatewayError `not_found`, which names the nearest endpoint; MethodNotAllowed, which names the methods.
    """
    path, _, query = target.partition("?")
    _check(path, _NOT_PATH_CHARS, "path")
    _check(query, _NOT_QUERY_CHARS, "query")
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
    if route.parameter and route.kind == "other":
        _check_relayed(segments[len(_segments(route.path)) - 1 :])
    return Match(
        route=route,
        path=_normalized(segments),
        query=quote(query, _QUERY_CHARS) if query.isascii() else query,
        params=params,
    )


def _normalized(segments: tuple[str, ...]) -> str:
    return "".join("/" + (each if _UNRESERVED.fullmatch(each) else quote(each, _PLAIN)) for each in segments)


def _check(text: str, wrong: re.Pattern[str], what: str) -> None:
    if (found := wrong.search(text)) is not None:
        raise TaskInvalid(f"the {what} has an unescaped {found[0]!r}; write it as `{quote(found[0], safe='')}`")


def _check_relayed(segments: tuple[str, ...]) -> None:
    """Reject characters in a relayed path that some servers read as separators or escapes (parser differential)."""
    for segment in segments:
        if (found := _SEPARATOR.search(segment)) is not None:
            raise TaskInvalid(f"the path has an escaped {found[0]!r}, which servers read differently; leave it out")


def _find(segments: tuple[str, ...]) -> tuple[dict[str, Route], str] | None:
    """Return the routes at these segments by method, and the parameter's value.

    None for an unknown path.
    """
    if routes := _EXACT.get(segments):
        return routes, ""
    for cut in range(len(segments) - 1, 0, -1):
        if routes := _OPEN_ENDED.get(segments[:cut]):
            rest = segments[cut:]
            # Empty and dotted segments would reach other paths of an upstream (path traversal).
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
    shown = path[:MAX_COMPARED_CHARS]
    nearest = difflib.get_close_matches(shown, _known_paths(method) or _known_paths(None), n=1, cutoff=0.0)[0]
    return f"there is no endpoint {shown!r}; the nearest is {nearest} (all are in /openapi.json)"


def _known_paths(method: str | None) -> list[str]:
    return [route.path for route in ROUTES if method in (None, route.method)]


def _wrong_method(method: str, path: str, routes: dict[str, Route]) -> MethodNotAllowed:
    allow = tuple(sorted({*routes, "HEAD"} if "GET" in routes else routes))
    shown = path[:MAX_COMPARED_CHARS]
    message = f"{method[:20]} is not a method of {shown}; use {' or '.join(allow)}"
    return MethodNotAllowed(message, allow=allow)
