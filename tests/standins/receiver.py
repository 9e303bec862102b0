"""A webhook receiver on loopback: a real HTTP server that answers as it is told and keeps what it accepted. It is no Slack and parses nothing."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Receiver:
    """``answers`` are statuses for the first requests, after which all get 204; nothing is answered before ``open`` is set."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    open: threading.Event = field(default_factory=threading.Event)
    asked: threading.Event = field(default_factory=threading.Event)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    @property
    def events(self) -> list[dict]:
        """What it accepted, as JSON."""
        return [json.loads(body) for body in self.bodies]

    @property
    def occasions(self) -> list[str]:
        return [event["type"].rsplit(".", 1)[-1] for event in self.events]


@contextmanager
def receiver(*answers: int, opened: bool = True) -> Iterator[Receiver]:
    got = Receiver(answers=list(answers))
    if opened:
        got.open.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got.paths.append(self.path)
            got.asked.set()
            got.open.wait(60)
            status = got.answers.pop(0) if got.answers else 204
            if 200 <= status < 300:
                got.bodies.append(body)
                got.headers.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(status)
            self.send_header("location", "/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_about: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    got.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    try:
        yield got
    finally:
        got.open.set()
        server.shutdown()
        server.server_close()
