"""What every model registry does, by one body over MLflow (an sqlite file, a server), Kubeflow's (a stand-in, the real one) and the one in memory.

The stand-in of Kubeflow's (tests/standins/model_registry.py) runs everywhere; the real server is built with Go, in `make test-all`.
"""

from collections.abc import Iterator

import pytest
from registry_servers import Servers

from kfp_components import errors
from kfp_components.registry import ModelRegistry, connect, kubeflow, mlflow

DIGEST = "sha256:" + 64 * "a"
KUBEFLOW = ["kubeflow-v1", "kubeflow-v1alpha3", *(pytest.param(f"real-kubeflow-{version}", marks=pytest.mark.full) for version in ("v1", "v1alpha3"))]


@pytest.fixture(params=["memory", "mlflow-sqlite", pytest.param("mlflow-server", marks=pytest.mark.full), *KUBEFLOW])
def registry(request: pytest.FixtureRequest, servers: Servers) -> Iterator[ModelRegistry]:
    yield servers.registry(request.param)
    if request.param in servers.doors:
        assert servers.doors[request.param].told == [], "what the contract of Kubeflow's API does not allow"


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """A model of its own for each test: the servers are shared, since starting them takes seconds."""
    return "ai-ml." + "".join(letter if letter.isalnum() else "-" for letter in request.node.name.removeprefix("test_"))


def known(registry: ModelRegistry, model: str, *versions: str) -> None:
    for version in versions:
        registry.register(model, version, f"s3://models/{version}", digest=DIGEST, properties={"model_format": "embedding"})


def test_a_registered_version_is_found_with_what_was_said_of_it(registry: ModelRegistry, model: str) -> None:
    known(registry, model, "v1", "v2")
    found = registry.find(model, "v1")
    assert found is not None
    assert (found.model, found.version, found.uri, found.digest) == (model, "v1", "s3://models/v1", DIGEST)
    assert dict(found.properties) == {"model_format": "embedding"}


def test_registering_again_is_harmless(registry: ModelRegistry, model: str) -> None:
    known(registry, model, "v1")
    again = registry.register(model, "v1", "s3://models/v1", digest=DIGEST, properties={"model_format": "another"})
    assert dict(again.properties) == {"model_format": "embedding"}, "the first word stands"


@pytest.mark.parametrize(("uri", "digest"), [("s3://models/other", DIGEST), ("s3://models/other", None), ("s3://models/v1", "sha256:" + 64 * "b")])
def test_a_version_is_one_artifact(registry: ModelRegistry, model: str, uri: str, digest: str | None) -> None:
    known(registry, model, "v1")
    with pytest.raises(errors.NameTaken, match=rf"^model {model} version v1: registered with s3://models/v1 \({DIGEST}\), not with {uri} "):
        registry.register(model, "v1", uri, digest=digest, properties={})


def test_a_request_without_a_digest_does_not_contradict(registry: ModelRegistry, model: str) -> None:
    known(registry, model, "v1")
    assert registry.register(model, "v1", "s3://models/v1", digest=None, properties={}).digest == DIGEST


def test_a_digest_that_was_not_known_is_added(registry: ModelRegistry, model: str) -> None:
    registry.register(model, "v1", "s3://models/v1", digest=None, properties={"owner": "alice"})
    added = registry.register(model, "v1", "s3://models/v1", digest=DIGEST, properties={})
    assert added == registry.find(model, "v1") and (added.digest, dict(added.properties)) == (DIGEST, {"owner": "alice"})
    with pytest.raises(errors.NameTaken):
        registry.register(model, "v1", "s3://models/v1", digest="sha256:" + 64 * "b", properties={})


@pytest.mark.parametrize("taken", [True, False])
def test_a_name_is_no_pattern(registry: ModelRegistry, model: str, taken: bool) -> None:
    """Kubeflow's server reads ``_`` as "any letter"."""
    known(registry, model, "2024-06", "2024.06")
    if taken:
        known(registry, model, "2024_06")
    found = registry.find(model, "2024_06")
    assert (found.version if found else None) == ("2024_06" if taken else None)
    assert registry.find(model.replace("-", "_"), "2024-06") is None


