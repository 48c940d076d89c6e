"""Are the locks in step with pyproject.toml and the `.in` files?  Offline; prints what is wrong, exits 1.

Every lock opens with the direct requirements it was made from (`# for: aiohttp>=3.14,<4`), one a line.
In step means: these lines are today's requirements, every one of them is pinned, every pin satisfies what
asks for it, every pin has a hash, and two locks that share a venv never disagree about a version.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PREFIX = "# for: "
HEADER = "# Made by requirements/lock.sh, do not edit. Direct requirements:\n"
SHARED_VENV = ("runtime", "speech", "test", "dev", "build")
PIN = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;\\]+)")


def canonical(name: str) -> str:
    """PEP 503: one spelling of a distribution's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def in_file(path: Path) -> list[str]:
    """The requirements of one `.in` file, comments dropped."""
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def inputs(root: Path = ROOT) -> dict[str, list[str]]:
    """Lock name → the direct requirements it has to be made from."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    files = {path.stem: in_file(path) for path in (root / "requirements").glob("*.in")}
    runtime = list(project["dependencies"])
    speech = runtime + project["optional-dependencies"]["speech"]
    test = speech + files.pop("test")
    dev = test + files.pop("dev")
    return {"runtime": runtime, "speech": speech, "test": test, "dev": dev, **files}


def pins(lock: str) -> dict[str, list[str]]:
    """Canonical name → versions, of every pin in a lock's text; more than one where markers tell them apart."""
    found: dict[str, list[str]] = {}
    for match in filter(None, map(PIN.match, lock.splitlines())):
        found.setdefault(canonical(match["name"]), []).append(match["version"])
    return found


def pins_without_hash(lock: str) -> list[str]:
    """Names of the pins whose continuation lines carry no sha256."""
    blocks = re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.MULTILINE)
    return [m["name"] for block in blocks if (m := PIN.match(block)) and "--hash=sha256:" not in block]


def problems(wanted: Mapping[str, Iterable[str]], locks: Mapping[str, str]) -> list[str]:
    """Everything that is out of step, one sentence each; empty when all is well."""
    found: list[str] = []
    for name, requirements in wanted.items():
        if name not in locks:
            found.append(f"requirements/{name}.txt is missing")
            continue
        found += lock_problems(f"requirements/{name}.txt", sorted(set(requirements)), locks[name])
    found += disagreements({name: pins(locks[name]) for name in SHARED_VENV if name in locks})
    return found


def lock_problems(path: str, requirements: list[str], lock: str) -> list[str]:
    """What is wrong with one lock."""
    from packaging.requirements import Requirement

    made_from = [line.removeprefix(PREFIX) for line in lock.splitlines() if line.startswith(PREFIX)]
    found = [f"{path}: {new} is asked for, but was not when the lock was made"
             for new in requirements if new not in made_from]  # fmt: skip
    found += [f"{path}: {old} is no longer asked for" for old in made_from if old not in requirements]
    found += [f"{path}: {name} has no hash" for name in pins_without_hash(lock)]
    pinned = pins(lock)
    for requirement in map(Requirement, requirements):
        versions = pinned.get(canonical(requirement.name), [])
        if not versions:
            found.append(f"{path}: {requirement.name} is not pinned")
        elif not any(requirement.specifier.contains(version, prereleases=True) for version in versions):
            found.append(f"{path}: {requirement.name}=={', '.join(versions)} does not satisfy {requirement}")
    return found


def disagreements(locks: Mapping[str, Mapping[str, list[str]]]) -> list[str]:
    """Locks that share a venv but pin one distribution at different versions."""
    found = []
    names = sorted({name for pinned in locks.values() for name in pinned})
    for name in names:
        versions = {lock: ", ".join(pinned[name]) for lock, pinned in locks.items() if name in pinned}
        if len(set(versions.values())) > 1:
            found.append(f"{name} differs: " + ", ".join(f"{k}.txt {v}" for k, v in versions.items()))
    return found


def stamp(name: str) -> None:
    """Writes the direct requirements on top of a freshly made lock."""
    path = ROOT / "requirements" / f"{name}.txt"
    body = [line for line in path.read_text().splitlines(keepends=True) if not line.startswith("# ")]
    made_from = [f"{PREFIX}{requirement}\n" for requirement in sorted(set(inputs()[name]))]
    path.write_text("".join([HEADER, *made_from, *body]))


def main(arguments: list[str]) -> int:
    """`check.py` checks; `check.py --stamp NAME` is for lock.sh."""
    if len(arguments) == 2 and arguments[0] == "--stamp":
        stamp(arguments[1])
        return 0
    locks = {path.stem: path.read_text() for path in (ROOT / "requirements").glob("*.txt")}
    found = problems(inputs(), locks)
    for problem in found:
        print(problem)
    if found:
        print("run requirements/lock.sh to make the locks again")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
