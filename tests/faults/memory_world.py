"""A whole world in memory: cluster, Serve, registry, users and time. A release of some minutes takes some hundredths of a second in it.

Time passes only while somebody sleeps on its clock; users send their requests meanwhile. What makes the calls of a run is a `Process`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import httpx
import remembered
import yaml
from stand_in import Serve

from kfp_components import errors, names, rollout
from kfp_components.clock import Clock, ManualClock
from kfp_components.cluster import Cluster, Manifest, Ref
from kfp_components.cluster.faults import Killed, Record, Script, wrap
from kfp_components.cluster.memory import MemoryCluster
from kfp_components.registry import ModelRegistry
from kfp_components.registry.memory import MemoryRegistry
from kfp_components.release import Release, ReleaseStore
from kfp_components.request import ModelTarget, PromoteRequest, parse
from kfp_components.serving import alias, inference_service, rayservice

T = TypeVar("T")
NAMESPACE, RAYSERVICE, MODEL = "ai-ml", "ai-inference", "bge"
REGISTERED = f"{NAMESPACE}.{MODEL}"
OWNER = "owner"
OTHERS = """\
  - name: whisper
    route_prefix: /whisper
    import_path: acme.whisper:app
"""
CLUSTER = {"headGroupSpec": {"rayStartParams": {}, "template": {"spec": {"containers": [{"name": "ray", "image": "ray"}]}}}}
SMOKE = {"name": "ok", "path": "/", "body": {"text": "x"}, "expect": {"/ok": True}}


def application(version: str, route: str | None = None) -> str:
    """The text of a version's application, at its internal route where no other one is given."""
    return f"  - {{name: {MODEL}-{version}, route_prefix: {route or names.version_route(MODEL, version)}, import_path: 'acme.bge:build'}}\n"


def live(version: str = "v1") -> str:
    """``serveConfigV2`` with a version that has the public route, beside another model."""
    return "applications:\n" + OTHERS + application(version, names.public_route(MODEL))


def routed(**user_config: Any) -> str:
    """``serveConfigV2`` as an older version of this library left it: v1 served by a router that stays on the public route."""
    config = {"stable": {"version": "v1", "route": names.version_route(MODEL, "v1")}, "request_timeout_s": 60.0, **user_config}
    router = {
        "name": f"{MODEL}-router",
        "route_prefix": f"/{MODEL}",
        "import_path": names.ROUTER_IMPORT_PATH,
        "args": {"model": MODEL},
        "deployments": [{"name": "Router", "user_config": config}],
    }
    return "applications:\n" + OTHERS + application("v1") + "  - " + yaml.safe_dump(router, default_flow_style=True, width=10_000)


def asked(version: str = "v2", **options: Any) -> PromoteRequest:
    judge = {"judge_latency": False, "error_margin_percent": 5.0, "tick_s": 1.0, "max_minutes": 60.0}
    return parse(
        {
            "model": MODEL,
            "version": version,
            "uri": f"s3://models/{MODEL}/{version}",
            "namespace": NAMESPACE,
            "rayservice": RAYSERVICE,
            "import_path": "acme.bge:build",
            "steps": [20, 50],
            "options": {
                "judge": judge,
                "watch_s": 2.0,
                "keep_previous_s": 2.0,
                "ready_timeout_s": 120.0,
                "lease_s": 20.0,
                "protocol": "json",
                "smoke": [SMOKE],
                **options,
            },
        }
    )


class WorldClock(ManualClock):
    """While somebody sleeps, ``second`` is called for every second that passes, or the part that is left of one."""

    second: Callable[[float], None] = staticmethod(lambda _s: None)

    def sleep(self, s: float) -> None:
        """Move the time on, and let the world live through it."""
        if s < 0:
            super().sleep(s)
        while s > 0:
            part = min(1.0, s)
            super().sleep(part)
            self.second(part)
            s -= part


class WorldCluster(MemoryCluster):
    """Serve takes up what is written into the RayService, and the operator has reported on it by the time that anybody looks."""

    serve: Serve | None = None

    def get(self, ref: Ref) -> Manifest | None:
        """The object, or None when there is none."""
        found = super().get(ref)
        return self.serve.shown(found) if self.serve is not None and ref == self.serve.ref else found

    def _do(self, verb: str, target: Any, act: Callable[[], T]) -> T:
        done = super()._do(verb, target, act)
        if self.serve is not None and target.kind.kind == "RayService" and not target.sub and verb in ("create", "patch", "update", "delete"):
            self.serve.written()
        return done


