"""One release against the embedded Kubernetes API, a real registry and the stand-in of Ray Serve (`stand_in`)."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from stand_in import Operated, Serve, listen

from kfp_components import names, rollout
from kfp_components.cluster import Manifest, Ref
from kfp_components.kube_api.access import ADMIN
from kfp_components.local.apiserver.server import ApiServer, write_kubeconfig
from kfp_components.release import Release
from kfp_components.request import PromoteRequest, parse

NAMESPACE, RAYSERVICE, MODEL = "ai-ml", "ai-inference", "bge"
OTHERS = """\
  - name: whisper
    route_prefix: /whisper
    import_path: acme.whisper:app
"""


def application(version: str) -> str:
    """The text of a version's application."""
    return f"  - {{name: {MODEL}-{version}, route_prefix: {names.version_route(MODEL, version)}, import_path: 'acme.bge:build'}}\n"


def live(**user_config: Any) -> str:
    """``serveConfigV2`` with v1 served by our router, beside another model."""
    config = {"stable": {"version": "v1", "route": names.version_route(MODEL, "v1")}, "request_timeout_s": 60.0, **user_config}
    router = {
        "name": f"{MODEL}-router",
        "route_prefix": f"/{MODEL}",
        "import_path": names.ROUTER_IMPORT_PATH,
        "args": {"model": MODEL},
        "deployments": [{"name": "Router", "user_config": config}],
    }
    return "applications:\n" + OTHERS + application("v1") + "  - " + yaml.safe_dump(router, default_flow_style=True, width=10_000)


@dataclasses.dataclass
class World:
    """Where a release happens."""

    cluster: Operated
    serve: Serve

    def rayservice(self, text: str, manager: str = "owner") -> None:
        """What the owner applies."""
        metadata = {"name": RAYSERVICE, "namespace": NAMESPACE, "annotations": {names.ALLOWED_IMPORTS: "acme.*"}}
        body = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata, "spec": {"serveConfigV2": text, "rayClusterConfig": CLUSTER}}
        self.cluster.apply(body, manager=manager, force=True)

    def found(self) -> Manifest | None:
        return self.cluster.get(Ref("RayService", RAYSERVICE, NAMESPACE))

    def text(self) -> str:
        found = self.found()
        assert found is not None
        return str(found["spec"]["serveConfigV2"])

    def split(self) -> tuple[str, str | None, float]:
        """Stable, candidate and weight as the router is told."""
        entry = self.serve.applications()[f"{MODEL}-router"]["deployments"][0]["user_config"]
        return entry["stable"]["version"], (entry.get("candidate") or {}).get("version"), float(entry.get("weight_percent", 0.0))

    def run(self, request: PromoteRequest, watch: Callable[[Release], None] = lambda _r: None) -> rollout.Run:
        return rollout.open_run(request, self.cluster, watch=watch)

    def record(self) -> Release:
        record = rollout.ReleaseStore(self.cluster, MODEL, NAMESPACE).load()
        assert record is not None
        return record


CLUSTER = {"headGroupSpec": {"rayStartParams": {}, "template": {"spec": {"containers": [{"name": "ray", "image": "ray"}]}}}}


def asked(version: str = "v2", **options: Any) -> PromoteRequest:
    judge = {"judge_latency": False, "error_margin_percent": 5.0, "tick_s": 0.01, "max_minutes": 60.0}
    return parse(
        {
            "model": MODEL,
            "version": version,
            "uri": f"s3://models/{MODEL}/{version}",
            "namespace": NAMESPACE,
            "rayservice": RAYSERVICE,
            "import_path": "acme.bge:build",
            "steps": [20, 50],
            "options": {"judge": judge, "grace_s": 0.0, "ready_timeout_s": 20.0, "protocol": "json", **options},
        }
    )


@pytest.fixture(scope="session")
def registry_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('registry') / 'registry.db'}"


@pytest.fixture
def world(tmp_path: Path, registry_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    api = ApiServer(tmp_path / "cluster.db", {"admin": ADMIN})
    api.start()
    write_kubeconfig(tmp_path / "kubeconfig", api.url, "admin", NAMESPACE, api.ca)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry_uri)
    cluster = Operated(tmp_path / "kubeconfig")
    cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    serve = cluster.serve = Serve(cluster, Ref("RayService", RAYSERVICE, NAMESPACE))
    server, thread = listen(serve)
    service = names.serve_service(RAYSERVICE)
    metadata = {"name": service, "namespace": NAMESPACE}
    port = {"name": "serve", "protocol": "TCP"}
    cluster.create({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{**port, "port": names.SERVE_PORT}]}})
    cluster.create(
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**metadata, "labels": {"kubernetes.io/service-name": service}},
            "addressType": "FQDN",
            "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": True}}],
            "ports": [{**port, "port": server.server_address[1]}],
        }
    )
    yield World(cluster, serve)
    server.shutdown()
    server.server_close()
    thread.join()
    api.stop()
