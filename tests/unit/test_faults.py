"""Faults on demand (`kfp_components.cluster.faults`)."""

from collections.abc import Callable
from typing import Any

import pytest

from kfp_components import errors
from kfp_components.clock import ManualClock
from kfp_components.cluster import Ref
from kfp_components.cluster.faults import Fault, Faulty, Killed, Script, wrap
from kfp_components.cluster.memory import MemoryCluster

REF = Ref("ConfigMap", "a", "default")


def config_map(value: str = "1", **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "default", **metadata}, "data": {"k": value}}


def outcomes(act: Callable[[], object], count: int) -> list[str]:
    found = []
    for _ in range(count):
        try:
            act()
            found.append("ok")
        except (Exception, Killed) as error:
            found.append(type(error).__name__)
    return found


class Router:
    def __init__(self) -> None:
        self.weight = 0

    def set(self, weight: int) -> int:
        self.weight = weight
        return weight


def test_without_faults_it_only_counts() -> None:
    cluster = Faulty(MemoryCluster())
    cluster.create(config_map())
    cluster.get(REF)
    cluster.list("ConfigMap", "default", labels="app")
    cluster.patch(REF, {"data": {"k": "2"}}, manager="me")
    cluster.missing([], "default")
    assert [str(call) for call in cluster.script.calls] == [
        "call 1, cluster.create(ConfigMap default/a)",
        "call 2, cluster.get(ConfigMap default/a)",
        "call 3, cluster.list(ConfigMap, default)",
        "call 4, cluster.patch(ConfigMap default/a, {'data': {'k': '2'}})",
        "call 5, cluster.missing([], default)",
    ]
    assert [call.number for call in cluster.script.writes] == [1, 4]


def test_every_write_of_the_protocol_is_known_as_one() -> None:
    cluster = Faulty(MemoryCluster())
    made = cluster.create(config_map())
    cluster.replace(made)
    cluster.apply(config_map(), manager="me", force=True)
    cluster.patch(REF, {}, manager="me")
    cluster.delete(REF, uid=made["metadata"]["uid"])
    assert [call.method for call in cluster.script.writes] == ["create", "replace", "apply", "patch", "delete"]


@pytest.mark.parametrize("error", [errors.Unreachable, errors.PermissionDenied, errors.Conflict, OSError])
def test_error_once_and_without_effect(error: type[Exception]) -> None:
    memory = MemoryCluster()
    cluster = Faulty(memory, Fault("error", at=2, error=error))
    assert cluster.get(REF) is None
    with pytest.raises(error, match=r"call 2, cluster\.create\(ConfigMap default/a\): failed on purpose"):
        cluster.create(config_map())
    assert memory.get(REF) is None
    cluster.create(config_map())
    assert memory.get(REF) is not None


def test_error_in_some_calls_in_a_row() -> None:
    cluster = Faulty(MemoryCluster(), Fault("error", at=2, calls=3))
    assert outcomes(lambda: cluster.get(REF), 6) == ["ok", "Unreachable", "Unreachable", "Unreachable", "ok", "ok"]


def test_error_for_some_time() -> None:
    clock = ManualClock()
    cluster = Faulty(MemoryCluster(clock=clock), Fault("error", at=2, for_s=30), clock=clock)

    def get_and_sleep() -> None:
        try:
            cluster.get(REF)
        finally:
            clock.sleep(10)

    clock.sleep(100)
    assert outcomes(get_and_sleep, 6) == ["ok", "Unreachable", "Unreachable", "Unreachable", "ok", "ok"]


def test_several_faults() -> None:
    cluster = Faulty(MemoryCluster(), Fault("error", at=1), Fault("error", at=3, error=errors.Conflict), Fault("killed before", at=4))
    assert outcomes(lambda: cluster.get(REF), 5) == ["Unreachable", "ok", "Conflict", "Killed", "Killed"]


def test_lost_answer() -> None:
    memory = MemoryCluster()
    cluster = Faulty(memory, Fault("answer lost", at=1))
    with pytest.raises(errors.Unreachable, match="took effect, its answer was lost"):
        cluster.create(config_map())
    assert memory.get(REF) is not None


def test_a_refusal_is_not_a_lost_answer() -> None:
    memory = MemoryCluster()
    memory.create(config_map())
    with pytest.raises(errors.Conflict, match="already exists"):
        Faulty(memory, Fault("answer lost", at=1)).create(config_map())


