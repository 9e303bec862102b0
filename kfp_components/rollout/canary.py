"""The canary: a share of the requests, judged until the evidence suffices for a larger one."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kfp_components import errors
from kfp_components.judge import counts
from kfp_components.release import Evidence, JudgeState, Point, Release
from kfp_components.request import SmokeCase
from kfp_components.rollout import golden_set, journal, listen, manifests, routes, weights
from kfp_components.rollout.run import PATIENCE_S, Run
from kfp_components.rollout.step import step
from kfp_components.traffic import Split

if TYPE_CHECKING:
    from kfp_components.judge.golden import Answered, Margins
    from kfp_components.judge.verdict import Verdict

HISTORY_S = 10.0
"""How long stable is watched alone, at most, before the candidate gets its first requests."""

METER_PATIENCE_S = 15.0
"""How long the counts may be unreadable before the verdict is `error`: a restarted replica is back by then."""

LOOKS = 10
"""How many looks it takes to say how many of users' requests a step is to expect."""

SAVE_S = 120.0
"""How often the judge's state is written down; what came since of users' requests stands in the router's counts."""

SAVE_PAIRS = 25
"""After so many golden requests too: what was answered since is asked again by who goes on after a kill."""


def canary_step(run: Run, index: int) -> Release:
    """Shift to the step's weight and judge until the evidence suffices for the next one. A step that has passed is left alone.

    Raises `CanaryFailed` (taken back), `Inconclusive` or `MeterBroken` (held), `ReleaseLeft`; `StepOutOfOrder`, and nothing is written, when an
    earlier step has not passed.
    """
    steps = run.request.steps
    if index >= len(steps):
        return journal.read(run)  # the compiled pipeline has more boxes than this request has steps
    with step(run, f"canary {steps[index]:g} %", until="promoting", stands=False) as record:
        if record is not None and record.step_index <= index:
            _require_turn(record, index)
            record = stand_by(run, listen.name_of(steps[index]))
            _shift(run, record, steps[index])
            _Look(run, index).until_decided()
    return journal.current(run)


def shift_traffic(run: Run, weight_percent: float) -> Release:
    """Give the candidate a share of the requests, verified; the share is a lease that a judging step renews.

    Raises `StepOutOfOrder`, and nothing is written, for a share above that of the step whose turn it is.
    """
    with step(run, "shift", until="promoting", stands=False) as record:
        if record is not None:
            turn = run.request.steps[min(record.step_index, len(run.request.steps) - 1)]
            if weight_percent > turn:
                raise errors.StepOutOfOrder(f"model {record.model}: {weight_percent:g} % is above the step whose turn it is ({turn:g} %)")
            record = stand_by(run, listen.name_of(turn))
            _shift(run, record, weight_percent)
    return journal.current(run)


def judge_canary(run: Run, index: int) -> Release:
    """Judge at the step's weight, which `shift_traffic` has set. Otherwise as `canary_step`."""
    steps = run.request.steps
    if index >= len(steps):
        return journal.read(run)
    with step(run, f"judge {steps[index]:g} %", until="promoting", stands=False) as record:
        if record is not None and record.step_index <= index:
            _require_turn(record, index)
            if record.judge is None or record.weight_percent != steps[index]:
                raise errors.StepOutOfOrder(
                    f"model {record.model}: the weight is {record.weight_percent:g} %, step {index} is about {steps[index]:g} %; call shift_traffic "
                    f"with {steps[index]:g} first, or canary_step, which does both"
                )
            stand_by(run, listen.name_of(steps[index]))
            _Look(run, index).until_decided()
    return journal.current(run)


def stand_by(run: Run, before: str) -> Release:
    """Wait while the release is paused, or for the approve that the request wants before ``before``; returns the record as it is then.

    The weight that the record says is kept, and the candidate judged by it. Raises as `listen.stands` and, then, as `judge_canary`.
    """
    listen.open_gate(run, before)
    if listen.stands(run) and _has_weight(run):
        steps, weight_percent = run.request.steps, journal.current(run).weight_percent
        index = steps.index(weight_percent) if weight_percent in steps else min(journal.current(run).step_index, len(steps) - 1)
        _Look(run, index, weight_percent).while_it_stands()
    listen.stand(run)
    return journal.current(run)


