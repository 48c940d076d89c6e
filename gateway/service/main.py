"""The process around a gateway: signals, what systemd hears, reading the configuration again, the exit status."""

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
from gateway.service import event_loop, systemd
from gateway.service.service import Service
from gateway.settings import Loaded, SettingsError, load
from gateway.telemetry import configure, exception_fields, log, log_bug, log_python_warning, log_task_failure
from gateway.tls import TlsInvalid

CONFIGURATION = 78  # EX_CONFIG of sysexits.h
STOP_S = 60.0  # what systemd is told that stopping may take: all it may wait for, twice

unhandled = exception_hooks.loop_handler(log_bug)
_reader = ThreadPoolExecutor(1, "reload")  # its own: behind plugins that fill asyncio's, a reload would wait for ever


def serve(loaded: Loaded, env_file: Path | None = None, environ: Mapping[str, str] = os.environ) -> NoReturn:
    """Run until SIGTERM or SIGINT, reading the configuration again on SIGHUP; then end the process.

    environ: the environment that `loaded` was read from; a reload reads it again, with the files that it names.
    """
    configure(loaded.settings.log.format, loaded.settings.log.level)
    exception_hooks.install(log_bug, log_python_warning)
    event_loop.leave(_status(loaded, env_file, environ))


def _status(loaded: Loaded, env_file: Path | None, environ: Mapping[str, str]) -> int:
    try:
        event_loop.run(_run(loaded, env_file, environ))
    except SettingsError as exc:
        log.error("service.failed", error=str(exc))
        return CONFIGURATION
    except (OSError, RuntimeError, GatewayError) as exc:
        log.error("service.failed", error=str(exc))
        return 1
    except BaseException as exc:  # also SystemExit: systemd does not start again what ends with 0 or 78
        found = exception_fields(exc)
        log.error("service.failed", error=f"{found['error']} at {found['where']}")
        return 1
    return 0


async def _run(loaded: Loaded, env_file: Path | None, environ: Mapping[str, str]) -> None:
    here = asyncio.get_running_loop()
    here.set_exception_handler(unhandled)
    asked: asyncio.Future[str] = here.create_future()
    for name in ("SIGTERM", "SIGINT"):
        here.add_signal_handler(getattr(signal, name), partial(_ask, asked, name))
    told = asyncio.Event()  # while it starts, too; one that comes before this line is ignored
    here.add_signal_handler(signal.SIGHUP, told.set)
    service = Service(loaded.settings, loaded.backends, loaded.keys)
    starting: asyncio.Future[None] = asyncio.ensure_future(service.start())
    either: list[asyncio.Future[Any]] = [starting, asked]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
        gc.collect()
        gc.freeze()  # what start-up made stays; no need to look at it again
        gc.enable()
        reloader = _reload_when_told(service, env_file, environ, told)
        reloading = log_task_failure(asyncio.create_task(reloader, name="reload"))
        systemd.notify("READY=1", f"STATUS=serving on {', '.join(service.bound)}")
        await asked
        reloading.cancel()
    log.info("service.stopping", signal=asked.result())
    systemd.notify("STOPPING=1", "STATUS=finishing what is in flight", f"EXTEND_TIMEOUT_USEC={STOP_S * 1_000_000:.0f}")
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting})
    await service.stop()
    threads = event_loop.threads_left()
    if threads or service.dispatcher.is_stuck or service.registry.stuck():
        backends = sorted({*service.dispatcher.stuck(), *service.registry.stuck()})
        log.error("service.abandoned", backends=backends, threads=threads)


async def _reload_when_told(
    service: Service, env_file: Path | None, environ: Mapping[str, str], told: asyncio.Event
) -> None:
    while True:
        await told.wait()
        told.clear()
        systemd.reloading()
        try:
            await reload(service, env_file, environ)
        except BaseException as exc:  # a bug, ours or a plugin's: the old configuration serves on, and the next is read
            if is_own_cancellation(exc):
                raise  # with no word to systemd, which has heard that we stop
            found = exception_fields(exc)
            log.error("service.reload_failed", problems=[f"{found['error']} at {found['where']}"])
        systemd.notify("READY=1", f"STATUS=serving on {', '.join(service.bound)}")


async def reload(service: Service, env_file: Path | None, environ: Mapping[str, str] = os.environ) -> None:
    """Read everything again; where anything is wrong with it, all stays as it is, but for keys that are gone."""
    try:
        loaded = await asyncio.get_running_loop().run_in_executor(_reader, load, environ, env_file)
        waiting = await service.reload(loaded)
    except (SettingsError, TlsInvalid) as exc:
        problems = exc.problems if isinstance(exc, SettingsError) else [exc]
        log.error("service.reload_failed", problems=[*map(str, problems), *await _revoked(service)])
        return
    configure(loaded.settings.log.format, loaded.settings.log.level)
    log.info("service.reloaded", backends=sorted(loaded.backends), waiting_for_restart=waiting)


async def _revoked(service: Service) -> list[str]:
    """A key that was taken out of the file is worth nothing from now on, whatever else is wrong there; what to say."""
    file = service.settings.keys_file
    if file is None:
        return []
    try:
        there_are = await asyncio.get_running_loop().run_in_executor(_reader, read_keys, file)
    except KeysInvalid:  # that is among the problems
        return []
    gone = service.gate.revoke_all_but(there_are)
    return [f"revoked nevertheless: {', '.join(gone)}"] if gone else []


def _ask(asked: asyncio.Future[str], name: str) -> None:
    if not asked.done():
        asked.set_result(name)
