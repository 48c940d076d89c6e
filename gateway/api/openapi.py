"""openapi.json, generated: the paths are the table of routes, the statuses the table of errors, the request
schemas what `requests` checks. Only the shapes of answers are written down here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from gateway.api.errors import ERRORS
from gateway.api.routes import ROUTES, Route
from gateway.api.schemas import (
    INPUT_SCHEMA,
    MAX_NAME_CHARS,
    TRANSCRIPT_FORMATS,
    ChatRequest,
    CompletionRequest,
    EmbeddingsRequest,
    OtherRequest,
)

Schema = dict[str, Any]

DESCRIPTION = """\
Each request goes to the backend that will finish it best under the operator's rules, on this site or far away.
OpenAI's endpoints are answered without the leading `/v1`, too, and GET endpoints answer HEAD.
A Content-Type is never required. On a stream, what is known at its end precedes `[DONE]` as the comment `: timing {…}`.
"""

# An upstream's own refusals and failures reach the client with their status; some come from nowhere else.
_PASSED_ON = ("409", "422", "4XX", "5XX")
_EVENTS: Schema = {"type": "string", "description": "server-sent events, the last `data: [DONE]`"}
_JSON_REQUESTS: dict[str, type[msgspec.Struct]] = {
    "create_chat_completion": ChatRequest,
    "create_completion": CompletionRequest,
    "create_embeddings": EmbeddingsRequest,
}


def build(version: str) -> dict[str, Any]:
    """The description of the data listener, OpenAPI 3.1. `version`: the gateway's own."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edge-gateway",
            "version": version,
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, *({name: []} for name in _SECURITY)],
        "paths": _paths(),
        "components": {
            "schemas": _schemas(),
            "responses": {"Error": _error_response()},
            "headers": {name: _header(what) for name, what in _RESPONSE_HEADERS.items()},
            "securitySchemes": _SECURITY,
        },
    }


# ── operations ───────────────────────────────────────────────────────────────────────────────────


def _paths() -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return paths


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.operation,
        "summary": route.summary,
        "tags": ["health" if route.is_health else route.kind],
        "parameters": _parameters(route),
        "responses": _responses(route),
    }
    if route.needs_body:
        operation["requestBody"] = _request_body(route)
    if route.is_health:
        operation["security"] = [{}]
    return operation


_NO_CONTROLS = r"^[^\x00-\x1f\x7f]*$"


def _parameters(route: Route) -> list[dict[str, Any]]:
    parameters = []
    if route.parameter:
        name: Schema = {"type": "string", "minLength": 1, "maxLength": MAX_NAME_CHARS, "pattern": _NO_CONTROLS}
        parameters.append({"name": route.parameter, "in": "path", "required": True, "schema": name})
    return parameters + (_WORK_PARAMETERS if route.needs_body else [])


def _request_body(route: Route) -> dict[str, Any]:
    if route.kind == "transcription":
        content = {"multipart/form-data": _ref("TranscriptionRequest")}
    elif route.kind == "task":
        content = {"application/json": {}, "multipart/form-data": {"type": "object"}}
    elif route.kind == "other":
        content = {"application/json": _ref("OtherRequest"), "multipart/form-data": {"type": "object"}}
    else:
        content = {"application/json": _ref(_JSON_REQUESTS[route.operation].__name__)}
    return {"required": route.kind != "task", "content": _content(content)}


