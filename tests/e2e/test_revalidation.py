"""Re-validation end to end: the compiled pipelines, run by kfp.local, ask models on real Ray whether they are as good as they were."""

from pathlib import Path
from typing import Any

import pytest
from test_pipelines import run_pipeline
from world import NAMESPACE, RAYSERVICE, first, tiny

from kfp_components import registry
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.release.revalidation import Revalidations, RevalidationStore

pytestmark = pytest.mark.usefixtures("forget")
RULES = {"requests": 120, "record_requests": 300, "latency_margin_percent": 1000.0}
"""A few seconds each; latency is that of this machine, so it never matters."""
SMOKE = {"name": "two", "path": "/embed", "body": {"texts": ["one", "two"]}, "expect": {"/count": 2}}


def kept(cluster: KubernetesCluster, model: str) -> Revalidations:
    found = RevalidationStore(cluster, model, NAMESPACE).load()
    assert found is not None
    return found


@pytest.mark.core
def test_a_champion_is_recorded_and_then_compared_with_its_record(cluster: KubernetesCluster, tmp_path: Path) -> None:
    model = "nightly"
    first(cluster, tiny(model, "v1", smoke=[SMOKE]))
    values: dict[str, Any] = {"model": model, "namespace": NAMESPACE, "rayservice": RAYSERVICE, "rules": RULES}
    for outcome, requests in (("not enough", 300), ("healthy", 120)):
        done = run_pipeline("revalidate", values, tmp_path)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        look = kept(cluster, model).looks[-1]
        assert (look.outcome, look.requests, look.failures) == (outcome, requests, 0), look
        assert f"{outcome}: {look.sentence}" in done.stdout
    looks = kept(cluster, model).looks
    assert len(looks) == 2 and len({one.run_id for one in looks}) == 2, "each run is named on its look"
    pages = sorted((tmp_path / "outputs").rglob("report*"), key=lambda page: page.stat().st_mtime_ns)
    assert len(pages) == 2 and looks[-1].sentence in pages[-1].read_text(), "each run leaves its page as an artifact"
    registered = registry.connect().find(f"{NAMESPACE}.{model}", "v1")
    assert registered is not None and registered.properties["revalidation"] == "healthy"
