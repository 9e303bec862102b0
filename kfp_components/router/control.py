"""What the router was told, and until when the candidate's weight holds. Without clock, socket or Ray: time is an argument.

The weight is a lease. As written it holds until ``lease_expires_unix_s``; every heartbeat that knows the token makes it hold for ``lease_s`` from
then on, by the router's own clock. A router that restarts comes back with what is written: once that has lapsed, the share is 0 until the next
heartbeat.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

from kfp_components.router import policy

METHODS = {"ledger": "GET", "router": "GET", "heartbeat": "POST"}
"""The router's own pages, each with the one method that it takes."""

BEARER = "bearer "


class Control:
    """The policy in force, why the last ``user_config`` is not, and the lease of the weight."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.rules: policy.Policy | None = None
        self.refused: str | None = None
        self.expires_unix_s: float | None = None

    def configure(self, config: Mapping[str, Any]) -> None:
        """Take a ``user_config`` up. A wrong one, or one of an older epoch, is refused and the old one goes on; ValueError when there is none."""
        try:
            found = policy.parse(config)
            if self.rules is not None and 0 < found.epoch < self.rules.epoch:
                raise ValueError(f"router user_config: epoch {found.epoch} is older than {self.rules.epoch}, which is in force")
        except ValueError as error:
            if self.rules is None:
                raise
            self.refused = str(error)
            return
        if self.rules is None or found.digest != self.rules.digest:  # Serve tells the same again when something else of the deployment changes
            self.expires_unix_s = found.lease_expires_unix_s
        self.rules, self.refused = found, None

    def weight_percent(self, now_unix_s: float) -> float:
        """The candidate's share that applies now: 0 without a candidate or after the lease lapsed."""
        if self.rules is None or self.rules.candidate is None or (self.expires_unix_s is not None and now_unix_s >= self.expires_unix_s):
            return 0.0
        return self.rules.weight_percent

    def choose(self, sticky_value: str | None, draw: float, now_unix_s: float) -> policy.Backend:
        """The backend of an unpinned request, as `Policy.choose`."""
        assert self.rules is not None
        return self.rules.choose(sticky_value, draw, self.weight_percent(now_unix_s))

    def heartbeat(self, authorization: str | None, now_unix_s: float) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer: 200 when the weight holds anew, 401 for another token than the writer's, 409 without a weight to renew."""
        rules, where = self.rules, f"router of {self.model}"
        if rules is None or rules.heartbeat_sha256 is None or rules.lease_s is None or rules.candidate is None or not rules.weight_percent:
            return 409, {"error": f"{where}: no weight waits for a heartbeat; it is given by the RayService", **self.state(now_unix_s)}
        given = authorization or ""
        token = given[len(BEARER) :].strip() if given.lower().startswith(BEARER) else ""
        if not hmac.compare_digest(hashlib.sha256(token.encode()).hexdigest(), rules.heartbeat_sha256):
            return 401, {"error": f"{where}: the heartbeat needs `authorization: Bearer TOKEN` with the token of the run that wrote the weight"}
        lapsed = self.weight_percent(now_unix_s) == 0.0
        self.expires_unix_s = now_unix_s + rules.lease_s
        return 200, {"lapsed": lapsed, **self._lease(now_unix_s)}

    def state(self, now_unix_s: float) -> dict[str, Any]:
        """The page ``/-/router``; what it holds no token can be made of."""
        rules = self.rules
        if rules is None:
            return {"model": self.model, "protocol": policy.PROTOCOL, "refused_config": self.refused}
        return {
            "model": self.model,
            "protocol": policy.PROTOCOL,
            "stable": vars(rules.stable),
            "candidate": vars(rules.candidate) if rules.candidate else None,
            "weight_percent": rules.weight_percent,
            **self._lease(now_unix_s),
            "request_timeout_s": rules.request_timeout_s,
            "config_sha256": rules.digest,
            "refused_config": self.refused,
            "epoch": rules.epoch,
        }

    def _lease(self, now_unix_s: float) -> dict[str, Any]:
        expires = self.expires_unix_s
        return {
            "weight_percent_effective": self.weight_percent(now_unix_s),
            "lease_expires_unix_s": expires,
            "lease_left_s": None if expires is None else max(0.0, expires - now_unix_s),
        }