def _has_weight(run: Run) -> bool:
    """Whether the candidate has the weight that the record says. One that lapsed, because the process that renewed it was killed, is written again.

    Raises as `weights.assert_runs`, and as the router's ``set_weight``.
    """
    record = journal.current(run)
    if record.phase != "canary" or record.judge is None or record.stable_version is None or not record.weight_percent:
        return False
    split = _split(run, record, record.weight_percent)
    run.persist(lambda: run.router.assert_there(split))
    if run.persist(run.router.observed_weight).weight_percent != record.weight_percent:
        weights.assert_runs(run, record.candidate_version)
        run.router.set_weight(split)
        weights.wait_applied(run, split)
        journal.note(run, "canary", f"{record.weight_percent:g} % of the requests go to {record.candidate_version} again, as before")
    return True


def _require_turn(record: Release, index: int) -> None:
    if not record.steps:
        raise errors.StepOutOfOrder(f"model {record.model}: {record.candidate_version} is a first version, so it has no canary step; promote it")
    if index > record.step_index:
        first = f"step {record.step_index + 1} of {len(record.steps)} ({record.steps[record.step_index]:g} %)"
        raise errors.StepOutOfOrder(f"model {record.model}: {first} has not passed; it comes first")


def _shift(run: Run, record: Release, weight_percent: float) -> None:
    stable, candidate = record.stable_version, record.candidate_version
    if not record.reached("smoked") or stable is None:
        raise errors.StepOutOfOrder(f"model {record.model}: version {candidate} is not smoke-tested beside a stable one; run that step first")
    weights.assert_runs(run, candidate)
    held = record.phase == "held"
    if record.phase != "canary":  # first it is said that the candidate may have traffic: whoever comes after a kill here gives it back
        weights.shake_hands(run)
        told = f"the router takes {run.address.route}; then {candidate} gets its first requests"
        record = journal.advance(run, "canary", told, held=None)
    if routes.take(run, record):
        record = journal.note(run, "canary", f"users reach {stable} through the router now")
    judge = record.judge or _begin(run, record, stable)
    record = journal.current(run)  # what came while stable's history was waited for, such as a pause, is written on it
    if held:  # a new budget; the evidence stays
        from kfp_components.judge import golden

        seen, answered = judge.state["candidate"]["requests"], golden.pairs(judge.state["golden"]) if "golden" in judge.state else 0
        judge = judge.model_copy(update={"watched_s": 0.0, "requests_before": seen, "pairs_before": answered})
    record.judge = judge
    run.persist(lambda: run.store.save_canary(record))  # before the first request: a process that comes after a kill goes on with it
    split = _split(run, record, weight_percent)
    run.router.set_weight(split)
    seconds = weights.wait_applied(run, split)
    message = f"{weight_percent:g} % of the requests go to {record.candidate_version} (effective after {seconds:.1f} s)"
    journal.write(run, "canary", message, weight_percent=weight_percent)
    manifests.show(run, split.shares, manifests.canary_message(weight_percent, record.candidate_version))


def _split(run: Run, record: Release, weight_percent: float) -> Split:
    assert record.stable_version is not None
    applications = routes.of_release(record)
    return weights.split(run, applications, stable=record.stable_version, candidate=record.candidate_version, weight_percent=weight_percent)


def _begin(run: Run, record: Release, stable: str) -> JudgeState:
    """Counts from before the canary are stable's history, which sets the margins, and not the candidate's traffic.

    Some of it is waited for where a margin depends on it, since the router knows nothing of the time before it stood there.
    """
    from kfp_components.judge.verdict import MARGIN_HISTORY, Judge  # numpy: only the steps that judge pay for it

    rules = run.request.options.judge
    given = None not in (rules.error_margin_percent, rules.client_error_margin_percent, rules.disconnect_margin_percent)
    end = run.clock.monotonic() + HISTORY_S
    page = run.persist(run.router.ledger)
    while not given and counts.history(page, stable).requests < MARGIN_HISTORY and run.clock.monotonic() < end:
        run.pause(min(rules.tick_s, HISTORY_S))
        page = run.persist(run.router.ledger)
    judge = Judge(run.request.options.judge, history=counts.history(page, stable))
    return JudgeState(state=judge.state, cursor=counts.start(page), step=None)


def _assert_same(run: Run, begun_with: str | None, digest: str) -> None:
    if begun_with not in (None, digest):
        raise errors.MeterBroken(
            f"model {run.request.model}: the golden set changed since the canary began (its cases have the digest {digest[:12]}, not "
            f"{begun_with[:12]}): answers to both cannot be judged together; put it back and run the same again, or begin another release"
        )


def _margins(run: Run, cases: Sequence[SmokeCase]) -> Margins | None:
    """What the answers to the golden set are judged by; None without one."""
    if not cases:
        return None
    score, garbage, latency_percent = run.request.options.quality.margins(run.request.family)
    return {"score": score, "garbage": garbage, "latency_percent": latency_percent, "cases": golden_set.digest_of(cases), "of": len(cases)}


