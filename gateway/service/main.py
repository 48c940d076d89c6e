"""The process of a gateway: signals, notifications to systemd, reloads, the exit status."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from gateway import exception_hooks
from gateway.admit.keyfile import read_keys
from gateway.admit.keys import KeysInvalid
from gateway.plugin import GatewayError
from gateway.plugin.errors import is_own_cancellation
from gateway.service import event_loop, shutdown, systemd
from gateway.service.service import Service
from gateway.settings import Loaded, SettingsError, load
from gateway.telemetry import configure, exception_fields, log, log_bug, log_python_warning, log_task_failure
from gateway.tls import TlsInvalid

CONFIGURATION = 78  # EX_CONFIG of sysexits.h
STOP_TIMEOUT_S = 60.0  # the stop time announced to systemd: twice the sum of all waits

on_unhandled_exception = exception_hooks.loop_handler(log_bug)
# A thread of its own: plugins may fill asyncio's default executor, and a reload would then never run.
_reload_executor = ThreadPoolExecutor(1, "reload")


def serve(loaded: Loaded, env_file: Path | None = None, environ: Mapping[str, str] = os.environ) -> NoReturn:
    """Run until SIGTERM or SIGINT, reload the configuration on SIGHUP, then end the process.

    environ: the environment that `loaded` was read from; a reload reads it again, with the files that it names.
    """
    configure(loaded.settings.log.format, loaded.settings.log.level)
    exception_hooks.install(log_bug, log_python_warning)
    shutdown.exit_process(_status(loaded, env_file, environ))


def _status(loaded: Loaded, env_file: Path | None, environ: Mapping[str, str]) -> int:
    try:
        event_loop.run(_run(loaded, env_file, environ))
    except SettingsError as exc:
        log.error("service.failed", error=str(exc))
        return CONFIGURATION
    except (OSError, RuntimeError, GatewayError) as exc:
        log.error("service.failed", error=str(exc))
        return 1
    except BaseException as exc:  # SystemExit, too: systemd does not restart a service that exits with 0 or 78
        found = exception_fields(exc)
        log.error("service.failed", error=f"{found['error']} at {found['where']}")
        return 1
    return 0


async def _run(loaded: Loaded, env_file: Path | None, environ: Mapping[str, str]) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(on_unhandled_exception)
    stop_signal: asyncio.Future[str] = loop.create_future()
    for name in ("SIGTERM", "SIGINT"):
        loop.add_signal_handler(getattr(signal, name), partial(_request_stop, stop_signal, name))
    reload_requested = asyncio.Event()  # also set during the start; a signal before this line is ignored
    loop.add_signal_handler(signal.SIGHUP, reload_requested.set)
    service = Service(loaded.settings, loaded.backends, loaded.keys)
    starting: asyncio.Future[None] = asyncio.ensure_future(service.start())
    either: list[asyncio.Future[Any]] = [starting, stop_signal]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
        gc.collect()
        gc.freeze()  # objects made by the start live as long as the process: later collections need not visit them
        gc.enable()
        reloader = _reload_on_signal(service, env_file, environ, reload_requested)
        reloading = asyncio.create_task(reloader, name="reload")
        log_task_failure(reloading)
        systemd.notify("READY=1", f"STATUS=serving on {', '.join(service.bound)}")
        await stop_signal
        reloading.cancel()
    log.info("service.stopping", signal=stop_signal.result())
    extension = f"EXTEND_TIMEOUT_USEC={STOP_TIMEOUT_S * 1_000_000:.0f}"
    systemd.notify("STOPPING=1", "STATUS=finishing requests in flight", extension)
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting})
    await service.stop()
    threads = shutdown.blocking_threads()
    if threads or service.dispatcher.is_stuck or service.registry.stuck():
        backends = sorted({*service.dispatcher.stuck(), *service.registry.stuck()})
        log.error("service.abandoned", backends=backends, threads=threads)


async def _reload_on_signal(
    service: Service, env_file: Path | None, environ: Mapping[str, str], requested: asyncio.Event
) -> None:
    while True:
        await requested.wait()
        requested.clear()
        systemd.notify_reloading()
        try:
            await reload(service, env_file, environ)
        except BaseException as exc:  # a bug, ours or a plugin's: keep the old configuration
            if is_own_cancellation(exc):
                raise  # without READY=1: systemd has received STOPPING=1
            found = exception_fields(exc)
            log.error("service.reload_failed", problems=[f"{found['error']} at {found['where']}"])
        systemd.notify("READY=1", f"STATUS=serving on {', '.join(service.bound)}")


async def reload(service: Service, env_file: Path | None, environ: Mapping[str, str] = os.environ) -> None:
    """Read the configuration again and apply it; if any of it is invalid, apply nothing but revoked keys."""
    try:
        loaded = await asyncio.get_running_loop().run_in_executor(_reload_executor, load, environ, env_file)
        waiting = await service.reload(loaded)
    except (SettingsError, TlsInvalid) as exc:
        problems = exc.problems if isinstance(exc, SettingsError) else [exc]
        log.error("service.reload_failed", problems=[*map(str, problems), *await _revoke_missing_keys(service)])
        return
    configure(loaded.settings.log.format, loaded.settings.log.level)
    log.info("service.reloaded", backends=sorted(loaded.backends), waiting_for_restart=waiting)


async def _revoke_missing_keys(service: Service) -> list[str]:
    """Revoke API keys missing from the keys file, although the reload failed; return the text for the log.

    Revoking a leaked key must succeed even if another setting is wrong.
    """
    file = service.settings.keys_file
    if file is None:
        return []
    try:
        current = await asyncio.get_running_loop().run_in_executor(_reload_executor, read_keys, file)
    except KeysInvalid:  # already listed in the problems
        return []
    revoked = service.gate.revoke_all_but(current)
    return [f"revoked nevertheless: {', '.join(revoked)}"] if revoked else []


def _request_stop(stop_signal: asyncio.Future[str], name: str) -> None:
    if not stop_signal.done():
        stop_signal.set_result(name)
