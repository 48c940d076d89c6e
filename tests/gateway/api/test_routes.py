"""The route table, and the matching of requests to routes."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.routes import ROUTES, MethodNotAllowed, match
from gateway.plugin import GatewayError, TaskInvalid


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_is_found_by_its_own_path(route) -> None:
    path = route.path.replace("{", "some-").replace("}", "")
    found = match(route.method, path)
    assert found.route is route
    assert found.path == path


@pytest.mark.parametrize("route", [r for r in ROUTES if r.is_openai], ids=lambda route: route.path)
def test_openai_endpoints_answer_without_v1_and_reach_the_backend_with_it(route) -> None:
    path = route.path.replace("{", "some-").replace("}", "")
    found = match(route.method, path.removeprefix("/v1"))
    assert found.route is route
    assert found.path == path


def test_a_task_has_no_alias_without_v1() -> None:
    with pytest.raises(GatewayError) as refused:
        match("POST", "/tasks/add")
    assert refused.value.code == "not_found"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/models/gpt-4o", "gpt-4o"),
        ("/v1/models/meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("/v1/models/meta-llama%2FLlama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("/v1/models/llama3.2:3b", "llama3.2:3b"),
        ("/v1/models/caf%C3%A9", "café"),
        ("/v1/models/a%20b?verbose=1", "a b"),
    ],
)
def test_a_model_name_may_hold_slashes_and_escapes(path: str, name: str) -> None:
    assert match("GET", path).params == {"id": name}


@pytest.mark.parametrize(
    ("path", "routed"),
    [
        ("/v1/ch%61t/completions", "/v1/chat/completions"),
        ("/ch%61t/c%6Fmpletions", "/v1/chat/completions"),
        ("/v1/tasks/h%75m%2Ea", "/v1/tasks/hum.a"),
        ("/v1/tasks/a%2fb%20c", "/v1/tasks/a%2Fb%20c"),
        ("/v1/tasks/llama3.2:3b@x", "/v1/tasks/llama3.2:3b@x"),
        ("/v1/images/caf%c3%a9?size=1", "/v1/images/caf%C3%A9"),
    ],
)
def test_path_is_forwarded_in_the_normalised_spelling_that_was_checked(path: str, routed: str) -> None:
    assert match("POST", path).path == routed


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("/v1/chat/completion", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/v1/embedding", "/v1/embeddings"),
        ("/v1/tasks/", "/v1/tasks/{task}"),
        ("/v2/tasks/add", "/v1/tasks/{task}"),
    ],
)
def test_unknown_path_error_names_the_nearest_path(path: str, nearest: str) -> None:
    with pytest.raises(GatewayError) as refused:
        match("POST", path)
    assert refused.value.code == "not_found"
    assert f"the nearest is {nearest} " in refused.value.message


@pytest.mark.parametrize("path", ["/v1/tasks/..", "/v1/tasks/%2e%2e/x", "/v1/tasks/a%2F..%2Fb", "/v1/models//x"])
def test_path_traversal_in_a_name_is_refused(path: str) -> None:
    with pytest.raises(GatewayError) as refused:
        match("POST", path)
    assert refused.value.code == "not_found"


@pytest.mark.parametrize("path", ["/v1/models/%", "/v1/models/%f", "/v1/models/%zz", "/%ff", "/a%00b", "/a%0d%0ab"])
def test_path_that_cannot_be_decoded_is_refused(path: str) -> None:
    with pytest.raises(GatewayError) as refused:
        match("GET", path)
    assert refused.value.code == "bad_request"


@pytest.mark.parametrize("wrong", [*'#; \\"<>^`{|}[]', "\t", "\x7f", "\r\n"])
@pytest.mark.parametrize("target", ["/v1/images/edits{}", "/v1/images/{}edits", "/v1/images/edits{}x", "/{}images/x"])
def test_path_characters_that_parsers_read_differently_are_refused(target: str, wrong: str) -> None:
    with pytest.raises(TaskInvalid, match=f"write it as `{quote(wrong[0], safe='')}`"):
        match("POST", target.replace("{}", wrong))


@pytest.mark.parametrize("query", ["#", "x#y", "a b", "x=1 HTTP/1.1", 'a="b"', "a=<b>"])
def test_query_characters_that_parsers_read_differently_are_refused(query: str) -> None:
    with pytest.raises(TaskInvalid, match="the query has"):
        match("POST", f"/v1/images/edits?{query}")


def test_every_valid_path_and_query_character_is_forwarded() -> None:
    path, query = "/v1/tasks/aZ0-._~!$&'()*+,=:@%23%3b", "a;b=/?:@!$'()*+,%20%5b"
    found = match("POST", f"{path}?{query}")
    assert (found.path, found.query) == (path.replace("%3b", "%3B"), query)


@pytest.mark.parametrize("escape", ["%2F", "%5c", "%25", "%3B", "%3f", "%23", "%252F"])
def test_relayed_path_with_an_escaped_separator_is_refused(escape: str) -> None:
    for path in (f"x{escape}y", f"x/y{escape}z"):
        with pytest.raises(TaskInvalid, match="the path has an escaped"):
            match("POST", f"/v1/images/{path}")
    assert match("POST", "/v1/images/x/y+z").path == "/v1/images/x/y+z"


def test_unescaped_query_characters_of_browsers_are_forwarded_escaped() -> None:
    assert match("POST", "/v1/responses?include[]=a&b={|}^`\\").query == "include%5B%5D=a&b=%7B%7C%7D%5E%60%5C"


def test_non_ascii_path_is_forwarded_percent_encoded() -> None:
    found = match("POST", "/v1/tasks/caf\u00e9%20au/lait")
    assert found.path == "/v1/tasks/caf%C3%A9%20au/lait"
    assert found.params == {"task": "caf\u00e9 au/lait"}


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/chat/completions", ("POST",)),
        ("HEAD", "/v1/chat/completions", ("POST",)),
        ("DELETE", "/v1/models/x", ("GET", "HEAD")),
        ("POST", "/livez", ("GET", "HEAD")),
        ("get", "/livez", ("GET", "HEAD")),
    ],
)
def test_wrong_method_error_lists_the_allowed_methods(method: str, path: str, allow: tuple[str, ...]) -> None:
    with pytest.raises(MethodNotAllowed) as refused:
        match(method, path)
    assert refused.value.allow == allow
    assert refused.value.code == "method_not_allowed"


def test_head_is_allowed_where_get_is() -> None:
    assert match("HEAD", "/readyz").route.operation == "readyz"


def code_of(method: str, path: str) -> str:
    try:
        match(method, path)
    except GatewayError as refused:
        return refused.code
    return "found"


@given(st.text(), st.text())
def test_any_request_line_is_matched_or_refused(method: str, path: str) -> None:
    assert code_of(method, path) in ("found", "not_found", "method_not_allowed", "bad_request")


def test_error_message_truncates_a_long_path() -> None:
    with pytest.raises(GatewayError) as refused:
        match("GET", "/x" * 10_000)
    assert len(refused.value.message) < 300