class Chosen(Script):
    """Calls fail for which ``choose`` gives an error, without effect."""

    def __init__(self, clock: Clock, choose: Callable[[Record], BaseException | None]) -> None:
        super().__init__(clock=clock)
        self.choose = choose

    def play(self, owner: str, method: str, what: str, act: Callable[[], T], *, write: bool) -> T:
        def chosen() -> T:
            if error := self.choose(self.calls[-1]):
                raise error
            return act()

        return super().play(owner, method, what, chosen, write=write)


class Body(httpx.SyncByteStream):
    """Of an answer, still to be read, as it comes from a socket: httpx measures the time until it is."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __iter__(self) -> Iterator[bytes]:
        yield self.content


class Transport(httpx.BaseTransport):
    """HTTP of one process to Serve; the calls are counted and failed by its script."""

    def __init__(self, serve: Serve, script: Script | None = None) -> None:
        self.serve, self.script = serve, script

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        headers = {key.lower(): value for key, value in request.headers.items()}

        def answered() -> httpx.Response:
            status, told, body = self.serve.answer(request.method, request.url.path, headers)
            return httpx.Response(status, headers=told, stream=Body(body))

        if self.script is None:
            return answered()
        try:
            return self.script.play("http", request.method, request.url.path + _pinned(headers), answered, write=False)
        except errors.PermissionDenied as error:
            return httpx.Response(403, stream=Body(str(error).encode()))
        except errors.TemporaryError as error:
            raise httpx.ConnectError(str(error), request=request) from error


def _pinned(headers: dict[str, str]) -> str:
    return f" for {headers[names.VERSION_HEADER]}" if names.VERSION_HEADER in headers else ""


@dataclass
class Outcome:
    """How a command of a process ended."""

    release: Release | None = None
    error: BaseException | None = None

    @property
    def killed(self) -> bool:
        return isinstance(self.error, Killed)

    @property
    def exit_code(self) -> int:
        """As the command line's; 70 for an error that is none of the library's."""
        if self.error is None:
            return 0
        return self.error.exit_code if isinstance(self.error, errors.KfpServingError) else 70

    @property
    def words(self) -> str:
        """What the caller is told."""
        return "\n".join([str(self.error), *getattr(self.error, "__notes__", [])]) if self.error else ""

    def __str__(self) -> str:
        return "ended well" if self.error is None else f"exit {self.exit_code}, {type(self.error).__name__}: {self.words[:300]}"


@dataclass
class Process:
    """One process that runs commands in the world; ``script`` counts and fails its calls."""

    world: World
    holder: str
    script: Script | None = None
    watch: Callable[[Release], None] = lambda _release: None

    def __post_init__(self) -> None:
        cluster, registry, script = self.world.cluster, self.world.registry, self.script
        self.cluster: Cluster = cluster if script is None else wrap(cluster, script, name="cluster")
        self.registry: ModelRegistry = registry if script is None else wrap(registry, script, name="registry")
        self.transport = Transport(self.world.serve, script)

    @property
    def _options(self) -> dict[str, Any]:
        surroundings = {"clock": self.world.clock, "registry": self.registry, "transport": self.transport}
        return {"holder": self.holder, "watch": self.watch, **surroundings}

    def open(self, request: PromoteRequest) -> rollout.Run:
        return rollout.open_run(request, self.cluster, **self._options)

    def open_rollback(self, target: ModelTarget) -> rollout.Run:
        return rollout.open_rollback(target, self.cluster, **self._options)

    def promote(self, request: PromoteRequest) -> Release:
        return rollout.promote_with_canary(self.open(request))

    def deploy(self, request: PromoteRequest) -> Release:
        return rollout.deploy_model(self.open(request))

    def adopt(self, target: ModelTarget, asked: rollout.Asked) -> Release:
        return rollout.adopt_model(self.open(rollout.adoption_of(self.cluster, target, asked, clock=self.world.clock)))

    def roll_back(self, target: ModelTarget) -> Release:
        return rollout.roll_back(self.open_rollback(target))

    def tidy(self, target: ModelTarget) -> Release:
        return rollout.tidy_release(self.open_rollback(target))

    def outcome(self, command: Callable[[], Release]) -> Outcome:
        """Of a command: its end, whatever that is."""
        try:
            return Outcome(release=command())
        except (Exception, Killed, KeyboardInterrupt, SystemExit) as error:
            return Outcome(error=error)


@dataclass
class World:
    """Where a release happens."""

    rate_per_s: float = 100.0
    """Users' requests; nobody sends before somebody is served."""
    route: str = names.public_route(MODEL)
    """What they call."""
    clock: WorldClock = field(default_factory=WorldClock)
    registry: ModelRegistry = field(default_factory=lambda: World.new_registry())
    new_registry: ClassVar[Callable[[], ModelRegistry]] = MemoryRegistry

    def __post_init__(self) -> None:
        remembered.count_tokens_anew()
        self.cluster = WorldCluster(clock=self.clock, tick=lambda _cluster: None)
        self.serve = Serve(self.cluster, Ref("RayService", RAYSERVICE, NAMESPACE), self.clock)
        self._holders = itertools.count(1)
        self._fraction, self._starting = 0.0, False
        self.soon: Callable[[], None] | None = None
        """What happens when the next second is over, once: in the middle of whatever sleeps then."""
        self.cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        service = names.serve_service(RAYSERVICE)
        metadata = {"name": service, "namespace": NAMESPACE}
        port = {"name": "serve", "protocol": "TCP", "port": names.SERVE_PORT}
        self.cluster.create({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [port]}})
        self.cluster.create(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {**metadata, "labels": {"kubernetes.io/service-name": service}},
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.0.0.7"], "conditions": {"ready": True}}],
                "ports": [port],
            }
        )
        self.cluster.serve = self.serve
        self.clock.second = self._second

    def _second(self, part_s: float) -> None:
        if self._starting or self.serve.starting:
            self._starting = self.serve.starting
            self.serve.report()
        self._fraction += self.rate_per_s * part_s
        number = int(self._fraction)
        self._fraction -= number
        if number and (self.serve.served or self.serve.owner(self.route) is not None):
            self.serve.send_users(self.route, number)
        if (action := self.soon) is not None:
            self.soon = None
            action()

    # --- what the owner has and does ---

    def rayservice(self, text: str, manager: str = OWNER, *, adopted: bool = True) -> None:
        """What the owner applies; a version that stands on the public route is known from an earlier release, where it is ``adopted``."""
        metadata = {"name": RAYSERVICE, "namespace": NAMESPACE, "annotations": {names.ALLOWED_IMPORTS: "acme.*"}}
        body = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata, "spec": {"serveConfigV2": text, "rayClusterConfig": CLUSTER}}
        self.cluster.apply(body, manager=manager, force=True)
        if not adopted:
            return
        holder = rayservice.owner(text, names.public_route(MODEL))
        if holder is not None and not holder.endswith("-router") and self.stored() is None:
            self.known(holder.removeprefix(f"{MODEL}-"))

    def known(self, version: str) -> None:
        """The version that serves was promoted by an earlier release."""
        request = asked(version)
        earlier = {"phase": "promoted", "finished_unix_s": self.clock.now_unix_s(), "epoch": 0}
        base = {"model": MODEL, "namespace": NAMESPACE, "rayservice": RAYSERVICE, "candidate_version": version}
        record = Release(**base, **earlier, request=request.model_dump(mode="json"), request_digest=request.digest)
        ReleaseStore(self.cluster, MODEL, NAMESPACE, self.clock).start(record)
        self.registry.register(REGISTERED, version, request.uri, digest=None, properties={})
        self.registry.move(REGISTERED, "champion", version)

    def alias(self) -> None:
        """What the owner applied for his clients, without a label."""
        spec = {"type": "ExternalName", "externalName": names.service_host(names.serve_service(RAYSERVICE), NAMESPACE)}
        body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": names.alias(MODEL), "namespace": NAMESPACE}, "spec": spec}
        self.cluster.apply(body, manager="kubectl-client-side-apply")

    def front(self, version: str = "v1", uri: str = "s3://models/bge/v1", model_format: str = "custom") -> None:
        """Alias and stub are there already, from an earlier release."""
        target = names.service_host(names.serve_service(RAYSERVICE), NAMESPACE)
        self.cluster.apply(alias.manifest(MODEL, NAMESPACE, target), manager=names.MANAGER)
        stub = inference_service.manifest(MODEL, NAMESPACE, version=version, uri=uri, model_format=model_format, rayservice=RAYSERVICE)
        self.cluster.apply(stub, manager=names.MANAGER)

    # --- processes ---

    def process(self, script: Script | None = None, watch: Callable[[Release], None] = lambda _release: None) -> Process:
        """A new one, with a name of its own."""
        return Process(self, f"process-{next(self._holders)}", script, watch)

    def promote(self, request: PromoteRequest, watch: Callable[[Release], None] = lambda _release: None) -> Release:
        return self.process(watch=watch).promote(request)

    def deploy(self, request: PromoteRequest, watch: Callable[[Release], None] = lambda _release: None) -> Release:
        return self.process(watch=watch).deploy(request)

    def killed_when(self, there: Callable[[Release], bool], request: PromoteRequest) -> None:
        """A process promotes ``request`` and is killed when its record is so."""
        script = Script(clock=self.clock)

        def watch(record: Release) -> None:
            if there(record):
                script.dead = True
                raise Killed("as the test wants it")

        process = self.process(script, watch)
        end = process.outcome(lambda: process.promote(request))
        assert end.killed, str(end)

    # --- what is so ---

    def found(self) -> Manifest | None:
        return self.cluster.get(self.serve.ref)

    def text(self) -> str:
        found = self.found()
        return "" if found is None else str(found["spec"].get("serveConfigV2") or "")

    def split(self) -> tuple[str, str | None, float]:
        """Stable, candidate and weight of what users get: as the router is told, or the version that has the route."""
        holder = self.serve.owner(self.route)
        assert holder is not None
        if holder["name"] != f"{MODEL}-router":
            return holder["name"].removeprefix(f"{MODEL}-"), None, 0.0
        entry = self.serve.applications()[f"{MODEL}-router"]["deployments"][0]["user_config"]
        return entry["stable"]["version"], (entry.get("candidate") or {}).get("version"), float(entry.get("weight_percent", 0.0))

    def users_get(self) -> tuple[str, ...]:
        """Versions that answer users now; what is wrong in the place of one that does not."""
        return tuple(name.removeprefix(f"{MODEL}-") for name in self.serve.users_get(self.route))

    def neighbours(self) -> dict[str, str]:
        """Applications of others -> digest."""
        return {name: repr(sorted(entry.items())) for name, entry in self.serve.applications().items() if not name.startswith(f"{MODEL}-")}

    def said(self) -> dict[str, Any]:
        """Which version is it, by each that names one: what users get, the registry's champion, the stub's annotation and its live split."""
        stub = self.cluster.get(Ref("InferenceService", MODEL, NAMESPACE)) or {"metadata": {}}
        traffic = (((stub.get("status") or {}).get("components") or {}).get("predictor") or {}).get("traffic") or []
        return {
            "users": self.users_get(),
            "champion": (self.registry.aliases(REGISTERED).get("champion"),),
            "stub": ((stub["metadata"].get("annotations") or {}).get("kfp-serving/version"),),
            "split": tuple(entry["tag"] for entry in traffic if entry["percent"]),
        }

    def stored(self) -> Release | None:
        return ReleaseStore(self.cluster, MODEL, NAMESPACE).load()

    def record(self) -> Release:
        record = self.stored()
        assert record is not None
        return record

    def lease(self) -> Manifest | None:
        return self.cluster.get(Ref("Lease", names.release(MODEL), NAMESPACE))

    def kubectl(self, word: str) -> None:
        """As ``kubectl annotate lease bge-release kfp-serving/command=word --overwrite`` does it."""
        ref = Ref("Lease", names.release(MODEL), NAMESPACE)
        self.cluster.patch(ref, {"metadata": {"annotations": {names.COMMAND: word}}}, manager="kubectl-annotate")
