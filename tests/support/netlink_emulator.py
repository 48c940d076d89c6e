#!/usr/bin/env python3
"""netlink_emulator.py - a scriptable WAN link between network namespaces.

It runs in user space.

Use it where the kernel has no netem qdisc, or where a test must change the link
while traffic flows.  Standard library only; Linux; Python >= 3.9; needs
CAP_NET_ADMIN + CAP_SYS_ADMIN (root, or an unprivileged user namespace, see below).

    edge namespace                      this process                     cloud namespace
   +--------------+   read()  +---------------------------+  write()  +---------------+
   | TUN 10.77.1.1| --------> | queue > rate/trace > loss | --------> | TUN 10.77.1.2 |
   |              | <-------- |   > delay (+jitter)       | <-------- |               |
   +--------------+           +---------------------------+           +---------------+

Every link has two directions, `a2b` and `b2a`, each with its own settings:

    delay=20ms       one-way propagation delay             (s, ms, us; bare number = ms)
    jitter=2ms       uniform +-jitter around delay, packets are never reordered
    rate=5mbit       bit rate: bit, kbit, mbit, gbit; 0 or `inf` = unlimited
    trace=FILE       mahimahi trace instead of a rate: one integer per line, the
                     millisecond of a chance to send 1500 bytes; the file repeats
                     with the period of its last line; `trace=none` removes it
    loss=1%          independent random loss (decided after the queue, as on a radio)
    burst=4          mean loss-burst length in packets (Gilbert model; 1 = independent)
    queue=1000p      drop-tail limit: packets `p`, bytes `b`/`kb`/`mb`, or `ms` at `rate`
    overhead=14      bytes added to each packet when charging the rate (layer-2 framing)
    state=up         up | blackhole (drop everything, like a pulled cable behind the
                     router) | stall (hold everything, like a radio that fades)

Command line
    sudo netlink_emulator.py up --link wan=edge,cloud --set 'wan both delay=20ms rate=50mbit'
    sudo netlink_emulator.py run --link wan=edge,cloud --set 'wan both delay=20ms' \
             --in cloud --bg 'python3 -m http.server 8000' --in edge -- curl http://10.77.1.2:8000/
    netlink_emulator.py ctl SOCKET 'set wan b2a delay=200ms loss=2%'
    sudo netlink_emulator.py cleanup            # after a SIGKILL: remove what was left

    A link end is NAMESPACE[:ADDRESS/LEN]; the namespace `host` is the caller's own.
    Addresses default to 10.77.N.1/30 (a) and 10.77.N.2/30 (b) for the N-th link.

Control (unix stream socket, or `up --stdin`): one command per line, one JSON line back
    set LINK a2b|b2a|both key=value ...     change settings; queued packets are kept
    outage LINK SECONDS [blackhole|stall]   take both directions away, then restore `up`
    at SECONDS COMMAND...                   run a command later (relative to now)
    script FILE                             lines `SECONDS COMMAND...`, relative to now
    show [LINK] | stats [LINK] | reset-stats | ping | quit

Python (pytest) - a subprocess owns the packets, so the test's own loop is not disturbed
    from netlink_emulator import Emulator
    with Emulator({"wan": ("edge", "cloud")}, {"wan": "delay=20ms rate=50mbit"}) as net:
        srv = net.popen("cloud", ["python3", "-m", "http.server", "8000"])
        net.cmd("outage wan 3 stall")
        print(net.addr("wan", "b"), net.cmd("stats wan"))

Without root (where user namespaces are allowed), wrap the whole test run:
    unshare -Urmn sh -c 'mount -t tmpfs t /run && ip link set lo up && pytest tests/net'

Measured on a 2-core VM, MTU 1500: timers fire 0.05-0.15 ms late per direction (ping over
delay=20ms reads 40.5 ms; over delay=0 0.2 ms), TCP moves 2.4 Gbit/s over delay=0 and
1.0 Gbit/s over delay=10ms; a saturated rate=20mbit carries 19.9 Mbit/s of IP packets (TCP
payload is 94-96 % of a rate: headers, slow start).  A busy machine is worse: `stats` reports the
lateness (late_us_mean, late_us_max), so a test that claims
accuracy should assert on it, and `--rt` raises the priority.  All links of one process
share one core.  GSO packets are split by the kernel before they get here.
"""

