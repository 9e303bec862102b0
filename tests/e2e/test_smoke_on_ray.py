"""Smoke inference of a real model on real Ray: the cases of its family, and every protocol that it speaks, gRPC through Serve's own proxy."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from patience import seconds
from world import RAYSERVICE, command, first, record_of

from kfp_components import errors
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.local import demo
from kfp_components.probes import defaults
from kfp_components.request import PromoteRequest

pytestmark = pytest.mark.usefixtures("forget")

TENSOR = {"name": "text", "shape": [3], "datatype": "BYTES", "data": [defaults.PETS[0], *defaults.DOCUMENTS[:2]]}
VECTORS = {"count": 3, "dimensions": 384, "unit_length": True, "nearest": 0}
CASES: list[dict[str, Any]] = [
    {"protocol": "v1", "body": {"instances": ["a", "b", "c"]}, "expect_shape": {"/predictions": [3, 384]}},
    {"protocol": "v2", "binary": True, "body": {"inputs": [TENSOR]}, "expect_vectors": VECTORS},
    {"protocol": "v2_grpc", "body": {"inputs": [TENSOR]}, "expect_vectors": VECTORS},
    {"protocol": "v2_grpc", "body": {"inputs": [{**TENSOR, "datatype": "FP32", "data": [1.0, 2.0, 3.0]}]}, "expect_status": 400},
]


def request(version: str, *cases: dict[str, Any], fault: str | None = None) -> PromoteRequest:
    smoke = [{"name": f"{case['protocol']} {number}", "timeout_s": 60, **case} for number, case in enumerate(cases)]
    asked = demo.request(version, model="smoked", fault=fault, smoke=smoke, lease_s=seconds(30), ready_timeout_s=seconds(200))
    return asked.model_copy(update={"rayservice": RAYSERVICE})


def test_a_real_model_is_asked_by_every_protocol(cluster: KubernetesCluster, tmp_path: Path) -> None:
    with pytest.raises(errors.SmokeFailed, match=r"3 smoke case\(s\) failed: embedding: V2: .*expected text 0 after the first to be nearest to it"):
        first(cluster, request("v0", fault="garbage"))
    first(cluster, request("v1"))
    events = [event["message"] for event in record_of(cluster, "smoked")["events"]]
    assert "6 case(s) answered as expected by v1" in events, events
    file = tmp_path / "request.yaml"
    file.write_text(yaml.safe_dump(request("v1", *CASES).model_dump(mode="json", exclude_defaults=True)))
    for words in ((), ("--version", "v1")):
        done = command("smoke", str(file), "--json", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        assert [case["problem"] for case in json.loads(done.stdout)["cases"]] == [None] * 7
