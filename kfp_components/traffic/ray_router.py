"""The default data plane: a Serve application that has the public route while a release runs, and splits it by its ``user_config``.

The split is set through the RayService's ``serveConfigV2`` alone, so Kubernetes RBAC is its only key. Over HTTP the router takes one call, the
heartbeat that makes a weight hold on; its token is made here and stays in memory, only its hash is written.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kfp_components import errors, names
from kfp_components.clock import Clock, SystemClock
from kfp_components.cluster import Cluster, Endpoint, Manifest, Ref
from kfp_components.cluster.changes import Edit, removed, write
from kfp_components.request import ModelTarget
from kfp_components.serving import rayservice
from kfp_components.traffic import Renewal, Split, router_source
from kfp_components.traffic.router_source import Source

if TYPE_CHECKING:
    import httpx

READ_TIMEOUT_S = 5.0
PROTOCOL = 2
"""What this library writes into the router's ``user_config``; `kfp_components.router.policy` says what that understands."""


class RayRouter:
    """Implements `TrafficStrategy` for one model."""

    def __init__(self, cluster: Cluster, target: ModelTarget, clock: Clock | None = None, transport: httpx.BaseTransport | None = None) -> None:
        self.cluster = cluster
        self.target = target
        self._epoch, self._token = 0, new_token()
        self.address = names.address(target.model)
        self.runtime_env: Mapping[str, Any] = {}
        self._page_route: str | None = None
        """Where its own pages answered last; None: at its internal route."""
        self._clock: Clock = clock or SystemClock()
        self._transport = transport
        self.application = names.router_application(target.model)
        self._endpoint: Endpoint | None = None
        self._rayservice = Ref("RayService", target.rayservice, target.namespace)

    @property
    def epoch(self) -> int:
        """The release's; with every new one comes a new token."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch, self._token = epoch, new_token()

    def source(self, found: Manifest) -> Source:
        """Of what the RayService allows, the first that can be had; a router that is there already is asked which protocol it speaks.

        Raises `RequestInvalid` when there is none, and when that router is broken or speaks another protocol; `Unreachable` when one cannot tell.
        """
        entry = rayservice.applications(rayservice.serve_config(found)).get(self.application)
        if entry is None:
            return router_source.find(found, PROTOCOL, self._clock)
        there = f"the router is there already, application {self.application}"
        advice = (
            f"It is application {self.application} of {self._rayservice}: end what it stands there for with the version that put it "
            f"there; where no release runs, `kfp-serving tidy {self.target.model} -n {self.target.namespace}` takes away one without the route"
        )
        try:
            state = self._state()
        except errors.ProtocolDiffers as error:
            raise errors.RequestInvalid(f"{error}. {advice}") from error
        except errors.Unreachable as error:
            status = rayservice.application_status(found, self.application).get("status")
            if status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise errors.RequestInvalid(f"{error}; by the RayService's status it is {status}. {advice}") from error
            return Source(entry.get("runtime_env") or {}, f"{there}; which protocol it speaks could not be asked ({error})")
        return Source(entry.get("runtime_env") or {}, f"{there}: version {state.get('router_version') or 'unknown'}, protocol {state['protocol']}")

    def prepare(self, serve_config: str, split: Split) -> str:
        """Add the router application at its internal route; one that is there already only gets the split.

        Raises `NameTaken` when that has more than one replica.
        """
        rayservice.refuse_replicas(str(self._rayservice), serve_config, self.application, names.ROUTER_DEPLOYMENT)
        if rayservice.user_config(serve_config, self.application, names.ROUTER_DEPLOYMENT) is not None:
            return self._with_split(serve_config, split)
        application = {
            "name": self.application,
            "route_prefix": names.router_route(self.target.model),
            "import_path": names.ROUTER_IMPORT_PATH,
            "args": {"model": self.target.model},
            "deployments": [{"name": names.ROUTER_DEPLOYMENT, "user_config": self._user_config(split)}],
            **({"runtime_env": dict(self.runtime_env)} if self.runtime_env else {}),
        }
        return rayservice.with_application(serve_config, application)

    def change(self, split: Split) -> Edit:
        """The router's ``user_config``, nothing else."""
        shares = ", ".join(f"{share:g} % to {version}" for version, share in split.shares.items())
        return Edit(self._rayservice, lambda text: self._with_split(text, split), frozenset({self.application}), f"the router sends {shares}")

    def set_weight(self, split: Split) -> None:
        """One compare-and-swap write of the router's ``user_config``.

        Raises `ApplicationRemoved`, and writes nothing, when the router or a version that the split names has no application any more; `ReleaseHeld`
        when another run has taken the release over.
        """
        write(self.cluster, self.change(split), clock=self._clock)

    def renew(self, split: Split) -> Renewal:
        """``POST /{model}/-/heartbeat``. Raises `Unreachable` when it is not answered, or by somebody who is overloaded or forbids it."""
        answer = self._ask("POST", "heartbeat", {"authorization": f"Bearer {self._token}"})
        if answer.status_code >= 500 or answer.status_code == 403:
            self._endpoint = None
            raise errors.Unreachable(f"router of {self.target.model}: /-/heartbeat answered {answer.status_code}: {answer.text[:200]}")
        found = _json(answer) if answer.status_code == 200 else None
        if found is None or found.get("weight_percent_effective") != split.weight_percent:
            return "refused"
        return "lapsed" if found.get("lapsed") else "renewed"

    def assert_there(self, split: Split) -> None:
        """One read of the RayService. Raises `ApplicationRemoved` as `set_weight`."""
        found = self.cluster.get(self._rayservice)
        text = rayservice.serve_config(found)
        try:
            self._refuse_missing(text, split)
            if (has_it := rayservice.owner(text, self.address.route)) != self.application:
                raise errors.ApplicationRemoved(
                    f"route {self.address.route} was taken from the router, {has_it or 'no application'} has it; users get that"
                )
        except errors.ApplicationRemoved as error:
            raise removed(self._rayservice, found, error) from error

    def written_in(self, found: Manifest | None) -> Split | None:
        """The split in ``serveConfigV2``. Raises `RequestInvalid` when that cannot be read, `NameTaken` when the application is not our router."""
        try:
            config = rayservice.user_config(rayservice.serve_config(found), self.application, names.ROUTER_DEPLOYMENT)
            return from_user_config(config) if config else None
        except errors.RequestInvalid as error:
            raise errors.RequestInvalid(f"{self._rayservice}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise errors.NameTaken(
                f"{self._rayservice}: application {self.application} has a user_config that is not of this library's router; rename that application"
            ) from error

    def observed_owner(self) -> str | None:
        """By the route table of the proxy that answers, ``/-/routes``."""
        answer = self._send("GET", "/-/routes")
        routes = _json(answer) if answer.status_code == 200 else None
        if routes is None:
            raise errors.Unreachable(f"Serve: /-/routes answered {answer.status_code}: {answer.text[:200]}")
        found = routes.get(self.address.route)
        self._page_route = self.address.prefix if found == self.application else None
        return None if found is None else str(found)

    def observed_weight(self) -> Split:
        """What the router says of itself at ``/{model}/-/router``, with the weight that it applies now (0 after the lease lapsed)."""
        state = self._state()
        try:
            return Split(
                stable=state["stable"]["version"],
                candidate=(state.get("candidate") or {}).get("version"),
                weight_percent=float(state["weight_percent_effective"]),
                lease_expires_unix_s=state.get("lease_expires_unix_s"),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise errors.Unreachable(f"router of {self.target.model}: /-/router is not a router's state: {str(state)[:200]}") from error

    def _state(self) -> dict[str, Any]:
        """The page ``/-/router`` of a router that speaks this library's protocol. Raises `Unreachable`, `ProtocolDiffers` for another one."""
        state = self.read("router")
        if state.get("protocol") != PROTOCOL:
            raise errors.ProtocolDiffers(
                f"router of {self.target.model}: it is of version {state.get('router_version') or 'unknown'} and understands protocol "
                f"{state.get('protocol') or 1}, this library speaks {PROTOCOL}: it has to be of the version of {names.DISTRIBUTION} that runs the "
                f"release, {names.requirement()}"
            )
        return state

    def refused_config(self) -> str | None:
        """Why it goes on with an older configuration."""
        refused = self.read("router").get("refused_config")
        return str(refused) if refused else None

    def wait_until_applied(self, split: Split, timeout_s: float) -> float:
        """Wait until the router routes by ``split``; seconds that it took. Raises `WaitTimeout` saying what it does instead."""
        started = self._clock.monotonic()
        seen: Split | str = "nothing"
        while self._clock.monotonic() - started < timeout_s:
            try:
                seen = self.observed_weight()
                if (seen.stable, seen.candidate, seen.weight_percent) == (split.stable, split.candidate, split.weight_percent):
                    return self._clock.monotonic() - started
            except errors.TemporaryError as error:
                seen = str(error)
            self._clock.sleep(0.1)
        raise errors.WaitTimeout(
            f"router of {self.target.model}: after {timeout_s:g} s it still does not route by {split.shares}; it says {seen}; {self._why_not()}"
        )

    def _why_not(self) -> str:
        """What to look at when the router does not do what is written."""
        try:
            refused = self.refused_config()
        except errors.TemporaryError:
            refused = None
        if refused:
            return f"it refused its configuration: {refused}; is its version older than the one here?"
        return f"look at application {self.application} in the Ray dashboard"

    def in_flight(self) -> int:
        """What ``/-/router`` says; 0 of a router that does not say it."""
        return int(self.read("router").get("in_flight") or 0)

    def ledger(self) -> dict[str, Any]:
        """The router's counts, cumulative per version and router replica (see `kfp_components.router`)."""
        page = self.read("ledger")
        if not isinstance(page.get("replicas"), dict):
            raise errors.Unreachable(f"router of {self.target.model}: /-/ledger is not a ledger: {str(page)[:200]}")
        return page

    def read(self, page: str) -> dict[str, Any]:
        """A page of the router's own, through the alias. Raises `Unreachable`."""
        answer = self._ask("GET", page)
        if answer.status_code != 200:
            self._endpoint = None
            raise errors.Unreachable(f"router of {self.target.model}: /-/{page} answered {answer.status_code}: {answer.text[:200]}")
        found = _json(answer)
        if found is None:
            raise errors.Unreachable(f"router of {self.target.model}: /-/{page} answered something else than JSON: {answer.text[:200]}")
        return found

    def _ask(self, method: str, page: str, headers: dict[str, str] | None = None) -> httpx.Response:
        """The answer, whatever it is, from where the router stands: at its internal route, or at the public one.

        Raises `Unreachable` when there is none, and when somebody else answers at both.
        """
        places = [names.router_route(self.target.model), self.address.prefix]
        if self._page_route is not None:
            places.reverse()
        told = []
        for place in places:
            answer = self._send(method, f"{place}/-/{page}", headers)
            if answer.headers.get(names.ROUTER_HEADER) == self.application:
                self._page_route = None if place == names.router_route(self.target.model) else place
                return answer
            told.append(f"{place}/-/{page} answered {answer.status_code}, and not the router: {answer.text[:100]}")
        self._endpoint = None
        raise errors.Unreachable(f"router of {self.target.model}: {'; '.join(told)}")

    def _send(self, method: str, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        """The answer to one request through the alias. Raises `Unreachable` when there is none."""
        import httpx  # as in kfp_components.probes

        try:
            if self._endpoint is None:
                self._endpoint = self.cluster.endpoint(self.address.alias, self.target.namespace, names.SERVE_PORT)
            endpoint = self._endpoint
            with httpx.Client(transport=self._transport, timeout=READ_TIMEOUT_S, trust_env=False) as client:
                return client.request(method, f"{endpoint.base_url}{path}", headers={"host": endpoint.host, **(headers or {})})
        except (httpx.HTTPError, errors.NotFound) as error:
            self._endpoint = None
            told = f"{type(error).__name__} while asking for {path}: {error}"
            raise errors.Unreachable(f"router of {self.target.model}: {told}") from error

    def _refuse_missing(self, text: str, split: Split) -> None:
        there = rayservice.applications(text)
        versions = [version for version in (split.stable, split.candidate) if version is not None]
        for application in (self.application, *(split.application(self.target.model, version) for version in versions)):
            if application not in there:
                raise errors.ApplicationRemoved(
                    f"application {application} is not in serveConfigV2 any more, somebody else took it out; no traffic is given to what is not there"
                )

    def _with_split(self, text: str, split: Split) -> str:
        self._refuse_missing(text, split)
        config = rayservice.user_config(text, self.application, names.ROUTER_DEPLOYMENT) or {}
        self._refuse_older(config)
        wanted = self._user_config(split)
        if config == wanted:
            return text  # nothing to give back, so no epoch to leave there
        return rayservice.with_user_config(text, self.application, names.ROUTER_DEPLOYMENT, wanted | ({"epoch": self.epoch} if self.epoch else {}))

    def _user_config(self, split: Split) -> dict[str, Any]:
        """A weight that waits for heartbeats says by whose: the hash goes with it, the token stays here."""
        config = to_user_config(self.target.model, split)
        if "lease_s" in config:
            config["heartbeat_sha256"] = hashlib.sha256(self._token.encode()).hexdigest()
        return config

    def _refuse_older(self, config: dict[str, Any]) -> None:
        found = int(config.get("epoch", 0))
        if found > self.epoch:
            raise errors.ReleaseHeld(
                f"router of {self.target.model}: another run has taken the release over (epoch {found}, this run's is {self.epoch}); it stops here"
            )


def new_token() -> str:
    """What a heartbeat must know: of this process, for one takeover of the release, and only in memory."""
    return secrets.token_urlsafe(32)


def _json(answer: httpx.Response) -> dict[str, Any] | None:
    try:
        found = answer.json()
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def to_user_config(model: str, split: Split) -> dict[str, Any]:
    """The router's ``user_config``."""

    def backend(version: str) -> dict[str, str]:
        return {"version": version, "route": names.version_route(model, version), "application": split.application(model, version)}

    config: dict[str, Any] = {"stable": backend(split.stable)}
    if split.candidate is not None:
        config["candidate"] = backend(split.candidate)
        config["weight_percent"] = split.weight_percent
        if split.lease_expires_unix_s is not None:
            config["lease_expires_unix_s"] = round(split.lease_expires_unix_s, 3)
        if split.lease_s is not None and split.weight_percent:
            config["lease_s"] = split.lease_s
    if split.sticky_header:
        config["sticky_header"] = split.sticky_header
    if split.request_timeout_s is not None:
        config["request_timeout_s"] = split.request_timeout_s
    return config


def from_user_config(config: dict[str, Any]) -> Split:
    """The inverse of `to_user_config`."""
    return Split(
        stable=config["stable"]["version"],
        candidate=(config.get("candidate") or {}).get("version"),
        weight_percent=float(config.get("weight_percent", 0.0)),
        lease_expires_unix_s=config.get("lease_expires_unix_s"),
        sticky_header=config.get("sticky_header"),
        request_timeout_s=None if config.get("request_timeout_s") is None else float(config["request_timeout_s"]),
        lease_s=config.get("lease_s"),
        applications={
            backend["version"]: backend["application"]
            for backend in (config["stable"], config.get("candidate"))
            if backend and "application" in backend
        },
    )
