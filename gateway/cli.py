"""The command line. Each command imports only the modules it needs, so that `version` does not load the gateway.

A command is one line in COMMANDS: its name, its help text, its function and its arguments.
Exit codes: 0 success, 1 failure, 2 usage, 78 configuration (EX_CONFIG of sysexits.h).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from gateway import __version__

if TYPE_CHECKING:
    from gateway.plugin import Backend
    from gateway.settings import Loaded, Problem

OK, FAILED, CONFIGURATION = 0, 1, 78
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


@dataclass(frozen=True, slots=True)
class Command:
    """A sub-command. takes_rest: undeclared arguments, also `--help`, are passed to it as `args.rest`."""

    name: str
    help: str
    run: Callable[[argparse.Namespace], int]
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    takes_rest: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and not args.command.takes_rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.rest = rest
    try:
        return _run_and_flush(args)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `config | head`: the reader has closed the pipe
        _discard_output(sys.stdout)
        return FAILED


def _discard_output(stream: TextIO) -> None:
    """Discard the stream's buffered output, which cannot be written; Python would try again at exit and report it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run_and_flush(args: argparse.Namespace) -> int:
    command: Command = args.command
    code = command.run(args)
    sys.stdout.flush()
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-gateway",
        description="Routes each AI request to the backend, on the site or in the cloud, that is predicted to be best.",
        epilog="Settings are GATEWAY_… environment variables: `edge-gateway config --env` explains all of them. "
        "Exit codes: 0 success, 1 failure, 2 usage, 78 configuration.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name, help=command.help, description=command.help, add_help=not command.takes_rest
        )
        command.arguments(sub)
        sub.set_defaults(command=command)
    return parser


# ── serve, demo ──────────────────────────────────────────────────────────────────────────────────


def _serve(args: argparse.Namespace) -> int:
    import gc
    import signal

    from gateway import memory_privacy
    from gateway.settings.tree import PREFIX

    memory_privacy.forbid_dumps()  # before a secret is read
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the configuration is loaded
    gc.disable()  # imports create no garbage, and collections among them cost 30 ms; the service enables it
    environ = memory_privacy.take_variables(PREFIX)
    loaded = _load_or_print_problems(args.env_file, environ=environ)
    if loaded is None:
        return CONFIGURATION
    from gateway import service

    return service.serve(loaded, args.env_file, environ)


def _demo(args: argparse.Namespace) -> int:
    from gateway import demo

    return demo.main(args.rest)


# ── check, config ────────────────────────────────────────────────────────────────────────────────


def _check(args: argparse.Namespace) -> int:
    loaded = _load_or_print_problems(args.env_file, out=sys.stdout)
    if loaded is None:
        return CONFIGURATION
    for problem in loaded.broken:
        print(problem)
    if loaded.broken:
        return CONFIGURATION
    for line in _backend_table(loaded):
        print(line)
    if args.env_file is not None:
        _warn_of_exposed_secrets(loaded, args.env_file)
    return OK


def _warn_of_exposed_secrets(loaded: Loaded, env_file: Path) -> None:
    from gateway.settings.report import exposed_secrets

    if exposed := exposed_secrets(loaded, env_file):
        print(
            f"edge-gateway: warning: every user of this machine can read {env_file}, which holds secrets "
            f"({', '.join(exposed)}). Fix: chmod o-r {env_file}, or keep each in a file of its own, named by X_FILE",
            file=sys.stderr,
        )


def _backend_table(loaded: Loaded) -> Iterator[str]:
    for backend in loaded.backends.values():
        site = (backend.settings and backend.settings.site) or (backend.cls and backend.cls.site)
        yield f"{backend.name}: plugin {backend.plugin}, site {site}: ok"


def _config(args: argparse.Namespace) -> int:
    from gateway.settings.report import render_env, show_settings

    if args.env:
        print(render_env(_usable_plugins()), end="")
        return OK
    loaded = _load_or_print_problems(args.env_file)
    if loaded is None:
        return CONFIGURATION
    for line in show_settings(loaded):
        print(line)
    return OK


def _load_or_print_problems(
    env_file: Path | None, out: Any = None, *, environ: Mapping[str, str] = os.environ
) -> Loaded | None:
    """The configuration; None after printing every problem."""
    from gateway.settings import SettingsError, load

    try:
        return load(environ, env_file)
    except SettingsError as exc:
        try:
            _print_problems(exc.problems, out or sys.stderr)
        except OSError:
            if out is not None:
                raise
            _discard_output(sys.stderr)  # a full disk, for example: the exit status still reports the problem
        return None


