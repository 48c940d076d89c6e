"""Recognises repeated requests, so that none is run twice.

A broker delivers QoS 1 messages at least once, and a client repeats a request after it got no response. A repeat has
the same response topic, correlation data, path, user properties and body. Without correlation data, only redeliveries
by the broker are recognised (DUP flag and packet id).

States of a request:

    waiting    queued
    running    being served
    answered   the response is kept: a repeat gets it
    retryable  the response invites a retry (429, 503, an aborted stream, …): a repeat by the client is run, a
               redelivery by the broker gets the response
    dropped    not answered, or only in part: a repeat is run

A repeat of a waiting or running request joins it: one response acknowledges all. The memory for responses is bounded.
A repeat is run again if the response was too large to keep or has been evicted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Literal

from gateway.ingress.mqtt.connection import Delivery
from gateway.ingress.mqtt.messages import Message, Publication
from gateway.ingress.mqtt.request import Address

KEEP_S = 3600.0  # as long as the broker keeps our session
MAX_BYTES = 32 * 1024 * 1024
MAX_RESPONSES = 4096

State = Literal["waiting", "running", "answered", "retryable", "dropped"]
Event = Literal["start", "answer", "answer_retryable", "lose_part", "expire", "fail", "interrupt"]

TRANSITIONS: dict[State, dict[Event, State]] = {
    "waiting": {"start": "running", "expire": "dropped"},
    "running": {
        "answer": "answered",
        "answer_retryable": "retryable",
        "lose_part": "dropped",  # the broker refused a message of a stream
        "fail": "dropped",  # a bug
        "interrupt": "dropped",  # the gateway stops
    },
    "answered": {},
    "retryable": {},
    "dropped": {},
}


def identity_of(message: Message, address: Address) -> Hashable:
    """A key that is equal for a request and its repeats."""
    content = (address.response_topic, address.target, hash(message.payload), hash(message.user))
    if message.correlation is not None or not address.takes_parts:
        return ("client", message.correlation, *content)
    return ("broker", message.mid, *content)


def _is_named_by_client(identity: Hashable) -> bool:
    """Whether the client named the request, so that every message with this identity is a repeat."""
    return isinstance(identity, tuple) and identity[0] == "client"


class PendingRequest:
    """One request: its state, its deliveries, and the messages of its response. TRANSITIONS raises KeyError."""

    def __init__(self) -> None:
        self.state: State = "waiting"
        self.response: list[Publication] = []
        self.size = 0
        self._refused: Publication | None = None
        self._deliveries: list[Delivery] = []

    @property
    def is_open(self) -> bool:
        """Whether repeats join the request."""
        return self.state in ("waiting", "running")

    def on(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state][event]

    def join(self, delivery: Delivery) -> None:
        """Add a delivery. Forgets deliveries of lost connections, which cannot be acknowledged any more."""
        self._deliveries = [*(each for each in self._deliveries if not each.is_stale), delivery]

    def acknowledge(self) -> None:
        """Acknowledge all deliveries."""
        for delivery in self._deliveries:
            delivery.acknowledge()
        self._deliveries.clear()

    def on_published(self, publication: Publication) -> None:
        """Keep a message of the response that the broker has accepted."""
        self._refused = None  # this message replaces a refused one
        self.size += publication.size
        if self.size <= MAX_BYTES:
            self.response.append(publication)
        else:
            self.response.clear()

    def on_refused(self, publication: Publication) -> None:
        """The broker refused a message of the response."""
        self._refused = publication

    def outcome(self, *, invites_retry: bool) -> Event:
        """The event that ends a served request.

        A whole response that the broker refused is kept: for a repeat it is published again. A stream that lacks a
        part is not kept.
        """
        refused = self._refused
        if refused is not None and (self.response or "seq" in dict(refused.user)):
            return "lose_part"
        if refused is not None:
            self.on_published(refused)
        return "answer_retryable" if invites_retry else "answer"


class RequestHistory:
    """Requests by identity: all that are open, and of the answered ones the most recent that fit into memory."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._open: dict[Hashable, PendingRequest] = {}
        self._answered: OrderedDict[Hashable, tuple[float, PendingRequest]] = OrderedDict()
        self._bytes = 0

    def find(self, message: Message, identity: Hashable) -> PendingRequest | None:
        """The request that this message repeats; None if it must be run."""
        if not message.is_duplicate and not _is_named_by_client(identity):
            return None
        self._evict()
        if (pending := self._open.get(identity)) is not None:
            return pending
        _, answered = self._answered.get(identity, (0.0, None))
        is_retry = answered is not None and answered.state == "retryable" and not message.is_duplicate
        return None if is_retry else answered

    def begin(self, identity: Hashable) -> PendingRequest:
        """Add a request. Call `finish` in every case."""
        self._open[identity] = pending = PendingRequest()
        return pending

    def finish(self, identity: Hashable, pending: PendingRequest, event: Event) -> None:
        """End a request; keep its response if there is a complete one."""
        pending.on(event)
        if self._open.get(identity) is pending:
            del self._open[identity]
        if pending.state != "dropped" and pending.size <= MAX_BYTES:
            self._remove(identity)
            self._answered[identity] = (self._clock(), pending)
            self._bytes += pending.size
        self._evict()

    def _evict(self) -> None:
        while self._answered:
            identity, (answered_at, _) = next(iter(self._answered.items()))
            is_full = self._bytes > MAX_BYTES or len(self._answered) > MAX_RESPONSES
            if not is_full and self._clock() - answered_at < KEEP_S:
                return
            self._remove(identity)

    def _remove(self, identity: Hashable) -> None:
        if identity in self._answered:
            self._bytes -= self._answered.pop(identity)[1].size
