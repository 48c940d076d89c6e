"""Carries out a decision: a place in line, one attempt after another, and what each of them teaches.

Theory of operation. A request is planned (who may serve it, who should), takes a place in the lanes, which
own every wait, and becomes a `Race` of attempts: usually one, two where a stalled one is rescued. Each
`Attempt` is an asyncio task that owns its slot from the grant until the backend has really stopped; the
request's own task only listens. So a client that leaves ends its request at once while the slot stays taken
as long as a worker is busy; and a backend is ahead of a slow client by a few parts and by bounded bytes.

Nothing is committed to the client before the first content. Until then another backend may be asked: when
running twice is harmless, or when the one that failed certainly did not begin. After it, somebody else may go on
where the client cannot tell (`resume`). Nobody is asked twice, but for one more round out of a budget (`budget`).
"""

from gateway.dispatch.attempt import Attempt
from gateway.dispatch.continuation import Continuation, How, Renderer
from gateway.dispatch.dispatcher import Dispatcher
from gateway.dispatch.planner import Plan, Planner
from gateway.dispatch.race import IDLE, Answer
from gateway.dispatch.response_spec import Limits, ResponseSpec
from gateway.dispatch.resume import cancel_and_close
from gateway.dispatch.subtasks import BackendServices

__all__ = [
    "IDLE",
    "Answer",
    "Attempt",
    "BackendServices",
    "Continuation",
    "Dispatcher",
    "How",
    "Limits",
    "Plan",
    "Planner",
    "Renderer",
    "ResponseSpec",
    "cancel_and_close",
]
