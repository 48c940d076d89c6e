"""Checks that run inside the container, on its Python alone.

Each prints its result as a line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ENV_FILE = Path("/etc/edge-gateway/edge-gateway.env")
URL = "http://127.0.0.1:8080"


def report(name: str, value: Any) -> None:
    print(json.dumps({name: value}), flush=True)


def sh(command: str) -> str:
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip()


def show(name: str) -> str:
    return sh(f"systemctl show -P {name} edge-gateway.service")


def ask(path: str, body: bytes | None = None, timeout_s: float = 20.0) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(URL + path, body), timeout=timeout_s) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read()


def until(check: Any, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return True
        time.sleep(0.05)
    return False


def install(deb: str) -> str:
    return sh(f"dpkg -i {deb}")


def start_is_quick() -> None:
    took = []
    for _ in range(3):  # the host may be loaded
        sh("systemctl stop edge-gateway.service")
        began = time.monotonic()
        sh("systemctl start edge-gateway.service")
        took.append(round(time.monotonic() - began, 3))
    report("start_s", took)


def restart_refuses_no_client() -> None:
    failed: list[str] = []
    served: list[int] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            try:
                status, body = ask("/v1/tasks/add", b'{"a":10,"b":20}')
                served.append(status) if status == 200 else failed.append(f"{status} {body[:200]!r}")
            except OSError as exc:
                failed.append(repr(exc))
            time.sleep(0.2)

    clients = [threading.Thread(target=client) for _ in range(100)]
    for thread in clients:
        thread.start()
    time.sleep(1.0)
    sh("systemctl restart edge-gateway.service")
    time.sleep(1.0)
    stop.set()
    for thread in clients:
        thread.join()
    report("restart", {"served": len(served), "failed": failed[:3]})


def hung_loop_is_restarted() -> None:
    before = show("MainPID")
    os.kill(int(before), signal.SIGSTOP)  # acts as a hung event loop: no watchdog notification is sent
    report(
        "hung_restarted", until(lambda: show("MainPID") not in (before, "0") and show("ActiveState") == "active", 30)
    )
    report("hung_result", sh("journalctl -u edge-gateway.service -o cat | grep -ci watchdog") != "0")


def reload_applies_settings() -> None:
    text = ENV_FILE.read_text()
    ENV_FILE.write_text(text + "\nGATEWAY_MAX_BODY_BYTES=5\n")
    sh("systemctl reload edge-gateway.service")
    until(lambda: ask("/v1/tasks/add", b'{"a":10,"b":20}')[0] == 413, 5)
    report("reloaded", ask("/v1/tasks/add", b'{"a":10,"b":20}')[0])
    ENV_FILE.write_text(text)
    sh("systemctl reload edge-gateway.service")
    report("reloaded_back", until(lambda: ask("/v1/tasks/add", b'{"a":10,"b":20}')[0] == 200, 5))


def credentials_are_read() -> None:
    drop_in = Path("/etc/systemd/system/edge-gateway.service.d/secret.conf")
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    Path("/root/cloud.key").write_text("sk-canary-0123456789\n")
    os.chmod("/root/cloud.key", 0o600)
    drop_in.write_text("[Service]\nLoadCredential=GATEWAY_BACKENDS__CLOUD__API_KEY:/root/cloud.key\n")
    text = ENV_FILE.read_text()
    cloud = "GATEWAY_BACKENDS__CLOUD__PLUGIN=http\nGATEWAY_BACKENDS__CLOUD__URL=http://127.0.0.1:9\n"
    ENV_FILE.write_text(f"{text}\n{cloud}")
    sh("systemctl daemon-reload; systemctl restart edge-gateway.service")
    holder = sh(
        "cat /proc/$(systemctl show -P MainPID edge-gateway.service)/environ | tr '\\0' '\\n' | grep CREDENTIALS"
    )
    report("credentials", {"directory": bool(holder), "serves": ask("/readyz")[0]})
    report(
        "canary", sh("journalctl -u edge-gateway.service -o cat; systemctl status -l edge-gateway").count("sk-canary")
    )
    drop_in.unlink()
    ENV_FILE.write_text(text)
    sh("systemctl daemon-reload; systemctl restart edge-gateway.service")


def upgrade_and_rollback_keep_files(old: str, new: str) -> None:
    state = Path("/var/lib/edge-gateway/keys.json")
    state.write_text('{"keys": {}}')
    ENV_FILE.write_text(ENV_FILE.read_text() + "\nGATEWAY_STALL_S=29\n")
    for name, deb in (("upgrade", new), ("rollback", old)):
        install(deb)
        until(lambda: show("ActiveState") == "active")
        version = sh("dpkg-query -W -f '${Version}' edge-gateway")
        kept = state.exists() and "GATEWAY_STALL_S=29" in ENV_FILE.read_text()
        report(name, {"version": version, "kept": kept, "serves": ask("/v1/tasks/add", b'{"a":1,"b":2}')[0]})


def main() -> None:
    old, new = sorted((str(path) for path in Path("/root").glob("*.deb")), key=len)
    report("install", install(old)[-300:])
    report("active", until(lambda: show("ActiveState") == "active", 10))
    report("serves", ask("/v1/tasks/add", b'{"a":10,"b":20}')[1].decode())
    report("security", sh("systemd-analyze security --no-pager edge-gateway.service | tail -1"))
    report("verify", sh("systemd-analyze verify edge-gateway.service edge-gateway.socket 2>&1 | grep edge-gateway"))
    start_is_quick()
    restart_refuses_no_client()
    reload_applies_settings()
    credentials_are_read()
    hung_loop_is_restarted()
    upgrade_and_rollback_keep_files(old, new)
    report(
        "purge", sh("dpkg -P edge-gateway; ls -d /opt/edge-gateway/lib /var/lib/edge-gateway 2>&1 | grep -vc 'No such'")
    )


if __name__ == "__main__":
    try:
        main()
    finally:
        report("journal", sh("journalctl -u edge-gateway.service -o cat -n 40"))
