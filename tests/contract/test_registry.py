"""What every model registry does, by one body over MLflow (an sqlite file) and the registry in memory."""

import pytest

from kfp_components import errors
from kfp_components.registry import ModelRegistry
from kfp_components.registry.memory import MemoryRegistry

DIGEST = "sha256:" + 64 * "a"


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('registry') / 'registry.db'}"


@pytest.fixture(params=["mlflow", "memory"])
def registry(request: pytest.FixtureRequest) -> ModelRegistry:
    if request.param == "memory":
        return MemoryRegistry()
    from kfp_components.registry.mlflow import MlflowRegistry

    return MlflowRegistry(request.getfixturevalue("mlflow_uri"))


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """A model of its own for each test: MLflow's file is shared, since making it takes seconds."""
    return "ai-ml." + request.node.originalname.removeprefix("test_").replace("_", "-")


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


def test_properties_are_added(registry: ModelRegistry, model: str) -> None:
    known(registry, model, "v1")
    registry.annotate(model, "v1", {"verdict": "not worse"})
    registry.annotate(model, "v1", {"verdict": "worse", "report": "s3://reports/1"})
    found = registry.find(model, "v1")
    assert found is not None and dict(found.properties) == {"model_format": "embedding", "verdict": "worse", "report": "s3://reports/1"}


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
