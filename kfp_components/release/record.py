"""The record of one promotion, typed. Times are seconds since 1970; weights are percent; counts are cumulative.

What a newer version of the library added is ignored on reading; what an older one wrote is understood (`parse`). A number that JSON does not have
(NaN, endless) was written as null and is read as None.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from kfp_components import errors, names, phases
from kfp_components.phases import Phase
from kfp_components.request import PromoteRequest, parse_stored

SCHEMA_VERSION = 4
"""Of the records that this library writes. 1 had no such field, kept timeline and judge in the record, and ended in a phase `inconclusive`; in 2 the
router stood on the public route for good, and every application and route was named after its model and version."""

MAX_RECORD_BYTES = 9_800
"""Of the record in its ConfigMap: it is read at every step and written at every change, so it stays below 10 kB."""

SENTENCE_CHARACTERS = 600
PAST_RELEASES = 20
TIMELINE_POINTS = 160
FITS = ((100, 400, PAST_RELEASES, 200), (60, 240, 12, 160), (40, 160, 8, 120), (24, 120, 5, 100), (16, 80, 3, 80), (8, 80, 1, 60))
"""How much is kept, until it fits: events, characters of each message, past releases, characters of each sentence."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Event(_Part):
    """Something that was done, or failed. Two with the same step, message and time are one: a write that is tried again does not double it."""

    unix_s: float = 0.0
    step: str = ""
    message: str = ""
    ok: bool = True


class Point(_Part):
    """A look at the counts: per arm (``stable``, ``candidate``) the totals so far. Older records lack some of them."""

    unix_s: float = 0.0
    weight_percent: float = 0.0
    requests: dict[str, int] = {}
    failures: dict[str, int] = {}
    client_errors: dict[str, int] = {}
    disconnects: dict[str, int] = {}
    latency_ms: dict[str, dict[str, float | None]] = {}
    pairs: int | None = Field(None, description="golden requests that both versions answered")
    scores: dict[str, float] = Field({}, description="mean score of those answers, of 1")
    garbage: dict[str, int] = Field({}, description="how many of them were useless")
    e_fail: float | None = None
    e_pass: float | None = None


class Failure(_Part):
    """Why it is taken back: name of the error in `kfp_components.errors`, and its message."""

    error: str = "RolledBack"
    message: str = ""


class Rollback(_Part):
    """How the way back went: seconds until stable answered everything; users' requests that the candidate answered meanwhile, None when unknown."""

    seconds: float
    leaked_requests: int | None = None
    reason: str = ""


class Held(_Part):
    """Why it is held: name of the error in `kfp_components.errors`, its message, and since when."""

    error: str
    message: str
    since_unix_s: float = 0.0


class Previous(_Part):
    """The version that users had before the switch. It stays deployed until then at least, and as long the promotion may be taken back."""

    version: str
    until_unix_s: float


class NamesBefore(_Part):
    """How the names were before they followed the traffic: of the stub the fields that are written (None: there was no stub), and the registry's
    aliases (None: it could not be asked)."""

    stub: dict[str, Any] | None = None
    aliases: dict[str, str] | None = None


class Paused(_Part):
    """Who paused it, since when, and why."""

    by: str
    since_unix_s: float = 0.0
    reason: str = ""


class Waits(_Part):
    """What it waits for approve before (``promote``, or a step such as ``25 %``), and until when."""

    before: str
    until_unix_s: float


class Approved(_Part):
    """What was approved, by whom, and when."""

    before: str
    by: str
    at_unix_s: float = 0.0


class Evidence(_Part):
    """The judge's last verdict. ``metrics`` holds ``e_fail`` and ``e_pass`` of each metric."""

    kind: str = "inconclusive"
    sentence: str = ""
    e_fail: float | None = None
    e_pass: float | None = None
    metrics: dict[str, dict[str, float | None]] = {}

    def _repr_html_(self) -> str:
        from kfp_components.judge import verdict

        return verdict.shown(self.kind, self.sentence, {**self.metrics, "together": {"e_fail": self.e_fail, "e_pass": self.e_pass}})


