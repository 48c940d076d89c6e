"""Creates a plugin's distribution from template/, in which the plugin is named `sample` and its class `Sample`.

Existing files are never overwritten: the folder must not exist.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Collection, Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import NamedTuple

_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
MAX_CHARS = 40
_SUFFIX = ".in"  # so that tools do not treat the template as a module or a project


class NameInvalid(ValueError):
    """The name is not valid for a plugin; the message gives the reason."""


def check_name(name: str, taken: Collection[str]) -> str:
    """Return `name` if it is valid for a new plugin. taken: the installed plugins. Raises NameInvalid."""
    if not _NAME.fullmatch(name) or len(name) > MAX_CHARS:
        raise NameInvalid(
            f"{name!r} cannot be a plugin's name: use at most {MAX_CHARS} lower-case letters, digits and single "
            "hyphens, a letter first, such as `ocr` or `door-bell`"
        )
    if keyword.iskeyword(name) or name in ("auto", "none", "sample"):
        raise NameInvalid(f"{name!r} is reserved; take another name")
    if name in taken:
        raise NameInvalid(f"a plugin {name!r} is installed already; take another name")
    return name


class CreatedPlugin(NamedTuple):
    """A new plugin's folder, entry point and files."""

    folder: Path
    entry: str
    files: tuple[Path, ...]


def create(name: str, into: Path) -> CreatedPlugin:
    """Write a plugin to the new folder `into`/gateway-NAME. Raises FileExistsError if the folder exists."""
    folder = into / _with_names("gateway-sample", name)
    folder.mkdir(parents=True)
    written = []
    for path, text in render_files(name):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x") as out:
            out.write(text)
        written.append(file)
    return CreatedPlugin(folder, _with_names("gateway_sample:Sample", name), tuple(written))


def render_files(name: str) -> Iterator[tuple[str, str]]:
    """Each file of the plugin: path and content."""
    for path, text in sorted(_template(files(__package__) / "template", "")):
        yield _with_names(path.removesuffix(_SUFFIX), name), _with_names(text, name)


def _template(folder: Traversable, prefix: str) -> Iterator[tuple[str, str]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _template(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry.read_text()


def _with_names(text: str, name: str) -> str:
    """Replace the template's names by the plugin's; the distribution has hyphens, the module underscores."""
    module = name.replace("-", "_")
    names = {
        "gateway-sample": f"gateway-{name.replace('_', '-')}",
        "gateway_sample": f"gateway_{module}",
        "SAMPLE": module.upper(),
        "Sample": "".join(word.capitalize() for word in module.split("_")),
        "sample": name,
    }
    return re.sub("|".join(names), lambda found: names[found[0]], text)
