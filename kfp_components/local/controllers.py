"""Stand-ins for the KubeRay operator and the endpoint controller. Run as a process beside one Ray and a Kubernetes API, embedded or real.

RayService -> Serve's REST API on that Ray, with the status fields that KubeRay writes;
``{name}-serve-svc`` and ``{name}-head-svc`` with EndpointSlices
once Serve is ready, owned by the RayService. What they do not do is in `NOT_SUPPORTED`.

The endpoint is this machine's loopback, written as a name (addressType FQDN): a real API refuses loopback addresses, and nobody but processes on
this machine could use it anyway; kube-proxy passes names by.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import yaml

from kfp_components import errors, names
from kfp_components.cluster import Cluster, Manifest, Ref
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.local.ray_process import ServeClient

MANAGER = "kfp-serving-local-operator"
OPERATOR_LEASE = "ray-operator-leader"
"""The Lease by which the replicas of a real KubeRay operator agree on one."""
POLL_S = 0.3
NOT_SUPPORTED = (
    "RayService: one per embedded cluster (they would share one Ray); a second one stays not ready and says so",
    "RayService: rayClusterConfig is stored and not acted on; there is one Ray, started by `kfp-serving local up`",
    "RayService: no incremental upgrade, no pending cluster",
    "serveConfigV2: http_options, grpc_options, proxy_location, controller_options and tracing_config; Serve was started with its own, and "
    "an Event of the RayService names those that are not taken up",
    "Pods, Deployments and every other controller of Kubernetes",
)

PASSED = ("logging_config", "target_capacity")
"""Beside `applications`, what Serve takes up while it runs."""
AT_START = ("http_options", "grpc_options", "proxy_location", "controller_options", "tracing_config")
"""What Serve looks at when it starts, which it did before: on this machine it listens where `local up` says."""


class RayServiceController:
    """Reconciles the one RayService of a namespace; of all namespaces when ``namespace`` is empty."""

    def __init__(
        self,
        cluster: Cluster,
        serve: ServeClient,
        serve_port: int,
        namespace: str = "",
        *,
        grpc_port: int | None = None,
        client_port: int | None = None,
    ) -> None:
        """The ports are where Serve listens for HTTP and gRPC, and the head for Ray Client; None: nowhere."""
        self.cluster = cluster
        self.serve = serve
        dashboard_port = int(httpx.URL(serve.url).port or 0)
        listening = (
            (names.serve_service, "serve", names.SERVE_PORT, serve_port),
            (names.serve_service, "grpc", names.GRPC_PORT, grpc_port),
            (names.head_service, "dashboard", names.DASHBOARD_PORT, dashboard_port),
            (names.head_service, "client", names.RAY_CLIENT_PORT, client_port),
        )
        self._listening = [(service, name, port, target) for service, name, port, target in listening if target is not None]
        self.namespace = namespace
        self._mine: str | None = None  # uid of the RayService that this Ray serves
        self._sent: str | None = None  # digest of the configuration that Serve was given
        self._written: dict[str, str] = {}  # uid -> digest of the status written last

    def reconcile(self) -> None:
        """One look at every RayService. Raises `NameTaken` when another operator writes the status of one."""
        found = sorted(self.cluster.list("RayService", self.namespace), key=lambda item: str(item["metadata"]["creationTimestamp"]))
        for item in found if self.namespace else ():  # not on the embedded API, where people may play at being the operator
            if others := status_writers(item) - {MANAGER}:
                raise errors.NameTaken(f"{Ref.of(item)}: {', '.join(sorted(others))} writes its status; the stand-in does not fight it and ends")
        uids = [item["metadata"]["uid"] for item in found]
        if self._mine not in uids:
            if self._mine is not None:
                self.serve.put_applications({"applications": []})
            self._mine, self._sent = (uids[0] if uids else None), None
        for item in found:
            if item["metadata"]["uid"] == self._mine:
                self._serve(item)
            else:
                self._write_status(item, {"conditions": [_condition("Ready", False, "EmbeddedRayTaken", NOT_SUPPORTED[0])]})

    def _serve(self, item: Manifest) -> None:
        text = str(item["spec"].get("serveConfigV2") or "")
        try:
            config = yaml.safe_load(text) or {}
            digest = hashlib.sha256(text.encode()).hexdigest()
            if digest != self._sent:
                passed = {key: config[key] for key in PASSED if config.get(key) is not None}
                self.serve.put_applications({"applications": config.get("applications") or [], **passed})
                self._sent = digest
                self._say_left_out(item, [key for key in AT_START if config.get(key)])
        except (yaml.YAMLError, httpx.HTTPStatusError, AttributeError) as error:
            told = error.response.text[-600:] if isinstance(error, httpx.HTTPStatusError) else str(error)
            self._warn(item, "FailedToUpdateServeApplications", f"Serve refused serveConfigV2: {told}")
            self._write_status(item, {"conditions": [_condition("Ready", False, "FailedToUpdateServeApplications", told)]})
            return
        wanted = {entry.get("name", "default") for entry in config.get("applications") or []}
        reported = (self.serve.get_status().get("applications") or {}).items()
        statuses = {name: _application_status(state) for name, state in reported if name in wanted}
        running = any(state["status"] == "RUNNING" for state in statuses.values()) or not wanted
        if running:
            self._services(item)
        condition = _condition("Ready", running, "NonZeroServeEndpoints" if running else "Initializing", "")
        status: dict[str, Any] = {
            "observedGeneration": item["metadata"]["generation"],
            "serviceStatus": "Running" if running else "",
            "numServeEndpoints": 1 if running else 0,
            "activeServiceStatus": {"rayClusterName": f"{item['metadata']['name']}-embedded", "applicationStatuses": statuses},
            "conditions": [condition],
        }
        self._write_status(item, status)

    def _say_left_out(self, item: Manifest, keys: list[str]) -> None:
        if keys:
            told = "it is" if len(keys) == 1 else "they are"
            self._warn(
                item,
                "ServeOptionsIgnored",
                f"serveConfigV2: {', '.join(keys)}: {told} not taken up; Serve of the embedded cluster runs already, with options of its own",
            )

    def _write_status(self, item: Manifest, status: dict[str, Any]) -> None:
        metadata = item["metadata"]
        digest = json.dumps(status, sort_keys=True)
        if self._written.get(metadata["uid"]) == digest:
            return
        old = {c["type"]: c for c in (item.get("status") or {}).get("conditions") or []}
        for condition in status["conditions"]:
            before = old.get(condition["type"], {})
            same = before.get("status") == condition["status"]
            condition["lastTransitionTime"] = before["lastTransitionTime"] if same else _now()
        manifest = {
            "apiVersion": item["apiVersion"],
            "kind": "RayService",
            "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
            "status": status,
        }
        self.cluster.apply(manifest, manager=MANAGER, force=True, subresource="status")
        self._written[metadata["uid"]] = digest

    def _services(self, item: Manifest) -> None:
        metadata = item["metadata"]
        space = metadata["namespace"]
        owner = {"apiVersion": item["apiVersion"], "kind": "RayService", "name": metadata["name"], "uid": metadata["uid"]}
        for service_of in (names.serve_service, names.head_service):
            name = service_of(metadata["name"])
            ports = [listening[1:] for listening in self._listening if listening[0] is service_of]
            if self.cluster.get(Ref("Service", name, space)) is not None:
                continue
            meta = {"name": name, "namespace": space, "ownerReferences": [owner]}
            service = {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {**meta, "labels": {"ray.io/originated-from-cr-name": metadata["name"]}},
                "spec": {
                    "type": "ClusterIP",
                    "ports": [{"name": each, "port": port, "targetPort": target, "protocol": "TCP"} for each, port, target in ports],
                },
            }
            piece = {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {**meta, "labels": {"kubernetes.io/service-name": name}},
                "addressType": "FQDN",
                "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": True}}],
                "ports": [{"name": each, "port": target, "protocol": "TCP"} for each, _, target in ports],
            }
            self.cluster.apply(service, manager=MANAGER)
            self.cluster.apply(piece, manager=MANAGER, force=True)

    def _warn(self, item: Manifest, reason: str, message: str) -> None:
        metadata = item["metadata"]
        key = f"{metadata['uid']}/{reason}"
        if self._written.get(key) == message:
            return
        self._written[key] = message
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{metadata['name']}-", "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": item["apiVersion"],
                "kind": "RayService",
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "type": "Warning",
            "reason": reason,
            "message": message[:1000],
            "source": {"component": MANAGER},
            "firstTimestamp": _now(),
            "lastTimestamp": _now(),
            "count": 1,
        }
        self.cluster.create(event)


def status_writers(item: Manifest) -> set[str]:
    """Who has written the status of an object."""
    return {entry["manager"] for entry in item["metadata"].get("managedFields") or [] if entry.get("subresource") == "status"}


def require_free(cluster: Cluster, namespace: str) -> None:
    """Raises `NameTaken` when the RayServices of that namespace are somebody else's business."""
    for lease in cluster.list("Lease", ""):
        if lease["metadata"]["name"] == OPERATOR_LEASE:
            raise errors.NameTaken(
                f"{Ref.of(lease)}: a KubeRay operator runs on this cluster and the stand-in would fight it over RayServices; "
                "use another cluster, or delete the Lease if that operator is gone"
            )
    for item in cluster.list("RayService", namespace):
        if item["metadata"].get("deletionTimestamp"):
            continue
        raise errors.NameTaken(
            f"{Ref.of(item)}: it was there before the stand-in, which serves and removes every RayService of its namespace; "
            "use another namespace, or delete it if it is left over"
        )


