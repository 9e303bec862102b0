"""What is `MemoryCluster`'s own: its clock, its world, its accounts. What it shares with other clusters is in tests/contract/test_cluster.py."""

import threading
from typing import Any

import pytest

from kfp_components import errors
from kfp_components.clock import ManualClock
from kfp_components.cluster import Permission, Ref
from kfp_components.cluster.memory import MemoryCluster
from kfp_components.kube_api.access import Account, Rule

REF = Ref("ConfigMap", "a", "default")


def config_map(state: str = "") -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "default"}, "data": {"state": state}}


def state_of(found: dict[str, Any] | None) -> str | None:
    return found and found["data"]["state"]


def nothing() -> None:
    return


class World:
    """Somebody who acts on the cluster at given seconds."""

    def __init__(self, clock: ManualClock, **states: float) -> None:
        self.clock, self.due, self.seen_s = clock, states, list[float]()

    def tick(self, cluster: MemoryCluster) -> None:
        self.seen_s.append(self.clock.monotonic())
        for state in [s for s, at_s in self.due.items() if at_s <= self.clock.monotonic()]:
            del self.due[state]
            cluster.apply(config_map(state), manager="world", force=True)


def test_wait_lets_the_world_go_on() -> None:
    clock = ManualClock()
    world = World(clock, pending=3, running=300)
    cluster = MemoryCluster(clock=clock, tick=world.tick)
    found = cluster.wait(REF, ready=lambda state: state_of(state) == "running", failed=lambda _: None, timeout_s=600, meanwhile=nothing)
    assert state_of(found) == "running" and clock.monotonic() == 300
    assert world.seen_s == [float(s) for s in range(1, 301)]


def test_wait_ends_with_the_first_failure() -> None:
    clock = ManualClock()
    world = World(clock, broken=5, running=6)
    cluster = MemoryCluster(clock=clock, tick=world.tick)
    with pytest.raises(errors.DeployFailed, match=r"^is broken$"):
        cluster.wait(
            REF,
            ready=lambda state: state_of(state) == "running",
            failed=lambda state: "is broken" if state_of(state) == "broken" else None,
            timeout_s=600,
            meanwhile=nothing,
        )
    assert clock.monotonic() == 5


def test_wait_takes_its_time_from_the_clock() -> None:
    clock = ManualClock()
    cluster = MemoryCluster(clock=clock)
    cluster.create(config_map("pending"))
    with pytest.raises(errors.WaitTimeout, match="not ready within 1800 s"):
        cluster.wait(REF, ready=lambda _: False, failed=lambda _: None, timeout_s=1800, meanwhile=nothing)
    assert clock.monotonic() == pytest.approx(1800)


def test_tuples_are_lists_as_on_the_wire() -> None:
    manifest = config_map() | {"metadata": {"name": "a", "namespace": "default", "finalizers": ("example.com/hold",)}}
    assert MemoryCluster().create(manifest)["metadata"]["finalizers"] == ["example.com/hold"]


def test_no_time_passes_when_it_is_ready() -> None:
    clock = ManualClock()
    world = World(clock)
    cluster = MemoryCluster(clock=clock, tick=world.tick)
    cluster.create(config_map())
    cluster.wait(REF, ready=lambda _: True, failed=lambda _: None, timeout_s=600, meanwhile=nothing)
    assert clock.monotonic() == 0 and world.seen_s == []


def test_what_the_world_raises_comes_out() -> None:
    def tick(_: MemoryCluster) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        MemoryCluster(clock=ManualClock(), tick=tick).wait(REF, ready=lambda _: True, failed=lambda _: None, timeout_s=10, meanwhile=nothing)


def test_the_world_has_all_rights() -> None:
    clock = ManualClock()
    reader = Account("reader", (Rule(("get", "list", "watch"), ("configmaps",)),))
    cluster = MemoryCluster(account=reader, clock=clock, tick=World(clock, running=1).tick)
    assert state_of(cluster.wait(REF, ready=lambda _: True, failed=lambda _: None, timeout_s=10, meanwhile=nothing)) == "running"
    with pytest.raises(errors.PermissionDenied, match='User "reader" cannot create resource "configmaps"'):
        cluster.create(config_map())


def test_accounts_share_the_cluster() -> None:
    cluster = MemoryCluster()
    somebody = cluster.as_account(Account("somebody", (Rule(("get", "patch"), ("*",)),)))
    with pytest.raises(errors.PermissionDenied, match="cannot create"):
        somebody.apply(config_map("1"), manager="me")
    cluster.create(config_map("1"))
    assert state_of(somebody.patch(REF, {"data": {"state": "2"}}, manager="me")) == "2"
    assert state_of(cluster.get(REF)) == "2"


def test_rights_are_not_needed_to_ask_for_them() -> None:
    nobody = MemoryCluster(account=Account("nobody", ()))
    assert nobody.missing([Permission("get", "ConfigMap")], "default") == (Permission("get", "ConfigMap"),)
    with pytest.raises(errors.PermissionDenied, match=r"bind the Role of deploy/rbac\.yaml"):
        nobody.get(REF)


def test_clusters_are_apart() -> None:
    one, other = MemoryCluster(), MemoryCluster()
    one.create(config_map())
    assert other.get(REF) is None


def test_namespace_goes_with_its_content() -> None:
    cluster = MemoryCluster()
    cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}})
    cluster.create(config_map() | {"metadata": {"name": "a", "namespace": "team"}})
    assert cluster.delete(Ref("Namespace", "team", "")) is True
    assert cluster.get(Ref("Namespace", "team", "")) is None and cluster.get(Ref("ConfigMap", "a", "team")) is None


def test_a_namespace_has_to_be_named() -> None:
    with pytest.raises(errors.NotFound):
        MemoryCluster().get(Ref("ConfigMap", "a", ""))


def test_writers_in_several_threads_lose_nothing() -> None:
    cluster = MemoryCluster()
    cluster.create(config_map("0"))

    def count() -> None:
        done = 0
        while done < 50:
            found = cluster.get(REF)
            assert found is not None
            try:
                cluster.replace({**found, "data": {"state": str(int(found["data"]["state"]) + 1)}})
                done += 1
            except errors.Conflict:
                pass

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state_of(cluster.get(REF)) == "200"
