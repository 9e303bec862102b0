"""Every call of a run x every kind of fault: how each case is made, and what must be true after it (`test_matrix` runs them all).

A case is a run that is disturbed at its n-th call, the time in which nobody runs, and the same command once more, undisturbed, by another process.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from memory_world import MODEL, NAMESPACE, REGISTERED, Outcome, Process, World, asked, live

from kfp_components import errors, names, rollout
from kfp_components.clock import Clock
from kfp_components.cluster import Ref
from kfp_components.cluster.faults import Fault, Record, Script, T
from kfp_components.release import Release
from kfp_components.request import PromoteRequest, RevalidateRules

LEASE_S = 20.0
AWAY_S = 600.0
"""Longer than any patience."""
FINAL = ("promoted", "rolled_back")


# --- what is done -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """A command in a world. ``ends`` is the phase that the undisturbed command comes to, ``then`` the one of the same command afterwards."""

    name: str
    make: Callable[[], World]
    command: Callable[[Process], Release]
    ends: str
    then: str
    exit_code: int
    works: tuple[tuple[str, ...], ...] = (("v1",),)
    """What users may get when a disturbed run is over and the weight's lease has lapsed."""
    own_failures: frozenset[str] = frozenset()
    """Versions whose own answers are bad."""
    before_again: Callable[[World], None] = lambda _world: None
    before: Callable[[], World] | None = None
    """As it was before the release, where ``make`` has begun one."""
    candidate: str = "v2"
    replaces: str | None = None
    """What is `previous` when it is promoted."""
    beyond: str | None = None
    """Only calls that come after those that are the other scenario's too are disturbed."""
    every: int = 5
    """Of the calls that differ the fast ring disturbs every fifth one, another fifth for each kind of fault; the full ring all of them."""


MARGINS = {name: 5.0 for name in ("error_margin_percent", "client_error_margin_percent", "disconnect_margin_percent")}
REQUEST = asked("v2", lease_s=LEASE_S, judge={"judge_latency": False, "tick_s": 1.0, "max_minutes": 60.0, **MARGINS})
QUIET = asked("v2", lease_s=LEASE_S, judge={"judge_latency": False, "tick_s": 5.0, "max_minutes": 0.2, **MARGINS})
GATED = asked(
    "v2",
    lease_s=LEASE_S,
    judge={"judge_latency": False, "tick_s": 1.0, "max_minutes": 60.0, **MARGINS},
    approval={"before": ["promote"]},
)
KEPT = asked("v2", lease_s=LEASE_S, judge={"judge_latency": False, "tick_s": 1.0, **MARGINS}, watch_s=2.0, keep_previous_s=86_400.0)
WRONG = asked("v1", lease_s=LEASE_S, smoke=[{"name": "wrong", "path": "/", "expect": {"/count": 7}}])
FIRST = asked("v1", lease_s=LEASE_S)


def _served(rate_per_s: float = 400.0, *, front: bool = False) -> World:
    """v1 serves, with alias and stub or without."""
    world = World(rate_per_s=rate_per_s)
    world.rayservice(live())
    if front:
        world.front()
    return world


def _brownfield() -> World:
    """What the owner serves himself, of which no release knows."""
    world = World(rate_per_s=400.0)
    world.rayservice(live(), adopted=False)
    world.alias()
    return world


def _bad() -> World:
    world = _served(front=True)
    world.serve.behaviour(f"{MODEL}-v2").answer = lambda n: 500 if n % 3 == 0 else 200
    return world


def _late() -> World:
    """v2 is good as long as v1 gets requests too."""
    world = _served()
    world.serve.behaviour(f"{MODEL}-v2").answer = lambda _n: 500 if world.split()[0] == "v2" else 200
    return world


def _promoted() -> World:
    world = _served(front=True)
    world.promote(KEPT)
    return world