@pytest.mark.parametrize("kind, value", [("killed before", "1"), ("killed after", "2")])
def test_a_dead_process_writes_no_more(kind: Any, value: str) -> None:
    memory = MemoryCluster()
    memory.create(config_map("1"))
    cluster = Faulty(memory, Fault(kind, at=1))
    assert outcomes(lambda: cluster.patch(REF, {"data": {"k": "2"}}, manager="me"), 1) == ["Killed"]
    assert outcomes(lambda: cluster.patch(REF, {"data": {"k": "3"}}, manager="me"), 3) == ["Killed"] * 3
    assert outcomes(lambda: cluster.get(REF), 1) == ["Killed"]
    found = memory.get(REF)
    assert found is not None and found["data"] == {"k": value}
    assert cluster.script.dead and len(cluster.script.calls) == 1


def test_killed_after_a_call_that_was_refused() -> None:
    memory = MemoryCluster()
    memory.create(config_map())
    with pytest.raises(Killed):
        Faulty(memory, Fault("killed after", at=1)).create(config_map())


def test_killed_is_caught_by_no_handler() -> None:
    assert not issubclass(Killed, Exception)
    cluster = Faulty(MemoryCluster(), Fault("killed before", at=1))
    tidied = []
    with pytest.raises(Killed):
        try:
            cluster.get(REF)
        except Exception:
            tidied.append("handler")
        finally:
            try:
                cluster.create(config_map())
            except Killed:
                tidied.append("could not write")
                raise
    assert tidied == ["could not write"]


def test_one_sequence_over_several_objects() -> None:
    script = Script(Fault("error", at=3), Fault("killed after", at=4))
    router, told = Router(), list[str]()
    cluster, wrapped, probe = wrap(MemoryCluster(), script), wrap(router, script, writes=("set",)), wrap(told.append, script, name="probe")
    cluster.create(config_map())
    assert wrapped.set(10) == 10 and wrapped.weight == 10
    with pytest.raises(errors.Unreachable, match=r"call 3, probe\.__call__\(hello\)"):
        probe("hello")
    assert told == []
    with pytest.raises(Killed, match=r"call 4, Router\.set\(25\): killed after it"):
        wrapped.set(25)
    assert router.weight == 25
    for act in (lambda: cluster.get(REF), lambda: wrapped.set(50), lambda: probe("again")):
        with pytest.raises(Killed, match="a dead process makes no calls"):
            act()
    assert [(call.number, call.owner, call.write) for call in script.calls] == [
        (1, "MemoryCluster", True),
        (2, "Router", True),
        (3, "probe", False),
        (4, "Router", True),
    ]


def test_a_wait_is_one_call() -> None:
    def tick(inner: MemoryCluster) -> None:
        inner.patch(REF, {"data": {"k": "2"}}, manager="controller")

    clock = ManualClock()
    memory = MemoryCluster(clock=clock, tick=tick)
    memory.create(config_map())
    cluster = Faulty(memory, clock=clock)
    cluster.wait(REF, ready=lambda state: state["data"]["k"] == "2", failed=lambda _: None, timeout_s=60, meanwhile=lambda: None)
    cluster.get(REF)
    assert [(call.method, call.at_s) for call in cluster.script.calls] == [("wait", 0.0), ("get", 1.0)]


def test_every_call_of_a_run_can_be_the_last() -> None:
    """What a fault suite does: the object is whole, old or new, wherever the process dies."""

    def run(cluster: Any) -> None:
        cluster.create(config_map("1"))
        found = cluster.get(REF)
        cluster.replace({**found, "data": {"k": "2"}})

    counted = Faulty(MemoryCluster())
    run(counted)
    left = []
    for at in range(1, len(counted.script.calls) + 1):
        for kind in ("killed before", "killed after"):
            memory = MemoryCluster()
            with pytest.raises(Killed):
                run(Faulty(memory, Fault(kind, at=at)))  # type: ignore[arg-type]
            found = memory.get(REF)
            left.append(found and found["data"]["k"])
    assert left == [None, "1", "1", "1", "1", "2"]


class Connection(Router):
    opened = closed = 0

    def __enter__(self) -> "Connection":
        self.opened += 1
        return self

    def __exit__(self, *_error: object) -> None:
        self.closed += 1


def test_context_managers_stay_such() -> None:
    connection, script = Connection(), Script(Fault("killed before", at=2))
    with pytest.raises(Killed):
        with wrap(connection, script, writes=("set",)) as wrapped:
            wrapped.set(10)
            wrapped.set(25)
    assert (connection.weight, connection.opened, connection.closed, len(script.writes)) == (10, 1, 1, 2)


@pytest.mark.parametrize("wrong", [{"at": 0}, {"at": 1, "calls": 0}])
def test_fault_that_never_comes(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="counted from 1"):
        Fault("error", **wrong)
