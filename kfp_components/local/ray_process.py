"""One real Ray with Serve on loopback, token authentication on, driven over HTTP only: this process never imports ray."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from kfp_components import errors

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 5.0
GAVE_UP = "The current node timed out during startup"
"""What Ray says when its parts did not find each other within 30 s, a number that it lets nobody set: a busy machine takes longer."""

GRPC_SERVICER = "kfp_components.local.grpc_loopback:add_servicer"
WORKER_PORTS = 400
"""Ports for worker processes: one for each replica and a few for Ray itself."""


class Detached(subprocess.Popen[bytes]):
    """A process that outlives this one by intention (``kfp-serving local up``), so nothing is said about its still running."""

    def __del__(self) -> None:
        """Not Popen's, which warns. `stop_session` waits for it if it is still a child of this process."""


class ServeClient:
    """Serve's REST API on the Ray dashboard, which is what the KubeRay operator talks to. Close it, or use it as a context manager."""

    def __init__(self, url: str, token: str, http_port: int | None = None, grpc_port: int | None = None) -> None:
        """``http_port`` and ``grpc_port`` are where Serve listens; they take effect with the first configuration."""
        self.url = url
        self._http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30.0, trust_env=False)
        self._options: dict[str, Any] = {"http_options": {"host": "127.0.0.1", "port": http_port}} if http_port else {}
        if grpc_port:
            self._options["grpc_options"] = {"port": grpc_port, "grpc_servicer_functions": [GRPC_SERVICER], "enable_reflection": False}

    def close(self) -> None:
        """Give its connections back."""
        self._http.close()

    def __enter__(self) -> ServeClient:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def put_applications(self, config: dict[str, Any]) -> None:
        """Declare all applications; one that is left out is deleted. Raises `httpx.HTTPStatusError` with Serve's words."""
        self._http.put("/api/serve/applications/", json={"proxy_location": "HeadOnly", **self._options, **config}).raise_for_status()

    def get_status(self) -> dict[str, Any]:
        """Serve's view of every application and deployment."""
        answer = self._http.get("/api/serve/applications/")
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found


class RayProcess:
    """A Ray head of our own. ``start`` returns when Serve's REST API answers; ``stop`` leaves no process and no files behind."""

    def __init__(self, *, cpus: int = 64, serve_port: int | None = None, grpc: bool = False, python_path: str = "", log: Path | None = None) -> None:
        """``cpus`` is what Ray hands out, not what the machine has: replicas are small. ``python_path`` is added for the replicas.

        ``grpc``: KServe's gRPC service on a port of its own, for which this Ray has to be able to import the library.
        """
        self.cpus = cpus
        self.token = secrets.token_hex(24)
        self._python_path = python_path
        self._log = log
        self._folder: Path | None = None
        self._process: Detached | None = None
        ports = free_ports(11)
        self.grpc_port = ports.pop() if grpc else None
        self.serve_port = serve_port or ports.pop()
        self._ports = ports
        self.dashboard_url, self.client_port = f"http://127.0.0.1:{ports[0]}", ports[2]

    @property
    def folder(self) -> Path:
        """Where Ray keeps its session; removed by ``stop``."""
        assert self._folder is not None
        return self._folder

    @property
    def pid(self) -> int:
        """Leader of the session that holds every process of this Ray."""
        assert self._process is not None
        return self._process.pid

    def environment(self) -> dict[str, str]:
        """What a process needs to talk to this Ray."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def start(self, on_spawn: Callable[[], None] = lambda: None) -> None:
        """Start it, anew where Ray gave up by itself; ``on_spawn`` is called as soon as there is a process.

        Raises `Unreachable` with the end of its log when it does not come up; nothing is left running then.
        """
        self._folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # short: Ray makes socket paths below it
        log = self._log or self._folder / "start.log"
        dashboard, gcs, client, agent, agent_grpc, runtime_env, metrics, node, objects, *_ = self._ports
        first_worker = _free_range(WORKER_PORTS)
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
            *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--port={gcs}"),
            *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
            *(f"--dashboard-agent-grpc-port={agent_grpc}", f"--runtime-env-agent-port={runtime_env}"),
            *(f"--metrics-export-port={metrics}", f"--node-manager-port={node}", f"--object-manager-port={objects}"),
            *(f"--min-worker-port={first_worker}", f"--max-worker-port={first_worker + WORKER_PORTS - 1}"),
            *(f"--num-cpus={self.cpus}", "--object-store-memory=200000000", f"--temp-dir={self._folder}"),
        ]
        environment = {
            **os.environ,
            **self.environment(),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DISABLE_IMPORT_WARNING": "1",
            "RAY_SERVE_LOG_TO_STDERR": "0",
            "RAY_enable_open_telemetry": "0",
            "PYTHONPATH": os.pathsep.join(part for part in (self._python_path, os.environ.get("PYTHONPATH", "")) if part),
        }
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with log.open("wb") as out:
                options: dict[str, Any] = {"stdout": out, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL, "env": environment}
                self._process = Detached(command, start_new_session=True, **options)
            on_spawn()
            if self._came_up(deadline):
                return
            said = log.read_text(errors="replace")
            if GAVE_UP not in said or time.monotonic() >= deadline:
                break
            stop_session(self._process.pid)
            self._process.wait()
        self.stop()
        raise errors.Unreachable(f"Ray: did not come up within {START_TIMEOUT_S:g} s; the end of its log: {said[-1500:]}")

    def _came_up(self, deadline: float) -> bool:
        """Whether Serve's REST API answered before the deadline, and before the head ended."""
        with self.serve() as client_api:
            while time.monotonic() < deadline and self.is_alive():
                with suppress(httpx.HTTPError):
                    client_api.get_status()
                    return True
                time.sleep(0.2)
        return False

    def serve(self) -> ServeClient:
        """A client of its Serve REST API."""
        return ServeClient(self.dashboard_url, self.token, self.serve_port, self.grpc_port)

    def is_alive(self) -> bool:
        """Whether the head still runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Stop every process of it and remove its files."""
        if self._process is not None:
            stop_session(self._process.pid)
            self._process.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def stop_session(leader: int) -> None:
    """End a session: SIGTERM, and SIGKILL for what is left after 5 s. Only processes that ``leader`` began, also indirectly."""
    members = session_members(leader)
    for process in members:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
    _gone, left = psutil.wait_procs(members, timeout=STOP_TIMEOUT_S)
    for process in {*left, *session_members(leader)}:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def session_members(leader: int) -> list[psutil.Process]:
    """Processes of a session and all their descendants (Ray's workers sometimes begin sessions of their own)."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            if process.pid == leader or os.getsid(process.pid) == leader:
                found[process.pid] = process
                found.update({child.pid: child for child in process.children(recursive=True)})
    return list(found.values())


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, on loopback, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _free_range(count: int) -> int:
    """First of ``count`` ports in a row below the ephemeral range; keyed by our pid so that several Rays do not meet."""
    slots = (30000 - 10000) // count
    start = os.getpid() % slots
    for offset in range(slots):
        first = 10000 + (start + offset) % slots * count
        with suppress(OSError), socket.socket() as first_one, socket.socket() as last_one:
            first_one.bind(("127.0.0.1", first))
            last_one.bind(("127.0.0.1", first + count - 1))
            return first
    raise errors.Unreachable("Ray: no range of free ports for its workers; stop other Rays first")