from __future__ import annotations

import argparse
import bisect
import collections
import contextlib
import ctypes
import errno
import fcntl
import gc
import heapq
import itertools
import json
import math
import os
import random
import re
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time

INF = math.inf
STATE_DIR = os.environ.get("NLE_STATE_DIR", "/run/netlink_emulator")
NETNS_DIR = "/run/netns"
MTU_OPPORTUNITY = 1500  # bytes per mahimahi delivery opportunity
now = time.monotonic

# --------------------------------------------------------------------------- units


def parse_time(text: str) -> float:
    """'20ms' -> 0.02; a bare number is milliseconds."""
    m = re.fullmatch(r"([0-9.]+)\s*(s|ms|us)?", text.strip())
    if not m:
        raise ValueError(f"not a time: {text!r}")
    return float(m[1]) * {"s": 1.0, "ms": 1e-3, "us": 1e-6, None: 1e-3}[m[2]]


def parse_rate(text: str) -> float:
    """'5mbit' -> 5e6 bit/s; 0, inf, unlimited -> inf."""
    text = text.strip().lower()
    if text in ("0", "inf", "unlimited", "none"):
        return INF
    m = re.fullmatch(r"([0-9.]+)\s*(bit|kbit|mbit|gbit)", text)
    if not m or float(m[1]) <= 0:
        raise ValueError(f"not a rate: {text!r} (use bit, kbit, mbit, gbit)")
    return float(m[1]) * {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}[m[2]]


def parse_fraction(text: str) -> float:
    text = text.strip()
    value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    if not 0 <= value <= 1:
        raise ValueError(f"not a probability: {text!r}")
    return value


def parse_queue(text: str):
    m = re.fullmatch(r"([0-9.]+)\s*(p|b|kb|mb|ms)", text.strip().lower())
    if not m:
        raise ValueError(f"not a queue limit: {text!r} (use p, b, kb, mb, ms)")
    return float(m[1]), m[2]


def load_trace(path: str):
    """A mahimahi trace: ascending integers, milliseconds.

    Returns seconds and the period.
    """
    with open(path) as f:
        ms = [int(line) for line in f if line.strip()]
    if not ms or any(b < a for a, b in itertools.pairwise(ms)) or ms[-1] <= 0:
        raise ValueError(f"{path}: a trace is ascending milliseconds ending above 0")
    return [t / 1e3 for t in ms], ms[-1] / 1e3


# ---------------------------------------------------------------------- one direction