def _empty() -> World:
    """Nobody uses the model yet."""
    world = World(rate_per_s=0.0)
    world.rayservice("applications: []\n")
    return world


def _unfinished() -> World:
    world = _served(front=True)
    world.killed_when(lambda record: record.phase == "canary", REQUEST)
    world.clock.sleep(2 * LEASE_S)
    return world


def _steered(process: Process, word: str, request: PromoteRequest, there: Callable[[Release], bool]) -> Release:
    """A promotion whose release is told ``word`` once, by kubectl, in the second after its record is so, whoever is at work then."""
    world = process.world

    def told() -> None:
        if world.lease() is None:  # nothing to write it on: at the next look
            asked_of.clear()
        else:
            world.kubectl(word)

    asked_of: set[float] = set()

    def watch(record: Release) -> None:
        if there(record) and record.started_unix_s not in asked_of:
            asked_of.add(record.started_unix_s)
            world.soon = told

    process.watch = watch
    return process.promote(request)


DEMOTE = RevalidateRules(requests=1, record_requests=100, concurrency=1, latency_margin_percent=1000, error_margin_percent=50, demote=True)
"""A look is one request here: what the tests know already accuses the champion."""


def _deployed() -> World:
    """v1 is the first version."""
    world = World(rate_per_s=400.0)
    world.rayservice("applications: []\n")
    world.deploy(FIRST)
    return world


def _decayed(keep_s: float) -> World:
    """Then v2 was promoted, and answers wrongly since: one look more, and it has decayed."""
    world = _deployed()
    world.promote(asked("v2", lease_s=LEASE_S, judge=REQUEST.options.judge.model_dump(), watch_s=2.0, keep_previous_s=keep_s))
    looking = DEMOTE.model_copy(update={"requests": 100, "demote": False})
    _look(world.process(), looking)
    world.serve.behaviour(f"{MODEL}-v2").probe = lambda _n: False
    while _look(world.process(), looking).outcome != "decayed":
        world.clock.sleep(86_400.0)
    return world


def _look(process: Process, rules: RevalidateRules) -> rollout.Revalidation:
    return rollout.revalidate_model(process.open_rollback(REQUEST), rules)


def _demote(process: Process) -> Release:
    """As the command does it that looks at this model alone. What came of a demotion is no error of it: users have the champion, or the one before."""
    try:
        found = _look(process, DEMOTE)
    except errors.Conflict as error:
        raise errors.ReleaseHeld(str(error)) from error
    record = process.world.record()
    if found.look.demotion == "demoted, users get v1" or (found.outcome == "not enough" and record.stable_now == "v1"):
        return record
    told = f"{found.sentence}; users get {record.stable_now}"
    if any(words in told for words in ("another run", "another request", "lost to nobody")):
        raise errors.ReleaseHeld(told)
    raise {"rolled_back": errors.RolledBack, "held": errors.Inconclusive}.get(record.phase, errors.ReleaseLeft)(told)


