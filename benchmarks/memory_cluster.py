"""What a call of a cluster costs: `MemoryCluster`, and by turns with it the Kubernetes client against the embedded API.

    python benchmarks/memory_cluster.py             writes benchmarks/RESULTS.md (under a minute)
    python benchmarks/memory_cluster.py --print     writes nothing

A fault suite plays a release once for every call and every kind of fault: what a call costs decides how many it can play.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import results

from kfp_components.cluster import Cluster, Ref
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.cluster.memory import MemoryCluster
from kfp_components.kube_api.access import ADMIN
from kfp_components.local.apiserver.server import ApiServer, write_kubeconfig

RUNS = 200
RAY, RECORD = Ref("RayService", "ray", "default"), Ref("ConfigMap", "record", "default")
SERVE_CONFIG = "".join(f"- name: app-{n}\n  route_prefix: /app-{n}\n  import_path: app:build\n" for n in range(60))
CONTAINER = {
    "name": "ray",
    "image": "rayproject/ray:2.60.0",
    "env": [{"name": f"VARIABLE_{n}", "value": "x"} for n in range(10)],
    "resources": {"limits": {"cpu": "4", "memory": "8Gi"}},
    "ports": [{"containerPort": 8000, "name": "serve"}],
}
TEMPLATE = {"spec": {"containers": [CONTAINER]}}
GROUP = {"replicas": 1, "minReplicas": 1, "maxReplicas": 2, "rayStartParams": {}, "template": TEMPLATE}


def manifest(ref: Ref, **rest: Any) -> dict[str, Any]:
    """An object with what ``rest`` says."""
    version = {"RayService": "ray.io/v1", "ConfigMap": "v1"}[ref.kind]
    return {"apiVersion": version, "kind": ref.kind, "metadata": {"name": ref.name, "namespace": ref.namespace}, **rest}


def ray_service() -> dict[str, Any]:
    """One with 60 applications (4 kB) and three worker groups."""
    workers = [{"groupName": f"group-{n}", **GROUP} for n in range(3)]
    config = {"rayVersion": "2.60.0", "headGroupSpec": {"rayStartParams": {}, "template": TEMPLATE}, "workerGroupSpecs": workers}
    return manifest(RAY, spec={"serveConfigV2": SERVE_CONFIG, "rayClusterConfig": config})


def swap(cluster: Cluster, n: int) -> None:
    """Read the record and write it by compare-and-swap."""
    found = cluster.get(RECORD)
    assert found is not None
    cluster.replace({**found, "data": {"record": json.dumps({"n": n, "events": ["x" * 50] * 60})}})


CALLS: dict[str, Callable[[Cluster, int], object]] = {
    "get, RayService with 60 applications": lambda cluster, _: cluster.get(RAY),
    "apply of its serveConfigV2": lambda cluster, n: cluster.apply(
        manifest(RAY, spec={"serveConfigV2": f"{SERVE_CONFIG}# {n}"}), manager="benchmark", force=True
    ),
    "patch of its serveConfigV2": lambda cluster, n: cluster.patch(RAY, {"spec": {"serveConfigV2": f"{SERVE_CONFIG}# {n}"}}, manager="benchmark"),
    "apply of its status": lambda cluster, n: cluster.apply(
        manifest(RAY, status={"numServeEndpoints": n}), manager="controller", force=True, subresource="status"
    ),
    "get and replace, ConfigMap of 3 kB": swap,
    "list of ConfigMaps": lambda cluster, _: cluster.list("ConfigMap", "default"),
}


def measure(clusters: list[Cluster], runs: int) -> dict[str, list[float]]:
    """The median milliseconds of each call in each cluster."""
    found: dict[str, list[float]] = {}
    for cluster in clusters:
        cluster.create(ray_service())
        cluster.create(manifest(RECORD, data={"record": ""}))
    for what, call in CALLS.items():
        taken: list[list[float]] = [[] for _ in clusters]
        for n in range(runs):
            for cluster, times in zip(clusters, taken, strict=True):
                started = time.perf_counter()
                call(cluster, n)
                times.append((time.perf_counter() - started) * 1e3)
        found[what] = [statistics.median(times) for times in taken]
    return found


def main() -> None:
    """Measure, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--print", action="store_true", help="write nothing")
    arguments.add_argument("--runs", type=int, default=RUNS)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as place:
        server = ApiServer(":memory:", {"token": ADMIN})
        server.start()
        try:
            write_kubeconfig(Path(place) / "kubeconfig", server.url, "token", "default", server.ca)
            found = measure([MemoryCluster(), KubernetesCluster(Path(place) / "kubeconfig")], options.runs)
        finally:
            server.stop()
    started = time.perf_counter()
    for _ in range(options.runs):
        MemoryCluster()
    new_ms = (time.perf_counter() - started) / options.runs * 1e3
    rows = [f"| {what} | {memory:.2f} | {served:.2f} | {served / memory:.0f} |" for what, (memory, served) in found.items()]
    heading = "## What a call of a cluster costs\n\n| call | MemoryCluster, ms | client and embedded API, ms | ratio |\n|---|---|---|---|\n"
    about = f"Medians of {options.runs}, by turns; a new MemoryCluster takes {new_ms:.2f} ms. Python {platform.python_version()}."
    text = heading + "\n".join(rows) + f"\n\n{about}"
    print(text)
    if not options.print:
        results.write("memory-cluster", text)


if __name__ == "__main__":
    main()
