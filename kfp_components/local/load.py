"""Users, for demos and tests: a steady, bounded stream of requests to one model through its alias, with every answer accounted for.

    python -m kfp_components.local.load --url http://127.0.0.1:9123/bge/embed --host bge-predictor... --rate 40 --requests 5000 --report users.json

Loopback only. Requests start on schedule, whether or not the last one was answered, as long as fewer than ``--clients`` wait: a machine that cannot
keep up gets fewer requests, not a growing queue. Ends after ``--requests``, on SIGTERM, or with the process that began it.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from kfp_components import errors
from kfp_components.cluster import Endpoint
from kfp_components.local.apiserver.server import write_atomically

MAX_RATE_PER_S = 200.0
MAX_REQUESTS = 200_000
MAX_CLIENTS = 64
WORDS = (
    *("the", "invoice", "was", "sent", "twice", "please", "reset", "my", "password", "how", "long", "does", "delivery", "take"),
    *("to", "the", "islands", "in", "winter", "thank", "you"),
)
LONG_SHARE = 0.1


@dataclass
class Tally:
    """What users saw: answers and failures by version (``unnamed`` where no router says which one it is), and requests that nobody answered."""

    sent: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; ``failed`` is keyed ``version kind``."""
        return {"sent": self.sent, "answered": dict(self.answered), "failed": dict(self.failed), "examples": self.examples[:10]}


def texts(source: random.Random) -> list[str]:
    """What a user asks for: mostly one short sentence, one time in ten three long ones, which take the model several times as long."""
    lengths = [60, 60, 60] if source.random() < LONG_SHARE else [source.randint(3, 8)]
    return [" ".join(source.choices(WORDS, k=length)) for length in lengths]


async def send(url: str, host: str, rate_per_s: float, requests: int, clients: int, report: Path, stop: asyncio.Event) -> Tally:
    """Send until ``requests`` are sent or ``stop`` is set; the tally is written to ``report`` every half second and at the end."""
    tally = Tally()
    source = random.Random(7)
    pending: set[asyncio.Task[None]] = set()
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers={"host": host}, timeout=timeout) as session:

        async def one() -> None:
            version = "nobody"
            try:
                async with session.post(url, json={"texts": texts(source)}) as answer:
                    version = answer.headers.get("x-model-version", "unnamed")
                    body = await answer.read()
                    if answer.status == 200:
                        tally.answered[version] += 1
                        return
                    kind = f"status {answer.status}: {body[:120].decode(errors='replace')}"
            except (aiohttp.ClientError, TimeoutError) as error:
                kind = f"{type(error).__name__}: {error}"
            tally.failed[f"{version} {kind.split(':')[0]}"] += 1
            tally.examples.append(f"{version}: {kind}")

        written = due = time.monotonic()
        parent = os.getppid()
        while not stop.is_set() and tally.sent < requests and os.getppid() == parent:
            if len(pending) >= clients:
                due = time.monotonic()  # nobody makes up for requests that found no client free
            while due <= time.monotonic() and len(pending) < clients and tally.sent < requests:
                due += 1 / rate_per_s
                tally.sent += 1
                task = asyncio.create_task(one())
                pending.add(task)
                task.add_done_callback(pending.discard)
            if time.monotonic() - written > 0.5:
                written = time.monotonic()
                write_atomically(report, json.dumps(tally.as_dict()))
            await asyncio.sleep(0.5 / rate_per_s)
        await asyncio.gather(*pending)
    write_atomically(report, json.dumps(tally.as_dict()))
    return tally


class Users:
    """A process that sends requests, while a block runs or from `start` to `stop`; `tally` is what users saw so far."""

    def __init__(
        self,
        endpoint: Endpoint,
        route: str,
        report: Path,
        *,
        path: str = "/embed",
        rate_per_s: float = 40.0,
        requests: int = MAX_REQUESTS,
        clients: int = MAX_CLIENTS,
    ) -> None:
        """They post ``{"texts": [...]}`` to ``path`` below the model's ``route``.

        The tally is written to ``report``, what the process prints to a ``.log`` beside it; at most ``clients`` requests wait at once."""
        self._report = report
        self.log = report.with_suffix(".log")
        self._command = [
            *(sys.executable, "-m", "kfp_components.local.load", "--url", endpoint.base_url + route + path, "--host", endpoint.host),
            *("--rate", str(rate_per_s), "--requests", str(requests), "--clients", str(clients), "--report", str(report)),
        ]

    def __enter__(self) -> Users:
        return self.start()

    def start(self) -> Users:
        """Begin to send; until `stop`, or the end of this process. As a context manager it does so by itself."""
        self._report.unlink(missing_ok=True)
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
            )
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> Tally:
        """Stop sending, wait for the last answers, and return the whole tally. Safe to call twice."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=70)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        return self.tally

    @property
    def tally(self) -> Tally:
        """What users saw so far."""
        try:
            found = json.loads(self._report.read_text())
        except (OSError, ValueError):
            return Tally()
        return Tally(found["sent"], Counter(found["answered"]), Counter(found["failed"]), found["examples"])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--rate", type=float, default=40.0, help="requests a second, at most 200")
    parser.add_argument("--requests", type=int, default=5000, help="how many in all, at most 200,000")
    parser.add_argument("--clients", type=int, default=MAX_CLIENTS, help="how many may wait for an answer at once, at most 64")
    parser.add_argument("--report", type=Path, required=True)
    options = parser.parse_args()
    if not ipaddress.ip_address(urlsplit(options.url).hostname or "0.0.0.0").is_loopback:
        raise SystemExit(errors.RequestInvalid(f"load: {options.url} is not a loopback address; this generator sends nowhere else"))
    rate, requests, clients = min(options.rate, MAX_RATE_PER_S), min(options.requests, MAX_REQUESTS), min(options.clients, MAX_CLIENTS)

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await send(options.url, options.host, rate, requests, clients, options.report, stop)

    asyncio.run(run())


if __name__ == "__main__":
    main()
