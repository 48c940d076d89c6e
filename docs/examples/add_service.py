"""A plain HTTP service: POST /add with {"a": 10, "b": 20} returns {"result": 30}.

    python3 docs/examples/add_service.py [PORT]

It contains no code for the gateway and needs only Python.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Service(BaseHTTPRequestHandler):
    """Serve the requests of one connection."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Serve POST /add; any other path is 404."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/add":
            self._answer(404, {"error": "no such path"})
            return
        try:
            asked = json.loads(body)
            result = asked["a"] + asked["b"]
        except (ValueError, TypeError, KeyError):
            self._answer(400, {"error": "the body must be an object with two numbers, a and b"})
        else:
            self._answer(200, {"result": result})

    def do_GET(self) -> None:
        """Return 404 for every path."""
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
