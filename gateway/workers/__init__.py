"""Backends in other processes: one supervised worker program, one process per slot.

A backend that declares `isolation = "process"` is opened in worker processes; the gateway holds a
`WorkerBackend` in its place, which looks the same from outside. The rule of this room: whatever happens in
a worker, a crash included, ends as an error of `gateway.plugin` for one request and is felt by no other.

    pool.py      the stand-in: who is idle, who is replaced, when it gives up
    process.py   one worker process as the gateway sees it
    errands.py   subtasks that a worker's backend dispatches
    main.py      the worker program (`python -m gateway.workers.main FD`)
    wire.py      the frames between the two

Workers are started by exec, never by fork: the gateway has threads and open sockets. While a worker works on a
task its size and estimate are still asked, so those are answered here, by an instance of the backend that is never
entered: a backend's constructor must be cheap, and loads nothing.
"""

from gateway.workers.pool import DRAIN_S, WorkerBackend

__all__ = ["DRAIN_S", "WorkerBackend"]
