"""The lanes: one per backend. They own every wait before work starts, and keep the choice open until then.

Theory of operation. A lane has slots (tasks its backend works on at once) and a bounded line. For a remote
backend, a body larger than a socket buffer also needs an upload permit, so that what is not yet on the wire
can still change its mind; smaller bodies pass by. The line is in order of

    key = S + 0.2 * arrived         that is: shortest first, S - 0.2 * waited, which never needs re-sorting

where S is the predicted service time. Work whose client gave a deadline goes first, earliest first, once its
slack is under 2 S: before that, order by length serves it better, and after it is lost, nobody gains.

Predictions (`forecast`) are made from what stands in the lane: what runs has max(S - age, S/4) to go, what
waits ahead is list-scheduled onto the slots, bytes ahead are divided by the learned rate of the uplink.

A pass, every quarter of a second and on events, looks at the first 16 waiting of each lane: work moves where
its cost is below 0.8 of here (`rebinding`). Work that is sent and stalled gets a second attempt elsewhere, when
that takes less than 0.7 of what remains, out of a token bucket that fills by 0.02 per request (`rescuing`).
What is not repeatable never runs twice, and nothing moves where its `allowed` does not name.

A lane is retired when another backend gets its name: it is in no choice any more, those who wait line up in the
new one, and what runs gives its slot back and teaches nothing.

Synchronous; the clock is given, so the same lanes run live and in the benchmark's simulation.
"""

from gateway.lanes.lane import Lane
from gateway.lanes.scheduler import Scheduler
from gateway.lanes.work import Work

__all__ = ["Lane", "Scheduler", "Work"]
