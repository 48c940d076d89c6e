"""Authentication: the API key of a request, and whether that key may use the route.

A key is taken from three headers only, never from the URL or a cookie, which end up in logs and browsers. A client
certificate may take the place of a key that names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gateway.admit import Caller, Gate
from gateway.api.routes import Match
from gateway.plugin import GatewayError

# The headers in which clients send a key: OpenAI's, Anthropic's, Azure's.
CREDENTIAL_HEADERS = ("authorization", "x-api-key", "api-key")


def authenticate(
    gate: Gate, headers: Mapping[str, str], key_id: str | None = None, certificate_names: Sequence[str] = ()
) -> Caller:
    """Return the caller. Raises GatewayError `unauthorized`.

    key_id: the key, if the transport knows it. certificate_names: the names in the client's verified certificate.
    """
    if key_id is None or gate.is_open:
        return gate.authenticate(credentials_in(headers), certificate_names)
    return gate.caller_for(key_id)


def credentials_in(headers: Mapping[str, str]) -> Iterator[str]:
    """The keys in a request's headers (names in lower case). A scheme other than Bearer yields an unknown key."""
    for name in CREDENTIAL_HEADERS:
        value = headers.get(name, "").strip()
        scheme, _, rest = value.partition(" ")
        if value:
            yield rest.strip() if name == "authorization" and scheme.lower() == "bearer" else value


def check_route(caller: Caller, matched: Match) -> None:
    """Raise GatewayError `forbidden` if the path names a task that the key may not use."""
    if matched.route.kind == "task" and "task" in matched.params:
        caller.check("task", matched.params["task"])


def check_admin(gate: Gate, headers: Mapping[str, str]) -> None:
    """Raise GatewayError unless the key may read the admin listener."""
    caller = gate.authenticate(credentials_in(headers))
    if caller.key is None or not caller.key.admin:
        raise GatewayError("the admin listener needs an API key that has `admin`", code="forbidden")