class Direction:
    """Carries packets one way: drop-tail queue -> rate or trace -> loss -> delay."""

    def __init__(self, name: str, seed: int):
        self.name = name
        self.rng = random.Random(seed)
        self.rx_fd = self.tx_fd = -1  # read here, write there
        self.delay = 0.0
        self.jitter = 0.0
        self.rate = INF
        self.loss = 0.0
        self.burst = 1.0
        self.queue = (1000.0, "p")
        self.overhead = 0
        self.state = "up"
        self.trace_path = None
        self.trace = None
        self.period = 0.0
        self.trace_t0 = 0.0
        # running state
        self.q = collections.deque()  # (arrival, packet), waiting for the rate
        self.q_bytes = 0
        self.head_done = None  # when the head of q will have been sent
        self.free_at = 0.0  # when the transmitter became free
        self.line = collections.deque()  # (due, packet), in flight
        self.last_due = 0.0
        self.in_bad = False  # Gilbert model: inside a loss burst
        self.opp_next = 0  # trace: number of the next unused opportunity,
        self.opp_at = -INF  # the time of the one in use,
        self.opp_left = 0  # and the bytes left in it
        self.reset_stats()

    # -- settings

    def set(self, key: str, value: str) -> None:
        if key == "delay":
            self.delay = parse_time(value)
        elif key == "jitter":
            self.jitter = parse_time(value)
        elif key == "rate":
            self.rate = parse_rate(value)
            self._set_trace(None)
        elif key == "trace":
            self._set_trace(None if value == "none" else value)
        elif key == "loss":
            self.loss = parse_fraction(value)
        elif key == "burst":
            self.burst = max(1.0, float(value))
        elif key == "queue":
            self.queue = parse_queue(value)
        elif key == "overhead":
            self.overhead = int(value)
        elif key == "seed":
            self.rng = random.Random(int(value))
        elif key == "state":
            if value not in ("up", "blackhole", "stall"):
                raise ValueError(f"state is up, blackhole or stall, not {value!r}")
            if value == "up" and self.state == "stall":
                self.free_at = now()  # a faded radio sends nothing retroactively
                self.opp_left = 0
            self.state = value
            if value == "blackhole":  # packets in the queue and in flight are lost too
                self.stats["drop_outage"] += len(self.q) + len(self.line)
                self.q.clear()
                self.line.clear()
                self.q_bytes = 0
        else:
            raise ValueError(f"unknown setting {key!r}")
        if key in ("rate", "trace", "overhead", "state"):
            self.head_done = None  # recompute with the new settings

    def _set_trace(self, path):
        self.trace_path = path
        self.opp_next, self.opp_at, self.opp_left = 0, -INF, 0
        if path is None:
            self.trace = None
        else:
            self.trace, self.period = load_trace(path)
            self.trace_t0 = now()

    def show(self) -> dict:
        return {
            "delay_ms": round(self.delay * 1e3, 3),
            "jitter_ms": round(self.jitter * 1e3, 3),
            "rate_bit": None if self.rate == INF else self.rate,
            "trace": self.trace_path,
            "loss": self.loss,
            "burst": self.burst,
            "queue": "{:g}{}".format(*self.queue),
            "overhead": self.overhead,
            "state": self.state,
        }

    def reset_stats(self) -> None:
        self.stats = {
            "rx_packets": 0,
            "rx_bytes": 0,
            "tx_packets": 0,
            "tx_bytes": 0,
            "drop_queue": 0,
            "drop_loss": 0,
            "drop_outage": 0,
            "drop_write": 0,
        }
        self.late_sum = self.late_max = 0.0

    def show_stats(self) -> dict:
        sent = self.stats["tx_packets"]
        return dict(
            self.stats,
            queued=len(self.q),
            queued_bytes=self.q_bytes,
            in_flight=len(self.line),
            late_us_mean=round(self.late_sum / sent * 1e6, 1) if sent else 0.0,
            late_us_max=round(self.late_max * 1e6, 1),
        )

    # -- packets

    def _queue_full(self, size: int) -> bool:
        limit, unit = self.queue
        if unit == "p":
            return len(self.q) >= limit
        if unit == "ms":
            if self.rate == INF:
                return False
            return (self.q_bytes + size) * 8 > self.rate * limit / 1e3
        return self.q_bytes + size > limit * {"b": 1, "kb": 1e3, "mb": 1e6}[unit]

    def enqueue(self, packet: bytes, t: float) -> None:
        stats = self.stats
        stats["rx_packets"] += 1
        stats["rx_bytes"] += len(packet)
        if self.state == "blackhole":
            stats["drop_outage"] += 1
        elif self.rate == INF and self.trace is None and self.state == "up" and not self.q:
            self._propagate(packet, t)
        elif self._queue_full(len(packet)):
            stats["drop_queue"] += 1
        else:
            self.q.append((t, packet))
            self.q_bytes += len(packet)

    def _send_time(self, arrival: float, size: int) -> float:
        """Return the time at which the head packet has left the transmitter."""
        start = max(self.free_at, arrival)
        if self.trace is None:
            return start if self.rate == INF else start + size * 8 / self.rate
        if self.opp_at < start:  # opportunities that passed while idle are lost
            self.opp_left = 0
            self.opp_next = max(self.opp_next, self._opportunity_from(start))
        while size > 0:
            if self.opp_left <= 0:
                cycle, index = divmod(self.opp_next, len(self.trace))
                self.opp_at = self.trace_t0 + cycle * self.period + self.trace[index]
                self.opp_next += 1
                self.opp_left = MTU_OPPORTUNITY
            used = min(size, self.opp_left)
            size -= used
            self.opp_left -= used
        return self.opp_at

    def _opportunity_from(self, t: float) -> int:
        """Return the number of the first delivery opportunity at or after t."""
        cycle, phase = divmod(t - self.trace_t0, self.period)
        return int(cycle) * len(self.trace) + bisect.bisect_left(self.trace, phase - 1e-9)

    def _lost(self) -> bool:
        if not self.loss:
            return False
        if self.burst <= 1:
            return self.rng.random() < self.loss
        leave_bad = 1 / self.burst
        enter_bad = 1.0 if self.loss >= 1 else min(1.0, self.loss * leave_bad / (1 - self.loss))
        self.in_bad = self.rng.random() >= leave_bad if self.in_bad else self.rng.random() < enter_bad
        return self.in_bad

    def _propagate(self, packet: bytes, sent: float) -> None:
        if self.loss and self._lost():
            self.stats["drop_loss"] += 1
            return
        due = sent + self.delay
        if self.jitter:
            due += self.rng.uniform(-self.jitter, self.jitter)
        if due < self.last_due:  # never overtake
            due = self.last_due
        self.last_due = due
        self.line.append((due, packet))

    def advance(self, t: float) -> float:
        """Do everything due at t; return when to look again."""
        q = self.q
        while q and self.state == "up":
            if self.head_done is None:
                arrival, packet = q[0]
                self.head_done = self._send_time(arrival, len(packet) + self.overhead)
            if self.head_done > t:
                break
            packet = q.popleft()[1]
            self.q_bytes -= len(packet)
            self.free_at, self.head_done = self.head_done, None
            self._propagate(packet, self.free_at)
        line = self.line
        if line and line[0][0] <= t:
            stats, fd = self.stats, self.tx_fd
            while line and line[0][0] <= t:
                due, packet = line.popleft()
                try:
                    os.write(fd, packet)
                except OSError:  # interface down, or out of buffers
                    stats["drop_write"] += 1
                    continue
                late = t - due
                self.late_sum += late
                if late > self.late_max:
                    self.late_max = late
                stats["tx_packets"] += 1
                stats["tx_bytes"] += len(packet)
        upcoming = line[0][0] if line else INF
        if q and self.state == "up" and self.head_done < upcoming:
            return self.head_done
        return upcoming


