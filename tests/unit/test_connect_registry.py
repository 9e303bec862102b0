"""Where the registry is: the request, then two environment variables; and what is said when it is nowhere or of no known kind."""

from pathlib import Path

import pytest
from standins.loopback import Answering, served

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


def test_what_is_no_mlflow_is_said(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no database " * 200)
    cases = {
        f"sqlite:///{tmp_path}/notes.txt": "no MLflow is there",
        f"sqlite:///{tmp_path}/nowhere/registry.db": "the folder of that file does not exist, and MLflow would make one",
        "https://[bad": "it is no address (Invalid IPv6 URL)",
    }
    for uri, words in cases.items():
        with pytest.raises(errors.RequestInvalid) as told:
            registry.connect(uri).aliases("ai-ml.bge")
        assert words in str(told.value) and "correct the" in str(told.value)
    assert not (tmp_path / "nowhere").exists()


def test_a_server_that_is_another_ones_is_said() -> None:
    class Handler(Answering):
        def do_GET(self) -> None:
            self.answer(200, b'{"model_versions": 7}', "application/json")

    words = r"reading the versions of ai-ml\.bge: no MLflow is there \(ParseError"
    with served(Handler) as address, pytest.raises(errors.RequestInvalid, match=words):
        registry.connect(f"http://{address}").find("ai-ml.bge", "v1")
