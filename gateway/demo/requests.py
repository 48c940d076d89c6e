"""The demo's requests: each with its curl command line, a way to send it without curl, and the expected response."""

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
    """A response. `headers` have lower-case names; `text` is the body, also of an error."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str = ""

    @property
    def backend_and_site(self) -> str:
        """The backend that served the request, as `backend (site)`."""
        return f"{self.headers.get('x-gateway-backend', '-')} ({self.headers.get('x-gateway-site', '-')})"

    @property
    def site(self) -> str:
        """The site that served the request; empty if unknown."""
        return self.headers.get("x-gateway-site", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRequest:
    """A request. expected: fields that the response's JSON must contain; None if status 200 suffices."""

    label: str
    path: str
    body: Any = None
    form: Mapping[str, str] = field(default_factory=dict)
    file: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    expected: Mapping[str, Any] | None = None
    site: str | None = None

    def curl(self, base: str) -> str:
        """The curl command line of the request."""
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
        """Send the request without curl."""
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

    def find_error(self, response: DemoResponse) -> str | None:
        """The error of a response; None if the response is as expected."""
        if response.status != 200:
            return f"status {response.status}: {response.text[:200]}"
        if self.site is not None and response.site != self.site:
            return f"served by {response.backend_and_site}, not at {self.site}"
        if self.expected is None:
            return None
        try:
            got = msgspec.json.decode(response.text)
        except msgspec.DecodeError:
            return f"the response is not JSON: {response.text[:200]!r}"
        is_right = isinstance(got, dict) and all(got.get(key) == value for key, value in self.expected.items())
        return None if is_right else f"the response is {response.text[:200]}, not {dict(self.expected)}"


def add(**changes: Any) -> DemoRequest:
    """The task `add`."""
    fields: dict[str, Any] = {"label": "add", "body": {"a": 10, "b": 20}, "expected": {"result": 30}}
    return DemoRequest(path="/v1/tasks/add", **{**fields, **changes})


def transcribe(file: str, model: str = "auto", **changes: Any) -> DemoRequest:
    """The transcription of a recording, which must return WORDS exactly."""
    fields: dict[str, Any] = {
        "label": f"speech {model.partition('/')[0]}",
        "form": {"model": model},
        "expected": {"text": WORDS},
    }
    return DemoRequest(path="/v1/audio/transcriptions", file=file, **{**fields, **changes})


def divide(**changes: Any) -> DemoRequest:
    """A task that the hybrid backend divides between edge and cloud."""
    fields: dict[str, Any] = {"label": "primes", "body": {"items": PRIMES_BELOW}, "expected": {"result": PRIMES}}
    return DemoRequest(path="/v1/tasks/primes_by_both", **{**fields, **changes})


def occupy(seconds: float = 1.0) -> DemoRequest:
    """A task that occupies a slot at the edge for this time."""
    edge_only = {"x-gateway-locality": "edge-only"}
    body, expected = {"seconds": seconds}, {"result": seconds}
    return DemoRequest(
        label="occupy", path="/v1/tasks/occupy", body=body, expected=expected, headers=edge_only, site="edge"
    )


def data_requests(file: str) -> list[DemoRequest]:
    """The example requests to the data listener."""
    return [
        add(),
        transcribe(file),
        transcribe(file, "speech/pocketsphinx", site="edge"),
        transcribe(file, "cloud/pocketsphinx", site="cloud"),
        divide(site="hybrid"),
    ]


def admin_requests() -> list[DemoRequest]:
    """The example requests to the admin listener."""
    return [DemoRequest(label="status", path="/status"), DemoRequest(label="metrics", path="/metrics")]


# ── curl ─────────────────────────────────────────────────────────────────────────────────────────


def has_curl() -> bool:
    return shutil.which("curl") is not None


async def run_curl(line: str) -> DemoResponse:
    """Run a curl command line and parse its output. Status 0 means that curl failed; the text is its message."""
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
    """Parse curl's header dump and body; of several heads (`100 Continue`), the last counts."""
    lines = head.replace("\r\n", "\n").strip().split("\n\n")[-1].splitlines()
    pairs = (line.partition(":") for line in lines[1:])
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return DemoResponse(status=int(lines[0].split()[1]), headers=headers, text=text)
