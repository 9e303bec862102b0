"""What the re-validations of a model found: one ConfigMap ``{model}-revalidation``, changed by compare-and-swap, so that a look counts once.

It belongs to one version: when another one is champion it begins anew, and the earlier one becomes a line of ``past``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kfp_components import errors, names
from kfp_components.cluster import Cluster, Manifest, Ref

Outcome = Literal["healthy", "decayed", "not enough", "unreachable"]
LOOKS, PAST = 120, 20
WHOLE = 3
"""Of so many looks the cases that failed are kept, and of so many versions before the state of the tests: one that comes back goes on with it."""
DATA = "revalidation.json"


class Look(BaseModel):
    """One run's look at a model. Latencies are ms, None where nothing was measured; ``evidence`` is the e-value for a decay."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    unix_s: float
    outcome: Outcome
    sentence: str
    run_id: str = ""
    requests: int = 0
    failures: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None
    evidence: float = 1.0
    bound: float = 100.0
    failed: list[str] = Field([], description="a few of the cases that failed: request, answer, expectation")
    demotion: str = Field("", description="what came of giving users the previous version again")


class Recorded(BaseModel):
    """What a record belongs to: looks that ask something else, or allow for something else, cannot be compared with it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    cases: str = Field(description="digest of the cases that are asked")
    cases_from: str = Field("", description="where they are, or that they are the smoke cases")
    error_margin_percent: float
    latency_margin_percent: float
    scores: dict[str, float] = Field({}, description="mean score of each case with a reference, by name; of all under no name where there are many")

    def score(self, case: str) -> float | None:
        """What a case had, None where it had none."""
        return self.scores.get(case, self.scores.get(""))

    def differs(self, asked: Recorded) -> str:
        """What another look asks otherwise, in words; empty where it asks the same."""
        found = [
            f"{name} {getattr(self, name):g}, now {getattr(asked, name):g}"
            for name in ("error_margin_percent", "latency_margin_percent")
            if getattr(self, name) != getattr(asked, name)
        ]
        if self.cases != asked.cases:
            found.append(f"cases {self.cases[:12]} ({self.cases_from}), now {asked.cases[:12]} ({asked.cases_from})")
        return "; ".join(found)


class PastVersion(BaseModel):
    """One line for a version that was champion before."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    version: str
    decayed_unix_s: float | None = None
    sentence: str = ""
    state: dict[str, Any] = {}
    recorded: Recorded | None = None


class Revalidations(BaseModel):
    """The looks at one version so far, and the state of the tests (`judge.decay`), as JSON. What a newer library added stays as it is."""

    model_config = ConfigDict(extra="allow")

    model: str
    namespace: str
    version: str
    state: dict[str, Any] = {}
    recorded: Recorded | None = None
    decayed_unix_s: float | None = Field(None, description="when it was first found to have decayed, where it has not become healthy since")
    demoting: str | None = Field(None, description="the version that users are on the way back to, while they are")
    looks: list[Look] = []
    past: list[PastVersion] = []

    def of(self, version: str) -> Revalidations:
        """The same where it is about that version, else a new beginning; for one that was champion not long ago with what its tests knew."""
        if version == self.version:
            return self
        sentence = self.looks[-1].sentence if self.looks else ""
        last = PastVersion(version=self.version, decayed_unix_s=self.decayed_unix_s, sentence=sentence, state=self.state, recorded=self.recorded)
        past = [*self.past, last][-PAST:]
        past = [*(one.model_copy(update={"state": {}}) for one in past[:-WHOLE]), *past[-WHOLE:]]
        known = next((one for one in reversed(past) if one.version == version and one.state), None)
        base = Revalidations(model=self.model, namespace=self.namespace, version=version, past=past)
        return base.model_copy(update={key: getattr(known, key) for key in ("state", "recorded", "decayed_unix_s")}) if known else base

    def decayed_before(self, version: str) -> float | None:
        """When an earlier version was found to have decayed, where that was the last word about it."""
        return next((one.decayed_unix_s for one in reversed(self.past) if one.version == version), None)

    def looked(self, look: Look, state: dict[str, Any]) -> Revalidations:
        """With one look more. Who asked the version that users have did not find them on the way to another."""
        since = self.decayed_unix_s
        if look.outcome == "decayed":
            since = look.unix_s if since is None else since
        elif look.outcome == "healthy":
            since = None
        looks = [*self.looks, look][-LOOKS:]
        looks = [*(one.model_copy(update={"failed": []}) for one in looks[:-WHOLE]), *looks[-WHOLE:]]
        demoting = None if look.requests else self.demoting
        return self.model_copy(update={"looks": looks, "state": state, "decayed_unix_s": since, "demoting": demoting})


class RevalidationStore:
    """Reads and writes what one model's re-validations found."""

    def __init__(self, cluster: Cluster, model: str, namespace: str) -> None:
        self.cluster, self.model = cluster, model
        self.ref = Ref("ConfigMap", names.revalidation(model), namespace)
        self._found: Manifest | None = None

    def load(self) -> Revalidations | None:
        """None where the model was never re-validated. Raises `NameTaken` when the ConfigMap is something else."""
        self._found = self.cluster.get(self.ref)
        if self._found is None:
            return None
        try:
            return Revalidations.model_validate_json((self._found.get("data") or {})[DATA])
        except (KeyError, ValueError) as error:
            raise errors.NameTaken(f"{self.ref}: it holds no re-validations of this library ({error}); rename or delete it") from error

    def of(self, version: str) -> Revalidations:
        """What is known of a version, or its beginning. Raises as `load`."""
        return (self.load() or Revalidations(model=self.model, namespace=self.ref.namespace, version=version)).of(version)

    def save(self, found: Revalidations) -> None:
        """Write over what `load` read. Raises `Conflict` when another run has looked at the model meanwhile: its look counts, this one does not."""
        manifest: Manifest = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": self.ref.name,
                "namespace": self.ref.namespace,
                "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY, names.REVALIDATION_LABEL: self.model},
            },
            "data": {DATA: found.model_dump_json()},
        }
        try:
            if self._found is None:
                self._found = self.cluster.create(manifest)
            else:
                manifest["metadata"]["resourceVersion"] = self._found["metadata"]["resourceVersion"]
                self._found = self.cluster.replace(manifest)
        except errors.Conflict as error:
            stored = self.cluster.get(self.ref)
            if stored is not None and stored.get("data") == manifest["data"]:  # it was this one, and its answer was lost
                self._found = stored
                return
            raise errors.Conflict(f"{self.ref}: another run has re-validated {self.model} meanwhile; its look counts, this one does not") from error
