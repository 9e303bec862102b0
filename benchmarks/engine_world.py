"""One release and one hour of canary, counted call by call; run by `engine.py` with the package of either version on the path. Prints JSON.

A world in this process: objects are kept as they are written, every application runs, the router's page counts requests that are made up. Time runs
``--speed`` times as fast for the whole process. What it cannot do: validate, own fields, or be slow; only what is asked of the API is measured.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import httpx
import yaml

REAL = {"sleep": time.sleep, "time": time.time, "monotonic": time.monotonic, "wait": threading.Event.wait}
BEGAN = {"time": time.time(), "monotonic": time.monotonic()}


def hurry(speed: float) -> None:
    """Let time run that much faster in this process."""

    def faster(name: str) -> Callable[[], float]:
        return lambda: BEGAN[name] + (REAL[name]() - BEGAN[name]) * speed

    time.sleep = lambda s: REAL["sleep"](s / speed)  # type: ignore[assignment]
    time.time, time.monotonic = faster("time"), faster("monotonic")
    if hasattr(time, "clock_gettime"):
        time.clock_gettime = lambda _clock: time.monotonic()  # type: ignore[assignment]
    threading.Event.wait = lambda self, timeout=None: REAL["wait"](self, None if timeout is None else timeout / speed)  # type: ignore[method-assign]


NAMESPACE, MODEL, RATE_PER_S = "ai-ml", "bge", 20.0


class Cluster:
    """The calls that the engine makes, as the Kubernetes API would count them."""

    def __init__(self, errors: Any) -> None:
        self.errors = errors
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.calls: list[tuple[float, str, str, int]] = []
        """When (seconds), verb, kind, bytes of the body that is written."""
        self.version = 0

    def _count(self, verb: str, kind: str, body: Any = None) -> None:
        self.calls.append((time.monotonic(), verb, kind, 0 if body is None else len(json.dumps(body))))

    def _store(self, manifest: dict[str, Any], name: str) -> dict[str, Any]:
        self.version += 1
        found = deepcopy(manifest)
        old = self.objects.get((manifest["kind"], name))
        found["metadata"] |= {"name": name, "resourceVersion": str(self.version), "uid": f"u-{name}", "generation": self.version}
        if found["kind"] == "RayService":
            config = yaml.safe_load(found["spec"].get("serveConfigV2") or "") or {}
            states = {entry["name"]: {"status": "RUNNING"} for entry in config.get("applications") or []}
            found["status"] = {"observedGeneration": self.version, "activeServiceStatus": {"applicationStatuses": states}}
        elif old is not None and "status" not in found:
            found["status"] = old.get("status", {})
        self.objects[found["kind"], name] = found
        return deepcopy(found)

    def get(self, ref: Any) -> dict[str, Any] | None:
        self._count("get", ref.kind)
        return deepcopy(self.objects.get((ref.kind, ref.name)))

    def list(self, kind: str, namespace: str, *, labels: str | None = None) -> list[dict[str, Any]]:
        self._count("list", kind)
        return [deepcopy(found) for (of, _), found in self.objects.items() if of == kind]

    def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        self._count("create", manifest["kind"], manifest)
        name = manifest["metadata"].get("name") or f"{manifest['metadata']['generateName']}{self.version}"
        if (manifest["kind"], name) in self.objects:
            raise self.errors.Conflict(f"{manifest['kind']} {name} exists")
        return self._store(manifest, name)

    def apply(self, manifest: dict[str, Any], *, manager: str, force: bool = False, subresource: str | None = None) -> dict[str, Any]:
        self._count("apply", manifest["kind"], manifest)
        name = manifest["metadata"]["name"]
        old = self.objects.get((manifest["kind"], name))
        asked = manifest["metadata"].get("resourceVersion")
        if old is not None and asked and asked != old["metadata"]["resourceVersion"]:
            raise self.errors.Conflict(f"{name} changed")
        return self._store(_merged(old or {}, manifest), name)

    def replace(self, manifest: dict[str, Any]) -> dict[str, Any]:
        self._count("replace", manifest["kind"], manifest)
        name = manifest["metadata"]["name"]
        old = self.objects.get((manifest["kind"], name))
        if old is None or manifest["metadata"].get("resourceVersion") != old["metadata"]["resourceVersion"]:
            raise self.errors.Conflict(f"{name} changed")
        return self._store(manifest, name)

    def patch(self, ref: Any, body: dict[str, Any], *, manager: str) -> dict[str, Any]:
        self._count("patch", ref.kind, body)
        return self._store(_merged(self.objects[ref.kind, ref.name], body), ref.name)

    def delete(self, ref: Any, **_preconditions: Any) -> bool:
        self._count("delete", ref.kind)
        return self.objects.pop((ref.kind, ref.name), None) is not None

    def wait(self, ref: Any, *, ready: Any, failed: Any, timeout_s: float, meanwhile: Any) -> dict[str, Any]:
        found: dict[str, Any] | None = self.get(ref)
        if found is not None and ready(found):
            return found
        raise self.errors.WaitTimeout(f"{ref} is not ready")

    def endpoint(self, service: str, namespace: str, port: int) -> Any:
        from kfp_components.cluster import Endpoint

        for verb, kind in (("get", "Service"), ("get", "Service"), ("list", "EndpointSlice")):
            self._count(verb, kind)
        return Endpoint(f"http://127.0.0.1:{port}", service, (service,))

    def may(self, verb: str, kind: str, namespace: str, *, subresource: str = "") -> bool:
        self._count("create", "SelfSubjectAccessReview", {})
        return True

    def missing(self, wanted: Any, namespace: str) -> tuple[Any, ...]:
        self._count("create", "SelfSubjectRulesReview", {})
        return ()


def _merged(found: Any, wanted: Any) -> Any:
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found | {key: _merged(found.get(key), value) for key, value in wanted.items()}
    return wanted


class Registry:
    """Knows nothing and takes everything."""

    def register(self, *_: Any, **__: Any) -> None: ...
    def find(self, *_: Any) -> None: ...
    def move(self, *_: Any) -> None: ...
    def annotate(self, *_: Any) -> None: ...
    def aliases(self, *_: Any) -> dict[str, str]:
        return {}


class Body(httpx.SyncByteStream):
    """Of an answer, still to be read, as it comes from a socket."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __iter__(self) -> Iterator[bytes]:
        yield self.content