def _responses(route: Route) -> dict[str, Any]:
    good: dict[str, Any] = {"description": "the answer", "content": _content(_answer(route))}
    if route.needs_body:
        good["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in _RESPONSE_HEADERS}
    responses: dict[str, Any] = {"200": good}
    if route.needs_body:
        responses["2XX"] = good | {"description": "the answer of an upstream that calls it created, accepted, …"}
    if route.operation == "readyz":
        responses["503"] = {"description": "it drains", "content": _content({"application/json": {"type": "object"}})}
    return responses | {status: _ref("Error", "responses") for status in _statuses(route)}


def _statuses(route: Route) -> list[str]:
    """Every status an error of this route can have."""
    all_of_them = {str(row.status) for row in ERRORS.values()}
    if route.needs_body:
        return sorted(all_of_them.union(_PASSED_ON))
    if route.is_health:
        return ["400", "403", "405", "408", "421"]
    absent = {"413", "415", "502", "504"} | (set() if route.kind in ("models", "task") else {"503"})
    return sorted(all_of_them - absent)


def _answer(route: Route) -> dict[str, Schema]:
    """The good answer's schema by content type."""
    if route.kind == "other" and route.needs_body:
        return {"*/*": {}}
    if not route.needs_body:
        return {"application/json": _ref(_GET_ANSWERS[route.operation]) if route.operation in _GET_ANSWERS else {}}
    if route.kind == "task":
        return {"application/json": {}, "text/event-stream": _EVENTS}
    if route.kind == "embeddings":
        return {"application/json": _ref("Embeddings")}
    answer = {"chat": "ChatCompletion", "completion": "Completion", "transcription": "Transcript"}[route.kind]
    plain: dict[str, Schema] = {}
    if route.kind == "transcription":
        plain = {"text/plain": _STRING, "*/*": {"description": "text or subtitles, as an upstream labels them"}}
    return {"application/json": _ref(answer), "text/event-stream": _EVENTS} | plain


_GET_ANSWERS = {"list_models": "Models", "get_model": "Model", "list_tasks": "Tasks"}


# ── schemas ──────────────────────────────────────────────────────────────────────────────────────


def _schemas() -> dict[str, Schema]:
    checked = [*_JSON_REQUESTS.values(), OtherRequest]
    _, requests = msgspec.json.schema_components(checked, ref_template="#/components/schemas/{name}")
    requests["EmbeddingsRequest"]["properties"]["input"] = INPUT_SCHEMA
    return {**requests, "TranscriptionRequest": _TRANSCRIPTION_REQUEST, **_ANSWERS, "Error": _error_schema()}


def _object(required: Iterable[str], /, **properties: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": properties}


def _list_of(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _ref(name: str, section: str = "schemas") -> Schema:
    return {"$ref": f"#/components/{section}/{name}"}


def _content(schemas: dict[str, Schema]) -> dict[str, Any]:
    return {content_type: {"schema": schema} for content_type, schema in schemas.items()}


_STRING: Schema = {"type": "string"}
_INTEGER: Schema = {"type": "integer"}
_USAGE: Schema = {"type": ["object", "null"], "description": "left out where the backend did not say"}
_VECTOR: Schema = {"anyOf": [_list_of({"type": "number"}), {"type": "string", "contentEncoding": "base64"}]}

_TRANSCRIPTION_REQUEST = _object(
    ("file", "model"),
    file={"type": "string", "contentMediaType": "application/octet-stream"},
    model={"type": "string", "minLength": 1, "maxLength": MAX_NAME_CHARS},
    response_format={"enum": list(TRANSCRIPT_FORMATS), "default": "json"},
    stream={"type": "boolean", "default": False},
)

_ANSWERS: dict[str, Schema] = {
    "ChatCompletion": _object(("choices",), choices=_list_of({"type": "object"}), usage=_USAGE),
    "Completion": _object(("choices",), choices=_list_of({"type": "object"}), usage=_USAGE),
    "Embeddings": _object(("data",), data=_list_of(_object(("embedding",), index=_INTEGER, embedding=_VECTOR))),
    "Transcript": _object(("text",), text=_STRING),
    "Model": _object(
        ("id", "object", "created", "owned_by"),
        id=_STRING,
        object={"const": "model"},
        created=_INTEGER,
        owned_by=_STRING,
    ),
    "Models": _object(("object", "data"), object={"const": "list"}, data=_list_of(_ref("Model"))),
    "Tasks": _object(
        ("object", "data"),
        object={"const": "list"},
        data=_list_of(
            _object(("id", "object", "backends"), id=_STRING, object={"const": "task"}, backends=_list_of(_STRING))
        ),
    ),
}


# ── errors, headers, keys ────────────────────────────────────────────────────────────────────────


def _error_schema() -> Schema:
    told = _object(
        ("message", "type", "code", "param", "request_id", "retryable"),
        message=_STRING,
        type=_STRING,
        code={"type": "string", "enum": list(ERRORS)},
        param={"type": ["string", "null"]},
        request_id=_STRING,
        retryable={"type": "boolean"},
    )
    return _object(("error",), error=told)


def _error_response() -> dict[str, Any]:
    rows = "\n".join(f"- {row.status} `{code}`: {row.when}" for code, row in ERRORS.items())
    passed = (
        "An upstream's own 400, 404, 409, 413, 422 and most other 4xx pass with body and status, in the upstream's "
        "shape; its 429 and 5xx keep their status."
    )
    schema = {"anyOf": [_ref("Error"), {"description": "an upstream's refusal, as it came"}]}
    return {"description": f"{rows}\n\n{passed}", "content": _content({"application/json": schema})}


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": _STRING}


_RESPONSE_HEADERS = {
    "x-request-id": "the request's id, as it stands in the log",
    "x-gateway-backend": "who answered; `none` where nobody did",
    "x-gateway-site": "`edge`, `cloud`, `hybrid` or `none`",
    "x-gateway-reason": "why that one",
    "x-gateway-attempts": "how many backends were tried",
    "Server-Timing": "where the time went, in milliseconds; loopback or authenticated clients only",
}

_WORK_PARAMETERS: list[dict[str, Any]] = [
    {
        "name": "x-gateway-locality",
        "in": "header",
        "description": "`edge-only`: nothing of this request leaves the site",
        "schema": {"enum": ["edge-only"]},
    },
    {
        "name": "x-gateway-deadline-ms",
        "in": "header",
        "description": "how long the whole request may take",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    },
    {
        "name": "x-stainless-read-timeout",
        "in": "header",
        "description": "seconds until the first byte, and between bytes; the smaller of it and the gateway's counts",
        "schema": {"type": "number"},
    },
    {"name": "traceparent", "in": "header", "description": "W3C trace context", "schema": _STRING},
]

_SECURITY: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
}
