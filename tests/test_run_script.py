"""The ./run script as a subprocess, before and after installation."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("cat", "cksum", "flock", "mkdir", "mktemp", "mv", "readlink", "rm", "sh", "sleep", "tail")
APT_LINE = "apt-get install -y python3 python3-venv"


def run(
    script: Path, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(script), *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=50, check=False
    )


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the files ./run reads, with a space in its path and nothing installed."""
    root = tmp_path / "a checkout"
    root.mkdir()
    for name in ("run", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "requirements", root / "requirements", ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment with a PATH of the tools ./run uses, without Python."""
    for tool in TOOLS:
        found = shutil.which(tool)
        if found:
            (tmp_path / "bin").mkdir(exist_ok=True)
            (tmp_path / "bin" / tool).symlink_to(found)
    return {"PATH": str(tmp_path / "bin")}


@pytest.fixture
def installed(checkout: Path) -> Path:
    """A checkout that looks installed: its programs print their arguments."""
    bin_ = checkout / ".venv" / "bin"
    executable(bin_ / "python", 'printf "python %s\\n" "$@"')
    executable(bin_ / "edge-gateway", 'pwd; printf "%s\\n" "PYTHONPATH=${PYTHONPATH:-}" "$@"')
    (checkout / ".venv" / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    for lock in ("speech", "test"):
        files = [
            checkout / "pyproject.toml",
            *(checkout / "requirements" / f"{n}.txt" for n in ("build", lock)),
        ]
        sums = subprocess.run(["cksum", *files], capture_output=True, text=True, check=True).stdout
        (checkout / ".venv" / f".stamp-{lock}").write_text(f"{sums}{bin_ / 'python'}\n")
    return checkout


@pytest.mark.parametrize("arguments", [(), ("lint", "--fix"), ("bench", "no-such-benchmark"), ("bench", "--json")])
def test_wrong_usage_exits_2_and_installs_nothing(checkout: Path, arguments: tuple[str, ...]) -> None:
    executable(checkout / "bench" / "one.py", "")
    result = run(checkout / "run", *arguments, cwd=checkout)
    assert result.returncode == 2
    assert result.stderr
    assert not (checkout / ".venv").exists()


def test_help_names_every_command_and_installs_nothing(checkout: Path) -> None:
    result = run(checkout / "run", "--help", cwd=checkout)
    assert result.returncode == 0
    assert all(f"./run {command}" in result.stdout for command in ("demo", "test", "lint", "bench", "ARGS"))
    assert not (checkout / ".venv").exists()


def test_unknown_benchmark_lists_the_available_ones(checkout: Path) -> None:
    executable(checkout / "bench" / "decide.py", "")
    executable(checkout / "bench" / "_shared.py", "")
    result = run(checkout / "run", "bench", "decode", cwd=checkout)
    assert result.stderr == "run: no benchmark 'decode'; the benchmarks are: decide\n"


def test_apt_command_is_printed_without_python(checkout: Path, bare: dict[str, str]) -> None:
    result = run(checkout / "run", "version", cwd=checkout, env=bare)
    assert result.returncode == 2
    assert APT_LINE in result.stderr


def test_apt_command_is_printed_without_venv_and_pip(checkout: Path, bare: dict[str, str]) -> None:
    executable(Path(bare["PATH"]) / "python3", 'case "$*" in *ensurepip* | *pip*) exit 1 ;; esac')
    result = run(checkout / "run", "version", cwd=checkout, env=bare)
    assert result.returncode == 2
    assert APT_LINE in result.stderr


def test_old_python_is_reported_with_the_python_variable(checkout: Path, bare: dict[str, str]) -> None:
    executable(Path(bare["PATH"]) / "python3", '[ "$1" = --version ] && echo "Python 3.9.2" || exit 1')
    result = run(checkout / "run", "version", cwd=checkout, env=bare)
    assert result.returncode == 2
    assert "needs Python 3.11 or newer, found Python 3.9.2; PYTHON=" in result.stderr


def test_uv_is_installed_by_pip_when_the_venv_module_is_missing(checkout: Path, bare: dict[str, str]) -> None:
    calls = checkout / "calls"
    executable(
        Path(bare["PATH"]) / "python3",
        f'echo "$*" >>"{calls}"; case "$*" in *ensurepip*) exit 1 ;; *config*) exit 1 ;; *--target*)\n'
        f'mkdir -p "{checkout}/.uv/bin"; printf "#!/bin/sh\\necho uv \\"\\$@\\" >>\\"{calls}\\"; exit 7\\n" '
        f'>"{checkout}/.uv/bin/uv"; "{shutil.which("chmod")}" +x "{checkout}/.uv/bin/uv" ;; esac',
    )
    result = run(checkout / "run", "version", cwd=checkout, env=bare)
    assert result.returncode == 7, result.stderr  # the fake uv exits with 7; the test checks its arguments
    logged = calls.read_text()
    assert f"--require-hashes --only-binary :all: -r {checkout}/requirements/uv.txt" in logged
    assert "uv venv --quiet --python" in logged


def test_failed_install_leaves_no_stamp(checkout: Path, bare: dict[str, str]) -> None:
    executable(checkout / "failing", "exit 1")
    copy = f'"{shutil.which("cp")}" "{checkout}/failing"'
    executable(
        Path(bare["PATH"]) / "python3",
        f'case "$*" in "-m venv"*) mkdir -p "$3/bin"; {copy} "$3/bin/python"; {copy} "$3/bin/pip" ;; esac',
    )
    result = run(checkout / "run", "version", cwd=checkout, env=bare)
    assert result.returncode == 1
    assert "run: installing failed" in result.stderr
    assert not list((checkout / ".venv").glob(".stamp-*"))


def test_arguments_and_working_directory_reach_the_gateway_unchanged(
    installed: Path, tmp_path: Path, bare: dict[str, str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    result = run(installed / "run", "serve", "--env-file", "rel ative.env", "", cwd=elsewhere, env=bare)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        str(elsewhere),
        "PYTHONPATH=",
        "serve",
        "--env-file",
        "rel ative.env",
        "",
    ]


def test_relative_call_finds_the_checkout(installed: Path, bare: dict[str, str]) -> None:
    result = run(Path(f"./{installed.name}/run"), "version", cwd=installed.parent, env=bare)
    assert result.stdout.splitlines()[-1] == "version"


@pytest.mark.parametrize("target", ["{checkout}/run", "./a checkout/run"])
def test_call_through_a_symlink_finds_the_checkout(
    installed: Path, tmp_path: Path, bare: dict[str, str], target: str
) -> None:
    link = tmp_path / "linked"
    link.symlink_to(target.format(checkout=installed))
    result = run(link, "version", cwd=tmp_path / "bin", env=bare)
    assert result.stdout.splitlines()[-1:] == ["version"], result.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("name", ["GATEWAY_BACKENDS__CAFÉ__PLUGIN", "GATEWAY_BACKENDS__GPU-BOX__PLUGIN"])
def test_variable_name_the_shell_drops_is_reported(installed: Path, name: str) -> None:
    result = run(installed / "run", "check", cwd=installed, env={**os.environ, name: "a=b", "GATEWAY_A": "é"})
    assert (result.returncode, result.stdout) == (78, "")
    assert f"run: not a valid variable name: {name} ; use letters, digits and underscores" in result.stderr


def test_pythonpath_may_add_modules_but_not_shadow_the_gateway(installed: Path, bare: dict[str, str]) -> None:
    result = run(installed / "run", "version", cwd=installed, env={**bare, "PYTHONPATH": "theirs"})
    site_packages = installed / ".venv" / "lib" / "python3.11" / "site-packages"
    assert f"PYTHONPATH={installed}:{installed}/plugins:{site_packages}:theirs" in result.stdout


def test_tests_run_with_the_venv_python_and_the_given_arguments(installed: Path, bare: dict[str, str]) -> None:
    result = run(installed / "run", "test", "-k", "a b", cwd=installed, env=bare)
    parallel = ["python -n", "python auto", "python --dist", "python worksteal"]
    assert result.stdout.splitlines() == ["python -m", "python pytest", *parallel, "python -k", "python a b"]


@pytest.mark.parametrize("changed", ["pyproject.toml", "requirements/speech.txt", "requirements/build.txt"])
def test_changed_requirement_is_installed_before_the_command_runs(
    installed: Path, bare: dict[str, str], changed: str
) -> None:
    with (installed / changed).open("a") as file:
        file.write("# changed\n")
    result = run(installed / "run", "version", cwd=installed, env=bare)
    assert "run: installing requirements/speech.txt into .venv" in result.stderr


def test_bench_runs_every_benchmark_and_passes_the_json_file(installed: Path, bare: dict[str, str]) -> None:
    executable(installed / "bench" / "one.py", "")
    executable(installed / "bench" / "two.py", "")
    result = run(installed / "run", "bench", cwd=installed, env=bare)
    assert result.stdout.splitlines() == [
        f"python {installed}/bench/one.py",
        f"python {installed}/bench/two.py",
    ]
    result = run(installed / "run", "bench", "two", "--json", "out", cwd=installed, env=os.environ | bare)
    assert result.stdout.splitlines() == [f"python {installed}/bench/two.py", "python --json", "python out"]
