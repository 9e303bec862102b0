"""A notebook that is run again begins anew, in whatever state it was left: `Embedded.forget`."""

from pathlib import Path

import pytest
from memory_world import MODEL, NAMESPACE, World, asked

from kfp_components.cluster import Cluster
from kfp_components.local.environment import Embedded


class Lent(Embedded):
    """The embedded cluster with that of a world in its place."""

    def __init__(self, world: World, home: Path) -> None:
        super().__init__(home)
        self.world = world

    def cluster(self) -> Cluster:  # type: ignore[override]
        return self.world.cluster


def left(world: World) -> set[str]:
    kinds = ("ConfigMap", "InferenceService", "Lease", "RayService")
    found = {f"{kind} {item['metadata']['name']}" for kind in kinds for item in world.cluster.list(kind, NAMESPACE)}
    return found | {f"Service {item['metadata']['name']}" for item in world.cluster.list("Service", NAMESPACE)} | set(world.serve.applications())


@pytest.mark.parametrize("phase", ["registered", "deployed", "smoked", "canary", "promoting", "promoted"])
def test_it_takes_away_what_was_left_in_the_middle_and_nothing_else(phase: str, tmp_path: Path) -> None:
    world = World()
    world.rayservice("applications:\n  - {name: whisper, route_prefix: /whisper, import_path: 'acme.whisper:app'}\n")
    before = left(world)
    world.deploy(asked("v1"))
    if phase == "promoted":
        world.promote(asked("v2", keep_previous_s=3600.0))
    else:
        world.killed_when(lambda record: record.candidate_version == "v2" and record.phase == phase, asked("v2"))
    assert left(world) != before
    for _ in range(2):  # where there is nothing to forget that is no fault
        Lent(world, tmp_path).forget(MODEL)
        assert left(world) == before
    assert world.deploy(asked("v1")).phase == "promoted" and world.promote(asked("v2")).stable_now == "v2"
