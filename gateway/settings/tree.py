"""Every setting of the gateway with its default, limits, unit and meaning. It says what is; it reads nothing.

A new setting is one line here: `load` finds it in the environment, `check` names it, and `config`, the
generated environment file and docs/configuration.md show it. What backends may set stands in
`gateway.plugin.BackendSettings` and in each plugin's own settings.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SecretStr,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from gateway.plugin.spelling import folded
from gateway.settings.listeners import (
    Listener,
    MqttUrl,
    TcpListener,
    UnixListener,
    parse_host,
    parse_listener,
    parse_mqtt_url,
)

PREFIX = "GATEWAY_"

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s,*]+")


def setting(default: Any, description: str, *, unit: str = "", **limits: Any) -> Any:
    """A field: its meaning, and the unit it is counted in (seconds, bytes, a ratio …)."""
    return Field(default, description=description, json_schema_extra={"unit": unit}, **limits)


def _listener(value: Any) -> Listener:
    return value if isinstance(value, TcpListener | UnixListener) else parse_listener(str(value))


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _host_name(value: Any) -> str:
    return parse_host(str(value))


def _browser_origin(value: Any) -> str:
    origin = str(value).strip().lower().removesuffix("/")
    if not _ORIGIN.fullmatch(origin):
        raise ValueError(f"{value!r} is no browser origin; write each one whole, such as https://app.example")
    return origin


def _home_opened(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"'{path}': that home directory is not known; write the whole path") from None


def _not_empty(listeners: tuple[Listener, ...]) -> tuple[Listener, ...]:
    if not listeners:
        raise ValueError("names no listener at all")
    return listeners


def _mqtt_url(value: Any) -> MqttUrl:
    return value if isinstance(value, MqttUrl) else parse_mqtt_url(str(value))


def _topic(value: str) -> str:
    if not value or any(character in value for character in "+#\0") or value[0] in "$/" or value.endswith("/"):
        raise ValueError(f"{value!r} cannot begin a topic: no +, no #, no $ or / at its start, no / at its end")
    return value


def _topic_level(value: str) -> str:
    if "/" in _topic(value):
        raise ValueError(f"{value!r} must be one level of a topic: no /")
    return value


ListenerField = Annotated[Listener, PlainValidator(_listener)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Ratio = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


def _stays(value: str) -> str:
    if value.startswith("v1/"):
        raise ValueError(f"{value!r} matches nothing: a path begins with a slash, /{value}")
    if not folded(value):
        raise ValueError(f"{value!r} has no visible character; remove it")
    return value


class Group(BaseModel):
    """Settings that belong together: `GATEWAY_<GROUP>__<FIELD>`."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Policy(Group):
    """What a choice between backends weighs, beside the predicted time."""

    usd: Weight = setting(0.0, "what one dollar is worth: 100 makes a cent as bad as a second", unit="s per USD")
    joule: Weight = setting(0.0, "what one joule is worth", unit="s per J")
    lateness: Weight = setting(0.0, "what a second past the deadline is worth (95th percentile)", unit="s per s")
    hysteresis: Ratio = setting(0.03, "how much better another backend must be to leave the last one", unit="ratio")
    rescue: bool = setting(True, "run stalled work elsewhere too, where that is harmless; the first answer wins")
    rebind: Ratio = setting(
        0.8, "waiting work moves where it takes less than this part of the time it would take here; 0: never",
        unit="ratio",
    )  # fmt: skip
    price: Weight = setting(0.5, "weight of the delay a task adds to those behind it", unit="s per s")
    routes: dict[str, str] = setting({}, "models and tasks that always go to one backend: map from name to backend")
    edge_only: tuple[Annotated[str, AfterValidator(_stays)], ...] = setting(
        (),
        "models, tasks, paths and MQTT topics whose data never leaves the site, whatever a request says; with `*` at "
        "the end for any rest. Case, escapes, invisible characters, `/v1`, a final slash and `:latest` make no "
        "difference. A path holds for the paths below it, and by MQTT, too; `auto` stays where a model that it may "
        "become does, and what a hybrid offers where the name it stands for does",
    )
    probe_s: Seconds = setting(1.0, "pause between looks at an idle backend; backs off to 60", unit="s")


