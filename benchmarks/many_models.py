"""A stand-in endpoint that serves many models on loopback, beside a real (embedded) Kubernetes API, for re-validations of many models.

    python benchmarks/many_models.py             200 of them, night after night; writes benchmarks/RESULTS.md (5 minutes)
    python benchmarks/many_models.py --print     writes nothing

It answers as an application of Ray Serve that has the model's route: right, or wrong for a share of the requests, at once or after a while. It is no
Ray: nothing can be deployed, fail to start or be slow because of its neighbours. tests/e2e has real Ray for that.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import results
from durations import machine
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from kfp_components import names, rollout
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.kube_api.access import ADMIN, Account
from kfp_components.local.apiserver.server import ApiServer, write_kubeconfig
from kfp_components.release import Release, ReleaseStore
from kfp_components.request import RevalidateRules, parse, parse_target
from kfp_components.serving import alias

NAMESPACE, RAYSERVICE = "ai-ml", "many"
CASE = {"name": "ok", "path": "/", "body": {"text": "x"}, "expect": {"/ok": True}}
RULES = RevalidateRules(record_requests=600, requests=100, apart_hours=0)
"""Less than by default (3,000 and 200), so that it takes minutes."""
USUAL = (0.0, 0.01, 0.03, 0.08)
"""Shares of wrong answers, of the models by turns."""
FALLS = (0.03, 0.20)
SLOWS_S = (0.01, 0.04)
"""Far above what a busy machine does to an answer of a few ms."""


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
def many(folder: Path, number: int, seed: int = 1, accounts: Mapping[str, Account] | None = None) -> Iterator[Many]:
    """``number`` models, each with a version v1 that an earlier release promoted. ``accounts``: tokens that may do less than the admin's."""
    server = ApiServer(":memory:", {"admin": ADMIN, **(accounts or {})})
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


@dataclass(frozen=True)
class Pass:
    """One look at each model: seconds of the clock and of the processor, and the peak of the process's memory (MB) after it."""

    seconds: float
    processor_s: float
    peak_mb: float
    found: list[rollout.Revalidation]

    @property
    def decayed(self) -> set[str]:
        """Who is accused."""
        return {one.model for one in self.found if one.outcome == "decayed"}


@dataclass(frozen=True)
class Measured:
    """The record and the nights after it. ``begun_mb`` is the peak of the memory before."""

    fell: str
    slow: str
    begun_mb: float
    record: Pass
    nights: list[Pass]

    @property
    def accused(self) -> set[str]:
        """In any night."""
        return set[str]().union(*(night.decayed for night in self.nights))


