"""Generate docs/configuration.md from the settings tree and the plugins.

    PYTHONPATH=.:plugins python -m gateway.settings.docs > docs/configuration.md

Run it at the root of a checkout. It describes the plugins that pyproject.toml declares, not the installed ones.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from gateway.plugin import BackendSettings
from gateway.registry import ENTRY_POINT_GROUP, find_plugin
from gateway.settings.model import Leaf, leaves_of
from gateway.settings.report import Plugins, backend_leaves, is_common, summary
from gateway.settings.tree import PREFIX, Settings
from gateway.settings.variables import BACKENDS

_ANY_BACKEND = f"{BACKENDS}__<NAME>__"

_HEAD = """\
# Configuration

<!-- Generated. To change it, change gateway/settings/ or a plugin's settings, then, at the root of a checkout:
     PYTHONPATH=.:plugins python -m gateway.settings.docs > docs/configuration.md -->

All settings are environment variables that begin with `GATEWAY_`. The gateway reads them at its start. On SIGHUP it
reads the file from `--env-file` again ([operate.md](operate.md#new-settings-while-it-serves)).

| command | function |
|---|---|
| `edge-gateway check` | names every problem with its variable and a fix; exit code 78 if there is a problem |
| `edge-gateway config` | prints the effective settings and the source of each; secrets are redacted |
| `edge-gateway config --env` | prints a template: an environment file of every setting, its meaning and default |

## Sources of a value

The first of these sources that has the variable gives its value:

1. The process environment.
2. The file given by `--env-file PATH`: `NAME=value` on each line, comments after `#` or `;`. A value with spaces, `#`
   or quotes must be in quotes. Variables are not expanded: `$X` stays `$X`.
3. The default.

An empty value counts as unset. Lists are comma separated. JSON is accepted for lists, for maps and for a whole group:
`GATEWAY_POLICY='{"hysteresis": 0.05}'` is equivalent to `GATEWAY_POLICY__HYSTERESIS=0.05`, and
`GATEWAY_BACKENDS__CLOUD='{"plugin": "http", "url": "https://api.example.com"}'` describes a whole backend.

An unknown `GATEWAY_…` variable is an error that names the nearest known variable, so a misspelt name is never ignored.
A name with non-ASCII letters is an error as well. Variables that other software injects are ignored:
`GATEWAY_INTERFACE`, and the variables that Docker and Kubernetes create for a service called `gateway`
(`…_SERVICE_HOST`, `…_SERVICE_PORT*`, `…_PORT`, `…_PORT_<n>_*`).

## Secrets

The gateway looks for a setting marked *secret* in three places and uses the first that exists:

1. a file of the variable's name in `$CREDENTIALS_DIRECTORY`
   (systemd: `LoadCredential=GATEWAY_BACKENDS__CLOUD__API_KEY:/etc/edge-gateway/cloud.key`),
2. the file named by the variable with `_FILE` added (`GATEWAY_BACKENDS__CLOUD__API_KEY_FILE=/run/secrets/cloud`),
3. the variable itself.

A file in `$CREDENTIALS_DIRECTORY` with a name `GATEWAY_…` that is not the name of a secret is an error as well. There
is one exception: a file named like a setting that is set (`Environment=GATEWAY_TLS__KEY_FILE=%d/GATEWAY_TLS__KEY_FILE`)
belongs to that setting.

The newline at the end of such a file is dropped. `check` and `config` never print a secret, nor the user and password
in a URL.

## Examples

This setting serves `POST /v1/tasks/add` on this machine only:

    GATEWAY_BACKENDS__EDGE__PLUGIN=local

A small model runs on a box in the same network, a large model in the cloud. Requests for `assistant` go to the backend
that is predicted to finish first, requests for `box/assistant` to the box:

    GATEWAY_BACKENDS__BOX__PLUGIN=http
    GATEWAY_BACKENDS__BOX__URL=http://192.168.1.20:11434
    GATEWAY_BACKENDS__BOX__SITE=edge
    GATEWAY_BACKENDS__BOX__MODELS='{"assistant": "llama3.2:3b"}'
    GATEWAY_BACKENDS__CLOUD__PLUGIN=http
    GATEWAY_BACKENDS__CLOUD__URL=https://api.openai.com/v1
    GATEWAY_BACKENDS__CLOUD__API_KEY_FILE=/run/secrets/openai
    GATEWAY_BACKENDS__CLOUD__MODELS='{"assistant": "gpt-4o-mini"}'

The same function runs here and at a service with `POST /add`, for clients in the local network:

    GATEWAY_LISTEN=127.0.0.1:8080,192.168.1.10:8080
    GATEWAY_ALLOW_UNAUTHENTICATED=true
    GATEWAY_BACKENDS__EDGE__PLUGIN=local
    GATEWAY_BACKENDS__CLOUD__PLUGIN=http
    GATEWAY_BACKENDS__CLOUD__URL=https://compute.example.com
    GATEWAY_BACKENDS__CLOUD__TASKS='{"add": "/add"}'
"""

_BACKENDS_HEAD = f"""
## Backends

Each backend has a name of the operator's choice: letters, digits and single underscores, shown in lower case.
`{_ANY_BACKEND}PLUGIN` selects the plugin. An unset field takes the plugin's own value. At least one backend is needed.
"""


def render_docs(plugins: Plugins) -> str:
    lines = [_HEAD, "## The gateway", "", *_table(leaves_of(Settings, PREFIX)), _BACKENDS_HEAD]
    lines += _table(leaves_of(BackendSettings, _ANY_BACKEND))
    for name, cls in sorted(plugins.items()):
        lines += ["", f"### `{name}`", "", summary(cls), ""]
        own = [leaf for leaf in backend_leaves(cls, _ANY_BACKEND) if not is_common(leaf)]
        lines += _table(own) if own else ["It has only the settings that every backend has."]
    return "\n".join(lines) + "\n"


def _table(leaves: Iterable[Leaf]) -> Iterator[str]:
    yield "| variable | default | unit | meaning |"
    yield "|---|---|---|---|"
    for leaf in leaves:
        secret = "*secret*; " if leaf.is_secret else ""
        meaning = f"{secret}{leaf.field.description or ''}".replace("|", "\\|")
        yield f"| `{leaf.variable}` | {_default(leaf)} | {leaf.unit} | {meaning} |"


def _default(leaf: Leaf) -> str:
    if leaf.field.is_required() or leaf.variable == f"{_ANY_BACKEND}PLUGIN":
        return "required"
    return f"`{leaf.default}`" if leaf.default else ""


def declared_plugins(checkout: Path) -> Plugins:
    """The plugins a checkout's pyproject.toml declares, imported."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {name: find_plugin(target) for name, target in project["entry-points"][ENTRY_POINT_GROUP].items()}


if __name__ == "__main__":
    print(render_docs(declared_plugins(Path.cwd())), end="")
