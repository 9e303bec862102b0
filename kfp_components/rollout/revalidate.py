"""Is what users get as good as it was? A champion answers its golden set as clients would ask it, and is compared with its own record.

Nothing here changes traffic. Each look at a model adds to what its tests know (`judge.decay`), which lies with the version (`release.revalidation`).
"""

from __future__ import annotations

import bisect
import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from pydantic import ValidationError

from kfp_components import errors, names, notify, probes, uris
from kfp_components.clock import SystemClock
from kfp_components.cluster import Cluster
from kfp_components.judge import decay
from kfp_components.judge.counts import ArmCounts
from kfp_components.probes import golden
from kfp_components.registry import ModelVersion
from kfp_components.release import Release, ReleaseStore, records
from kfp_components.release.revalidation import Look, Outcome, Recorded, Revalidations, RevalidationStore
from kfp_components.request import ModelTarget, RevalidateRules, SmokeCase, parse_target
from kfp_components.rollout import cases as cases_of
from kfp_components.rollout import golden_set, journal
from kfp_components.rollout.registered import request_of
from kfp_components.rollout.run import Run
from kfp_components.rollout.status import read_status
from kfp_components.router.ledger import LATENCY_BOUNDS_S

MOST_SCORED, MOST_NAME = 500, 100
"""Cases whose scores are kept one by one, and characters of their names."""

SETTLE_S = 30.0
"""Ray calls every application of a RayService DEPLOYING for a moment when another one is written, and it goes on answering."""

Told = Callable[[int, int], None]
"""Hears how many answers there are, of how many that are asked for."""


def nobody_counts(_done: int, _number: int) -> None:
    """Where nobody looks."""


@dataclass(frozen=True)
class Revalidation:
    """What one run found of one model. ``looks`` are those so far at this version, this one last; empty where nothing could be kept."""

    model: str
    namespace: str
    rayservice: str
    version: str | None
    look: Look
    looks: tuple[Look, ...] = ()
    since_unix_s: float | None = None
    """When it was first found to have decayed."""
    demoting: str | None = None
    """The version that users were on the way back to when an earlier run was stopped."""

    @property
    def outcome(self) -> Outcome:
        """healthy, decayed, not enough or unreachable."""
        return self.look.outcome

    @property
    def sentence(self) -> str:
        """What was found, and what came of a demotion."""
        return f"{self.look.sentence}; {self.look.demotion}" if self.look.demotion else self.look.sentence

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        about = {"model": self.model, "namespace": self.namespace, "rayservice": self.rayservice, "version": self.version}
        looks = [look.model_dump(mode="json") for look in self.looks]
        return about | self.look.model_dump(mode="json") | {"since_unix_s": self.since_unix_s, "looks": looks}

    def _repr_html_(self) -> str:
        from kfp_components.report import revalidation

        return revalidation.render([self.as_dict()], whole=False)


def champions(cluster: Cluster, namespace: str, rayservice: str | None = None) -> list[ModelTarget]:
    """The models of a namespace (or of one of its RayServices) that have a version in front of users, by their release records.

    Reads only. Raises `PermissionDenied` without the right to list ConfigMaps, `NotFound` where no model has one.
    """
    found = [
        parse_target({"model": record.model, "namespace": record.namespace, "rayservice": record.rayservice})
        for record in records(cluster, namespace)
        if record.stable_now is not None and rayservice in (None, record.rayservice)
    ]
    if not found:
        where = f"namespace {namespace}" + (f", RayService {rayservice}" if rayservice else "")
        raise errors.NotFound(f"{where}: no model was released or adopted there, so there is no champion to look at")
    return found


def notifier(run: Run, rules: RevalidateRules) -> notify.Notifier:
    """Who is told of decay: whom the rules name, else whom the last release told. Raises as `notify.check`."""
    if not rules.notify:
        return run.notifier
    notify.check(rules.notify, notify.reader(run.cluster, run.request.namespace))
    return notify.Notifier(rules.notify, run.notifier.read)


