"""Where the registry is: the request, then two environment variables; and what is said when it is nowhere or of no known kind."""

import pytest

from kfp_components import errors, registry
from kfp_components.registry.kubeflow import KubeflowRegistry
from kfp_components.registry.mlflow import MlflowRegistry

KNOWN = "sqlite://, http://, https://, kubeflow+http://, kubeflow+https://"


def test_the_first_that_is_set_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_SERVING_REGISTRY_URI", "kubeflow+https://registry")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow")
    asked, first = registry.connect("https://another"), registry.connect()
    assert isinstance(asked, MlflowRegistry) and asked.uri == "https://another"
    assert isinstance(first, KubeflowRegistry) and first.uri == "kubeflow+https://registry"
    monkeypatch.setenv("KFP_SERVING_REGISTRY_URI", "")
    second = registry.connect()
    assert isinstance(second, MlflowRegistry) and second.uri == "http://mlflow"


def test_the_known_schemes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in registry.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(errors.RequestInvalid) as none:
        registry.connect()
    assert str(none.value) == f"registry: none given; set options.registry_uri or KFP_SERVING_REGISTRY_URI or MLFLOW_TRACKING_URI ({KNOWN})"
    with pytest.raises(errors.RequestInvalid) as unknown:
        registry.connect("kubeflow://registry")
    assert str(unknown.value) == f"registry 'kubeflow://registry': scheme 'kubeflow' is not known; known are {KNOWN}"
