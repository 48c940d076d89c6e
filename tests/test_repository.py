"""Tracked files: paths, package hosts, locks and entry points."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support import programs
from support.programs import find, needs

ROOT = Path(__file__).resolve().parent.parent
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME_LIMIT = 20

sys.path.insert(0, str(ROOT / "requirements"))
import check  # noqa: E402

# Each is written in two parts, so that this file does not match the search.
PUBLIC_INDEXES = ("pypi.org" + "/simple", "files.python" + "hosted.org", "registry.npmjs" + ".org")
ORDINARY = {
    "/",
    "/tmp",
    "/home",
    "/root",
    "/opt",
    "/srv",
    "/usr",
    "/var",
    "/mnt",
    "/usr/local",
    "/usr/local/src",
    "/workspace",
}
NOT_A_HOST = re.compile(r"localhost|127\.|\[?::1|0\.0\.0\.0|.*\.example")


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def index_hosts() -> set[str]:
    """Return the package hosts configured for pip, uv and apt on this machine."""
    texts = [f"{name}={value}" for name, value in os.environ.items() if name.startswith(("PIP_", "UV_", "NPM_"))]
    pip = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    apt = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    texts += [pip.stdout, *(path.read_text(errors="replace") for path in apt if path.is_file())]
    urls = re.findall(r"\bhttps?://[^\s'\"\],]+", "\n".join(texts))
    hosts = {urlsplit(url).netloc.rpartition("@")[2] for url in urls}
    return {host for host in hosts if host and not NOT_A_HOST.match(host)}


def machine_paths() -> set[str]:
    """Return directories that exist only on this machine."""
    candidates = {ROOT, ROOT.parent, Path.home(), Path(sys.base_prefix)}
    return {str(path) for path in candidates if str(path) not in ORDINARY}


def mentions(pattern: str) -> list[str]:
    """Return path:line of every tracked line that matches the pattern."""
    wanted = re.compile(pattern)
    found = []
    for path in tracked():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if wanted.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}")
    return found


@needs("git")
def test_no_tracked_file_names_a_package_index_host() -> None:
    hosts = "|".join(map(re.escape, sorted({*PUBLIC_INDEXES, *index_hosts()})))
    assert mentions(rf"(?<![\w.-])(?:{hosts})") == []


@needs("git")
def test_no_tracked_file_contains_a_path_of_this_machine() -> None:
    paths = "|".join(map(re.escape, sorted(machine_paths())))
    assert mentions(rf"(?<![\w.$}}~-])(?:{paths})(?![\w.-])") == []


@needs("git")
def test_no_tool_output_is_tracked() -> None:
    made = re.compile(r"(^|/)(__pycache__|\.venv.*|.*\.egg-info|\.\w+_cache|uv\.lock)(/|$)|\.py[co]$")
    assert [str(path) for path in tracked() if made.search(str(path.relative_to(ROOT)))] == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_lock_pins_every_line_by_hash_and_contains_no_url(lock: Path) -> None:
    text = lock.read_text()
    assert check.pins(text)
    assert check.pins_without_hash(text) == []
    assert "://" not in text
    assert not re.search(r"^\s*(-|[\w.-]+ *@)", re.sub(r"^ +--hash=.*$", "", text, flags=re.MULTILINE), re.MULTILINE)


def test_runtime_lock_has_at_most_20_distributions() -> None:
    assert len(check.pins((ROOT / "requirements" / "runtime.txt").read_text())) <= RUNTIME_LIMIT


def test_locks_match_the_declared_requirements() -> None:
    assert check.problems(check.inputs(), {lock.stem: lock.read_text() for lock in LOCKS}) == []


LOCK = "# for: aiohttp>=3.14\naiohttp==3.14.5 \\\n    --hash=sha256:00\n"


@pytest.mark.parametrize(
    ("requirements", "lock", "problem"),
    [
        (["aiohttp>=3.14", "uvloop"], LOCK, "uvloop is asked for"),
        (["aiohttp>=3.15"], LOCK, "aiohttp==3.14.5 does not satisfy aiohttp>=3.15"),
        ([], LOCK, "aiohttp>=3.14 is no longer asked for"),
        (["aiohttp>=3.14"], LOCK.replace(" \\\n    --hash=sha256:00", ""), "aiohttp has no hash"),
        (["aiohttp>=3.14"], "# for: aiohttp>=3.14\n", "aiohttp is not pinned"),
    ],
)
def test_outdated_lock_is_reported_by_name(requirements: list[str], lock: str, problem: str) -> None:
    found = check.problems({"runtime": requirements}, {"runtime": lock})
    assert any(problem in line and line.startswith("requirements/runtime.txt") for line in found), found


def test_missing_and_conflicting_locks_are_reported() -> None:
    locks = {"runtime": LOCK, "speech": LOCK.replace("3.14.5", "3.14.6")}
    found = check.problems({"runtime": ["aiohttp>=3.14"], "uv": ["uv"]}, locks)
    assert "requirements/uv.txt is missing" in found
    assert "aiohttp differs: runtime.txt 3.14.5, speech.txt 3.14.6" in found


ENTRY_POINTS = PROJECT["entry-points"]["gateway.backends"]


@pytest.mark.parametrize("name", sorted(ENTRY_POINTS))
def test_every_first_party_plugin_loads_by_its_entry_point(name: str) -> None:
    (found,) = importlib.metadata.entry_points(group="gateway.backends", name=name)
    assert found.value == ENTRY_POINTS[name]
    assert found.load().__name__ == ENTRY_POINTS[name].partition(":")[2]


def test_shell_scripts_parse() -> None:
    for script, shell in (("run", "sh"), ("requirements/lock.sh", "sh"), (".ci/run", "bash")):
        path = find(shell)
        assert path is not None
        subprocess.run([path, "-n", str(ROOT / script)], check=True)


def test_no_test_directory_shadows_a_package() -> None:
    """tests/ is on the path: tests/gateway/__init__.py would be imported as `gateway`."""
    packages = {path.parent.name for path in (ROOT / "tests").glob("*/__init__.py")}
    assert packages <= {"support"}


SKIPPING = {
    "test_inside.py": "import pytest\ndef test_one():\n    pytest.skip('inside')\n",
    "test_marked.py": "from support.programs import needs\n@needs('no-such-program')\ndef test_two(): pass\n",
    "test_whole.py": "import pytest\npytest.importorskip('no_such_module')\n",
    "test_xfail.py": "import pytest\n@pytest.mark.xfail\ndef test_three(): assert False\n",
    "test_heavy.py": "import pytest\n@pytest.mark.clients\ndef test_four(): assert False\n",
}


def suite_of(folder: Path, files: Mapping[str, str]) -> None:
    """A suite with our conftest.py and these tests."""
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name in ("conftest.py", "support/__init__.py", "support/programs.py", "support/programs.txt"):
        (folder / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tests" / name, folder / "tests" / name)
    for name, text in files.items():
        (folder / "tests" / name).write_text(text)


@pytest.mark.parametrize(
    ("ci", "workers", "status", "counts"),
    [
        ("", "0", 0, "3 skipped, 1 deselected, 1 xfailed"),
        ("true", "0", 1, "1 failed, 1 deselected, 1 xfailed, 2 errors"),
        ("", "2", 0, "3 skipped, 1 xfailed"),
        ("true", "2", 1, "1 failed, 1 xfailed, 2 errors"),
    ],
)
def test_skipped_test_fails_in_ci(tmp_path: Path, ci: str, workers: str, status: int, counts: str) -> None:
    suite_of(tmp_path, SKIPPING)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "xfail_strict=false", "-n", workers]
    if ci:
        command.append("--continue-on-collection-errors")
    result = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "CI": ci}, capture_output=True, text=True, check=False
    )
    assert counts in result.stdout, result.stdout
    assert "no-such-program" in result.stdout
    assert result.returncode == status


NOTED = """
import os, pathlib, time
import pytest

