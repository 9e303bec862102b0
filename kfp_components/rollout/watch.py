"""After the switch: the version that has all traffic is watched, against what stable's record in the canary was."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from kfp_components import errors
from kfp_components.judge import counts
from kfp_components.release import Evidence, JudgeState, Point
from kfp_components.rollout import journal
from kfp_components.rollout.canary import METER_PATIENCE_S
from kfp_components.rollout.run import Run

if TYPE_CHECKING:
    from kfp_components.judge.counts import Cursor

SAVE_S = 30.0
"""How often what was seen is written down; a process that comes after a kill watches what is left then."""


def watch(run: Run) -> str:
    """Watch for ``options.watch_s`` of time in which somebody looked. Returns what was seen, in a sentence.

    Raises `CanaryFailed` when the version fails, refuses or is given up on more often than stable in the canary by more than the margins. A broken
    meter is not its fault: then the sentence says that it was not watched.
    """
    record, options = journal.current(run), run.request.options
    if options.watch_s == 0:
        return f"{run.request.version} is not watched at 100 %: options.watch_s is 0"
    if record.judge is None or record.stable_version is None:
        return f"{run.request.version} is not watched at 100 %: what stable did in the canary is not known any more"
    watching = _Watch(run, record.judge)
    saved_at = readable_at = run.clock.monotonic()
    while watching.watched_s < options.watch_s:
        pause_s = min(options.judge.tick_s, options.watch_s - watching.watched_s)
        run.pause(0.0 if watching.cursor is None else pause_s)
        try:
            watching.look(pause_s)
            readable_at = run.clock.monotonic()
        except (errors.Unreachable, errors.MeterBroken, KeyError, TypeError, ValueError) as error:
            unreadable_s = run.clock.monotonic() - readable_at
            if isinstance(error, errors.MeterBroken) or unreadable_s > METER_PATIENCE_S:
                return f"{run.request.version} was watched for {watching.watched_s:g} of {options.watch_s:g} s at 100 %, then no more: {error}"
            run.pause(pause_s)
            continue
        if run.clock.monotonic() - saved_at >= SAVE_S or watching.new or watching.watched_s >= options.watch_s:
            saved_at, watching.new = run.clock.monotonic(), False
            with contextlib.suppress(errors.TemporaryError):
                run.store.save_canary(journal.current(run))
    return f"{run.request.version} was watched for {options.watch_s:g} s at 100 %: {watching.told()}"


class _Watch:
    """Reads the counts and holds them against stable's record, look after look."""

    def __init__(self, run: Run, known: JudgeState) -> None:
        from kfp_components.judge import alone  # numpy: only the steps that judge pay for it

        self.run, self.known = run, known
        self.new = known.watch is None
        self.state = alone.start(known.state) if known.watch is None else known.watch
        self.cursor: Cursor | None = None if known.watch is None else known.cursor
        self.watched_s = 0.0 if known.watch is None else known.watched_s

    def look(self, since_s: float) -> None:
        """What came since the last look; the first look of all says from where to count. Raises `CanaryFailed`, `MeterBroken`, `Unreachable`."""
        run, record = self.run, journal.current(self.run)
        assert record.stable_version is not None
        page = run.router.ledger()
        if self.cursor is None:
            self.cursor = counts.start(page)
            self._keep(None)
            return
        tick, cursor = counts.advance(self.cursor, page, record.stable_version, record.candidate_version)
        if tick.broken:
            raise errors.MeterBroken(tick.broken)
        self.cursor = cursor
        self.watched_s += since_s
        self._judge(tick.candidate)

    def _judge(self, since: counts.ArmCounts) -> None:
        from kfp_components.judge import alone
        from kfp_components.judge.verdict import NAMES

        run = self.run
        self.state = alone.update(self.state, since)
        metrics = alone.evidence(self.state)
        e_fail, worst = alone.combined(metrics)
        self._keep(e_fail)
        if e_fail >= 1 / run.request.options.judge.alpha_fail:
            sentence = (
                f"{run.request.version} failed after the switch, when it had all traffic: worse in {NAMES[worst]} than stable was in the canary; "
                f"{self.told()}; evidence {min(e_fail, 1e9):,.0f} : 1, bound {1 / run.request.options.judge.alpha_fail:,.0f} : 1"
            )
            found = {name: {"e_fail": value, "e_pass": None} for name, value in metrics.items()}
            journal.current(run).verdict = Evidence(kind="fail", sentence=sentence, e_fail=e_fail, metrics=found)
            raise errors.CanaryFailed(f"model {run.request.model}: {sentence}")

    def told(self) -> str:
        """The counts since the switch."""
        seen = self.state
        refused = f", refused {seen['client_errors']:,} (4xx)" if seen["client_errors"] else ""
        gave_up = f", {seen['disconnects']:,} gave up" if seen["disconnects"] else ""
        return f"it failed {seen['failures']:,} of {seen['requests']:,} requests{refused}{gave_up}"

    def _keep(self, e_fail: float | None) -> None:
        """The record as it is known here, for the watcher and for what is written next."""
        record, known = journal.current(self.run), self.known
        assert self.cursor is not None
        record.judge = known.model_copy(update={"cursor": self.cursor, "watch": self.state, "watched_s": self.watched_s})
        before = known.state["candidate"]
        totals = {key: {"stable": known.state["stable"].get(key, 0), "candidate": before.get(key, 0) + self.state[key]} for key in COUNTED}
        point = {"unix_s": self.run.clock.now_unix_s(), "weight_percent": 100.0, "e_fail": e_fail, **totals}
        record.timeline.append(Point.model_validate(point))
        journal.tell(self.run, record)


COUNTED = ("requests", "failures", "client_errors", "disconnects")