class _Look:
    """Renews the weight, reads the counts and judges, look after look."""

    def __init__(self, run: Run, index: int, weight_percent: float | None = None) -> None:
        from kfp_components.judge.verdict import Judge
        from kfp_components.rollout.pairs import Pairs

        record = journal.current(run)
        assert record.stable_version is not None and record.judge is not None  # the step has set the weight
        self.run, self.index, self.rules = run, index, run.request.options.judge
        self.stable, self.candidate = record.stable_version, record.candidate_version
        self.weight_percent = run.request.steps[index] if weight_percent is None else weight_percent
        cases = run.persist(lambda: golden_set.of_request(run.request))
        margins = _margins(run, cases)
        self.judge = Judge(self.rules, record.judge.state, margins=margins)
        if margins is not None:
            _assert_same(run, self.judge.golden_cases, margins["cases"])
        self.pairs_before = record.judge.pairs_before
        self.pairs = Pairs(run, cases, asked_before=self.judge.pairs, budget=self.pairs_before + run.request.options.quality.max_pairs)
        self.looks, self.looked_s, self.began_requests = 0, 0.0, self.judge.candidate_requests
        self.cursor, self.examples = record.judge.cursor, record.judge.examples
        self.watched_s = record.judge.watched_s if record.judge.step == index else 0.0
        self.requests_before = record.judge.requests_before
        self.unwatched = True  # whether what came since the last look may have gone by another weight, as before the first look
        self.looked_at: float | None = None
        self.look_for_versions_at = 0.0
        self.readable_at = self.saved_at = self.renewed_at = run.clock.monotonic()
        self.saved_pairs = self.judge.pairs

    def until_decided(self) -> None:
        """Until the next step may begin. Raises `CanaryFailed`, `MeterBroken`, `Inconclusive`, and what the renewal of the weight raises."""
        from kfp_components.judge import weight

        run, steps = self.run, self.run.request.steps
        with self.pairs:
            while True:
                verdict = self._next()
                if verdict is None or listen.stands(run):
                    continue
                over = self._budget_spent()
                on_promote = over is not None and run.request.options.on_inconclusive == "promote"
                if weight.may_advance(steps, self.index, verdict) or on_promote:
                    self._pass(verdict, over if on_promote else None)
                    return
                if over:
                    unheard = f"; {self.pairs.unheard}" if self.pairs.unheard else ""
                    raise errors.Inconclusive(f"model {run.request.model}: {over}; {verdict.sentence}{unheard}")

    def while_it_stands(self) -> None:
        """Watch at the weight as it is, until it goes on. Raises as `until_decided`, and as `listen.stands`."""
        while listen.stands(self.run):
            self._next()

    def _next(self) -> Verdict | None:
        """A tick, and the look after it. Raises `CanaryFailed` and `MeterBroken`."""
        run = self.run
        run.pause(self.rules.tick_s)
        verdict = self._look()
        if verdict is not None and verdict.kind == "fail":
            raise errors.CanaryFailed(f"model {run.request.model}: {verdict.sentence}")
        if verdict is not None and verdict.kind == "error":
            raise errors.MeterBroken(f"model {run.request.model}: {verdict.sentence}")
        if run.clock.monotonic() - self.saved_at >= SAVE_S or self.judge.pairs - self.saved_pairs >= SAVE_PAIRS:
            self.saved_at, self.saved_pairs = run.clock.monotonic(), self.judge.pairs
            with contextlib.suppress(errors.TemporaryError):
                run.store.save_canary(journal.current(run))
        return verdict

    def _look(self) -> Verdict | None:
        """One look; None when the counts cannot be read just now."""
        run = self.run
        self._renew()
        try:
            page = run.router.ledger()
            tick, cursor = counts.advance(self.cursor, page, self.stable, self.candidate)
        except (errors.Unreachable, KeyError, TypeError) as error:
            unreadable_s = run.clock.monotonic() - self.readable_at
            if unreadable_s > METER_PATIENCE_S:
                raise errors.MeterBroken(f"model {run.request.model}: the counts could not be read for {unreadable_s:.0f} s: {error}") from error
            return None
        now = run.clock.monotonic()
        self.readable_at = now
        passed_s = self.rules.tick_s if self.looked_at is None else min(now - self.looked_at, 3 * self.rules.tick_s)
        self.looked_at = now
        sticky = run.request.options.sticky_header is not None
        seen, stands = self.judge.candidate_requests, bool(journal.current(run).standing)
        verdict = self.judge.observe(
            tick,
            weight_percent=self.weight_percent,
            sticky=sticky,
            unwatched=self.unwatched,
            pairs=[] if stands else self._answered(),
            few_users=self._few_users(),
        )
        self.pairs.wanted = not stands and not self.judge.pairs_suffice
        if stands:  # budgets do not run
            self.requests_before += self.judge.candidate_requests - seen
            self.looks, self.looked_s, self.began_requests = 0, 0.0, self.judge.candidate_requests
        else:
            self.watched_s += passed_s
            self.looked_s += passed_s
            self.looks += 1
        self.cursor, self.unwatched = cursor, False
        self._show(verdict)
        return verdict

    def _answered(self) -> list[Answered]:
        """Golden requests that both versions answered since the last look. Raises `MeterBroken` where they cannot be scored."""
        from kfp_components.quality.examples import examples

        try:
            found = self.pairs.take()
        except errors.InputError as error:
            raise errors.MeterBroken(f"model {self.run.request.model}: the answers to the golden set cannot be scored: {error}") from error
        self.examples = examples((compared for _, compared in found), self.examples)
        return [answered for answered, _ in found]

    def _few_users(self) -> bool:
        """Whether users are to send the candidate too few requests within the step's budget for a verdict, as far as they sent any in these looks."""
        if self.looks < LOOKS:
            return False
        seen = self.judge.candidate_requests - self.began_requests
        expected = seen / self.looked_s * 60 * self.rules.max_minutes
        return expected < self.run.request.options.quality.few_user_requests

    def _renew(self) -> None:
        """One heartbeat, and a write only when that is refused: this process is new, or somebody else has written.

        A few failures in a row are harmless: the lease lasts three looks or more. `ApplicationRemoved` and `ReleaseHeld` end the step; so does
        `Unreachable`, when the weight has lapsed for as long as patience lasts: then stable has everything anyway.
        """
        run, lease_s = self.run, self.run.request.options.lease_s
        now = run.clock.monotonic()
        split = _split(run, journal.current(run), self.weight_percent)
        try:
            renewal = run.router.renew(split)
            if renewal != "renewed":
                self.unwatched = True
            if renewal == "refused":
                run.router.set_weight(split)
                weights.wait_applied(run, split)
            self.renewed_at = now
        except (errors.Unreachable, errors.Conflict):
            if now - self.renewed_at >= lease_s:
                self.unwatched = True
            if now - self.renewed_at > lease_s + PATIENCE_S:
                raise
        if now >= self.look_for_versions_at:
            self.look_for_versions_at = now + lease_s / 3
            with contextlib.suppress(errors.TemporaryError):
                run.router.assert_there(split)

    def _show(self, verdict: Verdict) -> None:
        """The record as it is known here, for the watcher and for what is written next."""
        record = journal.current(self.run)
        record.verdict = Evidence.model_validate(verdict.as_dict())
        record.judge = JudgeState(
            state=self.judge.state,
            cursor=self.cursor,
            step=self.index,
            watched_s=self.watched_s,
            requests_before=self.requests_before,
            pairs_before=self.pairs_before,
            examples=self.examples,
        )
        now = self.run.clock.now_unix_s()
        totals = self.judge.totals()
        point = {"unix_s": now, "weight_percent": self.weight_percent, **totals, "e_fail": verdict.e_fail, "e_pass": verdict.e_pass}
        record.timeline.append(Point.model_validate(point))
        journal.tell(self.run, record)

    def _budget_spent(self) -> str | None:
        if self.watched_s > 60 * self.rules.max_minutes:
            return f"the step's budget of {self.rules.max_minutes:g} watched minutes is spent"
        if self.judge.candidate_requests - self.requests_before > self.rules.max_candidate_requests:
            return f"the budget of {self.rules.max_candidate_requests:,} candidate requests is spent"
        if self.pairs.spent and not self.judge.pairs_suffice:
            return f"the budget of {self.run.request.options.quality.max_pairs:,} golden requests is spent"
        return None

    def _pass(self, verdict: Verdict, why: str | None) -> None:
        run, steps = self.run, self.run.request.steps
        following = f"{steps[self.index + 1]:g} %" if self.index + 1 < len(steps) else "the promotion"
        told = (
            f"enough for {following}: {verdict.sentence}"
            if why is None
            else f"on to {following} as options.on_inconclusive says: {why}; {verdict.sentence}"
        )
        record = journal.write(run, f"judge {self.weight_percent:g} %", told, step_index=self.index + 1, verdict=journal.current(run).verdict)
        with contextlib.suppress(errors.TemporaryError):
            run.store.save_canary(record)
