"""Two real models that differ only in how good their answers are; nobody else sends a request."""

from typing import Any

import pytest
from patience import seconds
from world import MARGINS, NAMESPACE, RAYSERVICE, STEADY, record_of, snapshot

from kfp_components import errors, registry, report, rollout
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.request import PromoteRequest, parse

pytestmark = [pytest.mark.core, pytest.mark.usefixtures("forget")]


def embedding(model: str, version: str, **args: Any) -> PromoteRequest:
    return parse(
        {
            "model": model,
            "version": version,
            "uri": f"hf://sentence-transformers/all-MiniLM-L6-v2@{version}",
            "namespace": NAMESPACE,
            "rayservice": RAYSERVICE,
            "import_path": "kfp_components.models.embedding:build",
            "options": {
                "args": args,
                "smoke": "none",  # those of the family find one whose answers are so much worse before the canary does
                "provenance": {"golden_set": "builtin:embedding"},
                "judge": {**MARGINS, "tick_s": 0.5, "max_minutes": 60.0, **STEADY},
                "quality": {"margin_percent": 5, "garbage_margin_percent": 5, "pairs_per_minute": 6000, "latency_margin_percent": 1000.0},
                "watch_s": 1.0,
                "keep_previous_s": 1.0,
                "lease_s": seconds(30),
                "ready_timeout_s": seconds(120),
            },
        }
    )


def test_a_good_version_is_promoted_without_users_and_one_whose_answers_are_worse_is_not(cluster: KubernetesCluster) -> None:
    rollout.deploy_model(rollout.open_run(embedding("search", "v1"), cluster))
    promoted = rollout.promote_with_canary(rollout.open_run(embedding("search", "v2", max_tokens=128), cluster))
    assert promoted.phase == "promoted" and promoted.verdict is not None
    assert "by golden requests alone (users send too few for a verdict in time)" in promoted.verdict.sentence
    judged = next(point for point in reversed(promoted.timeline) if point.pairs)
    assert judged.scores == {"stable": 1.0, "candidate": 1.0} and judged.requests == {"stable": 0, "candidate": 0}

    before = snapshot(cluster)
    with pytest.raises(errors.CanaryFailed, match=r"worse in (quality of its answers|useless answers)"):
        rollout.promote_with_canary(rollout.open_run(embedding("search", "v3", fault="shuffled"), cluster))
    record = record_of(cluster, "search")
    assert record["phase"] == "rolled_back" and snapshot(cluster) == before
    assert registry.connect().aliases(f"{NAMESPACE}.search") == {"champion": "v2", "previous": "v1"}
    failed = next(point for point in reversed(record["timeline"]) if point["pairs"])
    assert failed["failures"] == {"stable": 0, "candidate": 0} and failed["scores"]["candidate"] < failed["scores"]["stable"] == 1.0
    page = report.render(record)
    assert "Answers that lost most" in page and record["judge"]["examples"][0]["case"] in page.replace("&#39;", "'")
