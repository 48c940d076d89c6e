"""The circuit breaker over real sockets: what opens it, what does not, and recovery."""

from __future__ import annotations

from gateway.testing import running_gateway
from support.addition import GOOD, SUM, call, posts
from support.upstream import answer, by_path
from support.wiring import ADD, STUB, backend, relaying


async def test_breaker_opens_after_repeated_failures_and_is_visible_in_log_status_and_metrics() -> None:
    fails = by_path({"/add": answer(status=500, json={"error": {"message": "oops"}})})
    async with relaying(fails, TASKS=ADD, environ={"GATEWAY_POLICY__PROBE_S": "60"}) as (gateway, upstream):
        for _ in range(5):
            assert (await call(gateway))[0] == 500
        asked = len(posts(upstream))
        status, said, headers = await call(gateway)
        assert (status, said["error"]["code"], headers["x-gateway-attempts"]) == (503, "unavailable", "0")
        assert "breaker open" in said["error"]["message"]
        assert len(posts(upstream)) == asked
        line = await gateway.line("breaker.opened", backend="cloud")
        async with gateway.session() as http:
            async with http.get(f"{gateway.admin_url}/status") as got:
                breaker = (await got.json())["backends"]["cloud"]["breaker"]
            async with http.get(f"{gateway.admin_url}/metrics") as got:
                metrics = await got.text()
    assert "status 500" in line["why"]
    assert (breaker["state"], "status 500" in breaker["why"]) == ("open", True)
    assert 'edge_gateway_breaker_state{backend="cloud"} 2' in metrics


async def test_breaker_closes_after_the_backend_recovers() -> None:
    fails = by_path({"/add": answer(status=500, json={})})
    async with relaying(fails, TASKS=ADD, environ={"GATEWAY_POLICY__PROBE_S": "0.05"}) as (gateway, upstream):
        for _ in range(5):
            await call(gateway)
        await gateway.line("breaker.opened")
        upstream.script = GOOD
        await gateway.lines.wait("breaker.half_opened")
        assert (await call(gateway))[:2] == (200, SUM)
        await gateway.lines.wait("breaker.closed")


async def test_client_errors_never_open_the_breaker() -> None:
    async with running_gateway(**STUB) as gateway:
        for _ in range(10):
            assert (await call(gateway, "/v1/tasks/invalid"))[0] == 400
        assert (await call(gateway, "/v1/tasks/say", 1))[0] == 200
    assert gateway.lines.of("breaker.opened") == []


async def test_upstream_retry_after_opens_the_breaker_for_that_time() -> None:
    limited = by_path({"/add": answer(status=429, json={}, headers=[("Retry-After", "30")])})
    async with relaying(limited, TASKS=ADD) as (gateway, upstream):
        assert (await call(gateway))[0] == 429
        status, said, _ = await call(gateway)
    assert status == 429
    assert "breaker open" in said["error"]["message"]
    assert len(posts(upstream)) == 1


async def test_argument_errors_of_one_function_do_not_block_other_tasks_of_the_backend() -> None:
    async with running_gateway(**backend("local", "local")) as gateway, gateway.session() as http:
        for _ in range(12):
            async with http.post(f"{gateway.url}/v1/tasks/add", json={"a": "x", "b": 2}) as got:
                assert (got.status, (await got.json())["error"]["code"]) == (500, "plugin_error")
        async with http.post(f"{gateway.url}/v1/tasks/squares", json={"items": [3]}) as got:
            assert await got.json() == {"result": [9]}
