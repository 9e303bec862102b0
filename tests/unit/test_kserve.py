"""The InferenceService stub against kserve's own models: every field is one that kserve knows, under its name and of its kind."""

from collections.abc import Mapping
from typing import Any

import kserve
import pytest
from kubernetes import client

from kfp_components.serving import inference_service

AS_STRING = {"str", "KnativeURL", "KnativeVolatileTime"}
"""The last two are structs in Go that write themselves as a string."""
TRAFFIC_TARGET = {"configurationName": str, "latestRevision": bool, "percent": int, "revisionName": str, "tag": str, "url": str}
"""Knative's, which kserve's models name and do not bring along."""


def built(value: Any, kind: str, where: str = "") -> Any:
    """``value`` in kserve's models, which refuse what they require and miss. Raises `AssertionError` on a field that the models do not have."""
    if kind.startswith("list["):
        assert isinstance(value, list), f"{where}: {kind}, not {value!r}"
        return [built(item, kind[5:-1], f"{where}/{index}") for index, item in enumerate(value)]
    if kind.startswith("dict("):
        assert isinstance(value, Mapping), f"{where}: {kind}, not {value!r}"
        return {name: built(item, kind[5:-1].split(", ")[1], f"{where}/{name}") for name, item in value.items()}
    if kind in AS_STRING or kind == "int":
        assert isinstance(value, int if kind == "int" else str), f"{where}: {kind}, not {value!r}"
        return value
    assert isinstance(value, Mapping), f"{where}: {kind}, not {value!r}"
    if kind.endswith("TrafficTarget"):
        for key, item in value.items():
            assert isinstance(item, TRAFFIC_TARGET.get(key, ())), f"{where}/{key}: {kind} has no such {type(item).__name__}"
        return value
    model = getattr(kserve, kind, None) or getattr(client, kind)
    attributes = {key: name for name, key in model.attribute_map.items()}
    assert not set(value) - set(attributes), f"{where}: {kind} has no {sorted(set(value) - set(attributes))}"
    return model(**{attributes[key]: built(item, model.openapi_types[attributes[key]], f"{where}/{key}") for key, item in value.items()})


def round_trip(value: Mapping[str, Any]) -> Any:
    return kserve.ApiClient().sanitize_for_serialization(built(value, "V1beta1InferenceService"))


@pytest.mark.parametrize("uri", ["https://models.example/bge/v1", "models:/bge/1"])
def test_d24_the_stub_is_an_inference_service_of_kserve(uri: str) -> None:
    stub = inference_service.manifest("bge", "ai-ml", version="v1", uri=uri, model_format="embedding", rayservice="ai-inference")
    sent = round_trip(stub)
    assert sent["spec"]["predictor"]["model"].pop("name") == ""  # kserve's own default
    assert sent == stub


@pytest.mark.parametrize("ready", [True, False])
def test_d24_the_status_is_one_of_kserve(ready: bool) -> None:
    status = inference_service.status(
        "bge", "ai-ml", url="http://bge", traffic={"v1": 90.0, "v2": 10.0}, ready=ready, message="told", now="2026-01-01T00:00:00Z", previous=None
    )
    assert round_trip(status) == status


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"spec": {"predictor": {"model": {"modelFormat": {"name": "x"}, "storageURI": "https://a/b"}}}}, "storageURI"),
        ({"spec": {"predictor": {"model": {"modelFormat": "x"}}}}, "V1beta1ModelFormat"),
        ({"status": {"components": {"predictor": {"traffic": [{"percent": 10.5}]}}}}, "percent"),
        ({"status": {"conditions": [{"kind": "Ready"}]}}, "kind"),
    ],
)
def test_d24_a_field_that_kserve_does_not_have_is_told(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        round_trip(wrong)
