"""The registry's part of a release: what it is told of a version, the aliases that move with the traffic, and how the release went.

The first functions are pure. Of what is written each item is for itself: which of them may fail, and what is then done, is up to the step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from kfp_components import artifact, errors, names
from kfp_components.registry import Alias, ModelVersion
from kfp_components.release import Release
from kfp_components.request import PromoteRequest, parse_stored, pinned_digest, plain_secrets
from kfp_components.rollout import journal, manifests
from kfp_components.rollout.run import Run

SAID_ONCE = ("framework", "family", "metric.", "golden_set")
"""Facts of a version that do not change: the first word stands, and another one is told."""

MOST_CHARACTERS = 4_000
"""Of one property: MLflow takes 5,000, whatever its store."""

REQUEST = "request"
"""The property that holds the request by which a version came, as JSON: for `demote_champion`."""

Item = tuple[str, Callable[[], object]]


def facts(asked: PromoteRequest, source: Mapping[str, str]) -> dict[str, str]:
    """What is said of a version when it is registered: format, framework, family, metrics, golden set, import path, and where it comes from.

    ``source`` is what the run knows of itself (``kfp_run_id``, ``kfp_run_url``, ``git_commit``); what the request says counts more. What nobody
    knows is left out.
    """
    told = asked.options.provenance
    found: dict[str, str | None] = {
        "model_format": asked.options.model_format,
        "import_path": asked.import_path,
        "framework": told.framework,
        "family": told.family,
        **{f"metric.{name}": repr(value) for name, value in sorted(told.metrics.items())},
        "golden_set": told.golden_set,
        "golden_set_digest": told.golden_set_digest,
        **source,
    }
    found |= {key: value for key, value in (("git_commit", told.git_commit), ("kfp_run_url", told.run_url)) if value}
    whole = json.dumps(asked.plain, separators=(",", ":"), sort_keys=True)
    if len(whole) <= MOST_CHARACTERS and not plain_secrets(asked):  # else what is there later cannot be deployed again by itself
        found[REQUEST] = whole
    return {key: value[:MOST_CHARACTERS] for key, value in found.items() if value}


def evidence(record: Release) -> dict[str, str]:
    """How a release went, for its version: ``outcome`` (a phase), ``verdict`` (a sentence) and ``evidence``, one JSON object.

    In that, as far as it is known: requests and failures of each arm and latency (ms) at the last look, e-values, approvals, and the rollback.
    """
    told: dict[str, Any] = {"stable_version": record.stable_version, "steps": record.steps, "started_unix_s": record.started_unix_s}
    if record.timeline:
        last = record.timeline[-1].model_dump(mode="json", exclude_defaults=True)
        told |= {key: value for key, value in last.items() if key not in ("unix_s", "weight_percent")}
    if record.verdict is not None:
        told |= record.verdict.model_dump(mode="json", include={"kind", "e_fail", "e_pass", "metrics"}, exclude_none=True)
    if record.approved:
        told["approved"] = [approved.model_dump(mode="json") for approved in record.approved]
    if record.rollback is not None:
        told["rollback"] = record.rollback.model_dump(mode="json", exclude={"reason"})
    text = json.dumps(told, separators=(",", ":"), sort_keys=True)
    if len(text) > MOST_CHARACTERS:  # a part of it would be no JSON
        text = json.dumps({"left_out": f"{len(text)} characters; the report has all of it"})
    outcome = {"promoting": "promoted", "rolling_back": "rolled_back"}.get(record.phase, record.phase)
    verdict = record.sentence or ("deployed as the first version" if outcome == "promoted" else "taken back")
    return {"outcome": outcome, "verdict": verdict[:MOST_CHARACTERS], "evidence": text}


def aliases(record: Release) -> dict[Alias, str | None]:
    """Alias -> the version it belongs on, in the order in which they are moved; None: on neither of this release's. The others are left alone.

    ``champion`` is what users get, ``candidate`` what is being released, ``previous`` what users had before.
    """
    if record.phase in ("promoting", "promoted"):
        before = {"previous": record.stable_version} if record.stable_version is not None else {}
        return {**before, "champion": record.candidate_version, "candidate": None}  # type: ignore[dict-item]
    wanted: dict[Alias, str | None] = {
        "champion": record.stable_version,
        "candidate": None if record.done or record.phase == "rolling_back" else record.candidate_version,
    }
    if record.names_before is not None and record.names_before.aliases is not None:
        return {"previous": record.names_before.aliases.get("previous"), **wanted}
    return wanted


def settle(run: Run, record: Release) -> list[tuple[str, errors.KfpServingError]]:
    """Move the aliases to where they belong, and hang the evidence on the version. Returns what was not done, and why: it stops nobody.

    Each for itself; but where the registry is away nobody waits for it a second time. Raises as `Run.keep`.
    """
    undone: list[tuple[str, errors.KfpServingError]] = []
    away: errors.Unreachable | None = None
    items = _follow(run, record)
    items.append(("evidence", partial(_annotate, run, record.candidate_version, evidence(record))))
    for what, do in items:
        run.keep()
        try:
            if away is not None:
                raise away
            do()
        except errors.Unreachable as error:
            away = error
            undone.append((what, error))
        except errors.KfpServingError as error:
            undone.append((what, error))
    return undone


def _follow(run: Run, record: Release) -> list[Item]:
    """What moves the aliases, one by one. Raises, each, what `ModelRegistry.move` does."""
    return [(f"alias {alias}", partial(_put, run, record, alias, version)) for alias, version in aliases(record).items()]


def request_of(found: ModelVersion | None) -> PromoteRequest | None:
    """The request by which a version came, as far as the registry was told of it."""
    if found is None or REQUEST not in found.properties:
        return None
    with contextlib.suppress(errors.RequestInvalid, ValueError):
        return parse_stored(json.loads(found.properties[REQUEST]))
    return None


def enter(run: Run, record: Release) -> None:
    """The version is known, as ``candidate``; the one that users have is ``champion``, wherever an earlier release or another registry left that.

    Raises what `ModelRegistry.register` does. That champion cannot be mended is noted: users are served all the same.
    """
    request, registry, name = run.request, run.registry, run.registered_name
    seen = {"artifact_check": record.artifact_check} if record.artifact_check else {}
    told = facts(request, run.source) | seen
    found = registry.register(name, request.version, request.uri, digest=_digest(record, request), properties=told)
    if new := {key: value for key, value in told.items() if key not in found.properties}:  # it was registered before, with less
        registry.annotate(name, request.version, new)
    for key, value in told.items():
        if key.startswith(SAID_ONCE) and found.properties.get(key, value) != value:
            journal.note(run, "registry", f"{key} stays {found.properties[key]}, as it was registered; this request says {value}", ok=False)
    for what, do in _follow(run, record):
        try:
            do()
        except (errors.InputError, errors.Conflict) as error:
            if what == "alias candidate":
                raise
            journal.note(run, "registry", f"{what}: not done: {error}", ok=False)


def attach_report(run: Run, page: bytes, uri: str) -> str | None:
    """Hang on the version where the report of its release is, with the page's SHA-256. Returns why that could not be done: it stops nobody."""
    properties = {"report_uri": uri[:MOST_CHARACTERS], "report_digest": f"sha256:{hashlib.sha256(page).hexdigest()}"}
    try:
        _annotate(run, journal.current(run).candidate_version, properties)
    except errors.KfpServingError as error:
        return f"the report is not named in the registry: {error}"
    return None