def _canary(record: Release) -> bool:
    return record.phase == "canary" and record.weight_percent > 0


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("good", _served, lambda p: p.promote(REQUEST), "promoted", "promoted", 0, works=(("v1",), ("v2",))),
        Scenario("bad", _bad, lambda p: p.promote(REQUEST), "rolled_back", "rolled_back", 4, own_failures=frozenset({"v2"})),
        Scenario(
            "quiet",
            functools.partial(_served, 0.0),
            lambda p: p.promote(QUIET),
            "held",
            "promoted",
            5,
            before_again=lambda world: setattr(world, "rate_per_s", 400.0),
            works=(("v1",), ("v2",)),
        ),
        Scenario("first", _empty, lambda p: p.deploy(FIRST), "promoted", "promoted", 0, works=((f"nothing at /{MODEL}",), ("v1",)), candidate="v1"),
        Scenario(
            "first-bad",
            _empty,
            lambda p: p.deploy(WRONG),
            "rolled_back",
            "rolled_back",
            4,
            works=((f"nothing at /{MODEL}",), ("v1",)),
            candidate="v1",
        ),
        Scenario("adopt", _brownfield, lambda p: p.adopt(REQUEST, rollout.Asked(version="v1")), "promoted", "promoted", 0, candidate="v1"),
        Scenario(
            "late-bad",
            _late,
            lambda p: p.promote(REQUEST),
            "rolled_back",
            "rolled_back",
            4,
            works=(("v1",), ("v2",)),
            own_failures=frozenset({"v2"}),
            beyond="good",
        ),
        Scenario(
            "undo-promotion",
            _promoted,
            lambda p: p.roll_back(KEPT),
            "rolled_back",
            "rolled_back",
            0,
            works=(("v1",), ("v2",)),
            before=functools.partial(_served, front=True),
        ),
        Scenario("roll-back", _unfinished, lambda p: p.roll_back(REQUEST), "rolled_back", "rolled_back", 0),
        Scenario("abort", _served, lambda p: _steered(p, "abort", REQUEST, _canary), "rolled_back", "rolled_back", 4, beyond="good"),
        Scenario(
            "approve",
            _served,
            lambda p: _steered(p, "approve", GATED, lambda record: record.waits is not None),
            "promoted",
            "promoted",
            0,
            works=(("v1",), ("v2",)),
            beyond="good",
        ),
        Scenario(
            "demote-kept",
            functools.partial(_decayed, 86_400.0),
            _demote,
            "rolled_back",
            "rolled_back",
            0,
            works=(("v1",), ("v2",)),
            before=_deployed,
        ),
        Scenario(
            "demote",
            functools.partial(_decayed, 2.0),
            _demote,
            "promoted",
            "promoted",
            0,
            works=(("v2",), ("v1",)),
            candidate="v1",
            replaces="v2",
            every=15,
            beyond="demote-kept",
        ),
    )
}

# --- what goes wrong ----------------------------------------------------------------------------------------------------------------

KINDS = ("error", "answer-lost", "away", "denied", "killed-before", "killed-after", "taken-over")


class Disturbed(Script):
    """A script of one fault. Those that last hit what they are about: an outage its owner, a right that is missing the same calls."""

    def __init__(self, kind: str, at: int, clock: Clock, meanwhile: Callable[[], None]) -> None:
        faults = {
            "error": [Fault("error", at)],
            "answer-lost": [Fault("answer lost", at)],
            "away": [Fault("error", at, for_s=AWAY_S)],
            "denied": [Fault("error", at, error=errors.PermissionDenied, calls=1_000_000)],
            "killed-before": [Fault("killed before", at)],
            "killed-after": [Fault("killed after", at)],
            "taken-over": [],
        }
        super().__init__(*faults[kind], clock=clock)
        self.kind, self.at, self.meanwhile = kind, at, meanwhile
        self.first: Record | None = None

    def play(self, owner: str, method: str, what: str, act: Callable[[], T], *, write: bool) -> T:
        if self.kind == "taken-over" and len(self.calls) + 1 == self.at:
            self.meanwhile()
        return super().play(owner, method, what, act, write=write)

    def _hits(self, fault: Fault, call: Record) -> bool:
        if call.number == self.at:
            self.first = call
        if not super()._hits(fault, call) or self.first is None:
            return False
        if self.kind == "away":
            return call.owner == self.first.owner
        if self.kind == "denied":
            return _about(call) == _about(self.first)
        return True


def _about(call: Record) -> tuple[str, str, str]:
    return call.owner, call.method, call.what.split(" ")[0]


