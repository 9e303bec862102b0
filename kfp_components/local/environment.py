"""The embedded cluster as one thing: up, down, status. Everything it started is known by session id and start time, also to a later process.

Its Kubernetes API is the embedded one, or that of a real cluster by a kubeconfig: then Ray and the stand-in controllers are all that is started.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from kfp_components import errors, names
from kfp_components.cluster import Ref
from kfp_components.cluster.changes import Edit, write
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.local import controllers
from kfp_components.local.apiserver.server import certificate_path, write_atomically, write_kubeconfig
from kfp_components.local.ray_process import Detached, RayProcess, ServeClient, stop_session
from kfp_components.release import ReleaseStore
from kfp_components.serving import rayservice

START_TIMEOUT_S = 180.0
DEFAULT_NAMESPACE = "ai-ml"
Say = Callable[[str], None]


def default_home() -> Path:
    """Where the embedded cluster keeps its files: KFP_SERVING_HOME, else ``.kfp-serving`` in the working directory."""
    return Path(os.environ.get("KFP_SERVING_HOME") or ".kfp-serving").absolute()


@dataclass(frozen=True)
class Part:
    """A process that was started: the leader of its session and when it began (seconds since the epoch), so that a reused pid is not hit."""

    name: str
    pid: int
    created: float

    @property
    def alive(self) -> bool:
        """Whether that very process still runs."""
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.created) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


class Embedded:
    """The embedded cluster of one home folder. Can be opened by any process on this machine."""

    def __init__(self, home: Path | None = None, *, kubeconfig: Path | None = None) -> None:
        """``kubeconfig`` names a real cluster to use in place of the embedded API; a later process need not name it again."""
        self.home = (home or default_home()).absolute()
        self._state = self.home / "state.json"
        elsewhere = kubeconfig or self._load().get("elsewhere", {}).get("kubeconfig")
        self._elsewhere: dict[str, str] = {"kubeconfig": str(Path(elsewhere).absolute())} if elsewhere else {}

    @property
    def kubeconfig(self) -> Path:
        """How to reach the Kubernetes API."""
        return Path(self._elsewhere.get("kubeconfig") or self.home / "kubeconfig")

    @property
    def modules(self) -> Path:
        """A folder whose modules its Ray imports, as those in the image of a RayService."""
        return self.home / "modules"

    def up(self, say: Say = lambda _message: None, *, namespace: str = DEFAULT_NAMESPACE) -> None:
        """Start what is not running. Raises `Unreachable` with the end of the log of what did not start; nothing is left running then.

        On a real cluster it serves the RayServices of ``namespace``, which is made when missing. Raises `NameTaken` when a KubeRay operator runs
        there, or when that namespace has RayServices already.
        """
        if self.running():
            say(f"already up: KUBECONFIG={self.kubeconfig}")
            return
        self.down(say)
        for folder in (self.home / "logs", self.modules):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            self._start(say, namespace)
        except BaseException:
            self.down(say)
            raise

    def _start(self, say: Say, namespace: str) -> None:
        parts: list[Part] = []
        if self._elsewhere:
            say(f"using the Kubernetes API of {self.kubeconfig}")
            controllers.require_free(self.cluster(), namespace)
            self._elsewhere |= {"namespace": namespace, "namespace_uid": _make_namespace(self.cluster(), namespace)}
            self._save(parts, {})
        else:
            say("starting the embedded Kubernetes API")
            token = self._start_api(parts)
        say("starting Ray (token authentication on, loopback)")
        ray = RayProcess(grpc=True, python_path=f"{Path.cwd()}{os.pathsep}{self.modules}", log=self.home / "logs" / "ray.log")
        ray.start(on_spawn=lambda: self._remember(parts, "ray", ray.pid))
        if not self._elsewhere:
            port = self._wait("apiserver", lambda: (self.home / "port").read_text().strip())
            ca = certificate_path(self.home / "cluster.db").read_text()
            write_kubeconfig(self.kubeconfig, f"https://127.0.0.1:{port}", token, namespace, ca)
            _make_namespace(self.cluster(), namespace)
        say("starting the stand-in controllers")
        options = ["--kubeconfig", str(self.kubeconfig), "--dashboard-url", ray.dashboard_url, "--serve-port", str(ray.serve_port)]
        options += ["--client-port", str(ray.client_port), "--grpc-port", str(ray.grpc_port)]
        options += ["--namespace", namespace] if self._elsewhere else []
        self._spawn(parts, "controllers", "kfp_components.local.controllers", *options, environment=ray.environment())
        with ray.serve() as serve:
            serve.put_applications({"applications": []})
        ports = {"serve_port": ray.serve_port, "grpc_port": ray.grpc_port}
        self._save(parts, {"dashboard_url": ray.dashboard_url, **ports, "ray_token": ray.token, "ray_folder": str(ray.folder)})
        say(f"up: KUBECONFIG={self.kubeconfig}")

    def _start_api(self, parts: list[Part]) -> str:
        token_file, port_file, database = self.home / "token", self.home / "port", self.home / "cluster.db"
        token = secrets.token_hex(24)
        write_atomically(token_file, token)
        port_file.unlink(missing_ok=True)
        options = ["--database", str(database), "--token-file", str(token_file), "--port-file", str(port_file)]
        self._spawn(parts, "apiserver", "kfp_components.local.apiserver", *options)
        return token

    def down(self, say: Say = lambda _message: None) -> None:
        """Stop everything that was started and forget the cluster's contents. Logs stay.

        On a real cluster that is what was made there: the namespace, or the RayServices that were served when it was there before.
        """
        state = self._load()
        for part in reversed([Part(**entry) for entry in state.get("parts", [])]):
            if part.alive:
                say(f"stopping {part.name}")
                stop_session(part.pid)
        if elsewhere := state.get("elsewhere"):
            _leave(elsewhere, say)
        folder = state.get("facts", {}).get("ray_folder")
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        for path in (self._state, self.home / "kubeconfig", *self.home.glob("cluster.db*"), self.home / "token", self.home / "port"):
            path.unlink(missing_ok=True)

    def running(self) -> bool:
        """Whether every part runs."""
        parts = self.parts()
        return len(parts) == (2 if self._elsewhere else 3) and all(part.alive for part in parts)

    def parts(self) -> list[Part]:
        """What was started."""
        return [Part(**entry) for entry in self._load().get("parts", [])]

    def cluster(self) -> KubernetesCluster:
        """A client of the Kubernetes API. Raises `NotFound` when it is not up."""
        if not self.kubeconfig.exists():
            raise errors.NotFound(f"embedded cluster in {self.home}: not up; run `kfp-serving local up`")
        return KubernetesCluster(self.kubeconfig)

    def serve(self) -> ServeClient:
        """Serve's REST API of the embedded Ray."""
        facts = self._load()["facts"]
        return ServeClient(facts["dashboard_url"], facts["ray_token"])

    @property
    def grpc_target(self) -> str | None:
        """``host:port`` of KServe's gRPC service, which Serve answers; None when it is not up."""
        port = self._load().get("facts", {}).get("grpc_port")
        return f"127.0.0.1:{port}" if port else None

    def forget(self, model: str, namespace: str = DEFAULT_NAMESPACE) -> None:
        """Take a model away, whatever state its release is in: what runs of it, its alias and stub, its records. The registry keeps its versions."""
        cluster = self.cluster()
        record = ReleaseStore(cluster, model, namespace).load_record()
        if record is not None:
            versions = {record.candidate_version, record.stable_version} - {None}
            gone = frozenset({*(record.application(str(version)) for version in versions), names.router_application(model)})
            ref = Ref("RayService", record.rayservice, namespace)
            if cluster.get(ref) is not None:
                write(cluster, Edit(ref, lambda text: functools.reduce(rayservice.without_application, gone, text), gone, "begin anew"))
            cluster.delete(Ref("Service", record.address.alias, namespace))
        cluster.delete(Ref("InferenceService", model, namespace))
        for kind, name in (("ConfigMap", names.canary(model)), ("ConfigMap", names.revalidation(model)), ("Lease", names.release(model))):
            cluster.delete(Ref(kind, name, namespace))
        cluster.delete(Ref("ConfigMap", names.release(model), namespace))  # last: without it nobody knows what else there is

    def environment(self) -> dict[str, str]:
        """Variables for a process that is to use this cluster: the CLI, kubectl, KFP components under kfp.local."""
        return {
            "KUBECONFIG": str(self.kubeconfig),
            "KFP_SERVING_REGISTRY_URI": f"sqlite:///{self.home / 'registry.db'}",
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.home / 'registry.db'}",  # for MLflow's own commands
            "KFP_SERVING_HOME": str(self.home),
        }

    @contextmanager
    def used(self) -> Iterator[None]:
        """This process uses the cluster meanwhile."""
        before = {name: os.environ.get(name) for name in self.environment()}
        os.environ.update(self.environment())
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def _spawn(self, parts: list[Part], name: str, module: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
        log = self.home / "logs" / f"{name}.log"
        with log.open("ab") as out:
            process = Detached(
                [sys.executable, "-m", module, *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        self._remember(parts, name, process.pid)

    def _remember(self, parts: list[Part], name: str, pid: int) -> None:
        parts[:] = [part for part in parts if part.name != name] + [Part(name, pid, psutil.Process(pid).create_time())]
        self._save(parts, {})

    def _wait(self, name: str, read: Callable[[], str]) -> str:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            with suppress(OSError, httpx.HTTPError):
                found = read()
                if found:
                    return found
            time.sleep(0.05)
        tail = (self.home / "logs" / f"{name}.log").read_text(errors="replace")[-1500:]
        raise errors.Unreachable(f"embedded cluster: {name} did not start within {START_TIMEOUT_S:g} s; the end of its log: {tail}")

    def _save(self, parts: list[Part], facts: dict[str, object]) -> None:
        write_atomically(self._state, json.dumps({"parts": [asdict(part) for part in parts], "facts": facts, "elsewhere": self._elsewhere}))

    def _load(self) -> dict[str, Any]:
        try:
            found = json.loads(self._state.read_text())
        except (OSError, ValueError):
            return {}
        return dict(found)


def _make_namespace(cluster: KubernetesCluster, name: str) -> str:
    """Make the namespace; returns its uid, or nothing when it was there already."""
    ref = Ref("Namespace", name, "")
    deadline = time.monotonic() + START_TIMEOUT_S
    while found := cluster.get(ref):
        if not found["metadata"].get("deletionTimestamp"):
            return ""
        if time.monotonic() > deadline:
            raise errors.Conflict(f"{ref}: it is being deleted for more than {START_TIMEOUT_S:g} s; see what holds it, and try again")
        time.sleep(0.2)
    return str(cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})["metadata"]["uid"])


def _leave(elsewhere: dict[str, str], say: Say) -> None:
    """Remove from a real cluster what was made there. Raises when it cannot; the state stays then, and ``down`` can be called again."""
    cluster, namespace = KubernetesCluster(elsewhere["kubeconfig"]), elsewhere["namespace"]
    say(f"removing what was made on {cluster.server}")
    controllers.withdraw(cluster, namespace)
    if uid := elsewhere["namespace_uid"]:
        with suppress(errors.Conflict):  # another one of that name: not ours
            cluster.delete(Ref("Namespace", namespace, ""), uid=uid)
