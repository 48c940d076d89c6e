"""All settings of the gateway with default, limits, unit and meaning. This module declares and reads nothing.

A new setting is one line here: `load` reads it from the environment, `check` reports its problems, and `config`, the
generated environment file and docs/configuration.md show it. The settings of backends are declared in
`gateway.plugin.BackendSettings` and in each plugin's own settings class.
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
from gateway.settings.network_addresses import (
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
    """A field with its meaning and its unit (seconds, bytes, a ratio …)."""
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
        raise ValueError(f"{value!r} is not a browser origin; write a scheme and a host, such as https://app.example")
    return origin


def _expand_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"'{path}': the home directory is unknown; write an absolute path") from None


def _not_empty(listeners: tuple[Listener, ...]) -> tuple[Listener, ...]:
    if not listeners:
        raise ValueError("the list is empty")
    return listeners


def _mqtt_url(value: Any) -> MqttUrl:
    return value if isinstance(value, MqttUrl) else parse_mqtt_url(str(value))


def _topic(value: str) -> str:
    if not value or any(character in value for character in "+#\0") or value[0] in "$/" or value.endswith("/"):
        raise ValueError(f"{value!r} cannot begin a topic: remove + and #, $ or / at the start, and / at the end")
    return value


def _topic_level(value: str) -> str:
    if "/" in _topic(value):
        raise ValueError(f"{value!r} must be a single topic level: remove /")
    return value


def _topic_filter(value: str) -> str:
    levels = value.split("/")
    is_bad = any(len(level) > 1 and ("+" in level or "#" in level) for level in levels) or "#" in levels[:-1]
    if not value or "\0" in value or value.startswith("$") or is_bad:
        raise ValueError(f"{value!r} is not a topic filter; write filters such as answers/# or devices/+/answers")
    return value


ListenerField = Annotated[Listener, PlainValidator(_listener)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Ratio = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


def _edge_only_name(value: str) -> str:
    if value.startswith("v1/"):
        raise ValueError(f"{value!r} matches no request: write the path with a slash, /{value}")
    if not folded(value):
        raise ValueError(f"{value!r} has no visible character; remove it")
    return value


class Group(BaseModel):
    """A group of settings: `GATEWAY_<GROUP>__<FIELD>`."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Policy(Group):
    """Weights and limits of the choice between backends, besides the predicted time."""

    usd: Weight = setting(0.0, "weight of one US dollar; with 100, a cent weighs as much as a second", unit="s per USD")
    joule: Weight = setting(0.0, "weight of one joule", unit="s per J")
    lateness: Weight = setting(
        0.0, "weight of a second past the deadline, by the 95th percentile of the predicted time", unit="s per s"
    )
    hysteresis: Ratio = setting(
        0.03, "the last backend is chosen again if its cost exceeds the lowest by at most this share", unit="ratio"
    )
    rescue: bool = setting(
        True, "hedge: run a stalled request on a second backend if repeating it is safe; the first response wins"
    )
    rebind: Ratio = setting(
        0.8,
        "a waiting request moves to a backend with less than this share of the cost of its own backend; 0: never",
        unit="ratio",
    )
    price: Weight = setting(0.5, "weight of the delay that a request adds to the requests behind it", unit="s per s")
    routes: dict[str, str] = setting({}, "models and tasks that always go to one backend: map from name to backend")
    edge_only: tuple[Annotated[str, AfterValidator(_edge_only_name)], ...] = setting(
        (),
        "models, tasks, paths and MQTT topics that only backends on the site may serve, regardless of request headers; "
        "with `*` at the end for any rest. Case, escapes, invisible characters, `/v1`, a final slash and `:latest` "
        "make no difference. A path applies to the paths below it, and to MQTT as well. `auto` is edge-only if a model "
        "that it may select is; an alias, or a name of a hybrid backend, is edge-only if the name it stands for is",
    )
    probe_s: Seconds = setting(1.0, "pause between probes of an idle backend; doubles up to 60", unit="s")


