"""The commands `edge-gateway plugins list|new|test`: their output and exit codes."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.commands.admin_client import authorization_from, get_status
from gateway.commands.plugins_list import rows, table
from gateway.commands.plugins_new import NameInvalid, check_name, create
from gateway.commands.plugins_test import configured, report, requests
from gateway.registry import BackendConfig, installed_plugins
from gateway.settings import Listener, Settings, SettingsError, load
from gateway.settings.tree import PREFIX

FAILED = 1


def list_plugins(args: argparse.Namespace) -> int:
    """Print a row for each backend, and for each plugin without a backend."""
    backends, admin = _configured(args.env_file)
    try:
        status, source = _status_of(admin, authorization_from(args.key_file))
    except OSError as exc:
        return _fail(f"--key-file {args.key_file}: {(exc.strerror or str(exc)).lower()}")
    found = list(rows(backends, status))
    if args.json:
        print(json.dumps([row.as_json() for row in found], indent=1))
    else:
        print("\n".join(table(found)))
        print(source, file=sys.stderr)
    return os.EX_OK


def _configured(env_file: Path | None) -> tuple[Mapping[str, BackendConfig], Listener]:
    """The backends of this environment, and the admin listener of its gateway.

    Problems of the configuration are not reported here: that is the task of `check`.
    """
    try:
        loaded = load(os.environ, env_file)
        return loaded.backends, loaded.settings.admin_listen
    except SettingsError:
        admin_listen = os.environ.get(f"{PREFIX}ADMIN_LISTEN")
    try:
        return {}, Settings.model_validate({"admin_listen": admin_listen} if admin_listen else {}).admin_listen
    except ValueError:
        return {}, Settings.model_validate({}).admin_listen


def _status_of(admin: Listener, key: Mapping[str, str]) -> tuple[Mapping[str, Any] | None, str]:
    """The running gateway's status, if available, and a line that names the source of the states."""
    try:
        status = get_status(admin, key)
    except OSError:
        return None, f"no gateway answers at {admin}: the states are those of this environment"
    if status is None:
        return None, f"the gateway at {admin} requires a key with `admin`: name one with --key-file"
    return status, f"the states are those of the gateway at {admin}"


def new_plugin(args: argparse.Namespace) -> int:
    """Write a new plugin; print its files and the next step."""
    try:
        plugin = create(check_name(args.name, installed_plugins()), args.into)
    except NameInvalid as exc:
        return _fail(str(exc))
    except FileExistsError as exc:
        return _fail(f"{exc.filename} exists already; nothing was written")
    except OSError as exc:
        return _fail(str(exc))
    for file in plugin.files:
        print(file)
    print(f"next: cd {plugin.folder} && edge-gateway plugins test {plugin.entry}", file=sys.stderr)
    return os.EX_OK


def test_plugin(args: argparse.Namespace) -> int:
    """Check a plugin; print each check with its fix."""
    sys.path.insert(0, os.getcwd())  # a plugin under development is imported from the working directory
    try:
        config, tasks = configured(args.name, args.set, os.environ), requests(args.task)
    except SettingsError as exc:
        for problem in exc.problems:
            print(problem, file=sys.stderr)
        return os.EX_CONFIG
    except (ValueError, OSError) as exc:
        return _fail(str(exc))
    return _fail(config.broken) if config.broken else asyncio.run(_run_checks(config, tasks))


async def _run_checks(config: BackendConfig, tasks: Mapping[str, Any] | None) -> int:
    has_failed = False
    async for line, is_failure in report(config, tasks):
        print(line, flush=True)
        has_failed = has_failed or is_failure
    return FAILED if has_failed else os.EX_OK


def _fail(message: str) -> int:
    print(f"edge-gateway: {message}", file=sys.stderr)
    return FAILED
