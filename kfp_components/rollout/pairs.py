"""Golden requests beside the canary: cases of the golden set, each to both versions, pinned, and how good the answers are.

Cases are drawn at random, with replacement: what the tests of `judge.quality` assert is about the set as it is drawn from. Which version is asked
first is drawn too, since the second may find warm caches. The draws follow from the release and the number of the pair, so a run that goes on
where another was killed asks what that would have asked.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from random import Random
from types import TracebackType
from typing import Any

from kfp_components import errors, names
from kfp_components.judge.golden import Answered
from kfp_components.judge.quality import Pair
from kfp_components.probes import Prober, ProbeResult, golden
from kfp_components.probes.http import media_bytes
from kfp_components.quality.examples import Compared
from kfp_components.quality.score import Score
from kfp_components.request import SmokeCase
from kfp_components.rollout import journal, judge_model
from kfp_components.rollout.heard import Ear
from kfp_components.rollout.run import Run

IDLE_S = 0.05
"""How often a thread that has nothing to do looks whether it has."""


class Pairs:
    """Sends pairs while it is entered, in threads of its own, and stops at its end; ``take`` hands out what was answered.

    In a simulation (a run with a transport of its own) there are no threads: ``take`` sends what is due by the run's clock.
    """

    def __init__(self, run: Run, cases: Sequence[SmokeCase], *, asked_before: int, budget: int) -> None:
        """``asked_before``: pairs of this canary that were judged before; the next one has that number, the last one is below the ``budget``."""
        record = journal.current(run)
        assert record.stable_version is not None
        self.rules, self.cases, self.family = run.request.options.quality, cases, run.request.family
        self.versions = (record.stable_version, record.candidate_version)
        self.wanted = True
        """Set by who judges: none are sent while it is not."""
        self._clock, self._identity = run.clock, record.identity
        self._simulated = run.transport is not None
        self._run, self._probers = run, dict[str, Prober]()
        self._ear = Ear(self.rules.asr_url, run.cluster, run.transport) if self.rules.asr_url else None
        self._grader = judge_model.of_request(run.request, run.cluster) if cases else None
        self.unheard: str | None = None
        """Why the last pair that was not judged was not: who should say which words are spoken, or grade an answer, did not."""
        self._number, self._credit, self._paid_at = asked_before, 0.0, run.clock.monotonic()
        self._answered: dict[int, tuple[Answered, Compared] | None] = {}
        self._given, self._budget = asked_before, budget
        self._failed: BaseException | None = None
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Pairs:
        if not self.cases:
            return self
        run = self._run
        endpoint = run.cluster.endpoint(run.address.alias, run.request.namespace, names.SERVE_PORT)
        self._probers = {
            version: Prober(endpoint, run.request.model, run.address.prefix, run.transport, version=version) for version in self.versions
        }
        if not self._simulated:
            self._threads = [
                threading.Thread(target=self._work, name=f"golden requests {number}", daemon=True) for number in range(self.rules.concurrency)
            ]
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nobody waits for what is under way: its answer is not judged any more."""
        self._stop.set()
        for prober in self._probers.values():
            prober.__exit__(kind, error, trace)
        for asked in (self._ear, self._grader):
            if asked is not None:
                asked.close()

    def take(self) -> list[tuple[Answered, Compared]]:
        """What was answered since the last call, for the judge and for the report. Raises `RequestInvalid` where an evaluator cannot take a case.

        In the order in which it was asked: what came back sooner than an older pair waits for it, else slow ones would be judged last, or never.
        """
        if self._simulated:
            while (number := self._next()) is not None:
                self._one(number)
        found = []
        with self._lock:
            while self._given in self._answered:
                found.append(self._answered.pop(self._given))
                self._given += 1
        if self._failed is not None:
            raise self._failed
        return [pair for pair in found if pair is not None]

    @property
    def spent(self) -> bool:
        """Whether all that may be asked was, and handed out."""
        return bool(self.cases) and self._given >= self._budget

    def _next(self) -> int | None:
        """The number of the pair that is due, None when none is."""
        with self._lock:
            now = self._clock.monotonic()
            rate_per_s = self.rules.pairs_per_minute / 60
            self._credit = min(self._credit + rate_per_s * (now - self._paid_at), max(1.0, self.rules.concurrency, 2 * rate_per_s))
            self._paid_at = now
            if not (self.cases and self.wanted) or self._credit < 1 or self._number >= self._budget:
                return None
            self._credit -= 1
            self._number += 1
            return self._number - 1

    def _work(self) -> None:
        while not self._stop.is_set():
            number = self._next()
            if number is None:
                self._stop.wait(IDLE_S)
            else:
                self._one(number)

    def _one(self, number: int) -> None:
        draw = Random(f"{self._identity}/{number}")
        case, candidate_first = draw.choice(self.cases), draw.random() < 0.5
        found = None
        try:
            answers = {version: self._ask(case, version) for version in (reversed(self.versions) if candidate_first else self.versions)}
            if any(answer.unreachable for answer in answers.values()):  # nobody was there to be asked
                self._stop.wait(0 if self._simulated else IDLE_S)
            else:
                found = self._compared(case, *(answers[version] for version in self.versions))
        except errors.Unreachable as error:  # of who hears or grades
            self.unheard = str(error)
            self._stop.wait(0 if self._simulated else IDLE_S)
        except BaseException as error:
            if not self._stop.is_set():
                self._failed = error
        with self._lock:
            self._answered[number] = found

    def _ask(self, case: SmokeCase, version: str) -> ProbeResult:
        (answer,) = self._probers[version].run([case])
        return answer

    def _compared(self, case: SmokeCase, stable: ProbeResult, candidate: ProbeResult) -> tuple[Answered, Compared]:
        was, now = (self._score(case, answer) for answer in (stable, candidate))
        seconds = (None, None) if was.garbage or now.garbage else (stable.seconds or None, candidate.seconds or None)  # a quick error is not quick
        pair = Pair(was.value, now.value, was.garbage, now.garbage, *seconds)
        return Answered(pair, was.note if was.garbage else ""), Compared(case.name, _request(case), stable.value, candidate.value, was, now)

    def _score(self, case: SmokeCase, answer: ProbeResult) -> Score:
        found = golden.score(case, answer, self.family, self._ear)
        if self._grader is None or case.reference is None or (case.family or self.family) != "llm":
            return found
        return self._grader.score(case, answer.value, found)


def _request(case: SmokeCase) -> Any:
    """What was asked, for the report: the recording where one goes with it."""
    return case.body if case.media is None else media_bytes(case.media, case.name)
