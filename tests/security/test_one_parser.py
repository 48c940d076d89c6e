"""What the gateway judges is what it sends: forms, queries and paths that two parsers read differently do not leave.

The upstream records every byte. `secret` may not leave the site; each group has a control that does leave.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.admit.keyfile import write_keys
from gateway.admit.keys import SECRET_CHARS, Key, hash_of
from gateway.testing import RunningGateway
from support.ambiguous_requests import (
    END,
    HEAD,
    IMAGE,
    PLAIN,
    QUERIES,
    SUB_PATHS,
    TYPE,
    ambiguous_forms,
    part,
)  # fmt: skip
from support.raw import Answer, connected, post, read_answer
from support.upstream import Upstream, answer
from support.wiring import relaying

SECRET = "a" * SECRET_CHARS


@pytest.fixture
def keys(tmp_path: Path) -> str:
    path = tmp_path / "keys.json"
    write_keys(path, {"some": Key(sha256=hash_of(SECRET), models=("bird",))})
    return str(path)


@asynccontextmanager
async def with_rules(keys: str, own_name: str, edge_only: str) -> AsyncIterator[tuple[RunningGateway, Upstream]]:
    """A gateway whose key and rules forbid `secret`; the upstream knows `bird` by the name `own_name`."""
    rules = {"GATEWAY_KEYS_FILE": keys, "GATEWAY_POLICY__EDGE_ONLY": edge_only}
    models = f'{{"bird":"{own_name}","secret":"secret"}}'
    async with relaying(answer(json={"data": []}), environ=rules, MODELS=models) as (gateway, upstream):
        yield gateway, upstream


async def ask(gateway: RunningGateway, path: str, body: bytes, content_type: str) -> Answer:
    lines = (f"Content-Type: {content_type}", f"Authorization: Bearer egw_some_{SECRET}")
    async with connected(gateway.url) as (reader, writer):
        writer.write(post(path, body, *lines))
        return await read_answer(reader)


@pytest.mark.parametrize("own_name", ["bird", "parrot"])
async def test_ambiguous_form_is_400_and_its_hidden_model_never_leaves(keys: str, own_name: str) -> None:
    asked = 0
    async with with_rules(keys, own_name, "secret") as (gateway, upstream):
        for label, content_type, body in ambiguous_forms():
            upstream.requests.clear()
            status = (await ask(gateway, "/v1/images/edits", body, content_type)).status
            for request in upstream.posted:
                assert b"\r\n\r\nsecret" not in request.body, label
            assert status in (400, 403), label
            asked += 1
        control = PLAIN + IMAGE + part(f'{HEAD}name="prompt"', b"a bird") + END
        for leading in (b"", b"\r\n"):
            upstream.requests.clear()
            assert (await ask(gateway, "/v1/images/edits", leading + control, TYPE)).status == 200
            sent = leading + control.replace(b"\r\nbird\r\n", f"\r\n{own_name}\r\n".encode())
            assert [request.body for request in upstream.posted] == [sent]
    assert asked > 180


async def test_form_with_a_missing_content_type_leaves_with_the_one_it_was_judged_by(keys: str) -> None:
    async with with_rules(keys, "bird", "secret") as (gateway, upstream):
        for content_type in ("application/x-www-form-urlencoded", "text/plain"):
            upstream.requests.clear()
            assert (await ask(gateway, "/v1/images/edits", PLAIN + END, content_type)).status == 200
            assert upstream.posted[0].headers["content-type"] == TYPE


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/responses", "/v1/audio/translations", "/v1/messages"])
async def test_model_in_the_query_of_a_relayed_path_is_400(keys: str, path: str) -> None:
    body = b'{"model":"bird"}'
    async with with_rules(keys, "bird", "secret") as (gateway, upstream):
        for query in QUERIES:
            upstream.requests.clear()
            assert (await ask(gateway, f"{path}?{query}", body, "application/json")).status == 400, query
            assert upstream.posted == []
        assert (await ask(gateway, f"{path}?x=models&api-version=1", body, "application/json")).status == 200
        assert upstream.posted[0].path == f"{path}?x=models&api-version=1"


async def test_relayed_path_with_an_encoded_separator_does_not_leave(keys: str) -> None:
    body = b'{"model":"bird"}'
    async with with_rules(keys, "bird", "/v1/images/secret") as (gateway, upstream):
        for path in SUB_PATHS:
            upstream.requests.clear()
            status = (await ask(gateway, f"/v1/images/{path}", body, "application/json")).status
            assert (status in (400, 404), upstream.posted) == (True, []), path
        assert (await ask(gateway, "/v1/images/caf%C3%A9/x", body, "application/json")).status == 200
        assert upstream.posted[0].path == "/v1/images/caf%C3%A9/x"
