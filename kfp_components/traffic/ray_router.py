"""The default data plane: a Serve application that owns the public route and splits it by its ``user_config``.

All control goes through the RayService's ``serveConfigV2``; the router takes no control calls over HTTP, so Kubernetes RBAC is its only key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kfp_components import errors, names
from kfp_components.apply import change_serve_config
from kfp_components.clock import Clock, SystemClock
from kfp_components.cluster import Cluster, Endpoint, Ref
from kfp_components.request import ModelTarget
from kfp_components.serving import rayservice
from kfp_components.traffic import Split

if TYPE_CHECKING:
    import httpx

READ_TIMEOUT_S = 5.0


class RayRouter:
    """Implements `TrafficStrategy` for one model."""

    def __init__(self, cluster: Cluster, target: ModelTarget, clock: Clock | None = None, transport: httpx.BaseTransport | None = None) -> None:
        self.cluster = cluster
        self.target = target
        self.epoch = 0
        self._clock: Clock = clock or SystemClock()
        self._transport = transport
        self.application = names.router_application(target.model)
        self._endpoint: Endpoint | None = None

    def prepare(self, serve_config: str, split: Split) -> str:
        """Add the router application; one that is there already only gets the split."""
        if rayservice.user_config(serve_config, self.application, names.ROUTER_DEPLOYMENT) is not None:
            return self._with_split(serve_config, split)
        application = {
            "name": self.application,
            "route_prefix": names.public_route(self.target.model),
            "import_path": names.ROUTER_IMPORT_PATH,
            "args": {"model": self.target.model},
            "deployments": [{"name": names.ROUTER_DEPLOYMENT, "user_config": to_user_config(self.target.model, split)}],
        }
        return rayservice.with_application(serve_config, application)

    def set_weight(self, split: Split, *, way_back: bool = False) -> None:
        """One compare-and-swap write of the router's ``user_config``.

        Raises `ApplicationRemoved`, and writes nothing, when the router or a version that the split names has no application any more; `ReleaseHeld`
        when another run has taken the release over.
        """
        target = self.target
        try:
            change_serve_config(
                self.cluster,
                target.namespace,
                target.rayservice,
                lambda text: self._with_split(text, split),
                changed={self.application},
                clock=self._clock,
                way_back=way_back,
            )
        except errors.ApplicationRemoved as error:
            found = self.cluster.get(Ref("RayService", target.rayservice, target.namespace))
            raise errors.ApplicationRemoved(f"{error}. {rayservice.last_writer(found or {}, names.MANAGER)}") from error

    def settled(self, serve_config: str, split: Split) -> str:
        """The split without an epoch; the text as it is when the router is not in it."""
        config = rayservice.user_config(serve_config, self.application, names.ROUTER_DEPLOYMENT)
        if config is None:
            return serve_config
        self._refuse_older(config)
        return rayservice.with_user_config(serve_config, self.application, names.ROUTER_DEPLOYMENT, to_user_config(self.target.model, split))

    def current(self) -> Split | None:
        """The split in ``serveConfigV2``. Raises `RequestInvalid` when that cannot be read, `NameTaken` when the application is not our router."""
        ref = Ref("RayService", self.target.rayservice, self.target.namespace)
        text = rayservice.serve_config(self.cluster.get(ref))
        try:
            config = rayservice.user_config(text, self.application, names.ROUTER_DEPLOYMENT)
            return from_user_config(config) if config else None
        except errors.RequestInvalid as error:
            raise errors.RequestInvalid(f"{ref}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise errors.NameTaken(
                f"{ref}: application {self.application} has a user_config that is not of this library's router; rename that application"
            ) from error

    def observed_weight(self) -> Split:
        """What the router says of itself at ``/{model}/-/router``, with the weight that it applies now (0 after the lease lapsed)."""
        state = self.read("router")
        try:
            return Split(
                stable=state["stable"]["version"],
                candidate=(state.get("candidate") or {}).get("version"),
                weight_percent=float(state["weight_percent_effective"]),
                lease_expires_unix_s=state.get("lease_expires_unix_s"),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise errors.Unreachable(f"router of {self.target.model}: /-/router is not a router's state: {str(state)[:200]}") from error

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
            return f"it refused its configuration: {refused}; is this package older in the Ray image than here?"
        return f"look at application {self.application} in the Ray dashboard"

    def ledger(self) -> dict[str, Any]:
        """The router's counts, cumulative per version and router replica (see `kfp_components.router`)."""
        page = self.read("ledger")
        if not isinstance(page.get("replicas"), dict):
            raise errors.Unreachable(f"router of {self.target.model}: /-/ledger is not a ledger: {str(page)[:200]}")
        return page

    def read(self, page: str) -> dict[str, Any]:
        """A page of the router's own, through the alias. Raises `Unreachable`."""
        import httpx  # as in kfp_components.probes

        where = f"router of {self.target.model}"
        try:
            if self._endpoint is None:
                self._endpoint = self.cluster.endpoint(names.alias(self.target.model), self.target.namespace, names.SERVE_PORT)
            endpoint = self._endpoint
            url = f"{endpoint.base_url}{names.public_route(self.target.model)}/-/{page}"
            with httpx.Client(transport=self._transport, timeout=READ_TIMEOUT_S, trust_env=False) as client:
                answer = client.get(url, headers={"host": endpoint.host})
        except (httpx.HTTPError, errors.NotFound) as error:
            self._endpoint = None
            raise errors.Unreachable(f"{where}: {type(error).__name__} while reading /-/{page}: {error}") from error
        if answer.status_code != 200:
            self._endpoint = None
            raise errors.Unreachable(f"{where}: /-/{page} answered {answer.status_code}: {answer.text[:200]}")
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise errors.Unreachable(f"{where}: /-/{page} answered something else than JSON: {answer.text[:200]}")
        return found

    def remove(self, serve_config: str) -> str:
        """Without the router application."""
        return rayservice.without_application(serve_config, self.application)

    def _with_split(self, text: str, split: Split) -> str:
        there = rayservice.applications(text)
        versions = [version for version in (split.stable, split.candidate) if version is not None]
        for application in (self.application, *(names.application(self.target.model, version) for version in versions)):
            if application not in there:
                raise errors.ApplicationRemoved(
                    f"RayService {self.target.namespace}/{self.target.rayservice}: application {application} is not in serveConfigV2 any more, "
                    "somebody else took it out; no traffic is given to what is not there"
                )
        config = rayservice.user_config(text, self.application, names.ROUTER_DEPLOYMENT) or {}
        self._refuse_older(config)
        wanted = to_user_config(self.target.model, split)
        if config == wanted:
            return text  # nothing to give back, so no epoch to leave there
        return rayservice.with_user_config(text, self.application, names.ROUTER_DEPLOYMENT, wanted | ({"epoch": self.epoch} if self.epoch else {}))

    def _refuse_older(self, config: dict[str, Any]) -> None:
        found = int(config.get("epoch", 0))
        if found > self.epoch:
            raise errors.ReleaseHeld(
                f"router of {self.target.model}: another run has taken the release over (epoch {found}, this run's is {self.epoch}); it stops here"
            )


def to_user_config(model: str, split: Split) -> dict[str, Any]:
    """The router's ``user_config``; without a candidate it is always the same, so a rollback restores it to the letter."""

    def backend(version: str) -> dict[str, str]:
        return {"version": version, "route": names.version_route(model, version)}

    config: dict[str, Any] = {"stable": backend(split.stable)}
    if split.candidate is not None:
        config["candidate"] = backend(split.candidate)
        config["weight_percent"] = split.weight_percent
        if split.lease_expires_unix_s is not None:
            config["lease_expires_unix_s"] = round(split.lease_expires_unix_s, 3)
    if split.sticky_header:
        config["sticky_header"] = split.sticky_header
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
        request_timeout_s=float(config.get("request_timeout_s", 60.0)),
    )