def look_at(run: Run, rules: RevalidateRules, models: int, run_id: str, tell: Told) -> Revalidation:
    """One look at what users have; see `rollout.revalidate_model`. Traffic and the release are not touched."""
    record = journal.read(run)
    run.address = record.address
    store = _store(run, record)
    version = record.stable_now
    if version is None:
        return _found(record, version, _not_asked(run, "unreachable", "no version of it serves", run_id), None)
    known = store.of(version)
    registered = _registered(run, version)
    try:
        run.persist(lambda: _assert_serves(run, record))
        cases, where, uri = _cases(record, registered, version, rules)
        wanted = _recorded(cases, where, rules)
        _assert_comparable(store, known, wanted)
        draw = Random(f"{record.namespace}/{record.model}/{version}/{run.clock.now_unix_s():.0f}")
        endpoint = run.cluster.endpoint(run.address.alias, record.namespace, names.SERVE_PORT)
        drawn = cases_of.with_media(draw.choices(cases, k=rules.requests if known.state else rules.record_requests), uri)
        end = run.clock.monotonic() + 60 * rules.max_minutes
        with probes.Prober(endpoint, record.model, run.address.prefix, run.transport) as prober:
            family = _family(record, registered, version)
            answers = golden.ask(prober, drawn, rules.concurrency, tell, go_on=lambda: run.clock.monotonic() < end, family=family)
    except errors.TemporaryError as error:
        under_way = not record.done and record.phase != "held"
        told = f"a release of {record.candidate_version} is {record.phase}, last run by {record.holder}; {error}" if under_way else str(error)
        look = _not_asked(run, "not enough" if under_way else "unreachable", told, run_id)
        known = known.looked(look, known.state)
    else:
        recorded = known.recorded.scores if known.state and known.recorded else _means(answers)
        wanted = wanted.model_copy(update={"scores": recorded})
        look, state = _judged(run, known, store, answers, wanted, rules, models, run_id)
        known = known.model_copy(update={"recorded": wanted if state else None}).looked(look, state)
    store.save(known)
    _tell_the_registry(run, version, look)
    return _found(record, version, look, known)


def not_looked_at(cluster: Cluster, target: ModelTarget, why: str, run_id: str = "") -> Revalidation:
    """Of a model that could not be looked at, where others are. Noted for the `last_look` of a run with an id.

    Raises nothing: where it cannot be noted (`Unreachable`), nothing is written.
    """
    look = Look(unix_s=SystemClock().now_unix_s(), outcome="unreachable", sentence=why, run_id=run_id)
    known: Revalidations | None = None
    with contextlib.suppress(errors.KfpServingError):
        record = ReleaseStore(cluster, target.model, target.namespace).load_record()
        if run_id and record is not None and record.stable_now is not None:
            store = RevalidationStore(cluster, target.model, target.namespace)
            known = store.of(record.stable_now)
            known = known.looked(look, known.state)
            store.save(known)
    return _found(target, known.version if known else None, look, known)


def demotion_under_way(run: Run) -> Revalidation | None:
    """What was found of a champion whose demotion an earlier run began and did not finish, else None. Reads only."""
    record = journal.read(run)
    kept = _store(run, record).load()
    last = next((look for look in reversed(kept.looks) if look.outcome == "decayed"), None) if kept else None
    if kept is None or kept.demoting is None or last is None:
        return None
    back = record.candidate_version == kept.version and record.phase in ("promoted", "rolling_back")
    anew = not record.done and (record.candidate_version, record.stable_version) == (kept.demoting, kept.version)
    if not (back or anew):
        return None
    return replace(_found(record, kept.version, last, kept), demoting=kept.demoting)


def decayed_before(run: Run, version: str) -> float | None:
    """When a version that was champion before was found to have decayed, where that was the last word about it. Reads only."""
    kept = _store(run, journal.current(run)).load()
    return kept.decayed_before(version) if kept else None


