"""Pausing and resuming listeners: in any order, each listens once or not at all."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from contextlib import suppress
from typing import Any

import pytest

from gateway.ingress.http.listener import HttpListener
from gateway.testing import RunningGateway, running_gateway
from support.raw import answered, post
from support.wiring import STUB

SAY = post("/v1/tasks/say", b"1")


class Gauge:
    """A memory gauge with the ratio that the test sets."""

    ratio_now = 0.5

    def ratio(self) -> float:
        return self.ratio_now

    def free_bytes(self, share: float) -> int:
        return 1 << 30


def site_of(gateway: RunningGateway) -> HttpListener:
    return gateway.service.listeners.sites[0]


def sockets_on(port: int) -> int:
    """Count the descriptors of this process that listen on the port."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(fd))) as sock:
                    listens = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
                    count += listens and sock.getsockname()[1:2] == (port,)
    return count


def port_of(gateway: RunningGateway) -> int:
    return int(gateway.url.rpartition(":")[2])


async def test_repeated_resume_opens_only_one_listening_socket() -> None:
    async with running_gateway(**STUB) as gateway:
        before = sockets_on(port_of(gateway))
        await asyncio.gather(*(site_of(gateway).resume("memory") for _ in range(3)))
        assert sockets_on(port_of(gateway)) == before
        site_of(gateway).pause("memory")
        assert sockets_on(port_of(gateway)) == before - 1
        await asyncio.gather(*(site_of(gateway).resume("memory") for _ in range(3)))
        assert sockets_on(port_of(gateway)) == before
        assert (await answered(gateway.url, SAY)).status == 200


async def test_pause_during_a_resume_leaves_the_listener_paused() -> None:
    async with running_gateway(**STUB) as gateway:
        before = sockets_on(port_of(gateway))
        site_of(gateway).pause("memory")
        resuming = asyncio.ensure_future(site_of(gateway).resume("memory"))
        await asyncio.sleep(0)
        site_of(gateway).pause("memory")
        await resuming
        assert not site_of(gateway).is_accepting
        assert sockets_on(port_of(gateway)) == before - 1


async def test_listener_that_failed_to_resume_is_retried_at_the_next_check(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_gateway(**STUB) as gateway:
        gauge = gateway.service.memory_guard.gauge = Gauge()  # type: ignore[assignment]
        look, sites = gateway.service.memory_guard.check, gateway.service.listeners.sites
        gauge.ratio_now = 0.97  # type: ignore[attr-defined]
        await look(sites)
        assert not site_of(gateway).is_accepting
        gauge.ratio_now = 0.5  # type: ignore[attr-defined]

        async def no_descriptor(*args: Any, **named: Any) -> None:
            raise OSError(24, "Too many open files")

        with monkeypatch.context() as patched:
            patched.setattr(asyncio.get_running_loop(), "create_server", no_descriptor)
            await look(sites)
        assert not site_of(gateway).is_accepting
        await look(sites)
        assert site_of(gateway).is_accepting
        assert (await answered(gateway.url, SAY)).status == 200


async def test_certificate_renewal_does_not_end_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_gateway(**STUB) as gateway:
        site_of(gateway).pause("memory")
        site_of(gateway).renew(None)
        await site_of(gateway).resume("renewing")
        assert not site_of(gateway).is_accepting
        await site_of(gateway).resume("memory")
        assert site_of(gateway).is_accepting


async def test_held_listener_is_resumed_by_no_memory_check_start_or_reload() -> None:
    """A memory check, a start or a reload in progress leaves a held listener paused."""
    async with running_gateway(**STUB, GATEWAY_LISTEN="127.0.0.1:0,127.0.0.1:0") as gateway:
        listeners = gateway.service.listeners
        listeners._is_activated = True  # as with sockets passed by systemd, which stay open
        listeners.hold()
        await gateway.service.memory_guard.check(listeners.sites)
        await listeners.accept_held()
        await listeners.accept_after_tls()
        assert [site.is_accepting for site in listeners.sites] == [False, False]


async def test_listener_that_failed_to_reopen_with_new_certificates_is_retried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A listener that cannot reopen with new certificates accepts no connection.

    Without this rule a reload could leave one listener on the old certificates.
    """
    async with running_gateway(**STUB, GATEWAY_LISTEN="127.0.0.1:0,127.0.0.1:0") as gateway:
        loop, (first, second) = asyncio.get_running_loop(), gateway.service.listeners.sites
        create, tls = loop.create_server, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

        async def no_second_descriptor(*args: Any, **named: Any) -> Any:
            if first.is_accepting:
                raise OSError(24, "Too many open files")
            return await create(*args, **named)

        with monkeypatch.context() as patched:
            patched.setattr(loop, "create_server", no_second_descriptor)
            gateway.service.listeners.replace_tls(tls)
            assert (first.is_accepting, second.is_accepting) == (False, False)
            await gateway.service.listeners.accept_after_tls()
        assert (first.is_accepting, second.is_accepting) == (True, False)
        assert (first._tls, second._tls) == (tls, tls)
        await gateway.service.memory_guard.check(gateway.service.listeners.sites)
        assert second.is_accepting