def test_a_version_is_found_among_many(registry: ModelRegistry, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (mlflow, kubeflow):
        monkeypatch.setattr(module, "PAGE", 2)
    versions = [f"v_{number}" for number in range(5)]
    known(registry, model, *versions)
    registry.move(model, "champion", versions[0])
    registry.move(model, "candidate", versions[-1])
    assert [getattr(registry.find(model, version), "version", None) for version in versions] == versions
    assert registry.aliases(model) == {"champion": versions[0], "candidate": versions[-1]}


def test_two_models_do_not_meet(registry: ModelRegistry, model: str) -> None:
    known(registry, model, "v1")
    registry.register(f"{model}-other", "v1", "s3://models/other", digest=None, properties={})
    registry.move(f"{model}-other", "champion", "v1")
    found = registry.find(model, "v1")
    assert found is not None and (found.uri, registry.aliases(model)) == ("s3://models/v1", {})


def test_nothing_is_known_of_an_unknown_model(registry: ModelRegistry, model: str) -> None:
    assert registry.find(model, "v1") is None
    assert registry.aliases(model) == {}
    registry.move(model, "candidate", None)


def test_aliases_move_and_go(registry: ModelRegistry, model: str) -> None:
    known(registry, model, "v1", "v2")
    registry.move(model, "champion", "v1")
    registry.move(model, "candidate", "v2")
    registry.move(model, "candidate", "v2")
    assert registry.aliases(model) == {"champion": "v1", "candidate": "v2"}
    registry.move(model, "champion", "v2")
    registry.move(model, "candidate", None)
    registry.move(model, "candidate", None)
    assert registry.aliases(model) == {"champion": "v2"}
    registry.move(model, "champion", None)
    assert registry.aliases(model) == {}


def test_properties_are_added(registry: ModelRegistry, model: str) -> None:
    known(registry, model, "v1")
    registry.annotate(model, "v1", {"verdict": "not worse"})
    registry.annotate(model, "v1", {"verdict": "worse", "report": "s3://reports/1"})
    found = registry.find(model, "v1")
    assert found is not None and dict(found.properties) == {"model_format": "embedding", "verdict": "worse", "report": "s3://reports/1"}


def test_a_property_may_be_long(registry: ModelRegistry, model: str) -> None:
    evidence = "\n".join(f"{number}: ± {{}}" for number in range(1000))[:4000]
    known(registry, model, "v1")
    registry.annotate(model, "v1", {"evidence": evidence})
    found = registry.find(model, "v1")
    assert found is not None and found.properties["evidence"] == evidence


@pytest.mark.parametrize("known_model", [True, False])
def test_a_version_that_is_not_registered_is_named(registry: ModelRegistry, model: str, known_model: bool) -> None:
    name = model if known_model else f"{model}-unknown"
    if known_model:
        known(registry, model, "v1")
    words = rf"^model {name} version v9: not registered at \S+; register it first$"
    with pytest.raises(errors.NotFound, match=words):
        registry.move(name, "champion", "v9")
    with pytest.raises(errors.NotFound, match=words):
        registry.annotate(name, "v9", {"verdict": "lost"})


@pytest.mark.full
def test_an_mlflow_server_says_where_a_version_can_be_looked_at(servers: Servers, model: str) -> None:
    registry = servers.registry("mlflow-server")
    known(registry, model, "v1", "v2")
    registry.move(model, "champion", "v2")
    found = registry.find(model, "v2")
    assert found is not None and registry.aliases(model) == {"champion": "v2"}
    assert found.url == f"{servers.mlflow_url}/#/models/{model}/versions/2"
    with_user = connect(servers.mlflow_url.replace("://", "://me:secret@")).find(model, "v2")
    assert with_user == found, "no user and no password in the address"
