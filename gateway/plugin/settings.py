"""The settings of every backend; a plugin subclasses `BackendSettings` to add its own."""

from __future__ import annotations

import re
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from gateway.plugin import checks

Isolation = Literal["loop", "process"]

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\*?")
# Secrets, and sockets of the service manager. No worker inherits these.
_OF_GATEWAY = ("GATEWAY_", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "LISTEN_", "WATCHDOG_")


def is_of_gateway(variable: str) -> bool:
    """Whether an environment variable is the gateway's own, and not for workers."""
    return variable.upper().startswith(_OF_GATEWAY)


class BackendSettings(BaseModel):
    """The settings of every backend, as `GATEWAY_BACKENDS__<NAME>__<FIELD>`; subclass it to add fields.

    If a field is not set (None), the value that the backend's class declares applies. Unknown fields are errors.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    plugin: str = Field("", description="which plugin: an entry point's name, or `package.module:attribute`")
    site: Literal["edge", "cloud"] | None = Field(None, description="`edge`, or `cloud`: data leaves the site")
    slots: int | None = Field(None, ge=1, le=4096, description="tasks it works on at once")
    queue: int = Field(256, ge=0, le=65536, description="how many tasks may wait in the gateway")
    models: dict[str, str] | None = Field(
        None, description="models it serves: list, or map from the client's name to the backend's"
    )
    tasks: dict[str, str] | None = Field(
        None, description="tasks it serves: list, or map from the client's name to the backend's"
    )
    isolation: Isolation | None = Field(None, description="`loop`, or `process`: in worker processes, one per slot")
    environment: tuple[str, ...] = Field(
        (),
        description="environment variables that its worker processes inherit beside those for paths, locale, Python, "
        "threads and devices; `*` at the end for any rest, such as `HF_*`",
    )
    usd_per_request: float = Field(0.0, ge=0, description="cost of one request, for the policy")
    watts: float = Field(0.0, ge=0, description="power drawn while it works, for the policy")
    repeatable: bool | None = Field(None, description="whether running a task twice is harmless")

    @field_validator("models", "tasks", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return checks.parse_names(value)

    @field_validator("environment")
    @classmethod
    def _inheritable(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of a variable; write names such as HF_HOME or HF_*")
            if is_of_gateway(name):
                raise ValueError(f"{name!r} belongs to the gateway, and no worker inherits it")
        return names


S = TypeVar("S", bound=BackendSettings)
