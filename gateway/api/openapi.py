"""Generate openapi.json from the tables of the code.

Paths come from the routes, statuses from the errors, request schemas from the structs of `schemas`. Only the schemas
of responses are written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.api.errors import ERRORS
from gateway.api.operations import OPERATIONS
from gateway.api.routes import ROUTES, Route
from gateway.api.schemas import (
    INPUT_SCHEMA,
    MAX_NAME_CHARS,
    STRING,
    TRANSCRIPT_FORMATS,
    ChatRequest,
    CompletionRequest,
    EmbeddingsRequest,
    OtherRequest,
    Schema,
    list_schema,
    object_schema,
    schema_ref,
)

DESCRIPTION = """\
Each request goes to the backend that is expected to finish it best under the operator's policy, on this site or not.
OpenAI's endpoints also work without the leading `/v1`, and GET endpoints answer HEAD.
A Content-Type is never required. A stream ends with the comment `: timing {…}` before `[DONE]`.
"""

# An upstream's error responses reach the client with their status; the gateway itself does not use all of these.
_PASSED_ON = ("409", "422", "4XX", "5XX")
_REQUESTS: tuple[type[msgspec.Struct], ...] = (ChatRequest, CompletionRequest, EmbeddingsRequest, OtherRequest)


def build(version: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of the data listener. version: the gateway's."""
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
    operation = OPERATIONS[route.kind]
    return {"required": operation.is_body_required, "content": _content(operation.request_content)}


def _responses(route: Route) -> dict[str, Any]:
    good: dict[str, Any] = {"description": "the response", "content": _content(_response_content(route))}
    if route.needs_body:
        good["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in _RESPONSE_HEADERS}
    responses: dict[str, Any] = {"200": good}
    if route.needs_body:
        responses["2XX"] = good | {"description": "an upstream's response with another success status"}
    if route.operation == "readyz":
        draining = _content({"application/json": {"type": "object"}})
        responses["503"] = {"description": "the gateway is draining", "content": draining}
    return responses | {status: schema_ref("Error", "responses") for status in _statuses(route)}


def _statuses(route: Route) -> list[str]:
    """Return every status an error of this route can have."""
    all_of_them = {str(row.status) for row in ERRORS.values()}
    if route.needs_body:
        return sorted(all_of_them.union(_PASSED_ON))
    if route.is_health:
        return ["400", "403", "405", "408", "421"]
    absent = {"413", "415", "502", "504"} | (set() if route.operation in _LOOKUP_RESPONSES else {"503"})
    return sorted(all_of_them - absent)


def _response_content(route: Route) -> Mapping[str, Schema]:
    """Return the schemas of a successful response, by content type."""
    if route.needs_body:
        return OPERATIONS[route.kind].response_content
    name = _LOOKUP_RESPONSES.get(route.operation)
    return {"application/json": schema_ref(name) if name else {}}


_LOOKUP_RESPONSES = {"list_models": "Models", "get_model": "Model", "list_tasks": "Tasks"}


# ── schemas ──────────────────────────────────────────────────────────────────────────────────────


def _schemas() -> dict[str, Schema]:
    _, requests = msgspec.json.schema_components(_REQUESTS, ref_template="#/components/schemas/{name}")
    requests["EmbeddingsRequest"]["properties"]["input"] = INPUT_SCHEMA
    return {**requests, "TranscriptionRequest": _TRANSCRIPTION_REQUEST, **_ANSWERS, "Error": _error_schema()}


def _content(schemas: Mapping[str, Schema]) -> dict[str, Any]:
    return {content_type: {"schema": schema} for content_type, schema in schemas.items()}


_INTEGER: Schema = {"type": "integer"}
_USAGE: Schema = {"type": ["object", "null"], "description": "left out if the backend did not report it"}
_VECTOR: Schema = {"anyOf": [list_schema({"type": "number"}), {"type": "string", "contentEncoding": "base64"}]}

_TRANSCRIPTION_REQUEST = object_schema(
    ("file", "model"),
    file={"type": "string", "contentMediaType": "application/octet-stream"},
    model={"type": "string", "minLength": 1, "maxLength": MAX_NAME_CHARS},
    response_format={"enum": list(TRANSCRIPT_FORMATS), "default": "json"},
    stream={"type": "boolean", "default": False},
)

_ANSWERS: dict[str, Schema] = {
    "ChatCompletion": object_schema(("choices",), choices=list_schema({"type": "object"}), usage=_USAGE),
    "Completion": object_schema(("choices",), choices=list_schema({"type": "object"}), usage=_USAGE),
    "Embeddings": object_schema(
        ("data",), data=list_schema(object_schema(("embedding",), index=_INTEGER, embedding=_VECTOR))
    ),
    "Transcript": object_schema(("text",), text=STRING),
    "Model": object_schema(
        ("id", "object", "created", "owned_by"),
        id=STRING,
        object={"const": "model"},
        created=_INTEGER,
        owned_by=STRING,
    ),
    "Models": object_schema(("object", "data"), object={"const": "list"}, data=list_schema(schema_ref("Model"))),
    "Tasks": object_schema(
        ("object", "data"),
        object={"const": "list"},
        data=list_schema(
            object_schema(
                ("id", "object", "backends"), id=STRING, object={"const": "task"}, backends=list_schema(STRING)
            )
        ),
    ),
}


# ── errors, headers, keys ────────────────────────────────────────────────────────────────────────


def _error_schema() -> Schema:
    members = object_schema(
        ("message", "type", "code", "param", "request_id", "retryable"),
        message=STRING,
        type=STRING,
        code={"type": "string", "enum": list(ERRORS)},
        param={"type": ["string", "null"]},
        request_id=STRING,
        retryable={"type": "boolean"},
    )
    return object_schema(("error",), error=members)


def _error_response() -> dict[str, Any]:
    rows = "\n".join(f"- {row.status} `{code}`: {row.when}" for code, row in ERRORS.items())
    passed = (
        "An upstream's own 400, 404, 409, 413, 422 and most other 4xx pass with body and status, in the upstream's "
        "shape; its 429 and 5xx keep their status."
    )
    schema = {"anyOf": [schema_ref("Error"), {"description": "an upstream's error response, unchanged"}]}
    return {"description": f"{rows}\n\n{passed}", "content": _content({"application/json": schema})}


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": STRING}


_RESPONSE_HEADERS = {
    "x-request-id": "the request's id, as in the log",
    "x-gateway-backend": "the backend that answered; `none` if none did",
    "x-gateway-site": "`edge`, `cloud`, `hybrid` or `none`",
    "x-gateway-reason": "why this backend was chosen",
    "x-gateway-attempts": "how many backends were tried",
    "Server-Timing": "the time by term, in milliseconds; for loopback or authenticated clients only",
}

_WORK_PARAMETERS: list[dict[str, Any]] = [
    {
        "name": "x-gateway-locality",
        "in": "header",
        "description": "`edge-only`: no part of this request leaves the site",
        "schema": {"enum": ["edge-only"]},
    },
    {
        "name": "x-gateway-deadline-ms",
        "in": "header",
        "description": "the time limit of the whole request, in milliseconds",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    },
    {
        "name": "x-stainless-read-timeout",
        "in": "header",
        "description": "seconds until the first byte, and between bytes; the gateway's own limit applies if smaller",
        "schema": {"type": "number"},
    },
    {"name": "traceparent", "in": "header", "description": "W3C trace context", "schema": STRING},
]

_SECURITY: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
}
