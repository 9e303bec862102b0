"""Start and stop the embedded API server, in a thread (`ApiServer`) or as a process (``python -m`` on this package)."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import uvicorn

from kfp_components.kube_api.access import Account
from kfp_components.kube_api.store import Store
from kfp_components.local.apiserver.http import Api
from kfp_components.local.apiserver.tls import ensure_certificate

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
FINISH_S = 0.4
"""How long requests that are under way may take when the server stops."""
NOT_SUPPORTED: tuple[str, ...] = (
    "pods, deployments, nodes, and every kind beside Namespace, ConfigMap, Secret, Service, Event, ServiceAccount, Lease, "
    "EndpointSlice, RayService, InferenceService and HTTPRoute: answered as an unknown resource",
    "CustomResourceDefinitions, admission webhooks and API aggregation: kinds and their rules are built in",
    "client certificates and RBAC objects: bearer tokens only, with rules that are fixed at start",
    "cluster IPs, node ports and load balancers: a Service gets no address",
    "limit and continue: lists are answered whole; a continue token is refused with 410",
    "resourceVersionMatch: lists always show the latest state",
    "watching a single object by its path: watch the collection with a fieldSelector",
    "sendInitialEvents (streaming lists), CBOR, and protobuf beside what kubectl create, delete and auth can-i send: refused",
    "PUT of an object that does not exist: 404 for every kind",
    "the finalize, scale, token, proxy, log and exec subresources: answered as an unknown resource",
    "schemas: the fields that users of this project, KubeRay, KServe and Gateway API write; pod templates are kept as given, "
    "not checked below the container; CEL rules are not evaluated",
    "strategic merge patch: merge keys, $patch, $retainKeys and $deleteFromPrimitiveList; $setElementOrder does not reorder",
    "events do not expire; kube-root-ca.crt ConfigMaps and default ServiceAccounts are not made",
    "durability: state survives the death of the process, not of the machine",
)
"""What a real cluster does and this server does not, for people to read."""


class ApiServer:
    """The API server in a thread of this process: HTTPS on 127.0.0.1, own certificate; ``port`` 0 picks a free one."""

    def __init__(self, database: Path | Literal[":memory:"], tokens: Mapping[str, Account], port: int = 0) -> None:
        """Nothing is opened yet. ``tokens`` maps each bearer token to its account."""
        self._database, self._tokens, self._port = database, dict(tokens), port
        self._server: _Server | None = None

    @property
    def port(self) -> int:
        """The port in use, once started."""
        return self._port

    @property
    def url(self) -> str:
        """Where it answers, once started."""
        return f"https://127.0.0.1:{self._port}"

    @property
    def ca(self) -> str:
        """The certificate to trust (PEM), once started."""
        return self._ca

    def start(self) -> None:
        """Open the database and the port, and return when requests are answered.

        The certificate lies beside the database (``.crt``, ``.key``) and is made when missing. Raises RuntimeError when
        the database is in use, OSError when the port is; nothing is left open then.
        """
        if self._server is not None:
            raise RuntimeError(f"API server {self.url}: already started; stop it first")
        self._store = Store(self._database)
        self._socket = socket.socket()
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(("127.0.0.1", self._port))
            self._api = Api(self._store, self._tokens)
            self._server = self._configure()
        except BaseException:
            self._socket.close()
            self._store.close()
            raise
        self._port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, name="apiserver", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"API server on port {self._port}: not ready within {START_TIMEOUT_S:g} s; look at its log above")
            time.sleep(0.005)

    def stop(self) -> None:
        """End watches, finish requests, close the database. Safe to call twice."""
        if self._server is None:
            return
        self._api.closing = True
        self._server.should_exit = True
        if self._api.loop is not None and not self._api.loop.is_closed():
            self._api.loop.call_soon_threadsafe(self._store.wake)
        self._thread.join(timeout=STOP_TIMEOUT_S)
        self._server = None
        self._socket.close()
        self._store.close()

    def _configure(self) -> _Server:
        with tempfile.TemporaryDirectory() as scratch:
            base = Path(scratch) / "memory" if self._database == ":memory:" else Path(self._database)
            certificate, key = certificate_path(base), base.with_name(base.name + ".key")
            ensure_certificate(certificate, key)
            self._ca = certificate.read_text()
            config = uvicorn.Config(
                self._api.app,
                log_level="warning",
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=2,
                timeout_keep_alive=75,
                ssl_certfile=certificate,
                ssl_keyfile=key,
            )
            config.load()  # reads the certificate while it is there
        return _Server(config)


class _Server(uvicorn.Server):
    """Uvicorn says goodbye on idle TLS connections and waits for an answer that a client which just keeps them open never gives: those are cut."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(FINISH_S, self._cut)
        await super().shutdown(sockets)

    def _cut(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def certificate_path(database: Path) -> Path:
    """Where the certificate of a server on that database lies."""
    return database.with_name(database.name + ".crt")


def write_kubeconfig(path: Path, url: str, token: str, namespace: str, ca: str) -> None:
    """Write a kubeconfig (mode 0600) for kubectl and the clients; ``ca`` is the PEM to trust. Replaces the file in one step."""
    name = "kfp-serving-local"
    cluster = {"server": url, "certificate-authority-data": base64.b64encode(ca.encode()).decode()}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": namespace}}],
    }
    write_atomically(path, json.dumps(config, indent=1) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a file (mode 0600) so that readers see either nothing of it or all of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