def withdraw(cluster: Cluster, namespace: str) -> None:
    """Remove the RayServices of a namespace that the stand-in has served, with their Services and EndpointSlices."""
    for item in cluster.list("RayService", namespace):
        if MANAGER not in status_writers(item):
            continue
        name = item["metadata"]["name"]
        cluster.delete(Ref.of(item), uid=item["metadata"]["uid"])
        for service in (names.serve_service(name), names.head_service(name)):
            for kind in ("EndpointSlice", "Service"):
                cluster.delete(Ref(kind, service, namespace))


def _application_status(state: dict[str, Any]) -> dict[str, Any]:
    deployments = {
        name: {"status": piece.get("status", ""), "message": piece.get("message", "")} for name, piece in (state.get("deployments") or {}).items()
    }
    return {"status": state["status"], "message": state.get("message") or "", "serveDeploymentStatuses": deployments}


def _condition(kind: str, true: bool, reason: str, message: str) -> dict[str, Any]:
    return {"type": kind, "status": "True" if true else "False", "reason": reason, "message": message[:1000]}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def run(controller: RayServiceController, stop: threading.Event) -> None:
    """Reconcile until told to stop. What goes wrong is printed once, and tried again; another operator is not: `NameTaken` ends it."""
    told = ""
    while not stop.wait(POLL_S):
        try:
            controller.reconcile()
            told = ""
        except errors.NameTaken:
            raise
        except (errors.KfpServingError, httpx.HTTPError, KeyError, ValueError) as error:
            message = f"{type(error).__name__}: {error}"
            if message != told:
                print(f"{_now()} {message}", flush=True)
                told = message
            time.sleep(0.5)


def main() -> None:
    """``python -m kfp_components.local.controllers``: started by `kfp_components.local.environment`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--dashboard-url", required=True)
    parser.add_argument("--serve-port", type=int, required=True)
    parser.add_argument("--grpc-port", type=int, help="where Serve listens for gRPC; nowhere when left out")
    parser.add_argument("--client-port", type=int, help="where the head listens for Ray Client; nowhere when left out")
    parser.add_argument("--namespace", default="", help="where RayServices are served; everywhere when left out")
    options = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    with suppress(ProcessLookupError):
        with ServeClient(options.dashboard_url, os.environ["RAY_AUTH_TOKEN"]) as serve:
            try:
                more = {"grpc_port": options.grpc_port, "client_port": options.client_port}
                run(RayServiceController(KubernetesCluster(options.kubeconfig), serve, options.serve_port, options.namespace, **more), stop)
            except errors.NameTaken as error:
                sys.exit(f"{_now()} {error}")


if __name__ == "__main__":
    main()