class Serve:
    """The router's pages and applications that answer everything."""

    def __init__(self, cluster: Cluster) -> None:
        from kfp_components.router import ledger

        self.cluster, self.ledger = cluster, ledger
        self.counts: dict[str, Any] = {}
        self.counted_s, self.draw, self.random = time.monotonic(), 0, random.Random(1)

    def applications(self) -> dict[str, Any]:
        found = self.cluster.objects["RayService", "ai-inference"]["spec"]["serveConfigV2"]
        return {entry["name"]: entry for entry in yaml.load(found, yaml.CSafeLoader)["applications"]}

    def handle(self, request: httpx.Request) -> httpx.Response:
        applications, path = self.applications(), request.url.path
        if path == "/-/routes":
            routes = {entry["route_prefix"]: name for name, entry in applications.items()}
            return httpx.Response(200, stream=Body(json.dumps(routes).encode()), request=request)
        router = applications.get(f"{MODEL}-router", {"deployments": [{"user_config": {"stable": {"version": "v2"}}}]})
        config = router["deployments"][0]["user_config"]
        candidate = config.get("candidate")
        weight = float(config.get("weight_percent", 0.0)) if candidate else 0.0
        pin = request.headers.get("x-model-version") or config["stable"]["version"]
        told: dict[str, Any] = {"ok": True}
        if path.endswith("/-/router"):
            told = {"stable": config["stable"], "candidate": candidate, "weight_percent_effective": weight, "protocol": 2}
        elif path.endswith("/-/heartbeat"):
            told = {"weight_percent_effective": weight, "lapsed": False}
        elif path.endswith("/-/ledger"):
            self.live(config["stable"]["version"], candidate["version"] if candidate else None, weight)
            versions = {version: found.as_dict() for version, found in self.counts.items()}
            replicas = {"r": {"started_unix_s": 0.0, "versions": versions}}
            told = {"now_unix_s": time.time(), "replicas": replicas, "latency_bounds_s": self.ledger.LATENCY_BOUNDS_S}
        return httpx.Response(
            200, stream=Body(json.dumps(told).encode()), headers={"x-model-version": pin, "x-model-router": f"{MODEL}-router"}, request=request
        )

    def live(self, stable: str, candidate: str | None, weight: float) -> None:
        """The users' requests since it was asked last."""
        now = time.monotonic()
        number = int((now - self.counted_s) * RATE_PER_S)
        self.counted_s += number / RATE_PER_S
        for _ in range(number):
            self.draw += 1
            version = candidate if candidate and self.draw * 0.6180339887 % 1.0 * 100 < weight else stable
            found = self.counts.setdefault(version, self.ledger.VersionCounts())
            found.count(self.random.lognormvariate(-3.0, 0.4), 200, None, False)