# --- what must be true --------------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """One scenario, disturbed at one call. ``reasons`` is what is not as it has to be, each with its class first."""

    scenario: Scenario
    kind: str
    at: int
    reasons: list[str] = field(default_factory=list)
    call: str = ""
    end: str = ""

    def __str__(self) -> str:
        return f"{self.scenario.name}/{self.kind}/{self.at}"

    def play(self) -> Case:
        world = self.world = self.scenario.make()
        self.text, self.others, self.phase_before = world.text(), world.neighbours(), _phase(world)
        self.front = _front(self.scenario.before() if self.scenario.before else world)
        self.fenced: dict[str, Any] = {}
        script = Disturbed(self.kind, self.at, world.clock, self._somebody_else)
        process = world.process(script)
        end = process.outcome(lambda: self.scenario.command(process))
        self.call = str(script.calls[self.at - 1]) if len(script.calls) >= self.at else f"call {self.at}: never came"
        self.end = str(end)
        self._users("when the run had ended")
        if self.fenced:
            for what, now in _state(world).items():
                self._must(now == self.fenced[what], "fenced", f"{what} was changed by the run that was taken over from")
        world.clock.sleep(2 * LEASE_S + 1)
        self._users("when nobody ran")
        got = world.users_get()
        self._must(got in self.scenario.works, "users", f"they get {', '.join(got)} when the lease has lapsed")
        if self.scenario.name == "late-bad" and _phase(world) == "promoted" and world.record().candidate_version == self.scenario.candidate:
            self._must(self._blind(), "fault", "promoted unwatched")
            return self
        if not end.killed:
            self._exit_code(end)
            self._words(end, got)
        self._again()
        return self

    def _blind(self) -> bool:
        """Whether nobody could see that the version is bad when it had all traffic."""
        told = any("at 100 %, then no more" in event.message for event in self.world.record().events)
        return told and self.kind in ("away", "denied") and "/-/ledger" in self.call

    def _must(self, true: bool, what: str, reason: str) -> None:
        if not true:
            self.reasons.append(f"{what}: {reason}")

    def _users(self, when: str) -> None:
        world = self.world
        for got in world.users_get():
            self._must(got in ("v1", "v2") or (got,) in self.scenario.works, "users", f"{when} they get {got}")
        self._must(not world.serve.lost, "users", f"{when} requests had reached nothing: {'; '.join(world.serve.lost[:2])}")
        failed = {version: number for version, number in world.serve.failed.items() if version not in self.scenario.own_failures}
        self._must(not failed, "users", f"{when} requests had failed: {failed}")
        self._must(world.neighbours() == self.others, "neighbours", f"{when} they were changed")
        world.serve.lost.clear()

    def _somebody_else(self) -> None:
        """Another process takes the release over while this one is paused, and runs to its end. One that had not begun yet may begin afterwards."""
        begun = _phase(self.world) != self.phase_before
        self.world.clock.sleep(2 * LEASE_S + 1)
        other = self.world.process()
        end = other.outcome(lambda: self.scenario.command(other))
        self._must(end.exit_code in (self.scenario.exit_code, 3), "other", f"the run that took over {end}")
        if begun:
            self.fenced = _state(self.world)

    def _exit_code(self, end: Outcome) -> None:
        phase = _phase(self.world)
        scenario, code = self.scenario, end.exit_code
        untouched = phase == self.phase_before and self.world.text() == self.text
        held = isinstance(end.error, errors.ReleaseHeld) and self.kind == "taken-over"
        fits = {
            0: phase == scenario.ends and scenario.exit_code == 0,
            2: untouched,
            3: phase not in FINAL or phase == self.phase_before or held or untouched,
            4: phase in ("rolled_back", "rolling_back"),
            5: phase == "held",
            6: phase == "held",
        }
        self._must(fits.get(code, False), "exit", f"{code} with phase {phase}")
        if self.kind in ("error", "answer-lost"):
            self._must(code == scenario.exit_code, "retry", f"a fault that comes once stopped the run: {end}")
        http = "http." in self.call
        if scenario.ends == "promoted" and code == 4:
            self._must(http and self.kind == "denied", "fault", "a fault of the surroundings took a good version back")
        if scenario.ends != "held":
            self._must(code not in (5, 6) or http, "fault", f"exit {code} without a fault of the meter")
        self._must("promoted" in (scenario.ends, scenario.then, self.phase_before) or phase != "promoted", "fault", "a bad version was promoted")

    def _words(self, end: Outcome, got: tuple[str, ...]) -> None:
        if end.exit_code == 0 or _phase(self.world) == self.phase_before:
            return
        if "nothing was touched" in end.words:
            self._must(False, "words", "they say that nothing was touched")
        if end.exit_code in (3, 4, 5, 6) and not isinstance(end.error, errors.ReleaseHeld) and not got[0].startswith("nothing"):
            self._must(all(version in end.words for version in got), "words", f"they do not say that users get {', '.join(got)}")

    def _again(self) -> None:
        world, scenario = self.world, self.scenario
        scenario.before_again(world)
        process = world.process()
        end = process.outcome(lambda: scenario.command(process))
        phase = _phase(world)
        if scenario.name == "late-bad" and phase == "promoted" and self._blind():
            return
        self._must(phase == scenario.then, "again", f"the same command again comes to {phase}: {end}")
        denied = self.kind == "denied"  # what may not be removed is left, and said
        left = denied and scenario.name == "first-bad"  # so the bad version is what users get
        if scenario.exit_code in (0, 4):
            self._must(left or end.exit_code == scenario.exit_code, "again", f"the same command again {end}")
        self._users("after the same command again")
        if phase != scenario.then:
            return
        self._must(denied or world.lease() is None, "left over", "the Lease")
        candidate = scenario.candidate
        if scenario.then == "promoted":
            self._must(world.users_get() == (candidate,), "again", f"users get {world.users_get()}")
        else:
            self._must(left or world.users_get() == scenario.works[0], "again", f"users get {world.users_get()}")
            self._must(denied or f"{MODEL}-{candidate}" not in world.serve.applications(), "left over", "the candidate's application")
            for name, was in self.front.items():
                late = self.kind == "taken-over"  # written without a compare-and-swap: an alias or a stub of what nobody serves may be left
                self._must(denied or late or _front(world)[name] == was, "left over", f"{name} is not as it was before")
        self._names()

    def _names(self) -> None:
        """Aliases, stub, alias Service and what serves say the same. What was refused or away is mended by `tidy`, what nobody serves has no name."""
        world, scenario = self.world, self.scenario
        if self.kind in ("denied", "away", "taken-over"):
            process = world.process()
            end = process.outcome(lambda: process.tidy(REQUEST))
            self._must(end.error is None, "names", f"tidy {end}")
        aliases = world.registry.aliases(REGISTERED)
        self._must("candidate" not in aliases, "names", f"alias candidate is still on {aliases.get('candidate')}")
        if scenario.works[0][0].startswith("nothing") and scenario.then != "promoted":
            self._must("champion" not in aliases, "names", f"champion is {aliases.get('champion')}, and nothing serves")
            return
        replaced = scenario.replaces or ("v1" if scenario.then == "promoted" and scenario.candidate == "v2" else None)
        self._must(aliases.get("previous") == replaced, "names", f"previous is {aliases.get('previous')}")
        said = world.said()
        if not self.front["the stub"] and scenario.then != "promoted":
            said = {"users": said["users"], "champion": said["champion"]}  # there was no stub before
        if self.kind == "denied":
            said.pop("stub", None), said.pop("split", None)
        self._must(len(set(said.values())) == 1, "names", f"they say {said}")