def peak_mb() -> float:
    """Of this process: asker, endpoint and embedded API."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def opened(world: Many, model: str) -> rollout.Run:
    """As the command opens it."""
    return rollout.open_rollback(parse_target({"model": model, "namespace": NAMESPACE, "rayservice": RAYSERVICE}), world.cluster)


def looked_at(world: Many, tell: Callable[[], None]) -> Pass:
    """One after the other, as the command does."""
    began, processor = time.perf_counter(), time.process_time()
    found = []
    for model in world.models:
        found.append(rollout.revalidate_model(opened(world, model), RULES, models=len(world.models)))
        tell()
    return Pass(time.perf_counter() - began, time.process_time() - processor, peak_mb(), found)


def measure(models: int, nights: int, seed: int, progress: Progress) -> Measured:
    """After the record one model falls and one becomes slow; it ends when both are accused, or after so many nights."""
    with tempfile.TemporaryDirectory() as folder, many(Path(folder), models, seed) as world:
        for model, share in zip(world.models.values(), USUAL * models, strict=False):
            model.wrong = share
        fell, slow = name(models // 3), name(2 * models // 3)
        world.models[fell].wrong, world.models[slow].delay_s = FALLS[0], SLOWS_S[0]
        first = opened(world, fell)
        first.registry.find(first.registered_name, "v1")  # what is imported once (MLflow) is not growth
        task = progress.add_task("the record", total=models)

        def tell() -> None:
            progress.update(task, advance=1)

        measured = Measured(fell, slow, peak_mb(), looked_at(world, tell), [])
        world.models[fell].wrong, world.models[slow].delay_s = FALLS[1], SLOWS_S[1]
        while len(measured.nights) < nights and not {fell, slow} <= measured.accused:
            progress.reset(task, description=f"night {len(measured.nights) + 1}")
            measured.nights.append(looked_at(world, tell))
            progress.console.print(f"night {len(measured.nights)}: {', '.join(sorted(measured.accused)) or 'nobody'} accused so far")
    return measured


def as_markdown(measured: Measured, seed: int, load: float) -> str:
    """For RESULTS.md."""
    models = len(measured.record.found)
    lines = [
        f"## {models} models re-validated in one local run",
        "",
        "| | asked of each model | seconds, all | seconds a model and look | of the processor | peak memory, MB | growth a model and look, kB |",
        "|---|---|---|---|---|---|---|",
    ]
    before = measured.begun_mb
    for number, each in enumerate((measured.record, *measured.nights)):
        asked = RULES.requests if number else RULES.record_requests
        seconds = f"{each.seconds:.0f} | {each.seconds / models:.3f} | {each.processor_s / models:.3f}"
        growth = 1024 * (each.peak_mb - before) / models
        lines.append(f"| {f'night {number}' if number else 'the record'} | {asked:,} | {seconds} | {each.peak_mb:.0f} | {growth:.1f} |")
        before = each.peak_mb
    others = [one.look for night in measured.nights for one in night.found if one.model not in (measured.fell, measured.slow)]
    slowed = " to ".join(f"{1000 * delay_s:.0f}" for delay_s in SLOWS_S)
    told = [
        f"{_when(measured, measured.fell)} fell from {1 - FALLS[0]:.0%} to {1 - FALLS[1]:.0%} right answers, "
        f"{_when(measured, measured.slow)} went from {slowed} ms, both after the record.",
        f"Of the {models - 2} others, right in {', '.join(f'{1 - share:.0%}' for share in USUAL)} by turns, "
        f"{len(measured.accused - {measured.fell, measured.slow})} were accused; the most evidence against one, in any night, was "
        f"{max((look.evidence for look in others), default=1.0):,.2g}, an accusation takes {models / RULES.alpha:,.0f}.",
    ]
    how = f"`rollout.revalidate_model`, one model after the other, {RULES.concurrency} requests at the same time; the endpoint (a stand-in) and the "
    how += (
        f"embedded Kubernetes API are threads of the same process, whose memory was at {measured.begun_mb:.0f} MB before. Asked less than by default "
    )
    how += f"(3,000 and 200). Seed {seed}. {machine()}; load average {load:.1f} at the start."
    return "\n".join([*lines, "", " ".join(told), "", how])


def _when(measured: Measured, model: str) -> str:
    night = next((number for number, each in enumerate(measured.nights, 1) if model in each.decayed), None)
    return f"{model} (NOT accused)" if night is None else f"{model} (accused in night {night})"


def main() -> int:
    """The command line. 1 unless exactly the two that decayed are accused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="write nothing")
    parser.add_argument("--models", type=int, default=200, help="default 200, at least 3")
    parser.add_argument("--nights", type=int, default=12, help="at most; default 12")
    parser.add_argument("--seed", type=int, default=1, help="of who answers wrong when; default 1")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the embedded API is stopped
    load = os.getloadavg()[0]
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        measured = measure(options.models, options.nights, options.seed, progress)
    told = as_markdown(measured, options.seed, load)
    print(told)
    if not options.print:
        results.write("many-models", told)
    return 0 if measured.accused == {measured.fell, measured.slow} else 1


if __name__ == "__main__":
    sys.exit(main())