class JudgeState(_Part):
    """With this a judge goes on exactly where another one stopped.

    ``watched_s``: seconds of the step during which somebody looked, which is what budgets of time count. ``requests_before``: candidate requests
    that were judged before the step, ``pairs_before``: golden requests before the budget began
    anew. ``examples``: of answers to the golden set (`quality.examples`).
    ``watch``: what was seen after the switch; then cursor and watched time are about that.
    """

    state: dict[str, Any]
    cursor: dict[str, Any]
    step: int | None = None
    watched_s: float = 0.0
    requests_before: int = 0
    pairs_before: int = 0
    examples: list[dict[str, Any]] = []
    watch: dict[str, Any] | None = None


class PastRelease(_Part):
    """One line for an earlier release of the model."""

    candidate_version: str = ""
    phase: Phase = "rolled_back"
    finished_unix_s: float | None = None
    sentence: str = ""


class Adoption(_Part):
    """What was there when the model was taken over, and what was made then; `adopt --undo` takes away what was made and nothing else."""

    version: str
    application: str
    at_unix_s: float = 0.0
    made: list[str] = Field([], description="what was created: Service, or Service label where one was there, InferenceService")
    aliases: dict[str, str] | None = Field(None, description="of the registry as they were before; None when it could not be asked")


class Release(BaseModel):
    """The record of one promotion. Times are seconds since 1970; weights are percent; counts are cumulative."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)  # a request may hold a secret

    schema_version: int = SCHEMA_VERSION
    epoch: int = Field(0, description="raised by whoever takes the release over; what an older one writes is refused")
    model: str
    namespace: str
    rayservice: str
    candidate_version: str
    stable_version: str | None = Field(None, description="what users had before; None for the first version of a model")
    alias: str | None = Field(None, description="Service that clients call; None: {model}-predictor")
    route: str | None = Field(None, description="route prefix that users call; None: /{model}")
    candidate_application: str | None = Field(None, description="name of its application; None: {model}-{version}")
    stable_application: str | None = Field(None, description="name of its application; None: {model}-{version}")
    route_implied: bool = Field(False, description="stable's application stood at / without saying so")
    adoption: Adoption | None = Field(None, description="what was there before the first release, once it was adopted")
    router_env: dict[str, Any] | None = Field(
        {}, description="runtime_env of its router, found out when it began; None: found out again at the deploy"
    )
    request: dict[str, Any]
    request_digest: str
    phase: Phase = "prepared"
    holder: str = ""
    steps: list[float] = []
    step_index: int = 0
    weight_percent: float = 0.0
    started_unix_s: float = 0.0
    finished_unix_s: float | None = None
    verdict: Evidence | None = None
    judge: JudgeState | None = Field(None, description="lies apart, see `ReleaseStore.save_canary`")
    failure: Failure | None = None
    held: Held | None = Field(None, description="why it is held, while it is")
    paused: Paused | None = Field(None, description="by whom, while it is")
    waits: Waits | None = Field(None, description="for approve, while it does")
    approved: list[Approved] = []
    rollback: Rollback | None = None
    switched_unix_s: float | None = Field(None, description="when the candidate had all traffic")
    previous: Previous | None = Field(None, description="the old version, from the switch until it is removed")
    names_before: NamesBefore | None = Field(None, description="as they were, once they have followed")
    made: list[str] = Field([], description="what this release created (alias, stub, a label of the alias), to be removed by its rollback")
    stub_uid: str | None = Field(None, description="of the InferenceService, once it is known: Events that name it are shown by kubectl describe")
    events: list[Event] = []
    timeline: list[Point] = Field([], description="lies apart, see `ReleaseStore.save_canary`")
    past: list[PastRelease] = []

    @property
    def address(self) -> names.Address:
        """What clients call."""
        return names.address(self.model, alias_name=self.alias, route=self.route)

    def application(self, version: str) -> str:
        """Name of the Serve application that holds a version."""
        known = {self.stable_version: self.stable_application, self.candidate_version: self.candidate_application}
        return known.get(version) or names.application(self.model, version)

    @property
    def done(self) -> bool:
        """Whether it ended, one way or another."""
        return self.phase in phases.FINAL

    @property
    def stable_now(self) -> str | None:
        """The version that users have, or had last: the candidate from the switch on. None before a model's first promotion."""
        switched = self.phase == "promoted" or (self.phase == "promoting" and self.switched_unix_s is not None)
        return self.candidate_version if switched else self.stable_version

    @property
    def adopts(self) -> bool:
        """Whether it only records what served before: then nothing of that is ever removed."""
        return self.adoption is not None and self.stable_version is None and self.adoption.version == self.candidate_version

    @property
    def open(self) -> bool:
        """Whether something may still become of it: it has not ended, or it is promoted and its old version is kept."""
        return not self.done or (self.phase == "promoted" and self.previous is not None)

    @property
    def standing(self) -> str:
        """Why it does not go on, and what to do: it is paused, or waits for approve. Empty when it does, and once it ended or goes back."""
        if self.done or self.phase in phases.BACK:
            return ""
        paused = self.paused.model_dump() if self.paused else None
        return phases.standing(self.in_a_command, paused, self.waits.model_dump() if self.waits else None)

    @property
    def sentence(self) -> str:
        """What a person is told: why it stands, is held or goes back, else the last verdict; empty if unknown."""
        held = self.held.message if self.held and self.phase == "held" else ""
        failed = self.failure.message if self.failure else ""
        verdict = self.verdict.sentence if self.verdict else ""
        back = failed if self.phase in phases.BACK and (self.switched_unix_s is not None or verdict not in failed) else ""
        return self.standing or held or back or verdict or failed

    @property
    def artifact_check(self) -> str:
        """What was found of the artifact when it began, in a sentence; empty if an older version of the library began it."""
        return next((event.message for event in self.events if event.step == "artifact"), "")

    @property
    def in_a_command(self) -> str:
        """How a command of a terminal names it: ``bge -n ai-ml``."""
        return phases.in_a_command(self.model, self.namespace)

    @property
    def identity(self) -> str:
        """Of this very release among those of the model: ``model/version/start``."""
        return f"{self.model}/{self.candidate_version}/{self.started_unix_s:.3f}"

    def reached(self, phase: Phase) -> bool:
        """Whether the promotion has come at least as far as ``phase``."""
        return phases.reached(phase, self.phase)

    def asked(self) -> PromoteRequest:
        """The request that it promotes. Raises `RequestInvalid` when another version of the library wrote what this one does not take."""
        try:
            return parse_stored(self.request)
        except errors.RequestInvalid as error:
            raise errors.RequestInvalid(
                f"model {self.namespace}/{self.model}: the stored request of the release of {self.candidate_version} is not one that this version of "
                f"the library takes ({error}); finish that release, or give it up, with the version that began it"
            ) from error

    def summary(self) -> dict[str, Any]:
        """One line of history, as JSON."""
        return self.as_past().model_dump(mode="json")

    def as_past(self) -> PastRelease:
        """One line of history."""
        return PastRelease(candidate_version=self.candidate_version, phase=self.phase, finished_unix_s=self.finished_unix_s, sentence=self.sentence)

    def _repr_html_(self) -> str:
        from kfp_components import report

        return report.render(self.model_dump(mode="json"), whole=False)


