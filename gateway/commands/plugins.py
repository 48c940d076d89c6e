"""The commands `edge-gateway plugins list|new|test`: what they print, and their exit codes."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.commands.explain import key_in, status
from gateway.commands.plugins_list import rows, table
from gateway.commands.plugins_new import NameInvalid, checked_name, create
from gateway.commands.plugins_test import configured, report, requests
from gateway.registry import BackendConfig, installed_plugins
from gateway.settings import Listener, Settings, SettingsError, load
from gateway.settings.tree import PREFIX

FAILED = 1


def list_plugins(args: argparse.Namespace) -> int:
    """One row for each backend, and for each plugin that none is made of."""
    backends, admin = _configured(args.env_file)
    try:
        told, whose = _status_of(admin, key_in(args.key_file))
    except OSError as exc:
        return _fail(f"--key-file {args.key_file}: {(exc.strerror or str(exc)).lower()}")
    found = list(rows(backends, told))
    if args.json:
        print(json.dumps([row.as_json() for row in found], indent=1))
    else:
        print("\n".join(table(found)))
        print(whose, file=sys.stderr)
    return os.EX_OK


def _configured(env_file: Path | None) -> tuple[Mapping[str, BackendConfig], Listener]:
    """What this environment enables, and where its gateway is asked. What is wrong with it `check` tells, not we."""
    try:
        loaded = load(os.environ, env_file)
        return loaded.backends, loaded.settings.admin_listen
    except SettingsError:
        said = os.environ.get(f"{PREFIX}ADMIN_LISTEN")
    try:
        return {}, Settings.model_validate({"admin_listen": said} if said else {}).admin_listen
    except ValueError:
        return {}, Settings.model_validate({}).admin_listen


def _status_of(admin: Listener, key: Mapping[str, str]) -> tuple[Mapping[str, Any] | None, str]:
    """What the running gateway says of itself, and a line that says whether it was asked."""
    try:
        told = status(admin, key)
    except OSError:
        return None, f"no gateway answers at {admin}: the states are what this environment enables"
    if told is None:
        return None, f"the gateway at {admin} tells keys with `admin` only: name one with --key-file"
    return told, f"the states are what the gateway at {admin} says"


def new_plugin(args: argparse.Namespace) -> int:
    """The files that were written, and what to do next."""
    try:
        made = create(checked_name(args.name, installed_plugins()), args.into)
    except NameInvalid as exc:
        return _fail(str(exc))
    except FileExistsError as exc:
        return _fail(f"{exc.filename} exists already; nothing was written")
    except OSError as exc:
        return _fail(str(exc))
    for file in made.files:
        print(file)
    print(f"next: cd {made.folder} && edge-gateway plugins test {made.entry}", file=sys.stderr)
    return os.EX_OK


def test_plugin(args: argparse.Namespace) -> int:
    """Each check as it is done, with what to fix."""
    sys.path.insert(0, os.getcwd())  # a plugin that is being written is tried where it lies
    try:
        config, tasks = configured(args.name, args.set, os.environ), requests(args.task)
    except SettingsError as exc:
        for problem in exc.problems:
            print(problem, file=sys.stderr)
        return os.EX_CONFIG
    except (ValueError, OSError) as exc:
        return _fail(str(exc))
    return _fail(config.broken) if config.broken else asyncio.run(_try(config, tasks))


async def _try(config: BackendConfig, tasks: Mapping[str, Any] | None) -> int:
    was_broken = False
    async for line, is_broken in report(config, tasks):
        print(line, flush=True)
        was_broken = was_broken or is_broken
    return FAILED if was_broken else os.EX_OK


def _fail(why: str) -> int:
    print(f"edge-gateway: {why}", file=sys.stderr)
    return FAILED
