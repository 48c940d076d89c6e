"""The documents as data: blocks with expected output, links, and a block runner."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from support.notify import NotifySocket
from support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "bench").glob("*.md")))

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block.

    info_words: after the backticks. expected: the text block directly after it, if any.
    """

    info_words: tuple[str, ...]
    text: str
    expected: str | None
    page: str
    line: int

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_runnable(self) -> bool:
        return "runnable" in self.info_words


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = list(_FENCE.finditer(text))
    out = []
    for fence, following in zip(found, [*found, None][1:], strict=True):
        follows = following is not None and not text[fence.end() : following.start()].strip()
        expected = following[2] if following is not None and follows and following[1].strip() == "text" else None
        line = text.count("\n", 0, fence.start()) + 1
        out.append(Block(tuple(fence[1].split()), fence[2], expected, str(page.relative_to(ROOT)), line))
    return out


def links(page: Path) -> Iterator[str]:
    """Yield the link targets of a page, except those in code."""
    yield from _LINK.findall(_FENCE.sub("", page.read_text()))


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, in GitHub's format."""
    headings = _HEADING.findall(_FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def matches(expected: str, output: str) -> bool:
    """Whether `output` equals the documented text, where `…` matches any text."""
    pattern = ".*?".join(re.escape(piece) for piece in expected.strip().split("…"))
    return re.fullmatch(pattern, output.replace("\r", "").strip(), re.DOTALL) is not None


@dataclass
class BlockRunner:
    """Runs the blocks of a page in order, services in the background, on free ports."""

    folder: Path
    extra_env: dict[str, str] = field(default_factory=dict)
    cwd: Path = ROOT

    def __post_init__(self) -> None:
        self.ports = {"8080": str(free_port()), "8081": str(free_port()), "9000": str(free_port())}
        self._gateway: subprocess.Popen[bytes] | None = None
        self._services: list[subprocess.Popen[bytes]] = []

    @property
    def environ(self) -> dict[str, str]:
        ours = {
            "GATEWAY_LISTEN": f"127.0.0.1:{self.ports['8080']}",
            "GATEWAY_ADMIN_LISTEN": f"127.0.0.1:{self.ports['8081']}",
            "GATEWAY_STATE_DIR": str(self.folder / "state"),
        }
        others = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
        return others | ours | self.extra_env

    def run(self, block: Block) -> str | None:
        """Run a block and return its output; None if it keeps running."""
        text = re.sub(r"\b(8080|8081|9000)\b", lambda found: self.ports[found[1]], block.text)
        if "gateway" in block.info_words:
            self._stop(self._gateway)
            self._gateway = self._start_gateway(text)
            return None
        if "service" in block.info_words:
            self._services.append(self._start_service(text))
            return None
        done = subprocess.run(
            ["sh", "-e", "-c", text],
            cwd=self.cwd,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, f"{block} exits {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def _start_gateway(self, text: str) -> subprocess.Popen[bytes]:
        """Start a gateway. Returns when it has notified READY=1."""
        log = self.folder / "gateway.log"
        with NotifySocket(self.folder / "notify") as notify, log.open("wb") as out:
            env = self.environ | {"NOTIFY_SOCKET": str(notify.path)}
            process = subprocess.Popen(
                ["sh", "-e", "-c", text], cwd=self.cwd, env=env, stdout=out, stderr=out, start_new_session=True
            )
            try:
                notify.wait_for("READY=1")
            except TimeoutError:
                self._stop(process)
                raise AssertionError(log.read_text()) from None
        return process

    def _start_service(self, text: str) -> subprocess.Popen[bytes]:
        """Start a service. Returns after its first line of output, when it listens."""
        process = subprocess.Popen(
            ["sh", "-e", "-c", text], cwd=self.cwd, env=self.environ, stdout=subprocess.PIPE, start_new_session=True
        )
        assert process.stdout is not None
        assert process.stdout.readline(), f"{text} ended before it listened"
        return process

    def _stop(self, process: subprocess.Popen[bytes] | None) -> None:
        if process is None:
            return
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(40)
        if process.stdout is not None:
            process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for process in (self._gateway, *self._services):
            self._stop(process)
