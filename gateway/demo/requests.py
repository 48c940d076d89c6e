"""The demo's requests: each knows its curl line, how to be sent without curl, and the answer it must have."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from gateway.demo.children import die_with_parent

WORDS = "turn on the conveyor belt and stop the machine"
PRIMES_BELOW = [10_000, 20_000, 30_000, 40_000, 30_000, 20_000, 10_000, 2]
PRIMES = [1229, 2262, 3245, 4203, 3245, 2262, 1229, 0]
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResponse:
    """What came back. `headers` are lower-cased; `text` is the whole body, also where it says what went wrong."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str = ""

    @property
    def where(self) -> str:
        """Who answered, as `backend (site)`."""
        return f"{self.headers.get('x-gateway-backend', '-')} ({self.headers.get('x-gateway-site', '-')})"

    @property
    def site(self) -> str:
        """The site that answered, or nothing."""
        return self.headers.get("x-gateway-site", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRequest:
    """One request. expected: the answer's JSON, which may hold more; None where any 200 will do."""

    label: str
    path: str
    body: Any = None
    form: Mapping[str, str] = field(default_factory=dict)
    file: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    expected: Mapping[str, Any] | None = None
    site: str | None = None

    def curl(self, base: str) -> str:
        """The line to type."""
        words = ["curl"]
        for name, value in self.headers.items():
            words += ["-H", f"{name}: {value}"]
        for name, value in self.form.items():
            words += ["-F", f"{name}={value}"]
        if self.file is not None:
            words += ["-F", f"file=@{self.file}"]
        if self.body is not None:
            words += ["-d", msgspec.json.encode(self.body).decode()]
        return shlex.join([*words, f"{base}{self.path}"])

    async def send(self, session: aiohttp.ClientSession, base: str) -> DemoResponse:
        """Send it without curl."""
        method, data = ("GET", None) if self.body is None and self.file is None else ("POST", self._data())
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with session.request(
            method, f"http://{base}{self.path}", data=data, headers=self.headers, timeout=timeout
        ) as response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            return DemoResponse(status=response.status, headers=headers, text=await response.text())

    def _data(self) -> bytes | aiohttp.FormData:
        if self.file is None:
            return msgspec.json.encode(self.body)
        form = aiohttp.FormData()
        for name, value in self.form.items():
            form.add_field(name, value)
        path = Path(self.file)
        form.add_field("file", path.read_bytes(), filename=path.name, content_type="audio/wav")
        return form

    def fault(self, answer: DemoResponse) -> str | None:
        """What is wrong with the answer; None where nothing is."""
        if answer.status != 200:
            return f"status {answer.status}: {answer.text[:200]}"
        if self.site is not None and answer.site != self.site:
            return f"answered by {answer.where}, not at {self.site}"
        if self.expected is None:
            return None
        try:
            got = msgspec.json.decode(answer.text)
        except msgspec.DecodeError:
            return f"answer is no JSON: {answer.text[:200]!r}"
        is_right = isinstance(got, dict) and all(got.get(key) == value for key, value in self.expected.items())
        return None if is_right else f"answered {answer.text[:200]}, not {dict(self.expected)}"


def add(**changes: Any) -> DemoRequest:
    """The textbook's example."""
    given: dict[str, Any] = {"label": "add", "body": {"a": 10, "b": 20}, "expected": {"result": 30}}
    return DemoRequest(path="/v1/tasks/add", **{**given, **changes})


def transcribe(file: str, model: str = "auto", **changes: Any) -> DemoRequest:
    """The recording, to be heard exactly."""
    given: dict[str, Any] = {
        "label": f"speech {model.partition('/')[0]}",
        "form": {"model": model},
        "expected": {"text": WORDS},
    }
    return DemoRequest(path="/v1/audio/transcriptions", file=file, **{**given, **changes})


def divide(**changes: Any) -> DemoRequest:
    """Work that both sides share."""
    given: dict[str, Any] = {"label": "primes", "body": {"items": PRIMES_BELOW}, "expected": {"result": PRIMES}}
    return DemoRequest(path="/v1/tasks/primes_by_both", **{**given, **changes})


def occupy(seconds: float = 1.0) -> DemoRequest:
    """A slot of the edge, for a while."""
    edge_only = {"x-gateway-locality": "edge-only"}
    body, expected = {"seconds": seconds}, {"result": seconds}
    return DemoRequest(
        label="occupy", path="/v1/tasks/occupy", body=body, expected=expected, headers=edge_only, site="edge"
    )


def data_requests(file: str) -> list[DemoRequest]:
    """What to try first, on the data listener."""
    return [
        add(),
        transcribe(file),
        transcribe(file, "speech/pocketsphinx", site="edge"),
        transcribe(file, "cloud/pocketsphinx", site="cloud"),
        divide(site="hybrid"),
    ]


def admin_requests() -> list[DemoRequest]:
    """What to look at, on the admin listener."""
    return [DemoRequest(label="status", path="/status"), DemoRequest(label="metrics", path="/metrics")]


# ── curl itself ──────────────────────────────────────────────────────────────────────────────────


def has_curl() -> bool:
    """Whether the lines can be run as they are printed."""
    return shutil.which("curl") is not None


async def run_curl(line: str) -> DemoResponse:
    """Run a curl line as it was printed, and take its answer apart. A status of 0 is a failure of curl's own."""
    with tempfile.TemporaryFile() as head:
        process = await asyncio.create_subprocess_exec(
            *shlex.split(line), "-sS", "-m", f"{TIMEOUT_S:g}", "-D", f"/dev/fd/{head.fileno()}",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            pass_fds=[head.fileno()], preexec_fn=die_with_parent(),
        )  # fmt: skip
        try:
            out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            return DemoResponse(status=0, text=err.decode(errors="replace").strip())
        head.seek(0)
        return parse_response(head.read().decode(), out.decode(errors="replace"))


def parse_response(head: str, text: str) -> DemoResponse:
    """An answer from curl's header dump; of several heads (`100 Continue`) the last counts."""
    lines = head.replace("\r\n", "\n").strip().split("\n\n")[-1].splitlines()
    pairs = (line.partition(":") for line in lines[1:])
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return DemoResponse(status=int(lines[0].split()[1]), headers=headers, text=text)
