"""Writes docs/configuration.md from the tree and the plugins.

    PYTHONPATH=.:plugins python -m gateway.settings.docs > docs/configuration.md

at the root of a checkout: the plugins described are those pyproject.toml declares, not whatever is installed.
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

Everything is set by environment variables that begin with `GATEWAY_`; they are read when the gateway starts, and the
file given by `--env-file` again on SIGHUP ([operate.md](operate.md#new-settings-while-it-serves)).

| command | |
|---|---|
| `edge-gateway check` | names every problem with its variable and a fix; exit code 78 if there is one |
| `edge-gateway config` | the settings that hold, and where each came from; secrets are redacted |
| `edge-gateway config --env` | an environment file of every setting with its meaning and default, to start from |

## How a value is found

1. The process environment.
2. The file given by `--env-file PATH`: `NAME=value` on each line, comments after `#` or `;`, values in quotes where
   they hold spaces, `#` or quotes. Nothing is expanded: `$X` stays `$X`.
3. The default.

An empty value counts as unset. Lists are comma separated. JSON is accepted wherever a list or a map is, and for a
whole group: `GATEWAY_POLICY='{"hysteresis": 0.05}'` says the same as `GATEWAY_POLICY__HYSTERESIS=0.05`, and
`GATEWAY_BACKENDS__CLOUD='{"plugin": "http", "url": "https://api.example.com"}'` describes a whole backend.

An unknown `GATEWAY_…` variable is an error that names the nearest known one: a typing mistake never passes for a
default. So is a name with other letters than those of ASCII. Ignored is what others inject: `GATEWAY_INTERFACE`, and
what Docker and Kubernetes make of a service called `gateway` (`…_SERVICE_HOST`, `…_SERVICE_PORT*`, `…_PORT`,
`…_PORT_<n>_*`).

## Secrets

A setting marked *secret* is looked for in three places, and the first one found is taken:

1. a file of the variable's name in `$CREDENTIALS_DIRECTORY`
   (systemd: `LoadCredential=GATEWAY_BACKENDS__CLOUD__API_KEY:/etc/edge-gateway/cloud.key`),
2. the file named by the variable with `_FILE` added (`GATEWAY_BACKENDS__CLOUD__API_KEY_FILE=/run/secrets/cloud`),
3. the variable itself.

A file in `$CREDENTIALS_DIRECTORY` that is called `GATEWAY_…` and not like any secret is an error as well; but one
called like a setting that is set (`Environment=GATEWAY_TLS__KEY_FILE=%d/GATEWAY_TLS__KEY_FILE`) is left to that.

The newline at the end of such a file is dropped. `check` and `config` show no secret, nor the user and
password in a URL.

## Examples

Compute on this machine only; it answers `POST /v1/tasks/add`:

    GATEWAY_BACKENDS__EDGE__PLUGIN=local

A small model on a box in the same network, a large one far away. Clients ask for `assistant` and get whichever finishes
sooner, or for `box/assistant` and get just that:

    GATEWAY_BACKENDS__BOX__PLUGIN=http
    GATEWAY_BACKENDS__BOX__URL=http://192.168.1.20:11434
    GATEWAY_BACKENDS__BOX__SITE=edge
    GATEWAY_BACKENDS__BOX__MODELS='{"assistant": "llama3.2:3b"}'
    GATEWAY_BACKENDS__CLOUD__PLUGIN=http
    GATEWAY_BACKENDS__CLOUD__URL=https://api.openai.com/v1
    GATEWAY_BACKENDS__CLOUD__API_KEY_FILE=/run/secrets/openai
    GATEWAY_BACKENDS__CLOUD__MODELS='{"assistant": "gpt-4o-mini"}'

The same function here and at a service that answers `POST /add`, open to the local network:

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
`{_ANY_BACKEND}PLUGIN` says what it is; an unset field means what the plugin declares. At least one backend is needed.
"""


def render_docs(plugins: Plugins) -> str:
    """The whole page."""
    lines = [_HEAD, "## The gateway", "", *_table(leaves_of(Settings, PREFIX)), _BACKENDS_HEAD]
    lines += _table(leaves_of(BackendSettings, _ANY_BACKEND))
    for name, cls in sorted(plugins.items()):
        lines += ["", f"### `{name}`", "", summary(cls), ""]
        own = [leaf for leaf in backend_leaves(cls, _ANY_BACKEND) if not is_common(leaf)]
        lines += _table(own) if own else ["It has no settings beside those of any backend."]
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