def note_demotion(run: Run, found: Revalidation, run_id: str, *, to: str | None = None, told: str = "") -> Revalidation:
    """Write down that users are on the way from what decayed back ``to`` a version, or what came of it. That it cannot be written stops nobody."""
    record = journal.current(run)
    look = found.look.model_copy(update={"demotion": told, "run_id": run_id or found.look.run_id})
    looks = found.looks
    with contextlib.suppress(errors.KfpServingError):
        store = _store(run, record)
        kept = store.load()
        if kept is not None and kept.version == found.version:
            same = bool(kept.looks) and kept.looks[-1].unix_s == found.look.unix_s  # else another look was noted since
            kept = kept.model_copy(update={"demoting": to, "looks": [*(kept.looks[:-1] if same else kept.looks), look]})
            looks = tuple(kept.looks)
            store.save(kept)
    return replace(found, look=look, looks=looks)


def last_look(cluster: Cluster, target: ModelTarget, run_id: str) -> Revalidation:
    """What the run of that id noted of a model. One whose step noted nothing is ``unreachable``. Reads only; raises `NameTaken`, `Unreachable`."""
    known = RevalidationStore(cluster, target.model, target.namespace).load()
    look = next((look for look in reversed(known.looks) if look.run_id == run_id), None) if known else None
    if known is None or look is None:
        nothing = Look(unix_s=0.0, outcome="unreachable", sentence="its step noted nothing; look at its log", run_id=run_id)
        return _found(target, None, nothing, None)
    return _found(target, known.version, look, known)


def raise_if_decayed(found: Iterable[Revalidation]) -> None:
    """Make the run red: raise `Decayed` naming each champion that decayed, else `Unreachable`, and either names those that nobody could ask."""
    everything = list(found)
    decayed, away = ([one for one in everything if one.outcome == outcome] for outcome in ("decayed", "unreachable"))
    told = [
        f"{len(those)} of {len(everything)} champion(s) {what}: " + "; ".join(f"{one.namespace}/{one.model}: {one.sentence}" for one in those[:20])
        for those, what in ((decayed, "decayed"), (away, "could not be asked"))
        if those
    ]
    if told:
        raise (errors.Decayed if decayed else errors.Unreachable)(". ".join(told))


def _store(run: Run, record: Release) -> RevalidationStore:
    return RevalidationStore(run.cluster, record.model, record.namespace)


def _found(about: Release | ModelTarget, version: str | None, look: Look, known: Revalidations | None) -> Revalidation:
    """With what is known of that version."""
    kept = known if known is not None and known.version == version else None
    model = about.model, about.namespace, about.rayservice
    return Revalidation(*model, version, look, tuple(kept.looks), kept.decayed_unix_s) if kept else Revalidation(*model, version, look)


def _not_asked(run: Run, outcome: Outcome, sentence: str, run_id: str) -> Look:
    return Look(unix_s=run.clock.now_unix_s(), outcome=outcome, sentence=sentence, run_id=run_id)


def _assert_serves(run: Run, record: Release) -> None:
    """Raise `Unreachable` unless users get the version of the record, and it runs: what answers else says nothing about it."""
    end = run.clock.monotonic() + SETTLE_S
    while True:
        status = read_status(run.cluster, record, clock=run.clock, transport=run.transport)
        if status.ready and [version for version, share in (status.traffic or {}).items() if share] == [record.stable_now]:
            return
        if not any("DEPLOYING" in note for note in status.notes) or run.clock.monotonic() >= end:
            raise errors.Unreachable("; ".join(status.notes) or f"users do not get {record.stable_now} alone")
        run.clock.sleep(1.0)


def _recorded(cases: tuple[SmokeCase, ...], where: str, rules: RevalidateRules) -> Recorded:
    margins = {"error_margin_percent": rules.error_margin_percent, "latency_margin_percent": rules.latency_margin_percent}
    return Recorded(cases=golden_set.digest_of(cases), cases_from=where, **margins)