def _phase(world: World) -> str | None:
    record = world.stored()
    return None if record is None else record.phase


def _front(world: World) -> dict[str, Any]:
    """Alias and stub, as their owner cares for them."""

    def part(kind: str, name: str) -> Any:
        found = world.cluster.get(Ref(kind, name, NAMESPACE))
        return found and (found["spec"], found["metadata"].get("annotations"), found["metadata"].get("labels"))

    return {"the alias": part("Service", names.alias(MODEL)), "the stub": part("InferenceService", MODEL)}


def _state(world: World) -> dict[str, Any]:
    """What a run that was taken over from must leave alone; alias and stub are written without a compare-and-swap, the same by both."""
    record = world.stored()
    return {
        "serveConfigV2": world.text(),
        "the record": None if record is None else record.model_dump(exclude={"events"}),
    }


@functools.cache
def calls(scenario: str) -> tuple[Record, ...]:
    """Those of the undisturbed run. Raises AssertionError when that does not end as it has to: then no case would say anything."""
    found = SCENARIOS[scenario]
    world = found.make()
    script = Script(clock=world.clock)
    process = world.process(script)
    end = process.outcome(lambda: found.command(process))
    assert script.calls and not end.killed, str(end)
    return tuple(script.calls)


# --- which calls --------------------------------------------------------------------------------------------------------------------


