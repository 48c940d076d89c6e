"""The table of upstream errors in docs/http.md agrees with the code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.plugin import BackendUnavailable, NotServed
from support.http_backend import chat, opened, result
from support.upstream import Upstream, answer

PAGE = Path(__file__).parents[4] / "docs" / "http.md"
HEADER = "| upstream's response | the client receives |"


def rows() -> dict[str, list[str]]:
    """The cells of each row, by its first cell."""
    lines = PAGE.read_text().partition(HEADER)[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("| ").split(" |")] for line in lines]
    return {row[0]: row[1:] + [""] * (5 - len(row)) for row in cells}


CASES: list[tuple[str, int, Any]] = [
    *(("400, 404, 409, 413, 422", status, {"error": {"message": "no"}}) for status in (400, 404, 409, 413, 422)),
    ("text too long", 500, {"error": {"message": "no", "code": "context_length_exceeded"}}),
    *(("404, 405 or 501 of the web server", status, {"detail": "Not Found"}) for status in (404, 405, 501)),
    ("402;", 402, {"error": {"message": "pay"}}),
    ("402;", 429, {"error": {"message": "no", "code": "insufficient_quota"}}),
    ("402;", 400, {"error": {"message": "Your credit balance is too low"}}),
    ("401;", 401, {"error": {"message": "no"}}),
    ("401;", 400, {"error": {"message": "no", "code": "invalid_api_key"}}),
    ("404 with the code", 404, {"error": "model 'm' not found"}),
    ("403", 403, {"error": {"message": "no"}}),
    ("429", 429, {"error": {"message": "slow down"}}),
    *(("408, 425, 5xx", status, {"error": {"message": "no"}}) for status in (408, 425, 500, 503)),
    ("a redirect", 302, {}),
    ("2xx without a valid response", 200, {}),
]


@pytest.mark.parametrize(("row", "status", "body"), CASES)
async def test_table_of_upstream_errors_agrees_with_the_code(row: str, status: int, body: Any) -> None:
    (cells,) = [cells for name, cells in rows().items() if name.startswith(row)]
    client, next_backend, breaker, rests = cells
    async with Upstream(answer(json=body, status=status)) as upstream, opened(upstream.url) as (backend, _):
        try:
            passed = await result(backend, chat())
        except BackendUnavailable as exc:
            failed = exc
        else:
            assert passed.status >= 400
            assert (next_backend, breaker, rests) == ("no", "no", "")
            return
    is_counted = not isinstance(failed, NotServed) and not failed.rests
    assert (next_backend, breaker) == ("yes", "yes" if is_counted else "no")
    assert rests == {"": "", "backend": "the backend, 5 min", "model": "the model, 5 min"}[failed.rests]
    assert f"`{failed.code}`" in client
