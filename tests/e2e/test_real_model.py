"""A real embedding model under real requests: four bad versions are caught, and the README's snippet promotes a good one."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from world import NAMESPACE, RAYSERVICE, clean, first, record_of, snapshot

from kfp_components import errors, rollout
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.local import demo
from kfp_components.request import PromoteRequest

ROOT = Path(__file__).parents[2]
RATE_PER_S = 20.0
EXPECTED = {
    "errors": (errors.CanaryFailed, "worse in errors"),
    "slow_tail": (errors.CanaryFailed, "worse in latency"),
    "garbage": (errors.SmokeFailed, "expected /embeddings/0/0"),
    "fails_to_start": (errors.DeployFailed, "No module named 'xgboost'"),
}


def request(version: str, fault: str | None = None) -> PromoteRequest:
    return demo.request(version, fault=fault).model_copy(update={"rayservice": RAYSERVICE})


@pytest.fixture(scope="module")
def bge(embedded: Any) -> Iterator[None]:
    first(embedded.cluster(), request("v1"))
    yield
    clean(embedded.cluster())


@pytest.mark.parametrize("fault", demo.FAULTS)
def test_each_bad_version_is_caught_before_half_of_the_traffic(bge: None, cluster: KubernetesCluster, users: Callable[..., Any], fault: str) -> None:
    kind, words = EXPECTED[fault]
    version = f"bad-{fault.replace('_', '-')}"
    before = snapshot(cluster)
    with users("bge", RATE_PER_S) as sending:
        time.sleep(2)
        with pytest.raises(kind, match=words):
            rollout.promote_with_canary(rollout.open_run(request(version, fault), cluster))
        time.sleep(1)
        tally = sending.stop()
    record = record_of(cluster, "bge")
    assert record["phase"] == "rolled_back"
    assert max((point["weight_percent"] for point in record["timeline"]), default=0.0) < 50
    assert all(entry.startswith(f"{version} ") for entry in tally.failed), tally
    assert snapshot(cluster) == before


def test_the_snippet_of_the_readme_promotes(bge: None, cluster: KubernetesCluster, users: Callable[..., Any]) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    here = snippet.replace('"ai-inference"', f'"{RAYSERVICE}"')
    quick = '{"args": {"max_tokens": 128}, "grace_s": 1, "judge": {"judge_latency": False, "error_margin_percent": 5}}'
    here = here.replace('{"args": {"max_tokens": 128}}', quick)
    assert here.count(quick) == 1
    with users("bge", RATE_PER_S) as sending:
        time.sleep(1)
        exec(compile(here, "README.md", "exec"), {})
        tally = sending.stop()
    assert record_of(cluster, "bge")["phase"] == "promoted"
    assert tally.answered["v2"] > 0 and not tally.failed, tally
    assert NAMESPACE in snippet