class Mqtt(Group):
    """The broker, and who the gateway is to it. Without a URL there is no MQTT door."""

    url: Annotated[MqttUrl, PlainValidator(_mqtt_url)] | None = setting(
        None,
        "the broker: `mqtt://host:1883`, or with TLS `mqtts://host:8883`; with a URL the MQTT door opens",
        examples=["mqtt://127.0.0.1:1883"],
    )
    username: str | None = setting(None, "who the gateway is to the broker", examples=["edge-gateway"])
    password: SecretStr | None = setting(None, "its password there", examples=["secret"])
    group: Annotated[str, AfterValidator(_topic_level)] = setting(
        "edge-gateway", "gateways of one group and prefix share the requests among them"
    )
    prefix: Annotated[str, AfterValidator(_topic)] = setting("edge-gateway", "what every topic begins with")
    key: str | None = setting(
        None,
        "the id of the API key whose rules apply to what comes by MQTT; needed where there are keys",
    )
    telemetry_s: Seconds = setting(30.0, "pause between two messages on the telemetry topic", unit="s")
    ca_file: Path | None = setting(None, "mqtts: who may have signed the broker's certificate; unset: the system's")
    cert_file: Path | None = setting(None, "mqtts: the certificate shown to the broker (mutual TLS)")
    key_file: Path | None = setting(None, "mqtts: its private key; unset: in the certificate's file")

    @model_validator(mode="after")
    def _whole(self) -> Mqtt:
        """What belongs together is set together."""
        if self.password is not None and self.username is None:
            raise ValueError("has a PASSWORD, but no USERNAME")
        files = [name for name in ("ca_file", "cert_file", "key_file") if getattr(self, name) is not None]
        if files and (self.url is None or not self.url.is_tls):
            raise ValueError(f"has a {files[0].upper()}, but its URL is not mqtts://host:8883")
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("has a KEY_FILE, but no CERT_FILE")
        return self


class Tls(Group):
    """TLS on the data listeners; Unix sockets have none."""

    cert_file: Path | None = setting(None, "the certificate shown to clients, with its chain; with it there is TLS")
    key_file: Path | None = setting(None, "its private key; unset: in the certificate's file")
    client_ca_file: Path | None = setting(None, "clients must show a certificate signed by it (mutual TLS)")

    @model_validator(mode="after")
    def _whole(self) -> Tls:
        """What belongs together is set together."""
        if self.cert_file is None and (self.key_file or self.client_ca_file):
            raise ValueError("has no CERT_FILE, so there would be no TLS")
        return self


class Log(Group):
    """What is written to standard error."""

    format: Annotated[Literal["auto", "console", "json"], BeforeValidator(_lower)] = setting(
        "auto", "`auto`: console on a terminal, JSON lines otherwise"
    )
    level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = setting(
        "info", "the least important events that are written"
    )


class Settings(BaseSettings):
    """The gateway's own settings. Making one reads nothing: only `gateway.settings.load` looks at the environment."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix=PREFIX, env_nested_delimiter="__")

    listen: Annotated[tuple[ListenerField, ...], AfterValidator(_not_empty)] = setting(
        (TcpListener("127.0.0.1", 8080),),
        "data listeners: `host:port`, `[v6]:port`, `unix:/path`; sockets passed by systemd take their place",
    )
    admin_listen: ListenerField = setting(
        TcpListener("127.0.0.1", 8081),
        "admin listener: `host:port`, `[v6]:port`, `unix:/path`; where others can reach it, for keys that have `admin`",
    )
    deadline_s: Seconds = setting(300.0, "whole request, where the answer is not a stream", unit="s")
    first_byte_s: Seconds = setting(60.0, "streams: until the first content", unit="s")
    stall_s: Seconds = setting(30.0, "streams: between two contents", unit="s")
    max_body_bytes: int = setting(33_554_432, "the largest request body; more is 413", unit="bytes", ge=1)
    max_items: int = setting(
        100_000,
        "units of work in one request: items of a task, inputs of an embedding, prompts, messages; in all its lists "
        "and objects, eight times as many elements; more is 400",
        ge=1,
    )
    keys_file: Annotated[Path, AfterValidator(_home_opened)] | None = setting(
        None,
        "API keys, hashed, with rules per key (`edge-gateway keys`); with it every request needs one, health apart",
    )
    allow_unauthenticated: bool = setting(False, "serve anybody who can reach a listener that is not loopback")
    allowed_hosts: tuple[Annotated[str, BeforeValidator(_host_name)], ...] | None = setting(
        None,
        "names clients may use in the Host header, on any port, else 421; unset: the bound addresses (every "
        "interface's where bound to all), the host name, its `.local` name, loopback names",
    )
    allowed_origins: tuple[Annotated[str, BeforeValidator(_browser_origin)], ...] = setting(
        (), "browser origins that may ask, else 403 when an Origin is sent"
    )
    policy: Policy = Field(Policy(), description="what a choice weighs")
    state_dir: Annotated[Path, AfterValidator(_home_opened)] = setting(
        Path("~/.local/state/edge-gateway"), "learned state; unset: `$STATE_DIRECTORY`, else the XDG state home"
    )
    mqtt: Mqtt = Field(Mqtt(), description="the broker")
    tls: Tls = Field(Tls(), description="TLS on the data listeners")
    log: Log = Field(Log(), description="what is written to standard error")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Nothing but what it is given."""
        return (init_settings,)
