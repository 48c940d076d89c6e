"""The commands. Each loads only what it needs, so that asking for the version does not start a gateway.

A command is one line in COMMANDS: its name, what it does, its arguments, and the function that does it.
Exit codes: 0 done, 1 failed, 2 usage, 78 configuration (EX_CONFIG of sysexits.h).
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
    """A sub-command. takes_rest: arguments it does not declare are handed on as `args.rest`, `--help` too."""

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
        return _checked(args)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `config | head`: nobody reads on
        _give_up(sys.stdout)
        return FAILED


def _give_up(stream: TextIO) -> None:
    """What it holds cannot be written; Python would try once more at exit, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _checked(args: argparse.Namespace) -> int:
    command: Command = args.command
    code = command.run(args)
    sys.stdout.flush()
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-gateway",
        description="Gives each AI request to the backend, here or far away, that will finish it best.",
        epilog="Settings are GATEWAY_… environment variables: `edge-gateway config --env` explains all of them. "
        "Exit codes: 0 done, 1 failed, 2 usage, 78 configuration.",
    )
    plugins = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = plugins.add_parser(
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
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is a configuration to read again
    gc.disable()  # what start-up imports is all kept: looking for garbage in it costs 30 ms; the service enables it
    environ = memory_privacy.take_variables(PREFIX)
    loaded = _load_or_tell(args.env_file, environ=environ)
    if loaded is None:
        return CONFIGURATION
    from gateway import service

    return service.serve(loaded, args.env_file, environ)


def _demo(args: argparse.Namespace) -> int:
    from gateway import demo

    return demo.main(args.rest)


# ── check, config ────────────────────────────────────────────────────────────────────────────────


def _check(args: argparse.Namespace) -> int:
    loaded = _load_or_tell(args.env_file, out=sys.stdout)
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
    loaded = _load_or_tell(args.env_file)
    if loaded is None:
        return CONFIGURATION
    for line in show_settings(loaded):
        print(line)
    return OK


def _load_or_tell(env_file: Path | None, out: Any = None, *, environ: Mapping[str, str] = os.environ) -> Loaded | None:
    """The configuration; or None, when every problem has been printed."""
    from gateway.settings import SettingsError, load

    try:
        return load(environ, env_file)
    except SettingsError as exc:
        try:
            _tell(exc.problems, out or sys.stderr)
        except OSError:
            if out is not None:
                raise
            _give_up(sys.stderr)  # a full disk, say: the exit status says it, too
        return None


def _tell(problems: Sequence[Problem], out: Any) -> None:
    for problem in problems:
        print(problem, file=out)


# ── explain ──────────────────────────────────────────────────────────────────────────────────────


def _explain(args: argparse.Namespace) -> int:
    from gateway.commands.explain import ask, key_in, table

    loaded = _load_or_tell(args.env_file)
    if loaded is None:
        return CONFIGURATION
    headers = {"Content-Type": args.content_type}
    if args.edge_only:
        headers["x-gateway-locality"] = "edge-only"
    admin = loaded.settings.admin_listen
    try:
        body = Path(args.body[1:]).read_bytes() if args.body.startswith("@") else args.body.encode()
        headers |= key_in(args.key_file)
    except OSError as exc:
        print(f"edge-gateway: {exc}", file=sys.stderr)
        return FAILED
    try:
        status, answer = ask(admin, args.path, body, headers)
    except OSError as exc:
        print(f"edge-gateway: {admin} was not asked: {exc}; is the gateway running?", file=sys.stderr)
        return FAILED
    if status in (401, 403):
        why = answer["error"]["message"]
        print(f"edge-gateway: {admin} does not tell us: {why}; name a key with --key-file", file=sys.stderr)
        return FAILED
    if status != 200:
        print(f"edge-gateway: the request would be refused: {answer['error']['message']}", file=sys.stderr)
        return FAILED
    if args.json:
        import json

        print(json.dumps(answer))
    else:
        print("\n".join(table(answer)))
    return OK


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
            print(f"edge-gateway: left out: {exc}", file=sys.stderr)
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
        print("edge-gateway: which keys file? Set GATEWAY_KEYS_FILE, or say --file PATH", file=sys.stderr)
        return CONFIGURATION
    try:
        return int(args.action(path, args))
    except (KeysInvalid, OSError) as exc:
        print(f"edge-gateway: {exc}", file=sys.stderr)
        return FAILED


def _keys_file(env_file: Path | None) -> Path | None:
    """Where the settings say the keys are. The rest of them need not be right: a key may be what is missing."""
    from gateway.settings.tree import PREFIX
    from gateway.settings.variables import read_variables

    name = f"{PREFIX}KEYS_FILE"
    variables, problems = read_variables(os.environ, env_file, (), (name,))
    _tell([problem for problem in problems if problem.variable == "--env-file"], sys.stderr)
    found = variables.get(name)
    return Path(found.text).expanduser() if found and found.text else None


def _keys_create(path: Path, args: argparse.Namespace) -> int:
    from gateway.commands import keys

    print(keys.create(path, args))
    if args.burst is not None and args.requests_per_minute is None:
        print("edge-gateway: --burst does nothing without --requests-per-minute", file=sys.stderr)
    print(
        f"This is shown once; {path} holds only its hash. A running gateway reads it when told: "
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
    print(f"{args.id} is out of {path}; until it is told (systemctl reload edge-gateway), a running gateway serves it")
    if was_last_admin:
        print(
            f"edge-gateway: no key in {path} that is still good has `admin`. Where others can reach "
            "GATEWAY_ADMIN_LISTEN, the gateway will refuse this configuration, and go on with the old keys until it is "
            "restarted. Fix: `edge-gateway keys create NAME --admin` before you reload",
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


# ── the table ────────────────────────────────────────────────────────────────────────────────────


def _env_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--env-file", type=Path, metavar="PATH", help="read settings from this file too; the environment wins over it"
    )


def _key_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--key-file", type=Path, metavar="PATH", help="holds a key that has `admin`, where the admin listener wants one"
    )


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    _env_file(parser)
    parser.add_argument("--env", action="store_true", help="print an environment file of every setting instead")


def _explain_arguments(parser: argparse.ArgumentParser) -> None:
    _env_file(parser)
    _key_file(parser)
    parser.add_argument("path", metavar="PATH", help="the endpoint, such as /v1/chat/completions")
    parser.add_argument("body", metavar="BODY|@FILE", nargs="?", default="{}", help="the request's own body")
    parser.add_argument("--content-type", default="application/json", help="of the body")
    parser.add_argument("--edge-only", action="store_true", help="as with the header x-gateway-locality: edge-only")
    parser.add_argument("--json", action="store_true", help="the admin listener's answer as it is")


def _plugins_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="each plugin: where it is from, what it serves, its state, or why not")
    _env_file(listing)
    _key_file(listing)
    listing.add_argument("--json", action="store_true", help="as a JSON array, one object for each row")
    listing.set_defaults(action=partial(_plugins, "list_plugins"))
    new = actions.add_parser("new", help="make a plugin of your own: one module, its tests, its packaging")
    new.add_argument("name", metavar="NAME", help="small letters, digits, hyphens; the task it serves is called so too")
    new.add_argument("--into", type=Path, metavar="DIR", default=Path(), help="where its folder is made (here)")
    new.set_defaults(action=partial(_plugins, "new_plugin"))
    test = actions.add_parser("test", help="check that a plugin keeps every promise of a backend, and what to fix")
    test.add_argument("name", metavar="NAME", help="an installed plugin, or package.module:attribute")
    test.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, such as URL=http://…")
    test.add_argument(
        "--task", action="append", default=[], metavar="NAME=JSON|@FILE", help="a request that it should answer"
    )
    test.set_defaults(action=partial(_plugins, "test_plugin"))


