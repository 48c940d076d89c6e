"""The settings of every backend; a plugin subclasses `BackendSettings` to add its own."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from gateway.plugin import checks

Isolation = Literal["loop", "process"]


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
    usd_per_request: float = Field(0.0, ge=0, description="cost of one request, for the policy")
    watts: float = Field(0.0, ge=0, description="power drawn while it works, for the policy")
    repeatable: bool | None = Field(None, description="whether running a task twice is harmless")

    @field_validator("models", "tasks", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return checks.parse_names(value)


S = TypeVar("S", bound=BackendSettings)
