"""What the end-to-end tests share: requests for the tiny application, and looks at what a release left."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from patience import seconds, until

from kfp_components import names, rollout
from kfp_components.cluster import KINDS, Manifest, Ref
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.local.demo import RAY_CLUSTER
from kfp_components.local.environment import DEFAULT_NAMESPACE, Embedded
from kfp_components.local.load import Users
from kfp_components.release import ReleaseStore
from kfp_components.request import PromoteRequest, parse

NAMESPACE = DEFAULT_NAMESPACE
RAYSERVICE = "shared"
TINY = "tests.e2e.apps:build"
NOTHING = "# ours\napplications: []\n"

STEADY = {"alpha_fail": 1e-4, "alpha_split": 1e-6}
"""Rules under which a version that is not worse is blamed, or the split called wrong, less than once in 10,000 releases: chance must not be the suite's."""


MARGINS = {"error_margin_percent": 5.0, "client_error_margin_percent": 5.0, "disconnect_margin_percent": 5.0}
"""So wide that a good version passes after few requests."""


def rayservice() -> Manifest:
    """The one that all tests share."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": RAYSERVICE, "namespace": NAMESPACE, "annotations": {names.ALLOWED_IMPORTS: "tests.e2e.*"}},
        "spec": {"serveConfigV2": NOTHING, "rayClusterConfig": RAY_CLUSTER},
    }


class Clients(Users):
    """Users that a test waits for: so many more of their requests are answered. Counted in requests, so a slow machine only takes longer."""

    def wait_for_answers(self, more: int) -> None:
        """Until ``more`` requests than now were answered."""
        before = sum(self.tally.answered.values())
        until(lambda: sum(self.tally.answered.values()) >= before + more, f"{more} more answers to users ({self.log.read_text()[-300:]})")


def tiny(model: str, version: str, *, args: dict[str, Any] | None = None, **options: Any) -> PromoteRequest:
    """A request for the tiny application: latency is not judged, so a canary takes a few seconds."""
    defaults = {
        "args": args or {},
        "judge": {"judge_latency": False, **MARGINS, "tick_s": 0.3, "max_minutes": 60.0, **STEADY},
        "watch_s": 1.0,
        "keep_previous_s": 1.0,
        "lease_s": seconds(30),
        "ready_timeout_s": seconds(120),
    }
    return parse(
        {
            "model": model,
            "version": version,
            "uri": f"s3://models/{model}/{version}",
            "namespace": NAMESPACE,
            "rayservice": RAYSERVICE,
            "import_path": TINY,
            "steps": [20, 50],
            "options": {**defaults, **options},
        }
    )


def first(cluster: KubernetesCluster, request: PromoteRequest) -> None:
    rollout.deploy_model(rollout.open_run(request, cluster))


def write(request: PromoteRequest, path: Path) -> Path:
    path.write_text(yaml.safe_dump(json.loads(request.model_dump_json())))
    return path


def snapshot(cluster: KubernetesCluster) -> dict[str, Any]:
    """Everything in the namespace that a release could leave behind, without what changes by itself (times, versions, Events, the record)."""
    found = {}
    for kind in ("ConfigMap", "Service", "Lease", "EndpointSlice", "RayService", "InferenceService"):
        assert kind in KINDS
        for item in cluster.list(kind, NAMESPACE):
            metadata = item["metadata"]
            if kind == "ConfigMap" and metadata["name"].endswith(("-release", "-release-canary")):
                continue
            kept = {name: metadata.get(name) for name in ("labels", "annotations", "ownerReferences", "finalizers")}
            status = item.get("status") or {}
            traffic = ((status.get("components") or {}).get("predictor") or {}).get("traffic")
            found[f"{kind} {metadata['name']}"] = {"metadata": kept, "spec": item.get("spec"), "traffic": traffic, "url": status.get("url")}
    return found


def record_of(cluster: KubernetesCluster, model: str) -> dict[str, Any]:
    found = ReleaseStore(cluster, model, NAMESPACE).load()
    assert found is not None
    return found.model_dump(mode="json")


def clean(embedded: Embedded) -> None:
    """Forget every model, and wait until Serve runs nothing: replicas of finished tests would take the processors from the next ones."""
    cluster = embedded.cluster()
    cluster.patch(Ref("RayService", RAYSERVICE, NAMESPACE), {"spec": {"serveConfigV2": NOTHING}}, manager="owner")
    for kind in ("ConfigMap", "InferenceService", "Lease"):
        for item in cluster.list(kind, NAMESPACE, labels=f"{names.MANAGED_BY_LABEL}={names.MANAGED_BY}"):
            cluster.delete(Ref(kind, item["metadata"]["name"], NAMESPACE))
    for item in cluster.list("Service", NAMESPACE, labels=names.ISVC_LABEL):
        cluster.delete(Ref("Service", item["metadata"]["name"], NAMESPACE))
    with embedded.serve() as serve:
        until(lambda: not serve.get_status()["applications"], "Serve to run no application any more")


DYING = """
import os, signal, sys, yaml
from kfp_components import request, rollout

def watch(record):
    if record.candidate_version == asked.version and record.phase == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)

asked = request.parse(yaml.safe_load(open(sys.argv[1])))
rollout.promote_with_canary(rollout.open_run(asked, watch=watch))
"""


def promote_and_die(request: Path, phase: str) -> None:
    """What `kfp-serving promote` does, in a process that gets SIGKILL as soon as the record says ``phase``."""
    done = subprocess.run([sys.executable, "-c", DYING, str(request), phase], capture_output=True, text=True, timeout=seconds(200))
    assert done.returncode == -signal.SIGKILL, f"never came to {phase}: {done.stdout}{done.stderr}"


def command(*arguments: str | os.PathLike[str], idle_s: float = 120) -> subprocess.CompletedProcess[str]:
    """The command line as a process of its own."""
    return subprocess.run([sys.executable, "-m", "kfp_components.cli", *arguments], capture_output=True, text=True, timeout=seconds(idle_s))
