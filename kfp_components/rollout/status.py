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
    router.address = record.address
    try:
        holder = rayservice.owner(rayservice.serve_config(served), record.address.route)
        written = router.written_in(served)
    except errors.InputError as error:
        found.ready = False
        found.notes.append(str(error))
        return found
    if written is not None and holder == router_of(record):
        found.written = written.shares
        _ask_router(found, router, record, written)
        _look_at_applications(found, served, record, (router_of(record), *_used(found, written, record)))
    elif holder is not None and record.stable_now is not None and holder == record.application(record.stable_now):
        found.written = {record.stable_now: 100.0}
        _ask_serve(found, router, record.stable_now, holder)
        _look_at_applications(found, served, record, (holder,))
    else:
        found.ready = False if record.stable_now is not None else None
        found.notes.append(not_served(served, record))
    return found


def router_of(record: Release) -> str:
    """Name of the router's application."""
    return names.router_application(record.model)


def not_served(served: Manifest, record: Release) -> str:
    """What a person is told when the version that users should get has not their route: who has it, and since when."""
    route = record.address.route
    holder = rayservice.owner(rayservice.serve_config(served), route)
    users = f"users get application {holder} at {route}" if holder else f"nothing answers at {route}"
    wanted = f", not {record.stable_now} ({record.application(record.stable_now)})" if record.stable_now else ""
    return f"{users}{wanted}. {rayservice.last_writer(served, names.MANAGER)}"


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


def _ask_serve(found: Status, router: TrafficStrategy, version: str, application: str) -> None:
    """Whether Serve sends users to the application that has the route."""
    try:
        holder = router.observed_owner()
    except errors.TemporaryError as error:
        found.notes.append(f"Serve does not answer from here ({error}): what users get is not known")
        return
    if holder == application:
        found.traffic = {version: 100.0}
    else:
        found.notes.append(f"Serve does not route by what is written yet: {holder or 'no application'} has {router.address.route}")


def _used(found: Status, written: Split, record: Release) -> list[str]:
    """Applications of the versions that users get."""
    shares = found.traffic if found.traffic is not None else written.shares
    return [written.application(record.model, version) for version, share in shares.items() if share > 0]


def _look_at_applications(found: Status, served: Manifest, record: Release, used: tuple[str, ...]) -> None:
    """Whether what should answer is there and runs. ``ready`` is about the versions that users get."""
    there = rayservice.applications(rayservice.serve_config(served))
    if not rayservice.observed(served):
        found.notes.append("the operator has not taken up the last write yet")
    states = []
    for application in used:
        state = rayservice.application_status(served, application)
        states.append(application in there and state.get("status") == "RUNNING")
        if application not in there:
            found.notes.append(f"application {application} is not in serveConfigV2. {rayservice.last_writer(served, names.MANAGER)}")
        elif not states[-1]:
            message = str(state.get("message") or "").strip()
            told = rayservice.root_cause(message) or message[:300]
            found.notes.append(f"application {application} is {state.get('status', 'not reported')}{': ' + told if told else ''}")
    found.ready = False if not all(states) else True if found.traffic is not None else None
