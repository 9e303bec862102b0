"""The artifact at the door of a release: read after the cheap checks and before anything is written, once, and what was found is registered."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from memory_world import MODEL, NAMESPACE, World, asked, live

from kfp_components import errors, names, rollout
from kfp_components.artifact import Progress
from kfp_components.cluster import Ref
from kfp_components.registry.memory import MemoryRegistry
from kfp_components.request import PromoteRequest

BYTES = b"weights"
DIGEST = f"sha256:{hashlib.sha256(BYTES).hexdigest()}"
OTHER = "sha256:" + "0" * 64
NAME = f"{NAMESPACE}.{MODEL}"
KINDS = ("RayService", "Service", "InferenceService", "ConfigMap", "Lease", "Event")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(BYTES)
    return path


@pytest.fixture
def served(world: World) -> World:
    world.rayservice(live())
    return world


def of(uri: str, **options: Any) -> PromoteRequest:
    return asked(**options).model_copy(update={"uri": uri})


def everything(world: World) -> dict[str, Any]:
    return {kind: world.cluster.list(kind, NAMESPACE) for kind in KINDS} | {"registered": world.registry.find(NAME, "v2")}


def opened(world: World, request: PromoteRequest, reading: Any) -> rollout.Run:
    process = world.process()
    return rollout.open_run(
        request, process.cluster, holder="me", clock=world.clock, registry=world.registry, transport=process.transport, reading=reading
    )


@pytest.mark.parametrize(
    ("digest", "known", "by"),
    [(DIGEST, None, "verified, as options.digest says"), (None, None, "found"), (None, DIGEST, "verified, as the registry says")],
)
def test_what_was_read_is_told_and_registered(served: World, file: Path, digest: str | None, known: str | None, by: str) -> None:
    if known:
        served.registry.register(NAME, "v2", file.as_uri(), digest=known, properties={})
    record = served.promote(of(file.as_uri(), digest=digest))
    assert record.phase == "promoted"
    (event,) = [event for event in record.events if event.step == "artifact"]
    assert event.message.startswith(f"digest {DIGEST} {by}")
    registered = served.registry.find(NAME, "v2")
    assert registered is not None and registered.digest == DIGEST
    assert known or registered.properties["artifact_check"] == event.message


def test_what_cannot_be_read_is_told_and_the_digest_of_the_request_is_registered(served: World) -> None:
    record = served.promote(of("gs://models/bge", digest=OTHER))
    registered = served.registry.find(NAME, "v2")
    assert registered is not None and registered.digest == OTHER
    assert registered.properties["artifact_check"] == "not verified: gs:// cannot be read here"
    assert [event.message for event in record.events if event.step == "artifact"] == ["not verified: gs:// cannot be read here"]


@pytest.mark.parametrize("adopts", [False, True])
def test_another_artifact_is_refused_before_anything_is_touched(world: World, file: Path, adopts: bool) -> None:
    world.rayservice(live(), adopted=not adopts)
    before = everything(world)
    with pytest.raises(errors.ArtifactRejected, match=f"its digest is {DIGEST}, not {OTHER}"):
        world.promote(of(file.as_uri(), digest=OTHER, adopt=adopts))
    assert everything(world) == before


def test_an_outage_is_waited_for_a_little_and_leaves_nothing(served: World) -> None:
    before, began = everything(served), served.clock.monotonic()
    end = served.process().outcome(lambda: served.promote(of("http://127.0.0.1:9/model", digest=DIGEST)))
    assert isinstance(end.error, errors.Unreachable) and end.exit_code == 3 and "the same command tries again" in end.words
    assert everything(served) == before and served.clock.monotonic() > began


def test_a_wrong_name_is_told_before_anything_is_read_and_nothing_is_held_meanwhile(world: World, file: Path) -> None:
    told: list[Progress] = []
    lease, record = Ref("Lease", names.release(MODEL), NAMESPACE), Ref("ConfigMap", names.release(MODEL), NAMESPACE)

    def reading(progress: Progress) -> None:
        told.append(progress)
        assert world.cluster.get(lease) is None
        assert world.registry.find(NAME, "v2") is None

    with pytest.raises(errors.NotFound, match="RayService"):
        rollout.register_model(opened(world, of(file.as_uri()), reading))
    assert told == []
    world.rayservice(live())
    known = world.cluster.get(record)
    rollout.register_model(opened(world, of(file.as_uri()), reading))
    assert told and world.cluster.get(record) != known


def test_after_a_long_reading_what_was_seen_before_is_looked_at_again(served: World, file: Path) -> None:
    told: list[Progress] = []

    def reading(progress: Progress) -> None:
        told.append(progress)
        served.clock.sleep(60.0)
        if not progress.done_bytes:
            metadata = {"name": names.alias(MODEL), "namespace": NAMESPACE}
            spec = {"type": "ClusterIP", "ports": [{"port": 80}]}
            served.cluster.apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}, manager="somebody")

    with pytest.raises(errors.NameTaken, match="it is a ClusterIP Service, not an alias"):
        rollout.register_model(opened(served, of(file.as_uri()), reading))
    served.cluster.delete(Ref("Service", names.alias(MODEL), NAMESPACE))
    told.clear()
    rollout.register_model(opened(served, of(file.as_uri()), lambda progress: (told.append(progress), served.clock.sleep(60.0))))
    assert [progress.done_bytes for progress in told] == [0, len(BYTES)], "read once"


class Away(MemoryRegistry):
    """Takes no registration while ``away``."""

    away = False

    def register(self, *args: Any, **options: Any) -> Any:
        if self.away:
            raise errors.Unreachable("registry memory: no answer")
        return super().register(*args, **options)


def test_a_release_that_is_taken_up_again_does_not_read_it_again(file: Path) -> None:
    registry = Away()
    world = World(rate_per_s=40.0, registry=registry)
    world.rayservice(live())
    registry.away = True
    request = of(file.as_uri())
    end = world.process().outcome(lambda: world.promote(request))
    assert isinstance(end.error, errors.ReleaseLeft), str(end)
    file.unlink()
    registry.away = False
    assert world.promote(request).phase == "promoted"
    registered = registry.find(NAME, "v2")
    assert registered is not None and registered.digest == DIGEST and DIGEST in registered.properties["artifact_check"]


def test_a_plan_says_what_would_be_compared(served: World, file: Path) -> None:
    told = str(rollout.plan(served.process().open(of(file.as_uri(), digest=OTHER))))
    assert f"artifact: not verified: a plan does not read it; a run reads 1 file, 7 bytes, and compares the digest with {OTHER}" in told
    with pytest.raises(errors.ArtifactRejected, match="is not on this machine"):
        rollout.plan(served.process().open(of(f"{file.as_uri()}.gone", digest=OTHER, artifact={"verify": "required"})))
