"""Carries out a decision: queues the task, runs one attempt after another, and learns from each result.

Theory of operation. A request is planned (which backends may serve it, and in which order) and queued in the lanes,
which own every wait. Its attempts form an `AttemptGroup`: usually one, two when a stalled attempt is hedged. Each
`Attempt` is an asyncio task that owns its slot from the grant until the backend has really stopped; the task of the
request only receives. So a request ends at once when its client disconnects, while the slot stays taken as long as a
worker is busy; and a backend is ahead of a slow client by a few parts and by bounded bytes.

Nothing is committed to the client before the first content. Until then another backend may be tried, if running twice
is harmless or if the failed backend certainly did not begin. After the first content another backend may continue the
stream if the client cannot notice it (`resume`). No backend is tried twice, except for one more round that a budget
limits (`retry`).
"""

from gateway.dispatch.attempt import Attempt
from gateway.dispatch.attempt_group import IDLE, Answer
from gateway.dispatch.dispatcher import Dispatcher
from gateway.dispatch.eligibility import Eligibility
from gateway.dispatch.planner import Plan, Planner
from gateway.dispatch.response_spec import Continuation, Limits, Renderer, ResponseSpec, ResumeMode
from gateway.dispatch.resume import cancel_and_close
from gateway.dispatch.subtasks import BackendServices

__all__ = [
    "IDLE",
    "Answer",
    "Attempt",
    "BackendServices",
    "Continuation",
    "Dispatcher",
    "Eligibility",
    "Limits",
    "Plan",
    "Planner",
    "Renderer",
    "ResponseSpec",
    "ResumeMode",
    "cancel_and_close",
]
