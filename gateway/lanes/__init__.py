"""Lanes: one queue with slots per backend. They own every wait before work starts, and can still change the choice.

Theory of operation. A lane has slots (the tasks its backend processes at once) and a bounded queue. For a remote
backend, a body larger than a socket buffer also needs an upload permit, so that bodies that are not yet on the wire
can still be moved; smaller bodies need no permit. The queue is in order of

    key = S + 0.2 * arrived         that is: shortest first, S - 0.2 * waited, which never needs re-sorting

where S is the predicted service time. Work with a deadline set by its client goes first, earliest first, once its
slack is under 2 S. Before that, order by length serves it better; after the deadline is lost, no order helps.

Predictions (`forecast`) follow from the contents of the lane: running work has max(S - age, S/4) to go, queued work
ahead is list-scheduled onto the slots, and bytes ahead are divided by the learned rate of the uplink.

A pass, every quarter of a second and on events, looks at the first 16 queued entries of each lane: work moves to
another lane where its cost is below 0.8 of the cost here (`rebalance`). Work that was sent and has stalled gets a
second attempt, a hedge, at another backend, if that takes less than 0.7 of the remaining time, out of a token bucket
that fills by 0.02 per request (`hedge`). Work that is not repeatable never runs twice, and work moves only to
backends in its `allowed`.

A lane is retired when a replaced backend gives up its name. It leaves the choice, its queue moves to the lane of the
new backend, and its running work still gives slots back but teaches nothing.

Synchronous; the clock is passed in, so the same lanes run live and in the benchmark's simulation.
"""

from gateway.lanes.lane import Lane
from gateway.lanes.scheduler import Scheduler
from gateway.lanes.selector import Selector
from gateway.lanes.work import Work, WorkOwner

__all__ = ["Lane", "Scheduler", "Selector", "Work", "WorkOwner"]
