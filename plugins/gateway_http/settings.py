"""Settings of an upstream, and the URL of each request.

A base URL consists of an origin and a prefix:

| base URL | URL of `/v1/chat/completions` |
|---|---|
| `https://host`, `https://host/v1` | `https://host/v1/chat/completions` |
| `https://host/openai/v1` | `https://host/openai/v1/chat/completions`: the request brings the `/v1` |
| `https://host/v1beta/openai` | `https://host/v1beta/openai/chat/completions`: the request loses its `/v1` |
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal, Self
from urllib.parse import quote, urlsplit

from pydantic import Field, HttpUrl, SecretStr, field_validator, model_validator
from yarl import URL

from gateway.plugin import BackendSettings

# RFC 1918, RFC 4193, loopback and IPv6 link-local. Not 169.254/16: cloud metadata services live there.
PRIVATE_NETWORKS = tuple(
    ipaddress.ip_network(text)
    for text in (
        "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7", "fe80::/10",
    )
)  # fmt: skip


def is_private(address: str) -> bool:
    """Return whether a literal address is loopback or private.

    Raises ValueError for a name.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return any(ip in network for network in PRIVATE_NETWORKS if network.version == ip.version)


class BaseUrl:
    """The upstream's address; turns the path of a request into a URL."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        path = parts.path.rstrip("/")
        prefix = path.removesuffix("/v1")
        self.origin = f"{parts.scheme}://{parts.netloc}"
        self.prefix = prefix
        self.host = parts.hostname or ""
        self.netloc = parts.netloc
        self._drops_v1 = bool(prefix) and prefix == path

    def url(self, path: str) -> URL:
        """Return the URL of a request for `path`."""
        if self._drops_v1 and path.startswith("/v1/"):
            path = path.removeprefix("/v1")
        return URL(f"{self.origin}{self.prefix}{path}", encoded=True)

    def task_url(self, name: str) -> URL:
        """Return the URL of a task.

        `name` itself if it is a path, else a peer gateway's `/v1/tasks/NAME`.
        """
        return self.url(name if name.startswith("/") else f"/v1/tasks/{quote(name, safe='')}")


class HttpSettings(BackendSettings):
    """The settings of one upstream."""

    url: HttpUrl = Field(description="the upstream's base URL; a trailing `/v1` is dropped")
    api_key: SecretStr | None = Field(None, description="sent as `Authorization: Bearer`")
    ca_file: Path | None = Field(
        None, description="PEM file with the only trusted certificate authorities; default: the system's"
    )
    client_cert_file: Path | None = Field(None, description="PEM file with a certificate and its key, for mutual TLS")
    proxy: SecretStr | None = Field(
        None, description="`http://[user:password@]host:port` of a proxy; the environment's proxy settings are ignored"
    )
    resume: Literal["none", "prefill"] = Field(
        "none", description="`prefill`: the upstream continues an assistant message from its first part"
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: HttpUrl) -> HttpUrl:
        if url.username or url.password:
            raise ValueError("the URL holds credentials; remove them and set API_KEY")
        if url.query or url.fragment:
            raise ValueError("the URL holds a query or fragment; remove the part from `?` or `#` on")
        return url

    @field_validator("api_key")
    @classmethod
    def _check_api_key(cls, key: SecretStr | None) -> SecretStr | None:
        text = key.get_secret_value().strip() if key else ""
        if not text.isascii() or any(c.isspace() or not c.isprintable() for c in text):
            raise ValueError("an API key is one word of printable ASCII; check that this is the right file")
        return SecretStr(text) if text else None

    @field_validator("proxy")
    @classmethod
    def _check_proxy(cls, proxy: SecretStr | None) -> SecretStr | None:
        if proxy is not None:
            parts = urlsplit(proxy.get_secret_value())
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("expected http://host:port")
        return proxy

    @model_validator(mode="after")
    def _check_edge(self) -> Self:
        if self.site != "edge":
            return self
        if self.proxy is not None:
            raise ValueError(
                "SITE=edge excludes PROXY: the gateway cannot check the address a proxy connects to; "
                "remove PROXY or set SITE=cloud"
            )
        host = BaseUrl(str(self.url)).host
        try:
            private = is_private(host)
        except ValueError:
            return self  # a name: each connection checks the address
        if not private:
            raise ValueError(f"SITE=edge, but {host} is not a loopback or private address; set SITE=cloud")
        return self