def _print_problems(problems: Sequence[Problem], out: Any) -> None:
    for problem in problems:
        print(problem, file=out)


# ── explain ──────────────────────────────────────────────────────────────────────────────────────


def _explain(args: argparse.Namespace) -> int:
    from gateway.commands import explain

    loaded = _load_or_print_problems(args.env_file)
    return CONFIGURATION if loaded is None else explain.run(loaded, args)


# ── plugins, version ─────────────────────────────────────────────────────────────────────────────


def _plugins(action: str, args: argparse.Namespace) -> int:
    from gateway.commands import plugins

    return int(getattr(plugins, action)(args))


def _usable_plugins() -> Mapping[str, type[Backend[Any]]]:
    from gateway.registry import PluginBroken, find_plugin, installed_plugins

    found = {}
    for name in sorted(installed_plugins()):
        try:
            found[name] = find_plugin(name)
        except PluginBroken as exc:
            print(f"edge-gateway: plugin left out: {exc}", file=sys.stderr)
    return found


# ── doctor ───────────────────────────────────────────────────────────────────────────────────────


def _doctor(args: argparse.Namespace) -> int:
    from gateway.commands import doctor

    return doctor.run(os.environ, args.env_file, args.key_file, as_json=args.json)


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────


def _keys(args: argparse.Namespace) -> int:
    from gateway.admit import KeysInvalid

    path = args.file or _keys_file(args.env_file)
    if path is None:
        print("edge-gateway: no keys file is configured; set GATEWAY_KEYS_FILE, or use --file PATH", file=sys.stderr)
        return CONFIGURATION
    try:
        return int(args.action(path, args))
    except (KeysInvalid, OSError) as exc:
        print(f"edge-gateway: {exc}", file=sys.stderr)
        return FAILED


def _keys_file(env_file: Path | None) -> Path | None:
    """The keys file of the settings. Other settings may be invalid, for example because a key does not exist yet."""
    from gateway.settings.tree import PREFIX
    from gateway.settings.variables import read_variables

    name = f"{PREFIX}KEYS_FILE"
    variables, problems = read_variables(os.environ, env_file, (), (name,))
    _print_problems([problem for problem in problems if problem.variable == "--env-file"], sys.stderr)
    found = variables.get(name)
    return Path(found.text).expanduser() if found and found.text else None


def _keys_create(path: Path, args: argparse.Namespace) -> int:
    from gateway.commands import keys

    print(keys.create(path, args))
    if args.burst is not None and args.requests_per_minute is None:
        print("edge-gateway: --burst has no effect without --requests-per-minute", file=sys.stderr)
    print(
        f"The key is shown once; {path} contains only its hash. For a running gateway to accept it: "
        "systemctl reload edge-gateway",
        file=sys.stderr,
    )
    return OK


def _keys_list(path: Path, args: argparse.Namespace) -> int:
    from gateway.admit.keyfile import read_keys
    from gateway.commands import keys

    for line in keys.listing(read_keys(path)):
        print(line)
    return OK


def _keys_revoke(path: Path, args: argparse.Namespace) -> int:
    from gateway.commands import keys

    was_last_admin = keys.revoke(path, args.id)
    print(f"{args.id} is removed from {path}; a running gateway accepts it until: systemctl reload edge-gateway")
    if was_last_admin:
        print(
            f"edge-gateway: {path} has no valid key with `admin` any more. If other machines can reach "
            "GATEWAY_ADMIN_LISTEN, a reload will reject this configuration and keep the old one, and a restart will "
            "fail. Fix: `edge-gateway keys create NAME --admin` before the reload",
            file=sys.stderr,
        )
    return OK


def _version(args: argparse.Namespace) -> int:
    if not args.json:
        print(f"edge-gateway {__version__}")
        return OK
    import json
    import platform

    about = {"version": __version__, "python": platform.python_version(), "machine": platform.machine()}
    print(json.dumps(about))
    return OK


# ── arguments ────────────────────────────────────────────────────────────────────────────────────


def _env_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--env-file", type=Path, metavar="PATH", help="read settings from this file too; the environment overrides it"
    )


def _key_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--key-file",
        type=Path,
        metavar="PATH",
        help="file with an API key that has `admin`, if the admin listener requires one",
    )


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    _env_file(parser)
    parser.add_argument("--env", action="store_true", help="print an environment file with all settings instead")


