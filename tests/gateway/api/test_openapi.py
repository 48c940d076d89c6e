"""openapi.json describes every route and no other, and its references resolve."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.api.errors import ERRORS
from gateway.api.openapi import build
from gateway.api.routes import ROUTES

DOCUMENT = build("1.2.3")


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def test_every_route_is_described_and_no_other() -> None:
    assert {(method, path) for method, path, _ in operations()} == {(route.method, route.path) for route in ROUTES}


def test_operation_ids_are_unique() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(names)) == len(names)


def test_every_reference_resolves() -> None:
    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            yield from (value for key, value in node.items() if key == "$ref")
            node = list(node.values())
        if isinstance(node, list):
            for child in node:
                yield from references(child)

    for reference in references(DOCUMENT):
        target: Any = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]


@pytest.mark.parametrize(("method", "path", "operation"), list(operations()), ids=lambda value: str(value)[:40])
def test_every_parameter_of_a_path_is_described(method: str, path: str, operation: dict[str, Any]) -> None:
    described = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
    assert described == ({path.rpartition("{")[2].rstrip("}")} if "{" in path else set())


def test_post_operations_list_every_status_of_the_error_table() -> None:
    statuses = {str(row.status) for row in ERRORS.values()} | {"200"}
    for method, _, operation in operations():
        if method == "POST":
            assert statuses <= operation["responses"].keys()
            assert "x-gateway-reason" in operation["responses"]["200"]["headers"]


def test_post_operations_allow_any_upstream_status() -> None:
    for method, _, operation in operations():
        assert ({"2XX", "4XX", "5XX"} <= operation["responses"].keys()) == (method == "POST")


def test_every_operation_lists_403_for_disallowed_origins() -> None:
    assert all("403" in operation["responses"] for _, _, operation in operations())


def test_transcriptions_may_have_any_content_type() -> None:
    answer = DOCUMENT["paths"]["/v1/audio/transcriptions"]["post"]["responses"]["200"]
    assert "*/*" in answer["content"]


def test_every_error_code_is_in_the_envelopes_schema() -> None:
    codes = DOCUMENT["components"]["schemas"]["Error"]["properties"]["error"]["properties"]["code"]["enum"]
    assert set(codes) == set(ERRORS)


def test_health_needs_no_key() -> None:
    assert DOCUMENT["paths"]["/livez"]["get"]["security"] == [{}]


def test_required_request_fields_match_the_checked_fields() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert schemas["ChatRequest"]["required"] == ["model", "messages"]
    assert schemas["EmbeddingsRequest"]["required"] == ["model", "input"]
    assert len(schemas["EmbeddingsRequest"]["properties"]["input"]["anyOf"]) == 4


def test_document_is_json_with_its_version() -> None:
    assert json.loads(json.dumps(DOCUMENT))["info"]["version"] == "1.2.3"
