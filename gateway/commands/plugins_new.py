"""Makes a plugin's distribution out of template/, in which the plugin is called `sample`, and its class `Sample`.

Nothing that exists is ever written over: the folder is new, or there is none.
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
_SUFFIX = ".in"  # so that no tool takes the template itself for a module or a project


class NameInvalid(ValueError):
    """This cannot be a plugin's name; the message says why."""


def check_name(name: str, taken: Collection[str]) -> str:
    """`name`, if a new plugin can be called so: `taken` are those that are installed. Raises NameInvalid."""
    if not _NAME.fullmatch(name) or len(name) > MAX_CHARS:
        raise NameInvalid(
            f"{name!r} cannot be a plugin's name: small letters, digits and single hyphens, a letter first, "
            f"at most {MAX_CHARS}, such as `ocr` or `door-bell`"
        )
    if keyword.iskeyword(name) or name in ("auto", "none", "sample"):
        raise NameInvalid(f"{name!r} is reserved; take another name")
    if name in taken:
        raise NameInvalid(f"a plugin {name!r} is installed already; take another name")
    return name


class CreatedPlugin(NamedTuple):
    """A plugin's folder, its entry point, and its files."""

    folder: Path
    entry: str
    files: tuple[Path, ...]


def create(name: str, into: Path) -> CreatedPlugin:
    """Write a plugin called `name` to the new folder `into`/gateway-NAME. Raises FileExistsError where it exists."""
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
    """Each file of the plugin: where it stands, and what is in it."""
    for path, text in sorted(_template(files(__package__) / "template", "")):
        yield _with_names(path.removesuffix(_SUFFIX), name), _with_names(text, name)


def _template(folder: Traversable, prefix: str) -> Iterator[tuple[str, str]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _template(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry.read_text()


def _with_names(text: str, name: str) -> str:
    """The template's text with the plugin's own names; its distribution is spelt with hyphens, its module without."""
    module = name.replace("-", "_")
    names = {
        "gateway-sample": f"gateway-{name.replace('_', '-')}",
        "gateway_sample": f"gateway_{module}",
        "SAMPLE": module.upper(),
        "Sample": "".join(word.capitalize() for word in module.split("_")),
        "sample": name,
    }
    return re.sub("|".join(names), lambda found: names[found[0]], text)
