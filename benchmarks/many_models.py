"""A stand-in endpoint that serves many models on loopback, beside a real (embedded) Kubernetes API, for re-validations of many models.

It answers as an application of Ray Serve that has the model's route: right, or wrong for a share of the requests, at once or after a while. It is no
Ray: nothing can be deployed, fail to start or be slow because of its neighbours. tests/e2e has real Ray for that.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from kfp_components import names
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.kube_api.access import ADMIN
from kfp_components.local.apiserver.server import ApiServer, write_kubeconfig
from kfp_components.release import Release, ReleaseStore
from kfp_components.request import parse
from kfp_components.serving import alias

NAMESPACE, RAYSERVICE = "ai-ml", "many"
CASE = {"name": "ok", "path": "/", "body": {"text": "x"}, "expect": {"/ok": True}}


@dataclass
class Model:
    """How one answers: so many wrong, after so many seconds."""

    wrong: float = 0.0
    delay_s: float = 0.0


@dataclass
class Many:
    """The endpoint. ``models`` may be changed at any time."""

    cluster: KubernetesCluster
    environment: dict[str, str]
    models: dict[str, Model]
    draw: random.Random
    answered: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, path: str) -> tuple[int, Any]:
        """To one request."""
        if path == "/-/routes":
            return 200, {f"/{name}": f"{name}-v1" for name in self.models}
        model = self.models.get(path.split("/")[1])
        if model is None:
            return 404, {}
        with self.lock:
            self.answered += 1
            right = self.draw.random() >= model.wrong
        if model.delay_s:
            time.sleep(model.delay_s)  # what a slow model is
        return 200, {"ok": right}


def name(number: int) -> str:
    """Of the model of that number."""
    return f"model-{number:03}"


@contextmanager
def many(folder: Path, number: int, seed: int = 1) -> Iterator[Many]:
    """``number`` models, each with a version v1 that an earlier release promoted."""
    server = ApiServer(":memory:", {"admin": ADMIN})
    server.start()
    http: ThreadingHTTPServer | None = None
    try:
        write_kubeconfig(folder / "kubeconfig", server.url, "admin", NAMESPACE, server.ca)
        environment = {
            "KUBECONFIG": str(folder / "kubeconfig"),
            "KFP_SERVING_REGISTRY_URI": f"sqlite:///{folder / 'registry.db'}",
            "NO_PROXY": "127.0.0.1",
        }
        os.environ |= environment
        cluster = KubernetesCluster(folder / "kubeconfig")
        found = Many(cluster, environment, {name(each): Model() for each in range(number)}, random.Random(seed))
        http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(found))
        threading.Thread(target=http.serve_forever, daemon=True).start()
        _objects(cluster, [*found.models], int(http.server_address[1]))
        yield found
    finally:
        if http is not None:
            http.shutdown()
            http.server_close()
        server.stop()


def _handler(found: Many) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            status, told = found.answer(self.path)
            body = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()

        do_POST = do_GET

        def log_message(self, *_about: object) -> None:
            return

    return Handler


def _objects(cluster: KubernetesCluster, models: list[str], port: int) -> None:
    """The RayService, its Service, the models' aliases and their release records."""
    cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    applications = [{"name": f"{model}-v1", "route_prefix": f"/{model}", "import_path": "acme.models:build"} for model in models]
    metadata = {"name": RAYSERVICE, "namespace": NAMESPACE}
    spec = {
        "serveConfigV2": json.dumps({"applications": applications}),
        "rayClusterConfig": {"headGroupSpec": {"rayStartParams": {}, "template": {}}},
    }
    made = cluster.apply({"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata, "spec": spec}, manager="owner")
    running = {entry["name"]: {"status": "RUNNING"} for entry in applications}
    status = {"observedGeneration": made["metadata"]["generation"], "activeServiceStatus": {"applicationStatuses": running}}
    told = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata, "status": status}
    cluster.apply(told, manager="operator", force=True, subresource="status")
    service = names.serve_service(RAYSERVICE)
    ports = [{"name": "serve", "port": names.SERVE_PORT}]
    cluster.apply(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": service, "namespace": NAMESPACE}, "spec": {"ports": ports}}, manager="operator"
    )
    labels = {"kubernetes.io/service-name": service}
    slices: dict[str, Any] = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "FQDN"}
    slices |= {"metadata": {"name": service, "namespace": NAMESPACE, "labels": labels}}
    cluster.apply({**slices, "endpoints": [{"addresses": ["127.0.0.1"]}], "ports": [{"name": "serve", "port": port}]}, manager="operator")
    for model in models:
        cluster.apply(alias.manifest(model, NAMESPACE, names.service_host(service, NAMESPACE)), manager=names.MANAGER)
        about = {"model": model, "namespace": NAMESPACE, "rayservice": RAYSERVICE}
        options = {"protocol": "json", "smoke": [CASE]}
        request = parse({**about, "version": "v1", "uri": f"s3://models/{model}", "import_path": "acme.models:build", "options": options})
        record = Release(**about, candidate_version="v1", phase="promoted", request=request.model_dump(mode="json"), request_digest=request.digest)
        ReleaseStore(cluster, model, NAMESPACE).start(record)