# ------------------------------------------------------------- namespaces and TUN devices

_libc = ctypes.CDLL(None, use_errno=True)
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000


def _ip(*args: str) -> None:
    done = subprocess.run(["ip", *args], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(args)}: {done.stderr.strip()}")


def _in_ns(ns: str, *args: str) -> None:
    _ip(*args) if ns == "host" else _ip("-n", ns, *args)


def _enter(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns: " + os.strerror(ctypes.get_errno()))


def open_tun(ns: str, name: str, addr: str, peer: str, mtu: int) -> int:
    """Make TUN device `name` in namespace `ns`; the device lives as long as the fd."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ns != "host":
            target = os.open(f"{NETNS_DIR}/{ns}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _enter(target)
            finally:
                os.close(target)
        try:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
        finally:
            _enter(home)
    finally:
        os.close(home)
    try:
        _in_ns(ns, "addr", "add", addr, "dev", name)
        _in_ns(ns, "link", "set", name, "mtu", str(mtu), "txqueuelen", "2000", "up")
    except BaseException:
        os.close(fd)
        raise
    return fd


# ------------------------------------------------------------------------- the emulator


class Engine:
    """Owns the namespaces, the TUN devices and the packet loop (one thread)."""

    def __init__(
        self,
        links: dict,
        mtu: int = 1500,
        seed: int = 1,
        sock_path: str | None = None,
        log_path: str | None = None,
        use_stdin: bool = False,
    ):
        self.mtu, self.seed = mtu, seed
        self.links = {}
        self.ends = {}
        self.made_ns = []
        self.fds = {}  # tun fd -> the direction it feeds
        self.directions = []
        self.timers = []  # heap of (due, n, command)
        self.n = 0
        self.running = True
        self.clients = {}
        self.stdin_buffer = b"" if use_stdin else None
        self.log = open(log_path, "a", buffering=1) if log_path else None  # noqa: SIM115 (closed in close)
        self.listener = None
        self.state_file = None
        self.sock_path = None
        try:
            self._build(links)
            self._listen(sock_path)
        except BaseException:
            self.close()
            raise

    # -- set-up and teardown

    def _build(self, links: dict) -> None:
        cleanup(quiet=True)  # remains of a killed instance
        os.makedirs(STATE_DIR, exist_ok=True)
        self.state_file = f"{STATE_DIR}/{os.getpid()}.json"
        for number, (name, (a, b)) in enumerate(links.items(), 1):
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,12}", name):
                raise ValueError(f"link name {name!r}: 1-12 letters, digits, - or _")
            pair = []
            for side, end in enumerate((a, b), 1):
                ns, _, addr = end.partition(":")
                addr = addr or f"10.77.{number}.{side}/30"
                pair.append((ns, addr if "/" in addr else addr + "/30"))
            if pair[0][0] == pair[1][0]:
                raise ValueError(f"link {name}: both ends in namespace {pair[0][0]!r}")
            for ns, _addr in pair:
                self._make_ns(ns)
            fds = []
            for (ns, addr), side, other in zip(pair, "ab", (pair[1], pair[0]), strict=True):
                fd = open_tun(ns, f"{name}-{side}", addr, other[1], self.mtu)
                fds.append(fd)
                self.fds[fd] = None
            a2b = Direction(f"{name}.a2b", self.seed * 1000 + 2 * number)
            b2a = Direction(f"{name}.b2a", self.seed * 1000 + 2 * number + 1)
            a2b.rx_fd, a2b.tx_fd = fds
            b2a.rx_fd, b2a.tx_fd = fds[1], fds[0]
            self.fds[fds[0]], self.fds[fds[1]] = a2b, b2a
            self.directions += [a2b, b2a]
            self.links[name] = {"a2b": a2b, "b2a": b2a}
            self.ends[name] = {
                "a": {"ns": pair[0][0], "addr": pair[0][1].split("/")[0], "dev": name + "-a"},
                "b": {"ns": pair[1][0], "addr": pair[1][1].split("/")[0], "dev": name + "-b"},
            }

    def _make_ns(self, ns: str) -> None:
        if ns == "host" or os.path.exists(f"{NETNS_DIR}/{ns}"):
            return  # an existing namespace is used and never deleted
        self.made_ns.append(ns)
        with open(self.state_file, "w") as f:
            json.dump({"pid": os.getpid(), "namespaces": self.made_ns}, f)
        _ip("netns", "add", ns)
        _in_ns(ns, "link", "set", "lo", "up")

    def _listen(self, path: str | None) -> None:
        self.sock_path = path or f"{STATE_DIR}/{os.getpid()}.sock"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.sock_path)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.listener.bind(self.sock_path)
        os.chmod(self.sock_path, 0o600)
        self.listener.listen(16)

    def close(self) -> None:
        """Idempotent. TUN devices go with their fds; then the namespaces we made."""
        for client in list(self.clients):
            client.close()
        self.clients.clear()
        for fd in self.fds:
            os.close(fd)
        self.fds = {}
        for ns in self.made_ns:
            subprocess.run(["ip", "netns", "del", ns], capture_output=True)
        self.made_ns = []
        if self.listener:
            self.listener.close()
            self.listener = None
        for path in (self.sock_path, self.state_file):
            if path:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        if self.log:
            self.log.close()
            self.log = None

    # -- commands

    def command(self, line: str):
        words = shlex.split(line)
        if not words:
            return None
        verb, args = words[0], words[1:]
        if verb == "set":
            link, which = args[0], args[1]
            directions = self._directions(link, which)
            for item in args[2:]:
                key, sep, value = item.partition("=")
                if not sep:
                    raise ValueError(f"key=value expected, got {item!r}")
                for d in directions:
                    d.set(key, value)
            result = {d.name: d.show() for d in directions}
        elif verb == "outage":
            mode = args[2] if len(args) > 2 else "blackhole"
            for d in self._directions(args[0], "both"):
                d.set("state", mode)
            self._later(float(args[1]), f"set {args[0]} both state=up")
            result = {"outage": args[0], "seconds": float(args[1]), "mode": mode}
        elif verb == "at":
            self._later(float(args[0]), shlex.join(args[1:]))
            result = {"scheduled": float(args[0])}
        elif verb == "script":
            with open(args[0]) as f:
                steps = [s.split(None, 1) for s in f if s.strip() and not s.lstrip().startswith("#")]
            for after, step in steps:
                self._later(float(after), step.strip())
            result = {"scheduled": len(steps)}
        elif verb in ("show", "stats"):
            chosen = args or list(self.links)
            result = {
                n: {w: d.show() if verb == "show" else d.show_stats() for w, d in self.links[n].items()} for n in chosen
            }
        elif verb == "reset-stats":
            for d in self.directions:
                d.reset_stats()
            result = {}
        elif verb == "ends":
            result = self.ends
        elif verb == "ping":
            result = {"pid": os.getpid()}
        elif verb == "quit":
            self.running = False
            result = {}
        else:
            raise ValueError(f"unknown command {verb!r}")
        if self.log and verb in ("set", "outage"):
            self.log.write(json.dumps({"wall": time.time(), "mono": now(), "command": line}) + "\n")
        return result

    def _directions(self, link: str, which: str):
        if link not in self.links:
            raise ValueError(f"no link {link!r}; there are {', '.join(self.links)}")
        both = self.links[link]
        if which == "both":
            return list(both.values())
        if which not in both:
            raise ValueError(f"direction is a2b, b2a or both, not {which!r}")
        return [both[which]]

    def _later(self, after: float, line: str) -> None:
        self.n += 1
        heapq.heappush(self.timers, (now() + after, self.n, line))

    def answer(self, line: str) -> str:
        try:
            return json.dumps({"ok": True, "result": self.command(line)})
        except (ValueError, IndexError, KeyError, OSError) as error:
            return json.dumps({"ok": False, "error": f"{type(error).__name__}: {error}"})

    # -- the loop

    def loop(self) -> None:
        _libc.prctl(29, 1, 0, 0, 0)  # PR_SET_TIMERSLACK: 1 ns instead of 50 us
        gc.collect()
        gc.freeze()
        gc.disable()  # no cycles are made on the packet path
        read, size = os.read, self.mtu + 64
        directions, tuns = self.directions, self.fds
        while self.running:
            t = now()
            while self.timers and self.timers[0][0] <= t:
                line = heapq.heappop(self.timers)[2]
                reply = self.answer(line)
                if '"ok": false' in reply:
                    print(f"scheduled {line!r}: {reply}", file=sys.stderr)
            wake = self.timers[0][0] if self.timers else INF
            for d in directions:
                at = d.advance(t)
                if at < wake:
                    wake = at
            watched = [*list(tuns), self.listener, *list(self.clients)]
            if self.stdin_buffer is not None:
                watched.append(0)
            try:  # select() keeps microseconds, epoll only milliseconds
                ready, _, _ = select.select(watched, [], [], None if wake == INF else max(0.0, wake - now()))
            except InterruptedError:
                continue
            for source in ready:
                if source in tuns:
                    d = tuns[source]
                    try:
                        for _ in range(32):  # bounded, so that the other end is served too
                            d.enqueue(read(source, size), now())
                    except BlockingIOError:
                        pass
                    except OSError as error:
                        if error.errno not in (errno.EIO, errno.EBADFD):
                            raise
                        time.sleep(0.001)  # the interface was set down
                elif source is self.listener:
                    client, _ = self.listener.accept()
                    client.setblocking(False)
                    self.clients[client] = b""
                elif source == 0:
                    self._stdin()
                else:
                    self._client(source)

    def _client(self, client: socket.socket) -> None:
        try:
            data = client.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            del self.clients[client]
            client.close()
            return
        *lines, rest = (self.clients[client] + data).split(b"\n")
        self.clients[client] = rest
        for line in lines:
            try:
                client.sendall(self.answer(line.decode(errors="replace")).encode() + b"\n")
            except OSError:
                break

    def _stdin(self) -> None:
        data = os.read(0, 65536)
        if not data:  # end of input: keep going, stop listening to it
            self.stdin_buffer = None
            return
        *lines, self.stdin_buffer = (self.stdin_buffer + data).split(b"\n")
        for line in lines:
            print(self.answer(line.decode(errors="replace")), flush=True)


def cleanup(quiet: bool = False) -> None:
    """Delete the namespaces of instances that have ended."""
    if not os.path.isdir(STATE_DIR):
        return
    for name in os.listdir(STATE_DIR):
        path = f"{STATE_DIR}/{name}"
        stem, _, kind = name.rpartition(".")
        if kind not in ("json", "sock") or not stem.isdigit() or os.path.exists(f"/proc/{stem}"):
            continue
        if kind == "json":
            try:
                with open(path) as f:
                    namespaces = json.load(f)["namespaces"]
            except (OSError, ValueError, KeyError):
                namespaces = []
            for ns in namespaces:
                subprocess.run(["ip", "netns", "del", ns], capture_output=True)
                if not quiet:
                    print("removed namespace", ns)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


# --------------------------------------------------------------------- use from a test


def ctl(sock_path: str, line: str, timeout: float = 5.0):
    """Send one command; return its result or raise RuntimeError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(timeout)
        s.connect(sock_path)
        s.sendall(line.encode() + b"\n")
        data = b""
        while not data.endswith(b"\n"):
            part = s.recv(65536)
            if not part:
                break
            data += part
    if not data:  # `quit` may close before answering
        return {}
    reply = json.loads(data)
    if not reply["ok"]:
        raise RuntimeError(reply["error"])
    return reply["result"]


class Emulator:
    """Context manager: runs this file as a subprocess, and programs in its namespaces."""

    def __init__(
        self,
        links: dict,
        settings: dict | None = None,
        *,
        mtu: int = 1500,
        seed: int = 1,
        rt: bool = False,
        log: str | None = None,
    ):
        self.argv = [
            sys.executable,
            os.path.abspath(__file__),
            "up",
            "--die-with-parent",
            "--mtu",
            str(mtu),
            "--seed",
            str(seed),
        ]
        for name, (a, b) in links.items():
            self.argv += ["--link", f"{name}={a},{b}"]
        for name, text in (settings or {}).items():
            words = text.split(None, 1)
            which = "" if words and words[0] in ("a2b", "b2a", "both") else "both "
            self.argv += ["--set", f"{name} {which}{text}"]
        if rt:
            self.argv.append("--rt")
        if log:
            self.argv += ["--log", log]
        self.children = []
        self.process = None

    def __enter__(self) -> Emulator:
        self.process = subprocess.Popen(self.argv, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line.startswith("READY "):
            self.process.wait()
            raise RuntimeError("the emulator did not start; see its message above")
        info = json.loads(line[6:])
        self.sock, self.ends = info["sock"], info["ends"]
        return self

    def __exit__(self, *exc) -> None:
        for child in self.children:
            if child.poll() is None:
                child.terminate()
        for child in self.children:
            try:
                child.wait(3)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(10)
        self.process.stdout.close()

    def cmd(self, line: str):
        return ctl(self.sock, line)

    def addr(self, link: str, side: str) -> str:
        return self.ends[link][side]["addr"]

    def argv_in(self, ns: str, argv: list) -> list:
        return list(argv) if ns == "host" else ["ip", "netns", "exec", ns, *argv]

    def popen(self, ns: str, argv: list, **kw) -> subprocess.Popen:
        child = subprocess.Popen(self.argv_in(ns, argv), **kw)
        self.children.append(child)
        return child

    def run(self, ns: str, argv: list, **kw) -> subprocess.CompletedProcess:
        kw.setdefault("capture_output", True)
        kw.setdefault("text", True)
        return subprocess.run(self.argv_in(ns, argv), **kw)


# ------------------------------------------------------------------------ command line


def _links(items: list) -> dict:
    links = {}
    for item in items:
        name, sep, ends = item.partition("=")
        pair = ends.split(",")
        if not sep or len(pair) != 2:
            raise SystemExit(f"--link NAME=NS_A[:ADDR],NS_B[:ADDR], not {item!r}")
        links[name] = tuple(pair)
    return links


def main(argv: list | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("up", "run"):
        p = subs.add_parser(verb)
        p.add_argument("--link", action="append", default=[], required=True, metavar="NAME=A,B")
        p.add_argument("--set", action="append", default=[], metavar="'LINK DIR key=value ...'")
        p.add_argument("--mtu", type=int, default=1500)
        p.add_argument("--seed", type=int, default=1)
        p.add_argument("--sock", help="control socket path")
        p.add_argument("--log", help="append each change as a JSON line")
        p.add_argument("--script", help="commands to schedule at the start")
        p.add_argument("--rt", action="store_true", help="real-time priority, if allowed")
        p.add_argument("--die-with-parent", action="store_true", help="stop when the starting thread ends")
        p.add_argument("--stdin", action="store_true", help="also take commands from standard input")
        if verb == "run":
            p.add_argument("--in", dest="ns", action="append", default=[], metavar="NS")
            p.add_argument(
                "--bg",
                action="append",
                default=[],
                metavar="'COMMAND'",
                help="background command, in the --in of the same position",
            )
            p.add_argument("--wait", type=float, default=0.5, help="seconds between --bg and the command")
            p.add_argument("command", nargs=argparse.REMAINDER)
    p = subs.add_parser("ctl")
    p.add_argument("sock")
    p.add_argument("line")
    subs.add_parser("cleanup")
    args = parser.parse_args(argv)

    if args.verb == "cleanup":
        cleanup()
        return 0
    if args.verb == "ctl":
        try:
            print(json.dumps(ctl(args.sock, args.line), indent=1))
        except (RuntimeError, OSError) as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    if args.verb == "run":
        command = [w for i, w in enumerate(args.command) if not (i == 0 and w == "--")]
        spaces = args.ns
        if not command or len(spaces) != len(args.bg) + 1:
            raise SystemExit("run: one --in per --bg, then one more --in, then -- COMMAND")
        net = Emulator(_links(args.link), mtu=args.mtu, seed=args.seed, rt=args.rt, log=args.log)
        for line in args.set:
            net.argv += ["--set", line]
        if args.script:
            net.argv += ["--script", args.script]
        with net:
            for ns, bg in zip(spaces[:-1], args.bg, strict=True):
                net.popen(ns, shlex.split(bg))
            time.sleep(args.wait if args.bg else 0)
            return net.run(spaces[-1], command, capture_output=False).returncode

    def stop(*_):
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    if args.die_with_parent:
        _libc.prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG
    try:
        engine = Engine(_links(args.link), args.mtu, args.seed, args.sock, args.log, args.stdin)
    except (RuntimeError, ValueError, OSError) as error:
        print(f"netlink_emulator: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 1
    try:
        for line in args.set:
            engine.command("set " + line)
        if args.script:
            engine.command("script " + shlex.quote(args.script))
        if args.rt:
            try:
                os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
            except PermissionError:
                print("netlink_emulator: no real-time priority here", file=sys.stderr)
        print(
            "READY " + json.dumps({"sock": engine.sock_path, "pid": os.getpid(), "ends": engine.ends}),
            flush=True,
        )
        engine.loop()
    except KeyboardInterrupt:
        pass
    except (ValueError, OSError) as error:
        print(f"netlink_emulator: {error}", file=sys.stderr)
        return 1
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # teardown is not interrupted
        engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
