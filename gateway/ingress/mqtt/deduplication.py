"""What was asked and what was answered, so that nothing asked twice is run twice.

A broker delivers QoS 1 at least once, and clients ask again when they heard nothing. A repeat is the same
request again: same response topic, correlation data, path, user properties and body. It joins the first while that
runs, and is answered from memory afterwards. Where a client gave no correlation data only the broker's own
repeats are known. The memory is bounded: what has been forgotten, or was too large to keep, runs again. So does what
was answered by `come again`, or broke off: whoever asks again has been told to. The broker, which only was not sure
that we have heard, gets even that from memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from gateway.ingress.mqtt.connection import Delivery
from gateway.ingress.mqtt.properties import Message, Publication
from gateway.ingress.mqtt.topics import Address

KEEP_S = 3600.0  # as long as the broker keeps our session
KEEP_BYTES = 32 * 1024 * 1024
KEEP_ANSWERS = 4096


def identity_of(message: Message, address: Address) -> Hashable:
    """What makes two messages the same request; by the broker's packet number where the client says nothing."""
    asked = (address.answer_to, address.target, hash(message.payload), hash(message.user))
    if message.correlation is not None or not address.in_parts:
        return ("client", message.correlation, *asked)
    return ("broker", message.mid, *asked)


def is_known_by_client(identity: Hashable) -> bool:
    """Whether the client named the request, so that any message with this identity is a repeat."""
    return isinstance(identity, tuple) and identity[0] == "client"


class PendingRequest:
    """One request and its answer, however often it was delivered; while it is open, more deliveries may join.

    invites_again: the answer is no end of the matter, and a client that asks again wants another.
    """

    def __init__(self) -> None:
        self.answer: list[Publication] = []
        self.size = 0
        self.is_open = True
        self.invites_again = False
        self._refused: Publication | None = None
        self._deliveries: list[Delivery] = []

    def join(self, delivery: Delivery) -> None:
        """One more delivery of it; those of connections that were lost can be forgotten."""
        self._deliveries = [*(one for one in self._deliveries if not one.is_void), delivery]

    def acknowledge(self) -> None:
        """Acknowledge every delivery of it."""
        for delivery in self._deliveries:
            delivery.acknowledge()
        self._deliveries.clear()

    def keep(self, publication: Publication) -> None:
        """Remember a part of the answer that the broker has, in order."""
        self._refused = None  # what the broker would not have was said otherwise
        self.size += publication.size
        if self.size <= KEEP_BYTES:
            self.answer.append(publication)
        else:
            self.answer.clear()

    def refused(self, publication: Publication) -> None:
        """The broker would not have this."""
        self._refused = publication

    def settle(self) -> bool:
        """Nothing more comes. Whether a repeat can be answered from memory, and need not be run.

        A whole answer that the broker would not have is remembered too: a repeat tries it again. Of a stream that
        lacks a part nothing is.
        """
        refused = self._refused
        if refused is not None and (self.answer or "seq" in dict(refused.user)):
            return False
        if refused is not None:
            self.keep(refused)
        return True


class RequestHistory:
    """Exchanges by identity: all that run, and of those that were answered as many as fit, the oldest dropped first."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._running: dict[Hashable, PendingRequest] = {}
        self._answered: OrderedDict[Hashable, tuple[float, PendingRequest]] = OrderedDict()
        self._bytes = 0

    def find(self, message: Message, identity: Hashable) -> PendingRequest | None:
        """The exchange this message repeats, if it repeats one."""
        if not message.is_again and not is_known_by_client(identity):
            return None
        self._forget_old()
        if (running := self._running.get(identity)) is not None:
            return running
        _, answered = self._answered.get(identity, (0.0, None))
        return None if answered is not None and answered.invites_again and not message.is_again else answered

    def begin(self, identity: Hashable) -> PendingRequest:
        """A request that is to be run; `end` it, whatever happens."""
        self._running[identity] = exchange = PendingRequest()
        return exchange

    def end(self, identity: Hashable, exchange: PendingRequest, *, is_answered: bool) -> None:
        """It runs no more."""
        if self._running.get(identity) is exchange:
            del self._running[identity]
        exchange.is_open = False
        if is_answered and exchange.size <= KEEP_BYTES:
            self._drop(identity)
            self._answered[identity] = (self._clock(), exchange)
            self._bytes += exchange.size
        self._forget_old()

    def _forget_old(self) -> None:
        while self._answered:
            identity, (at, _) = next(iter(self._answered.items()))
            is_full = self._bytes > KEEP_BYTES or len(self._answered) > KEEP_ANSWERS
            if not is_full and self._clock() - at < KEEP_S:
                return
            self._drop(identity)

    def _drop(self, identity: Hashable) -> None:
        if identity in self._answered:
            self._bytes -= self._answered.pop(identity)[1].size