def mend(run: Run, record: Release) -> None:
    """The aliases of a release that is over, where they are not what it says. Who may not, or finds a version unknown, leaves them."""
    for _, do in _follow(run, record):
        with contextlib.suppress(errors.InputError):
            do()


def wrong(run: Run, record: Release) -> bool:
    """Whether an alias is not where it belongs; who may not ask, or has no registry, does not know of any. Raises `Unreachable`."""
    with contextlib.suppress(errors.InputError):
        now = run.registry.aliases(run.registered_name)
        return any(_is_wrong(now, record, alias, version) for alias, version in aliases(record).items())
    return False


def _put(run: Run, record: Release, alias: Alias, version: str | None) -> None:
    if not _is_wrong(run.registry.aliases(run.registered_name), record, alias, version):
        return
    if version is not None:
        _know(run, record, version)
    run.registry.move(run.registered_name, alias, version)


def _is_wrong(now: Mapping[str, str], record: Release, alias: Alias, version: str | None) -> bool:
    """One that belongs on neither of this release's versions may be on any other."""
    found = now.get(alias)
    return found != version and (version is not None or found in (record.candidate_version, record.stable_version))


def _know(run: Run, record: Release, version: str) -> None:
    """A registry that was moved or made anew learns of a version: as its own release has it, or as the stub of what serves says."""
    if run.registry.find(run.registered_name, version) is not None:
        return
    if version == record.candidate_version and not record.adopts:
        asked = record.asked()
        run.registry.register(run.registered_name, version, asked.uri, digest=_digest(record, asked), properties=facts(asked, run.source))
        return
    stub = run.cluster.get(manifests.stub_ref(run)) or {}
    told = (stub.get("metadata") or {}).get("annotations") or {}
    uri = str(told.get(names.STUB_URI) or names.SERVED)
    if told.get(names.STUB_VERSION) == version and not uri.startswith(names.SERVED):
        run.registry.register(run.registered_name, version, uri, digest=None, properties={"registered_from": "the stub of what serves"})


def _digest(record: Release, asked: PromoteRequest) -> str | None:
    """Of the artifact: as it was read at the door, else as the request says."""
    return artifact.told_digest(record.artifact_check) or asked.options.digest or pinned_digest(asked.uri)


def _annotate(run: Run, version: str, properties: Mapping[str, str]) -> None:
    """Nothing where the registry does not know the version."""
    with contextlib.suppress(errors.NotFound):
        run.registry.annotate(run.registered_name, version, properties)
