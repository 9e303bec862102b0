"""The Lease on a model: client-go's rules, and only this machine's monotonic clock."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from kfp_components import errors, names
from kfp_components.clock import ManualClock
from kfp_components.cluster import Cluster, Ref
from kfp_components.cluster.faults import Fault, Script, wrap
from kfp_components.cluster.memory import MemoryCluster
from kfp_components.release import Lease, local_holder

REF = Ref("Lease", names.release("bge"), "default")
LEASE_S = 60.0


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.cluster = MemoryCluster(clock=self.clock)

    def lease(self, run: str, *, cluster: Cluster | None = None, clock: ManualClock | None = None) -> Lease:
        lease = Lease(cluster or self.cluster, "bge", "default", run, LEASE_S, clock or self.clock)
        lease.identity = f"{run}#elsewhere/1/2/{lease.identity[-8:]}"  # a process of another host: nobody can look whether it lives
        return lease

    def spec(self) -> dict[str, Any]:
        found = self.cluster.get(REF)
        assert found is not None
        return dict(found["spec"])

    def edit(self, **spec: Any) -> None:
        found = self.cluster.get(REF)
        assert found is not None
        self.cluster.replace({**found, "spec": {**found["spec"], **spec}})


@pytest.fixture
def world() -> World:
    return World()


class WhileWaiting(ManualClock):
    """A clock at whose sleeps something else happens."""

    def __init__(self, act: Callable[[float], None]) -> None:
        super().__init__()
        self.act = act

    def sleep(self, s: float) -> None:
        super().sleep(s)
        self.act(self.monotonic())


def test_a_free_lease_is_taken_kept_and_released(world: World) -> None:
    lease = world.lease("kfp/1")
    lease.acquire()
    spec = world.spec()
    assert lease.held and spec["holderIdentity"] == lease.identity and spec["leaseDurationSeconds"] == 60 and spec["leaseTransitions"] == 0
    assert spec["acquireTime"] == spec["renewTime"] == "2025-06-15T15:06:40.000000Z"
    lease.release()
    assert not lease.held and world.cluster.get(REF) is None


def test_d9_acquire_time_is_kept_and_renewed_at_a_quarter(world: World) -> None:
    lease = world.lease("kfp/1")
    lease.acquire()
    first = world.spec()
    world.clock.sleep(14.9)
    lease.keep()
    assert world.spec() == first
    world.clock.sleep(1.0)
    lease.keep()
    assert world.spec()["acquireTime"] == first["acquireTime"] and world.spec()["renewTime"] == "2025-06-15T15:06:55.900000Z"


@pytest.mark.parametrize("ahead_s", [-90.0, 0.0, 90.0, 86_400.0])
def test_d9_another_holder_is_followed_only_after_it_was_seen_unchanged_whatever_its_clock_says(world: World, ahead_s: float) -> None:
    other = world.lease("kfp/1", clock=ManualClock(world.clock.now_unix_s() + ahead_s))
    other.acquire()
    told: list[str] = []
    began = world.clock.monotonic()
    lease = world.lease("kfp/2")
    lease.acquire(told.append)
    assert LEASE_S <= world.clock.monotonic() - began < LEASE_S + 2
    assert len(told) == 1 and other.identity in told[0]
    assert world.spec()["holderIdentity"] == lease.identity and world.spec()["leaseTransitions"] == 1
    with pytest.raises(errors.ReleaseHeld, match="lost to kfp/2#"):
        other._clock.sleep(20)
        other.keep()
    assert not other.held
    other.release()
    other.park()
    assert world.spec()["holderIdentity"] == lease.identity  # what is not ours is left alone


def test_d9_a_holder_that_renews_meanwhile_is_alive(world: World) -> None:
    other = world.lease("kfp/1")
    other.acquire()

    def renew(at_s: float) -> None:
        if at_s > 30:
            world.clock.sleep(20)
            other.keep()

    lease = world.lease("kfp/2", clock=WhileWaiting(renew))
    with pytest.raises(errors.ReleaseHeld, match=rf"held by {other.identity}, which is alive"):
        lease.acquire()
    assert not lease.held and world.spec()["holderIdentity"] == other.identity


def test_one_that_is_released_or_parked_by_the_same_run_while_somebody_waits_is_taken(world: World) -> None:
    for end in ("release", "park"):
        other = world.lease("kfp/1")
        other.acquire()
        lease = world.lease("kfp/1", clock=WhileWaiting(lambda _at_s, end=end, other=other: getattr(other, end)()))
        lease.acquire()
        assert lease.held and lease._clock.monotonic() <= 2
        lease.release()


def test_d9_two_pods_of_one_run_are_two_holders(world: World) -> None:
    first, second = world.lease("kfp/1"), world.lease("kfp/1")
    assert first.identity != second.identity
    first.acquire()
    second.acquire()
    assert world.clock.monotonic() >= LEASE_S


def test_a_parked_lease_is_taken_by_the_next_step_of_the_run_at_once_and_waited_out_by_others(world: World) -> None:
    lease = world.lease("kfp/1")
    lease.acquire()
    world.clock.sleep(1)
    lease.park()
    assert not lease.held and world.spec()["holderIdentity"] == "kfp/1"
    with pytest.raises(errors.ReleaseHeld, match="not held by this process"):
        lease.keep()
    following = world.lease("kfp/1")
    following.acquire()
    assert world.clock.monotonic() == 1 and world.spec()["leaseTransitions"] == 0
    assert world.spec()["acquireTime"] == world.spec()["renewTime"]
    following.park()
    world.lease("kfp/2").acquire()
    assert world.clock.monotonic() >= 1 + LEASE_S and world.spec()["leaseTransitions"] == 1


def test_a_dead_process_of_this_host_is_followed_at_once_a_living_one_is_not(world: World) -> None:
    host, started = socket.gethostname(), int(psutil.Process().create_time())
    assert local_holder() == f"{host}/{os.getpid()}/{started}"
    for dead in (f"kfp/1#{host}/{os.getpid()}/{started - 1}/ab", f"{host}/{2**22 + 1}/5", f"{host}/1/5#{host}/{2**22 + 1}/5/ab"):
        lease = world.lease("kfp/1")
        lease.acquire()
        world.edit(holderIdentity=dead)
        world.lease("kfp/2").acquire()
        assert world.clock.monotonic() == 0
        world.cluster.delete(REF)
    world.lease("kfp/1").acquire()
    world.edit(holderIdentity=f"kfp/1#{local_holder()}/ab")
    world.lease("kfp/2").acquire()
    assert world.clock.monotonic() >= LEASE_S


def test_d9_the_renew_deadline_comes_before_anybody_can_take_it(world: World) -> None:
    script = Script(Fault("error", at=3, calls=1000), clock=world.clock)
    lease = world.lease("kfp/1", cluster=wrap(world.cluster, script))
    lease.acquire()  # two calls
    for _ in range(39):
        world.clock.sleep(1)
        lease.keep()
    world.clock.sleep(1)
    with pytest.raises(errors.Unreachable, match="could not be renewed for 40 s of the 60 s"):
        lease.keep()
    assert lease.held  # the step has a third of the Lease's time to stop
    world.clock.sleep(20)
    assert not lease.held


def test_a_short_outage_and_a_lost_answer_are_no_loss(world: World) -> None:
    for kind in ("error", "answer lost"):
        script = Script(Fault(kind, at=3, for_s=20.0), clock=world.clock)  # type: ignore[arg-type]
        lease = world.lease("kfp/1", cluster=wrap(world.cluster, script))
        lease.acquire()
        for _ in range(100):
            world.clock.sleep(1)
            lease.keep()
        assert lease.held
        lease.release()


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_an_acquisition_whose_answer_is_lost_is_found_to_be_ours(world: World, at: int) -> None:
    script = Script(Fault("answer lost", at=at), clock=world.clock)
    lease = world.lease("kfp/1", cluster=wrap(world.cluster, script))
    if at == 1:
        with pytest.raises(errors.Unreachable):
            lease.acquire()
        return
    lease.acquire()
    assert lease.held and world.spec()["leaseTransitions"] == 0 and world.clock.monotonic() < 2


def test_an_api_that_stays_away_ends_the_acquisition(world: World) -> None:
    class NoWrites(MemoryCluster):
        def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
            raise errors.Unreachable("away")

    with pytest.raises(errors.Unreachable):
        world.lease("kfp/1", cluster=NoWrites(clock=world.clock)).acquire()
    assert world.clock.monotonic() >= LEASE_S * 2 / 3
    with pytest.raises(errors.NotFound):
        Lease(world.cluster, "bge", "nowhere", "kfp/1", LEASE_S, world.clock).acquire()


def test_a_lease_that_was_deleted_or_taken_stops_the_step(world: World) -> None:
    lease = world.lease("kfp/1")
    lease.acquire()
    world.cluster.delete(REF)
    world.clock.sleep(20)
    with pytest.raises(errors.ReleaseHeld, match=r"nobody \(it was deleted\)"):
        lease.keep()
    lease.acquire()
    found = world.cluster.get(REF)
    assert found is not None
    world.cluster.replace({**found, "metadata": {**found["metadata"], "annotations": {"somebody": "wrote"}}})
    world.clock.sleep(20)
    lease.keep()  # still ours
    assert lease.held
    world.edit(holderIdentity="kfp/2#elsewhere/1/2/ab")
    world.clock.sleep(20)
    with pytest.raises(errors.ReleaseHeld, match="lost to kfp/2#elsewhere"):
        lease.keep()