@pytest.mark.parametrize("name", [*"abcdef", pytest.param("alone", marks=pytest.mark.alone), *"ghijkl"])
def test_noted(name):
    began = time.monotonic()
    time.sleep(0.05)  # work, which the others' work may overlap
    pathlib.Path(os.environ["NOTES"], name).write_text(f"{began} {time.monotonic()}")
"""


def test_no_other_test_runs_while_one_is_alone(tmp_path: Path) -> None:
    suite_of(tmp_path, {"test_noted.py": NOTED})
    notes = tmp_path / "notes"
    notes.mkdir()
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "3"]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "NOTES": str(notes)}, capture_output=True, check=True)
    began, ended = map(float, (notes / "alone").read_text().split())
    others = [tuple(map(float, note.read_text().split())) for note in notes.iterdir() if note.name != "alone"]
    assert len(others) == 12
    assert all(end <= began or ended <= begin for begin, end in others)


def test_every_program_that_a_test_runs_is_listed_with_its_package() -> None:
    files = [path for path in (ROOT / "tests").rglob("*.py") if path.name != Path(__file__).name]
    calls = re.findall(r"\b(?:needs|program)\(((?:\"[\w-]+\"(?:, )?)+)\)", "".join(path.read_text() for path in files))
    named = {name for call in calls for name in re.findall(r"[\w-]+", call)}
    assert {"mosquitto", "haproxy", "curl"} <= named <= {program.name for program in programs.listed()}


def test_what_this_machine_lacks_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "find", lambda name: None if name in {"nginx", "mosquitto_rr", "npm"} else name)
    assert programs.what_is_skipped({"test"}) == [
        "skipped here: tests that run mosquitto_rr, nginx",
        "  to run them too: apt-get update && apt-get install -y --no-install-recommends mosquitto-clients nginx-light",
    ]
