"""What is, beside what was written last: asked of the RayService and of the router. Reads only; what cannot be asked is said, never guessed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from kfp_components import errors, names, traffic
from kfp_components.clock import Clock, SystemClock
from kfp_components.cluster import Cluster, Manifest, Ref
from kfp_components.release import Release
from kfp_components.request import parse_target
from kfp_components.serving import rayservice
from kfp_components.traffic import Split, TrafficStrategy

if TYPE_CHECKING:
    import httpx


@dataclass
class Status:
    """One model. Shares are in percent; an unknown value is None.

    ``written``: what the router is told, ``traffic``: what it does, ``shown``: what the stub says. ``ready``: whether users are answered by a version
    that runs. ``notes`` say what is not as the release left it.
    """

    model: str
    namespace: str
    rayservice: str
    stable_version: str | None
    written: dict[str, float] | None = None
    traffic: dict[str, float] | None = None
    shown: dict[str, float] | None = None
    ready: bool | None = None
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def read_status(cluster: Cluster, record: Release, *, clock: Clock | None = None, transport: httpx.BaseTransport | None = None) -> Status:
    """Look at the stub, the RayService and the router of a model; reads only. Raises `Unreachable` or `PermissionDenied` of the API."""
    target = parse_target({"model": record.model, "namespace": record.namespace, "rayservice": record.rayservice})
    found = Status(record.model, record.namespace, record.rayservice, record.stable_now, shown=_shown(cluster, record))
    served = cluster.get(Ref("RayService", record.rayservice, record.namespace))
    if served is None:
        found.ready = False
        found.notes.append(f"RayService {record.namespace}/{record.rayservice} does not exist any more")
        return found
    router = traffic.connect("ray_router", cluster, target, clock or SystemClock(), transport)
    try:
        written = router.current()
    except errors.InputError as error:
        found.ready = False
        found.notes.append(str(error))
        return found
    if written is None:
        found.ready = False if record.stable_now is not None else None
        found.notes.append(without_router(served, record.model))
        return found
    found.written = written.shares
    _ask_router(found, router, record, written)
    _look_at_applications(found, served, record, written)
    return found


def without_router(served: Manifest, model: str) -> str:
    """What a person is told when the router of a model is not there: since when, and who has its route now."""
    route = names.public_route(model)
    owner = next(
        (name for name, entry in rayservice.applications(rayservice.serve_config(served)).items() if entry.get("route_prefix") == route), None
    )
    users = f"users get application {owner} at {route}, uncounted" if owner else f"nothing answers at {route}"
    return f"the router of {model} is not in serveConfigV2: {users}. {rayservice.last_writer(served, names.MANAGER)}"


def _shown(cluster: Cluster, record: Release) -> dict[str, float] | None:
    stub = cluster.get(Ref("InferenceService", record.model, record.namespace))
    if stub is None:
        return None
    predictor = ((stub.get("status") or {}).get("components") or {}).get("predictor") or {}
    return {entry["tag"]: entry["percent"] for entry in predictor.get("traffic") or []}


def _ask_router(found: Status, router: TrafficStrategy, record: Release, written: Split) -> None:
    """Its effective split, and why that is another one than was written."""
    try:
        observed, refused = router.observed_weight(), router.refused_config()
    except errors.TemporaryError as error:
        found.notes.append(f"the router does not answer from here ({error}): what users get is not known")
        return
    found.traffic = observed.shares
    if refused:
        found.notes.append(f"the router refused its configuration and goes on with the one before: {refused}")
    elif written.weight_percent and not observed.weight_percent:
        found.notes.append(f"the weight of {written.candidate} has lapsed: nobody runs the release, and {observed.stable} serves all requests")
    elif observed.shares != written.shares:
        found.notes.append("the router does not route by what is written yet")
    if record.done and observed.stable != record.stable_now:
        found.notes.append(f"users get {observed.stable}; the last release left them on {record.stable_now}")


def _look_at_applications(found: Status, served: Manifest, record: Release, written: Split) -> None:
    """Whether what should answer is there and runs. ``ready`` is about the versions that users get."""
    there = rayservice.applications(rayservice.serve_config(served))
    used = found.traffic if found.traffic is not None else written.shares
    versions = [version for version, share in used.items() if share > 0]
    if not rayservice.observed(served):
        found.notes.append("the operator has not taken up the last write yet")
    states = []
    for application in (names.router_application(record.model), *(names.application(record.model, version) for version in versions)):
        state = rayservice.application_status(served, application)
        states.append(application in there and state.get("status") == "RUNNING")
        if application not in there:
            found.notes.append(f"application {application} is not in serveConfigV2. {rayservice.last_writer(served, names.MANAGER)}")
        elif not states[-1]:
            message = str(state.get("message") or "").strip()
            found.notes.append(f"application {application} is {state.get('status', 'not reported')}{': ' + message[:300] if message else ''}")
    found.ready = False if not all(states) else True if found.traffic is not None else None