def parse(raw: Mapping[str, Any]) -> Release:
    """A record as it was stored, by this or another version of the library.

    ``schema_version`` is that of this library afterwards for older records, and stays as it is for newer ones, which must not be written. Raises
    `RecordTooNew` when a newer one cannot be understood, ValueError when it is no record at all.
    """
    version = raw.get("schema_version", 1)
    if version == 1:
        return Release.model_validate(_of_schema_1(raw))
    if version in (2, 3):
        return Release.model_validate({**raw, "schema_version": SCHEMA_VERSION})
    try:
        return Release.model_validate(raw)
    except ValueError as error:
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise too_new(raw, version) from error
        raise


def too_new(raw: Mapping[str, Any], version: int) -> errors.RecordTooNew:
    """The error that says so."""
    return errors.RecordTooNew(
        f"model {raw.get('namespace', '?')}/{raw.get('model', '?')}: its release record has schema version {version}, this library writes "
        f"{SCHEMA_VERSION}; nothing was written: go on with the newer version of kfp-serving-components that wrote it"
    )


def _of_schema_1(raw: Mapping[str, Any]) -> dict[str, Any]:
    """`inconclusive` was a phase; the judge's state had a start instead of a watched time, which is left out."""
    found = {**raw, "schema_version": SCHEMA_VERSION, "phase": phases.OLDER.get(str(raw.get("phase")), raw.get("phase", "prepared"))}
    if raw.get("phase") == "inconclusive" and not raw.get("failure"):
        found["failure"] = {"error": "Inconclusive", "message": (raw.get("verdict") or {}).get("sentence", "")}
    found["past"] = [{**entry, "phase": phases.OLDER.get(entry.get("phase"), entry.get("phase"))} for entry in raw.get("past") or []]
    return found