def world() -> tuple[Cluster, Any]:
    """A model that v1 serves, and the request to promote v2."""
    from kfp_components import errors, names
    from kfp_components.request import parse
    from kfp_components.serving import alias, inference_service

    cluster = Cluster(errors)
    user_config = {"stable": {"version": "v1", "route": names.version_route(MODEL, "v1")}, "request_timeout_s": 60.0}
    applications = [
        *({"name": f"other-{n}", "route_prefix": f"/other-{n}", "import_path": "acme.other:app"} for n in range(3)),
        {"name": f"{MODEL}-v1", "route_prefix": names.version_route(MODEL, "v1"), "import_path": "acme.bge:build"},
        {
            "name": f"{MODEL}-router",
            "route_prefix": f"/{MODEL}",
            "import_path": names.ROUTER_IMPORT_PATH,
            "deployments": [{"name": "Router", "user_config": user_config}],
        },
    ]
    spec = {"serveConfigV2": yaml.safe_dump({"applications": applications})}
    metadata = {"name": "ai-inference", "namespace": NAMESPACE}
    cluster._store({"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata, "spec": spec}, "ai-inference")
    target = names.service_host(names.serve_service("ai-inference"), NAMESPACE)
    cluster._store(alias.manifest(MODEL, NAMESPACE, target), names.alias(MODEL))
    stub = inference_service.manifest(MODEL, NAMESPACE, version="v1", uri="s3://m/v1", model_format="custom", rayservice="ai-inference")
    cluster._store(stub, MODEL)
    serve = Serve(cluster)
    httpx.HTTPTransport.handle_request = lambda _self, request: serve.handle(request)  # type: ignore[method-assign]
    values = {"model": MODEL, "version": "v2", "uri": "s3://m/v2", "namespace": NAMESPACE, "rayservice": "ai-inference"}
    return cluster, lambda **options: parse({**values, "import_path": "acme.bge:build", "steps": [10, 25, 50], "options": options})


STEPS = ("register", "deploy", "create_alias", "create_stub", "smoke", "canary_step 10 %", "canary_step 25 %", "canary_step 50 %", "promote")
NOW = {"register": "register_model", "deploy": "deploy_rayservice", "create_stub": "create_inference_service"}
NOW |= {"smoke": "smoke_inference", "promote": "promote_model"}


def play(cluster: Cluster, request: Any, steps: tuple[str, ...]) -> Iterator[tuple[str, list[tuple[float, str, str, int]]]]:
    """Each step in a run of its own, as a pod of KFP has it; its calls."""
    from kfp_components import registry, rollout

    registry.REGISTRIES = {**registry.REGISTRIES, "memory": lambda _uri: Registry()}  # type: ignore[misc]
    for index, name in enumerate(steps):
        before = len(cluster.calls)
        run = rollout.open_run(request, cluster, holder="kfp/benchmark")  # type: ignore[arg-type]
        if name.startswith("canary_step"):
            rollout.canary_step(run, index - 5)
        else:
            step = getattr(rollout, NOW.get(name, ""), None) or getattr(rollout, name)
            step(run)
        yield name, cluster.calls[before:]


def main() -> None:
    """Count a release, then an hour of canary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speed", type=float, default=30.0)
    parser.add_argument("--minutes", type=float, default=60.0, help="of canary")
    options = parser.parse_args()
    hurry(options.speed)
    common = {"protocol": "json", "registry_uri": "memory://", "lease_s": 60.0, "smoke": [{"path": "/", "expect": {"/ok": True}}]}
    quick = {"error_margin_percent": 5.0, "judge_latency": False}
    cluster, asked = world()
    release = {name: _summary(calls) for name, calls in play(cluster, asked(**common, judge=quick), STEPS)}
    cluster, asked = world()
    slow = {"error_margin_percent": 0.001, "max_minutes": options.minutes + 2}
    hour: dict[str, Any] = {}
    try:
        for name, calls in play(cluster, asked(**common, judge=slow), STEPS[:6]):
            assert not name.startswith("canary_step"), f"it was decided: {len(calls)} calls"
    except cluster.errors.RolloutStopped:
        began = next(at for at, verb, kind, _ in reversed(cluster.calls) if at <= cluster.calls[-1][0] - 60 * options.minutes - 30)
        calls = [call for call in cluster.calls if began < call[0] <= began + 60 * options.minutes]
        hour = _summary(calls, per=60 / options.minutes)
    print(json.dumps({"release": release, "hour": hour}))


def _summary(calls: list[tuple[float, str, str, int]], per: float = 1.0) -> dict[str, Any]:
    found: dict[str, Any] = {"calls": round(len(calls) * per), "bytes_written": round(sum(size for *_, size in calls) * per), "by": {}}
    for _, verb, kind, _ in calls:
        found["by"][f"{verb} {kind}"] = found["by"].get(f"{verb} {kind}", 0) + 1
    found["by"] = {key: round(number * per) for key, number in sorted(found["by"].items(), key=lambda item: -item[1])}
    return found


if __name__ == "__main__":
    main()