def _assert_comparable(store: RevalidationStore, known: Revalidations, wanted: Recorded) -> None:
    """Raise `RequestInvalid` where the record was made of something else, `NameTaken` where this version of the library cannot read it."""
    anew = f"`kubectl delete configmap {store.ref.name} -n {store.ref.namespace}` makes the next look a new record, and forgets what was found"
    try:
        _ = known.state and decay.State.model_validate(known.state)
    except ValidationError as error:
        first = error.errors()[0]
        told = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".lstrip(": ")
        raise errors.NameTaken(f"{store.ref}: the state of its tests is none that this version of the library reads ({told}). {anew}") from error
    if known.state and known.recorded is not None and (difference := known.recorded.differs(wanted)):
        raise errors.RequestInvalid(
            f"{store.ref}: the record of {known.version} was made with {difference}: the two cannot be compared. Ask as it was recorded, or {anew}"
        )


def _judged(
    run: Run,
    known: Revalidations,
    store: RevalidationStore,
    answers: golden.Answers,
    recorded: Recorded,
    rules: RevalidateRules,
    models: int,
    run_id: str,
) -> tuple[Look, dict[str, Any]]:
    """The look, and the state of the tests after it. The first look is the record, which the others are compared with."""
    now, version = run.clock.now_unix_s(), known.version
    asked: dict[str, Any] = {
        "unix_s": now,
        "run_id": run_id,
        "requests": answers.requests,
        "failures": answers.failures,
        "p50_ms": _quantile_ms(answers.seconds, 0.5),
        "p95_ms": _quantile_ms(answers.seconds, 0.95),
        "bound": models / rules.alpha,
        "failed": answers.problems,
    }
    if not answers.requests:
        return Look(**asked, outcome="unreachable", sentence=answers.problems[0] if answers.problems else "nobody answered"), known.state
    short = f"; it ended after {rules.max_minutes:g} minutes, {answers.left_out:,} were not asked" if answers.left_out else ""
    counts = ArmCounts(answers.requests, answers.failures, histogram(answers.seconds))
    scores = tuple((then, value) for case, value in answers.scores if (then := recorded.score(case)) is not None)
    if not known.state:
        return _first(version, store, counts, asked, answers, scores, rules, short)
    seen = decay.Run(now, counts, LATENCY_BOUNDS_S, scores)
    state = decay.advance(decay.State.model_validate(known.state), seen, apart_s=3600 * rules.apart_hours)
    found = decay.decide(state, version, alpha=rules.alpha, models=models)
    return Look(**asked, outcome=found.kind, sentence=found.sentence + short, evidence=found.e), state.model_dump(mode="json")


def _first(
    version: str,
    store: RevalidationStore,
    counts: ArmCounts,
    asked: dict[str, Any],
    answers: golden.Answers,
    scores: Sequence[tuple[float, float]],
    rules: RevalidateRules,
    short: str,
) -> tuple[Look, dict[str, Any]]:
    """The record, where the answers make one."""
    failed = f"{answers.failures:,} of {answers.requests:,} answers failed"
    if answers.requests < decay.ENOUGH:
        few = f"{version} is not recorded: {failed}, a record takes {decay.ENOUGH} answers{short}"
        return Look(**asked, outcome="not enough", sentence=few), {}
    if 2 * answers.failures >= answers.requests:
        raise errors.RequestInvalid(
            f"{version}: {failed} at the first look, so no record was made that others could be compared with; either the cases do not fit it, or it "
            f"is broken: {answers.problems[0]}"
        )
    p95 = f", p95 {asked['p95_ms']:,.1f} ms" if answers.seconds else ""
    good = f", mean score {sum(now for _, now in scores) / len(scores):.4f}" if scores else ""
    told = f"{version} is recorded: {failed}{p95}{good}{short}"
    if 20 * answers.failures >= answers.requests:
        told += (
            f"; from now on that is what is right for it. If it is not, mend the cases or the model and record anew (`kubectl delete configmap "
            f"{store.ref.name} -n {store.ref.namespace}`): {answers.problems[0]}"
        )
    errors_by, latency_by = rules.error_margin_percent / 100, rules.latency_margin_percent / 100
    state = decay.start(counts, LATENCY_BOUNDS_S, scores=scores or None, error_margin=errors_by, latency_margin=latency_by)
    return Look(**asked, outcome="not enough", sentence=told), state.model_dump(mode="json")


