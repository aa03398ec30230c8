"""An engine for tests: an HTTP server, and a worker process of its own as vLLM has one.

    fake_engine.py NAME PORT POOL_DIR [option ...]

    deaf          server and worker ignore SIGTERM
    refused       the pool turns the worker away
    broken        ends with a traceback before it answers
    broken-later  the same, but from the second start on
    unhealthy     answers 503 once POOL_DIR/unhealthy exists
    outside       never joins the pool

It writes NAME.server and NAME.worker, process ids, into POOL_DIR.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NAME, PORT, POOL_DIR = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
OPTIONS = set(sys.argv[4:])
WORKER = """
import os, signal, sys
if "deaf" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
while True: signal.pause()
"""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        sick = "unhealthy" in OPTIONS and (POOL_DIR / "unhealthy").exists()
        self._answer(503 if sick else 200, b"")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if body.get("hang"):
            (POOL_DIR / f"{NAME}.hanging").touch()
            self.rfile.read(1)  # until the client, or this process, is gone
            return
        self._answer(200, json.dumps({"served_by": NAME, "pid": os.getpid()}).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _tell(what: str, text: str) -> None:
    """Whole or not at all, since whoever reads it may kill this process at once."""
    path = POOL_DIR / f"{NAME}.{what}"
    draft = path.with_suffix(f".{what}-draft")
    draft.write_text(text)
    draft.rename(path)


def main() -> None:
    started_before = (POOL_DIR / f"{NAME}.server").exists()
    _tell("server", str(os.getpid()))
    if "refused" in OPTIONS:
        refusal = {"model": NAME, "pid": os.getpid(), "message": f"{NAME} needs 9 bytes, not 8"}
        _tell("refusal", json.dumps(refusal))
        sys.exit(1)
    if "broken" in OPTIONS or ("broken-later" in OPTIONS and started_before):
        raise ValueError("the weights are no good")
    if "deaf" in OPTIONS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, *OPTIONS], stdout=subprocess.PIPE, start_new_session=True
    )
    assert worker.stdout is not None
    worker.stdout.readline()
    if "outside" not in OPTIONS:
        _tell("worker", str(worker.pid))
    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()


main()