def unique(events: list[Event]) -> list[Event]:
    """Each event once, in order. A message that was shortened meanwhile is still the same one."""
    found: list[Event] = []
    for event in events:
        if not any(_same(event, known) for known in found):
            found.append(event)
    return found


def _same(event: Event, other: Event) -> bool:
    if (event.unix_s, event.step, event.ok) != (other.unix_s, other.step, other.ok):
        return False
    short, long = sorted((event.message, other.message), key=len)
    return short == long or (short.endswith("…") and long.startswith(short[:-1]))


def to_json(release: Release) -> str:
    """The record without what lies apart, below `MAX_RECORD_BYTES` unless its request alone is longer; ``release`` is shortened to what is kept."""
    _clip_sentences(release)
    text = ""
    for limits in FITS:
        _fit(release, *limits)
        text = release.model_dump_json(exclude={"timeline", "judge"})
        if len(text.encode()) <= MAX_RECORD_BYTES:
            break
    return text


def thin(points: list[Point], most: int = TIMELINE_POINTS) -> list[Point]:
    """Every second point of the older half goes when there are too many; the newest stay."""
    while len(points) > most:
        half = len(points) // 2
        points = points[:half:2] + points[half:]
    return points


def _clip_sentences(release: Release) -> None:
    if release.verdict:
        release.verdict = release.verdict.model_copy(update={"sentence": _clip(release.verdict.sentence, SENTENCE_CHARACTERS)})
    if release.failure:
        release.failure = release.failure.model_copy(update={"message": _clip(release.failure.message, SENTENCE_CHARACTERS)})
    if release.held:
        release.held = release.held.model_copy(update={"message": _clip(release.held.message, SENTENCE_CHARACTERS)})
    if release.rollback:
        release.rollback = release.rollback.model_copy(update={"reason": _clip(release.rollback.reason, SENTENCE_CHARACTERS // 2)})


def _fit(release: Release, events: int, message_characters: int, past: int, sentence_characters: int) -> None:
    kept = _few(release.events, events)
    release.events = [event.model_copy(update={"message": _clip(event.message, message_characters)}) for event in kept]
    newest = release.past[max(0, len(release.past) - past) :]
    release.past = [entry.model_copy(update={"sentence": _clip(entry.sentence, sentence_characters)}) for entry in newest]


def _few(events: list[Event], most: int) -> list[Event]:
    """The newest ones, and of what is older the first of each step."""
    if len(events) <= most:
        return events
    first: dict[str, int] = {}
    for index, event in enumerate(events):
        first.setdefault(event.step, index)
    kept = set(list(first.values())[: most // 2])
    for index in range(len(events) - 1, -1, -1):
        if len(kept) >= most:
            break
        kept.add(index)
    return [events[index] for index in sorted(kept)]


def _clip(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"