def _keys_arguments(parser: argparse.ArgumentParser) -> None:
    _env_file(parser)
    parser.add_argument("--file", type=Path, metavar="PATH", help="the keys file; else GATEWAY_KEYS_FILE names it")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="make a key; its secret is printed once")
    create.set_defaults(action=_keys_create)
    _new_key_arguments(create)
    actions.add_parser("list", help="each key and what it allows").set_defaults(action=_keys_list)
    revoke = actions.add_parser("revoke", help="take a key out of the file")
    revoke.add_argument("id", metavar="NAME")
    revoke.set_defaults(action=_keys_revoke)


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    _env_file(parser)
    _key_file(parser)
    parser.add_argument("--json", action="store_true", help="the findings as JSON")


def _new_key_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="NAME", help="who it is for: letters, digits, hyphens")
    parser.add_argument("--models", metavar="A,B", help="models it may ask for; a `*` at the end for any rest")
    parser.add_argument("--tasks", metavar="A,B", help="tasks it may ask for")
    parser.add_argument("--requests-per-minute", type=float, metavar="N", help="how often it may ask")
    parser.add_argument("--burst", type=int, metavar="N", help="requests that may come at once (10, or a minute's)")
    parser.add_argument("--concurrency", type=int, metavar="N", help="requests it may have open at once")
    parser.add_argument("--max-body-bytes", type=int, metavar="N", help="the largest body it may send")
    parser.add_argument("--expires", metavar="90d|DATE", help="days from now, or an RFC 3339 date or time")
    parser.add_argument("--edge-only", action="store_true", help="what it asks for never leaves the site")
    parser.add_argument("--admin", action="store_true", help="may read an admin listener that others can reach")
    parser.add_argument("--certificate", metavar="NAME", help="a client certificate of this name is as good as the key")


def _version_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as a JSON object, with the Python it runs on")


COMMANDS: tuple[Command, ...] = (
    Command("serve", "run the gateway", _serve, _env_file),
    Command("demo", "show the gateway at work, with nothing configured", _demo, takes_rest=True),
    Command("check", "name every problem of the configuration, with a fix", _check, _env_file),
    Command("config", "print the effective settings and where each came from", _config, _config_arguments),
    Command("explain", "what a running gateway would decide for a request, and why", _explain, _explain_arguments),
    Command("doctor", "look at everything the gateway depends on here, with advice", _doctor, _doctor_arguments),
    Command("keys", "make, list and revoke API keys", _keys, _keys_arguments),
    Command("plugins", "list, make and test plugins", lambda args: int(args.action(args)), _plugins_arguments),
    Command("version", "print the version", _version, _version_arguments),
)


if __name__ == "__main__":
    sys.exit(main())
