"""Backends in other processes: one supervised worker program, one process per slot.

A backend that declares `isolation = "process"` is opened in worker processes. The gateway holds a `WorkerBackend` in
its place, which has the same interface. Any failure in a worker, a crash included, ends one request with an error of
`gateway.plugin` and does not affect other requests.

    pool.py            `WorkerBackend`: idle workers, replacement of dead ones, back-off of failing starts
    process.py         one worker process as the gateway sees it: its states, tasks and end
    environment.py     the environment variables that a worker inherits
    output.py          the lines that a worker prints
    forks.py           cuts child processes that a plugin forks off from the socket
    secret_mask.py     conceals secrets in these lines
    main.py            the worker program (`python -m gateway.workers.main FD`)
    subtasks.py        client and server for the subtasks that a worker's backend dispatches
    frames.py          the messages between gateway and worker
    codec.py           conversion between these messages and the objects of `gateway.plugin`
    frame_channel.py   the socket that carries the messages

Workers are started by exec, never by fork, because the gateway has threads and open sockets. `size` and `estimate` are
needed while a worker is busy, so the gateway calls them on an instance of the backend that is never entered. The
constructor of a backend must therefore be cheap and load nothing.
"""

from gateway.workers.pool import DRAIN_S, WorkerBackend
from gateway.workers.secret_mask import SecretMask, secrets_in

__all__ = ["DRAIN_S", "SecretMask", "WorkerBackend", "secrets_in"]
