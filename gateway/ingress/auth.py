"""Which key a request comes with, and what that key makes of the request: decided on the matched route alone.

A key is taken from the headers clients have for it, and from nowhere else: not from a URL, not from a cookie. Where a
client has shown a certificate, its name may stand for a key that says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import unquote

from gateway.admit import Caller, Gate
from gateway.api.routes import Match
from gateway.plugin import GatewayError

# Where clients put a key: OpenAI's, Anthropic's, Azure's.
CREDENTIAL_HEADERS = ("authorization", "x-api-key", "api-key")


def authenticate(
    gate: Gate, headers: Mapping[str, str], key_id: str | None = None, certified: Sequence[str] = ()
) -> Caller:
    """Who asks. key_id: the door knows it already; certified: names of a client certificate it has checked.

    Raises GatewayError `unauthorized`.
    """
    return gate.known(credentials_in(headers), certified) if key_id is None or gate.is_open else gate.named(key_id)


def credentials_in(headers: Mapping[str, str]) -> Iterator[str]:
    """The keys in a request's headers (lower-cased names); a scheme other than Bearer is a key nobody has."""
    for name in CREDENTIAL_HEADERS:
        value = headers.get(name, "").strip()
        scheme, _, rest = value.partition(" ")
        if value:
            yield rest.strip() if name == "authorization" and scheme.lower() == "bearer" else value


def check_route(caller: Caller, found: Match) -> None:
    """Raises GatewayError `forbidden` where the path alone says that the key may not."""
    if found.route.kind == "task" and "task" in found.params:
        caller.check("task", found.params["task"])


def places_of(path: str, target: str, topic: str | None) -> tuple[str, ...]:
    """Where a request came in, as the operator may have named it: by its path, by its MQTT topic.

    A topic counts as it is written, and as it is routed: with `/v1`, without escapes, without a query.
    """
    routed = unquote(path.partition("?")[0])
    return (routed,) if topic is None else (routed, topic, topic.removesuffix(target) + routed)


def check_admin(gate: Gate, headers: Mapping[str, str]) -> None:
    """Raises GatewayError unless the key may read the admin listener."""
    caller = gate.known(credentials_in(headers))
    if caller.key is None or not caller.key.admin:
        raise GatewayError("this needs a key that has `admin`", code="forbidden")