def different(scenario: str, kind: str) -> list[int]:
    """The calls at which a fault of this kind can come to something else than at another one.

    A process that is killed leaves what it has written, so only its writes count; so it is with answers that are lost. A fault of a read that is made
    again with no write of this run in between is the same fault, and so is one of a review of rights beside another one. Events are no state.
    `calls` are all.
    """
    found: dict[Any, int] = {}
    written = 0
    known = calls(beyond) if (beyond := SCENARIOS[scenario].beyond) else ()
    same = sum(1 for _ in itertools.takewhile(lambda pair: str(pair[0]) == str(pair[1]), zip(calls(scenario), known, strict=False)))
    for call in calls(scenario)[same:]:
        if (call.write or call.owner == "registry") and "Event " not in call.what:
            written = call.number
        elif kind.startswith("killed") or kind == "answer-lost":
            continue
        what = "" if call.method == "may" else call.what
        found.setdefault((call.owner, call.method, what, written), call.number)
    return sorted({same + 1, *found.values()})


def spread(scenario: str, kind: str) -> list[int]:
    """The calls of the fast ring."""
    every = SCENARIOS[scenario].every
    return different(scenario, kind)[KINDS.index(kind) % every :: every]


# --- what came out ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """A case that was played."""

    name: str
    call: str
    end: str
    reasons: tuple[str, ...]


def play(scenario: str, kind: str, at: int) -> Result:
    """One case, in any process."""
    case = Case(SCENARIOS[scenario], kind, at)
    case.play()
    return Result(str(case), case.call, case.end, tuple(case.reasons))


RESULTS: dict[tuple[str, str], list[Result]] = {}
"""Scenario and kind -> the cases that were run."""


def told(cases: list[Result]) -> str:
    """The failed cases of a cell: how many of each class of reason, then the first ones in full."""
    failed = [case for case in cases if case.reasons]
    classes = Counter(found for case in failed for found in {reason.split(":")[0] for reason in case.reasons})
    lines = [f"{len(cases) - len(failed)} of {len(cases)} cases are as they have to be; not so: {dict(classes.most_common())}"]
    for case in failed[:5]:
        lines.append(f"{case.name}: {case.call}; the run {case.end}")
        lines += [f"    {reason}" for reason in case.reasons]
    return "\n".join(lines)


def table() -> list[str]:
    """Scenario x kind: passed / total."""
    kinds = [kind for kind in KINDS if any(found == kind for _, found in RESULTS)]
    lines = ["".join([f"{'':<12}", *(f"{kind:>16}" for kind in kinds)])]
    for name in SCENARIOS:
        if any(scenario == name for scenario, _ in RESULTS):
            cells = [RESULTS.get((name, kind), []) for kind in kinds]
            lines.append(f"{name:<12}" + "".join(f"{f'{sum(not c.reasons for c in cell)}/{len(cell)}':>16}" for cell in cells))
    return lines
