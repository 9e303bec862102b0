"""A real embedding model under real requests: four bad versions are caught, and the README's snippet promotes a good one."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import seconds
from world import NAMESPACE, RAYSERVICE, STEADY, clean, first, record_of, snapshot

from kfp_components import errors, rollout
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.local import demo
from kfp_components.local.environment import Embedded
from kfp_components.request import PromoteRequest

ROOT = Path(__file__).parents[2]
RATE_PER_S = 20.0
EXPECTED = {
    "errors": (errors.CanaryFailed, "worse in errors"),
    "slow_tail": (errors.CanaryFailed, "worse in latency"),
    "garbage": (errors.SmokeFailed, "expected /embeddings/0/0"),
    "fails_to_start": (errors.DeployFailed, "No module named 'xgboost'"),
}


JUDGED = {**demo.JUDGE, "max_minutes": 60.0, **STEADY}
BAD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "errors": ({"fault_every": 3}, {"judge_latency": False}),  # nothing else can blame it
    "slow_tail": ({"fault_every": 3, "slow_s": 2.0}, {}),  # far slower than what a busy machine does to stable
    "garbage": ({}, {}),
    "fails_to_start": ({}, {}),
}


def request(version: str, fault: str | None = None) -> PromoteRequest:
    args, judge = BAD[fault] if fault else ({}, {})
    asked = demo.request(version, fault=fault, judge={**JUDGED, **judge}, lease_s=seconds(30), ready_timeout_s=seconds(200))
    options = asked.options.model_copy(update={"args": {**asked.options.args, **args}})
    return asked.model_copy(update={"rayservice": RAYSERVICE, "options": options})


@pytest.fixture(scope="module")
def bge(embedded: Embedded, cluster_of_module: KubernetesCluster) -> Iterator[None]:
    first(cluster_of_module, request("v1"))
    yield
    clean(embedded)


@pytest.mark.parametrize("fault", demo.FAULTS)
def test_each_bad_version_is_caught_before_half_of_the_traffic(bge: None, cluster: KubernetesCluster, users: Callable[..., Any], fault: str) -> None:
    kind, words = EXPECTED[fault]
    version = f"bad-{fault.replace('_', '-')}"
    before = snapshot(cluster)
    with users("bge", RATE_PER_S) as sending:
        with pytest.raises(kind, match=words):
            rollout.promote_with_canary(rollout.open_run(request(version, fault), cluster))
        sending.wait_for_answers(20)
        tally = sending.stop()
    record = record_of(cluster, "bge")
    assert record["phase"] == "rolled_back"
    assert max((point["weight_percent"] for point in record["timeline"]), default=0.0) < 50
    assert all(entry.startswith(f"{version} ") for entry in tally.failed), tally
    assert snapshot(cluster) == before


def test_the_snippet_of_the_readme_promotes(bge: None, cluster: KubernetesCluster, users: Callable[..., Any]) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    here = snippet.replace('"ai-inference"', f'"{RAYSERVICE}"')
    judge = {"judge_latency": False, "error_margin_percent": 5, **STEADY}
    quick = f'{{"args": {{"max_tokens": 128}}, "watch_s": 1, "keep_previous_s": 1, "judge": {judge}}}'
    here = here.replace('{"args": {"max_tokens": 128}}', quick)
    assert here.count(quick) == 1
    with users("bge", RATE_PER_S) as sending:
        exec(compile(here, "README.md", "exec"), {})
        tally = sending.stop()
    assert record_of(cluster, "bge")["phase"] == "promoted"
    assert tally.answered["v2"] > 0 and not tally.failed, tally
    assert NAMESPACE in snippet