class Mqtt(Group):
    """The MQTT broker and the gateway's credentials there. Without a URL the gateway does not use MQTT."""

    url: Annotated[MqttUrl, PlainValidator(_mqtt_url)] | None = setting(
        None,
        "the broker: `mqtt://host:1883`, or with TLS `mqtts://host:8883`; unset: no MQTT",
        examples=["mqtt://127.0.0.1:1883"],
    )
    username: str | None = setting(None, "the gateway's user name at the broker", examples=["edge-gateway"])
    password: SecretStr | None = setting(None, "the gateway's password at the broker", examples=["secret"])
    group: Annotated[str, AfterValidator(_topic_level)] = setting(
        "edge-gateway", "gateways with the same group and prefix share the requests: each request goes to one of them"
    )
    prefix: Annotated[str, AfterValidator(_topic)] = setting("edge-gateway", "prefix of every topic")
    key: str | None = setting(
        None,
        "name of the API key with the rules for requests by MQTT; required if API keys are used",
    )
    response_topics: tuple[Annotated[str, AfterValidator(_topic_filter)], ...] = setting(
        ("#",),
        "topic filters; a request on `PREFIX/req/v1/…` is answered only on topics that match one of them and are not "
        "under the prefix. A request on `PREFIX/req/CLIENT/v1/…` is answered under `PREFIX/reply/CLIENT/` only",
    )
    telemetry_s: Seconds = setting(30.0, "pause between two messages on the telemetry topic", unit="s")
    ca_file: Path | None = setting(None, "mqtts: certificates of the broker's CA (PEM); unset: the system's")
    cert_file: Path | None = setting(None, "mqtts: the client certificate for the broker (mutual TLS)")
    key_file: Path | None = setting(None, "mqtts: the client certificate's private key; unset: in the same file")

    @model_validator(mode="after")
    def _is_complete(self) -> Mqtt:
        if self.password is not None and self.username is None:
            raise ValueError("has a PASSWORD, but no USERNAME")
        files = [name for name in ("ca_file", "cert_file", "key_file") if getattr(self, name) is not None]
        if files and (self.url is None or not self.url.is_tls):
            raise ValueError(f"has a {files[0].upper()}, but its URL is not mqtts://host:8883")
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("has a KEY_FILE, but no CERT_FILE")
        return self


class Tls(Group):
    """TLS on the TCP data listeners; Unix sockets do not use TLS."""

    cert_file: Path | None = setting(None, "server certificate with its chain (PEM); enables TLS")
    key_file: Path | None = setting(None, "the certificate's private key; unset: in the certificate's file")
    client_ca_file: Path | None = setting(None, "clients need a certificate signed by this CA (mutual TLS)")

    @model_validator(mode="after")
    def _is_complete(self) -> Tls:
        if self.cert_file is None and (self.key_file or self.client_ca_file):
            raise ValueError("has no CERT_FILE, and TLS needs it")
        return self


class Log(Group):
    """The log on standard error."""

    format: Annotated[Literal["auto", "console", "json"], BeforeValidator(_lower)] = setting(
        "auto", "`auto`: console on a terminal, JSON lines otherwise"
    )
    level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = setting(
        "info", "the lowest level that is logged"
    )


class Settings(BaseSettings):
    """The gateway's own settings. Only `gateway.settings.load` reads the environment, not this class."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix=PREFIX, env_nested_delimiter="__")

    listen: Annotated[tuple[ListenerField, ...], AfterValidator(_not_empty)] = setting(
        (TcpListener("127.0.0.1", 8080),),
        "data listeners: `host:port`, `[v6]:port`, `unix:/path`; sockets passed by systemd replace them",
    )
    admin_listen: ListenerField = setting(
        TcpListener("127.0.0.1", 8081),
        "admin listener: `host:port`, `[v6]:port`, `unix:/path`; if other machines can reach it, a key with `admin` is "
        "required",
    )
    socket_group: str | None = setting(
        None, "group whose members may connect to Unix sockets (mode 0660); unset: only the gateway's user (0600)"
    )
    deadline_s: Seconds = setting(300.0, "whole request, if the response is not a stream", unit="s")
    first_byte_s: Seconds = setting(60.0, "streams: maximum time until the first content", unit="s")
    stall_s: Seconds = setting(30.0, "streams: maximum time between two pieces of content", unit="s")
    max_body_bytes: int = setting(
        33_554_432, "maximum size of a request body; a larger one gets 413", unit="bytes", ge=1
    )
    max_items: int = setting(
        100_000,
        "units of work in one request: items of a task, inputs of an embedding, prompts, messages; in all its lists "
        "and objects, eight times as many elements; more is 400",
        ge=1,
    )
    keys_file: Annotated[Path, AfterValidator(_expand_home)] | None = setting(
        None,
        "file of hashed API keys with rules per key (`edge-gateway keys`); if set, every request needs a key, except "
        "health checks",
    )
    allow_unauthenticated: bool = setting(
        False, "accept requests without API keys on listeners that other machines can reach"
    )
    allowed_hosts: tuple[Annotated[str, BeforeValidator(_host_name)], ...] | None = setting(
        None,
        "allowed names in the Host header, on any port; a request with another name gets 421; unset: the bound "
        "addresses (those of all interfaces if bound to all), the host name, its `.local` name, loopback names",
    )
    allowed_origins: tuple[Annotated[str, BeforeValidator(_browser_origin)], ...] = setting(
        (), "allowed browser origins; a request with another Origin header gets 403"
    )
    debug: bool = setting(
        False, "developer mode: errors to clients on this host contain the exception's text and traceback (`debug`)"
    )
    policy: Policy = Field(Policy(), description="the choice between backends")
    state_dir: Annotated[Path, AfterValidator(_expand_home)] = setting(
        Path("~/.local/state/edge-gateway"),
        "folder of the saved measurements; unset: `$STATE_DIRECTORY`, else the XDG state home",
    )
    mqtt: Mqtt = Field(Mqtt(), description="the MQTT broker")
    tls: Tls = Field(Tls(), description="TLS on the data listeners")
    log: Log = Field(Log(), description="the log on standard error")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use the given values only, not the process environment."""
        return (init_settings,)