def _explain_arguments(parser: argparse.ArgumentParser) -> None:
    _env_file(parser)
    _key_file(parser)
    parser.add_argument("path", metavar="PATH", help="the endpoint, such as /v1/chat/completions")
    parser.add_argument("body", metavar="BODY|@FILE", nargs="?", default="{}", help="the body of the request")
    parser.add_argument("--content-type", default="application/json", help="content type of the body")
    parser.add_argument("--edge-only", action="store_true", help="as with the header x-gateway-locality: edge-only")
    parser.add_argument("--json", action="store_true", help="print the response of the admin listener as JSON")


def _plugins_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="list plugins and backends with version, state and served names")
    _env_file(listing)
    _key_file(listing)
    listing.add_argument("--json", action="store_true", help="print a JSON array with one object per row")
    listing.set_defaults(action=partial(_plugins, "list_plugins"))
    new = actions.add_parser("new", help="create a plugin: a module, its tests and its packaging")
    new.add_argument("name", metavar="NAME", help="lower-case letters, digits, hyphens; also the name of its task")
    new.add_argument("--into", type=Path, metavar="DIR", default=Path(), help="parent of the new folder (here)")
    new.set_defaults(action=partial(_plugins, "new_plugin"))
    test = actions.add_parser("test", help="check a plugin against the promises of the backend interface; print fixes")
    test.add_argument("name", metavar="NAME", help="an installed plugin, or package.module:attribute")
    test.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, such as URL=http://…")
    test.add_argument(
        "--task", action="append", default=[], metavar="NAME=JSON|@FILE", help="a request that the plugin must serve"
    )
    test.set_defaults(action=partial(_plugins, "test_plugin"))


def _keys_arguments(parser: argparse.ArgumentParser) -> None:
    _env_file(parser)
    parser.add_argument("--file", type=Path, metavar="PATH", help="the keys file; default: GATEWAY_KEYS_FILE")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="create a key; its secret is printed once")
    create.set_defaults(action=_keys_create)
    _new_key_arguments(create)
    actions.add_parser("list", help="list the keys with their rules").set_defaults(action=_keys_list)
    revoke = actions.add_parser("revoke", help="remove a key from the file")
    revoke.add_argument("id", metavar="NAME")
    revoke.set_defaults(action=_keys_revoke)


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    _env_file(parser)
    _key_file(parser)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def _new_key_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="NAME", help="name of the key: letters, digits, hyphens")
    parser.add_argument("--models", metavar="A,B", help="allowed models, with `*` at the end for any rest")
    parser.add_argument("--tasks", metavar="A,B", help="allowed tasks, with `*` at the end for any rest")
    parser.add_argument("--requests-per-minute", type=float, metavar="N", help="maximum rate of requests")
    parser.add_argument("--burst", type=int, metavar="N", help="maximum requests at once (10, at most a minute's)")
    parser.add_argument("--concurrency", type=int, metavar="N", help="maximum requests in progress")
    parser.add_argument("--max-body-bytes", type=int, metavar="N", help="maximum size of a request body")
    parser.add_argument("--expires", metavar="90d|DATE", help="days from now, or an RFC 3339 date or time")
    parser.add_argument("--edge-only", action="store_true", help="requests are served on the site only")
    parser.add_argument("--admin", action="store_true", help="allow access to the admin listener from other machines")
    parser.add_argument("--certificate", metavar="NAME", help="a client certificate of this name counts as the key")


def _version_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a JSON object that includes the Python version")


COMMANDS: tuple[Command, ...] = (
    Command("serve", "run the gateway", _serve, _env_file),
    Command("demo", "run a demonstration that needs no configuration", _demo, takes_rest=True),
    Command("check", "report every problem of the configuration, with a fix", _check, _env_file),
    Command("config", "print the effective settings with their origins", _config, _config_arguments),
    Command("explain", "print a running gateway's decision for a request, and why", _explain, _explain_arguments),
    Command("doctor", "check host, certificates, backends and broker, with advice", _doctor, _doctor_arguments),
    Command("keys", "create, list and revoke API keys", _keys, _keys_arguments),
    Command("plugins", "list, create and test plugins", lambda args: int(args.action(args)), _plugins_arguments),
    Command("version", "print the version", _version, _version_arguments),
)


if __name__ == "__main__":
    sys.exit(main())