def histogram(seconds: Sequence[float]) -> tuple[int, ...]:
    """Answers per bucket of `LATENCY_BOUNDS_S`, the last one for what took longer than all."""
    found = [0] * (len(LATENCY_BOUNDS_S) + 1)
    for value in seconds:
        found[bisect.bisect_left(LATENCY_BOUNDS_S, value)] += 1
    return tuple(found)


def _quantile_ms(seconds: Sequence[float], quantile: float) -> float | None:
    if not seconds:
        return None
    ordered = sorted(seconds)
    return round(1000 * ordered[min(len(ordered) - 1, math.ceil(quantile * len(ordered)) - 1)], 3)


def _registered(run: Run, version: str) -> ModelVersion | None:
    """As the registry knows it; that this cannot be asked stops nobody."""
    with contextlib.suppress(errors.KfpServingError):
        return run.registry.find(run.registered_name, version)
    return None


def _cases(record: Release, registered: ModelVersion | None, version: str, rules: RevalidateRules) -> tuple[tuple[SmokeCase, ...], str, str | None]:
    """What is asked, where it is from, and its URI: the golden set of the rules, else of the registry, else smoke cases and health checks.

    Raises `RequestInvalid` where there is nothing to ask, `NotFound` and `RequestInvalid` for a golden set that cannot be used, `Unreachable`.
    """
    told = dict(registered.properties) if registered else {}
    asked = record.asked() if record.candidate_version == version else request_of(registered)
    uri = rules.golden_set or told.get("golden_set")
    if uri is not None:
        digest = told.get("golden_set_digest") if uri == told.get("golden_set") else None
        return _in_time(golden_set.read(uri, digest, _family(record, registered, version)), rules), uris.shown(uri), uri
    found = (*asked.options.smoke, *probes.health_cases(record.model, asked.options.protocol)) if asked else ()
    if not found:
        raise errors.RequestInvalid(
            f"model {record.namespace}/{record.model} version {version}: nothing to ask; give a golden set (--golden-set, or "
            "options.provenance.golden_set of its next version)"
        )
    return _in_time(found, rules), "its smoke cases", None


def _family(record: Release, registered: ModelVersion | None, version: str) -> str | None:
    """Whose evaluator scores the cases that do not say it."""
    asked = record.asked() if record.candidate_version == version else request_of(registered)
    return asked.family if asked else dict(registered.properties).get("family") if registered else None


def _means(answers: golden.Answers) -> dict[str, float]:
    """Mean score by case; of more than `MOST_SCORED` cases one for all, under no name."""
    named: dict[str, list[float]] = {}
    for case, value in answers.scores:
        named.setdefault(case if len(case) <= MOST_NAME else "", []).append(value)
    if len(named) > MOST_SCORED:
        named = {"": [value for _, value in answers.scores]}
    return {case: round(sum(values) / len(values), 4) for case, values in named.items()}


def _in_time(cases: tuple[SmokeCase, ...], rules: RevalidateRules) -> tuple[SmokeCase, ...]:
    return cases if rules.timeout_s is None else tuple(case.model_copy(update={"timeout_s": rules.timeout_s}) for case in cases)


def _tell_the_registry(run: Run, version: str, look: Look) -> None:
    """The outcome hangs on the version; that this cannot be told stops nobody."""
    with contextlib.suppress(errors.KfpServingError):
        if run.registry.find(run.registered_name, version) is not None:
            said = {"revalidation": look.outcome, "revalidation_sentence": look.sentence[:1000], "revalidation_unix_s": f"{look.unix_s:.0f}"}
            run.registry.annotate(run.registered_name, version, said)
