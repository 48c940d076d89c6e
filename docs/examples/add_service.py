"""A plain service, as it may run anywhere: it answers POST /add with {"a": 10, "b": 20} by {"result": 30}.

    python3 docs/examples/add_service.py [PORT]

It knows nothing of the gateway and needs nothing but Python.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Service(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """POST /add; anything else is 404."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/add":
            self._answer(404, {"error": "no such path"})
            return
        try:
            asked = json.loads(body)
            result = asked["a"] + asked["b"]
        except (ValueError, TypeError, KeyError):
            self._answer(400, {"error": "an object with two numbers, a and b, is wanted"})
        else:
            self._answer(200, {"result": result})

    def do_GET(self) -> None:
        """There is nothing to get."""
        self._answer(404, {"error": "no such path"})

    def _answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 9000
    server = ThreadingHTTPServer(("127.0.0.1", port), Service)
    print(f"listening on 127.0.0.1:{port}", flush=True)
    server.serve_forever()
