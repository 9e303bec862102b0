"""The load generator: it counts in requests, never piles up, and sends to loopback only. Its server here is a real one that answers when it is told to."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from patience import seconds, until

from kfp_components.cluster import Endpoint
from kfp_components.local.load import Users


class Server(ThreadingHTTPServer):
    """Counts who waits; every third request is answered with 500. ``open`` lets the answers out."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.open = threading.Event()
        self.lock = threading.Lock()
        self.waiting = self.most_waiting = self.arrived = 0

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(f"http://127.0.0.1:{self.server_port}", "bge-predictor.ai-ml", ())


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        with self.server.lock:
            self.server.arrived += 1
            number = self.server.arrived
            self.server.waiting += 1
            self.server.most_waiting = max(self.server.most_waiting, self.server.waiting)
        self.server.open.wait()
        with self.server.lock:
            self.server.waiting -= 1
        self.send_response(500 if number % 3 == 0 else 200)
        self.send_header("x-model-version", "v1")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.open.set()
        made.shutdown()
        thread.join()


def test_so_many_requests_and_no_more_and_each_is_accounted_for(server: Server, tmp_path: Path) -> None:
    server.open.set()
    with Users(server.endpoint, "/bge", tmp_path / "users.json", rate_per_s=200, requests=30) as users:
        users._process.wait(timeout=seconds(60))
        tally = users.stop()
    assert (tally.sent, server.arrived) == (30, 30)
    assert tally.answered == {"v1": 20} and tally.failed == {"v1 status 500": 10}


def test_no_more_wait_than_there_are_clients(server: Server, tmp_path: Path) -> None:
    with Users(server.endpoint, "/bge", tmp_path / "users.json", rate_per_s=200, requests=50, clients=4) as users:
        until(lambda: server.waiting == 4, "all clients to wait")
        until(lambda: users.tally.sent == 4, "the tally to say so")  # written while nothing is answered
        server.open.set()
        users._process.wait(timeout=seconds(60))
    assert server.most_waiting == 4 and users.tally.sent == 50


def test_stopping_waits_for_the_last_answers(server: Server, tmp_path: Path) -> None:
    with Users(server.endpoint, "/bge", tmp_path / "users.json", rate_per_s=100, clients=2) as users:
        until(lambda: server.waiting == 2, "two requests")
        server.open.set()
        until(lambda: users.tally.answered["v1"] >= 5, "answers")
        tally = users.stop()
    assert sum(tally.answered.values()) + sum(tally.failed.values()) == tally.sent == server.arrived


def test_it_sends_nowhere_but_to_loopback(tmp_path: Path) -> None:
    options = ["--url", "http://192.0.2.1/bge", "--host", "x", "--report", str(tmp_path / "users.json")]
    done = subprocess.run([sys.executable, "-m", "kfp_components.local.load", *options], capture_output=True, text=True, timeout=seconds(60))
    assert done.returncode == 1 and "http://192.0.2.1/bge is not a loopback address" in done.stderr
