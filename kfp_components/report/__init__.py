"""A release as a page that opens anywhere: the verdict in one sentence, what was done, and the plots that show why.

``render`` gives self-contained HTML (inline SVG, no scripts, light and dark), ``markdown`` a short text. Both take the release record as JSON and
show what is there: a release that stopped before the canary has no plots.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from typing import Any

import jinja2
from markupsafe import Markup

from kfp_components import markup, names, phases
from kfp_components.clock import utc
from kfp_components.phases import Phase
from kfp_components.report import svg
from kfp_components.report.svg import Bound, Series

ARMS = ("stable", "candidate")
QUANTILES = ("p50", "p95", "p99")
OTHERS = {"client_errors": "Client errors (4xx) so far", "disconnects": "Clients that gave up so far"}
"""Counts that records of older versions lack, and what their plots are called."""
OUTCOMES: Mapping[Phase, str] = {
    **dict.fromkeys(phases.FORWARD, "running"),
    "promoted": "good",
    "held": "open",
    "rolling_back": "bad",
    "rolled_back": "bad",
}
SHARES: Mapping[Phase, tuple[float, tuple[str, ...]]] = {
    **dict.fromkeys(("promoting", "promoted"), (100.0, ("promoting", "promoted"))),
    "held": (0.0, ("held",)),
    **dict.fromkeys(phases.BACK, (0.0, ("roll back",))),
}
"""The candidate's share where the phase fixes it, in percent, and the steps whose events say since when."""
METRICS = {
    **{"client_errors": "client errors (4xx)", "disconnects": "clients that give up"},
    **{"quality": "quality of its answers", "garbage": "useless answers", "paired_latency": "latency of golden requests"},
}
MARGINS = (
    ("error_margin_percent", "fails", 0.5, 2),
    ("client_error_margin_percent", "answers 4xx", 1, 5),
    ("disconnect_margin_percent", "is given up on", 1, 5),
)
TOLD_EVENTS = 8
"""The newest ones of a step that its summary tells."""
EVIDENCE_FLOOR, EVIDENCE_CEILING = 1e-4, 1e6
"""Evidence beyond these is drawn at the edge of the plot; tooltips and tables tell the true value."""


def render(release: Mapping[str, Any], *, whole: bool = True) -> str:
    """The page as HTML text; not ``whole``: to be put into another page, as a notebook does.

    Whatever the record holds is escaped; values of environment variables are left out."""
    return (
        templates()
        .get_template("page.html.j2")
        .render(
            whole=whole,
            title=_title(release),
            outcome=_outcome(release),
            phase=_phase(release).replace("_", " "),
            sentence=sentence(release),
            rollback=_rollback_sentence(release),
            flow=flow(release),
            facts=_facts(release),
            versions=_versions(release),
            metrics=_metrics(release),
            golden=_golden(release),
            plots=[Markup(plot) for plot in plots(release)],
            events=[_event(release, event) for event in release.get("events") or []],
            past=[_past(entry) for entry in reversed(release.get("past") or [])],
            request=json.dumps(_without_secrets(release.get("request") or {}), indent=2, sort_keys=True),
        )
    )


def markdown(release: Mapping[str, Any], since_unix_s: float | None = None) -> str:
    """The release in a few lines, for a KFP Markdown artifact or a chat message; with what was done since then, where that is given."""
    lines = [f"## {plain(_title(release))}: {plain(_phase(release).replace('_', ' '))}", "", plain(sentence(release)) or "no verdict yet"]
    rollback = _rollback_sentence(release)
    if rollback:
        lines += ["", plain(rollback)]
    told = {
        "This step": _done_since(release, since_unix_s) if since_unix_s is not None else "",
        "Users get": _users_get(release),
        "Evidence": _evidence_sentence(release),
        "Next": _next(release),
    }
    lines += ["", *(f"- **{name}**: {plain(text)}" for name, text in told.items() if text)]
    versions = _versions(release)
    if versions:
        lines += ["", "| version | requests | failed | 4xx | gave up | p50 ms | p95 ms | p99 ms |", "|---|---|---|---|---|---|---|---|"]
        for row in versions:
            lines.append(f"| {plain(row['name'])} | " + " | ".join(row[key] for key in ("requests", "failed", *OTHERS, *QUANTILES)) + " |")
    golden = _golden(release)
    if golden:
        lines += ["", f"{golden['told']}:", "", "| version | mean score | useless answers |", "|---|---|---|"]
        lines += [f"| {plain(row['name'])} | {row['score']} | {row['garbage']} |" for row in golden["rows"]]
    metrics = _metrics(release)
    if metrics:
        fail_bound, pass_bound = _bounds(release)
        lines += ["", f"| metric | worse (bound {fail_bound:g}) | not worse (bound {pass_bound:g}) |", "|---|---|---|"]
        lines += [f"| {plain(row['name'])} | {row['e_fail']} | {row['e_pass']} |" for row in metrics]
    return "\n".join(lines) + "\n"


def _done_since(release: Mapping[str, Any], since_unix_s: float) -> str:
    events = [event for event in release.get("events") or [] if float(event.get("unix_s") or 0) >= since_unix_s]
    told = [f"{event.get('step')}: {event.get('message')}" for event in events[-TOLD_EVENTS:]]
    left_out = ["..."] if len(events) > TOLD_EVENTS else []
    return "; ".join([*left_out, *told]) or "nothing was left to do"


def _users_get(release: Mapping[str, Any]) -> str:
    stable, candidate, phase = release.get("stable_version"), str(release.get("candidate_version") or "?"), _now(release)
    switched = phase == "promoted" or (phase == "promoting" and release.get("switched_unix_s"))
    if switched or _adopts(release):
        return f"{candidate}, with every request"
    if not stable:
        return "nothing of this model: it has no other version"
    share = 0.0 if phase == "held" or phase in phases.BACK else _number(release, "weight_percent") or 0.0
    return f"{stable} {100 - share:g} %, {candidate} {share:g} % for as long as a step renews that" if share else f"{stable}, with every request"


def _evidence_sentence(release: Mapping[str, Any]) -> str:
    found = release.get("verdict") or (release.get("timeline") or [{}])[-1]
    worse, not_worse = _number(found, "e_fail"), _number(found, "e_pass")
    if worse is None and not_worse is None:
        return ""
    fail_bound, pass_bound = _bounds(release)
    return (
        f"{markup.odds(worse)} that the candidate is worse (taken back at {fail_bound:g} : 1), "
        f"{markup.odds(not_worse)} that it is not (enough at {pass_bound:g} : 1)"
    )


def _next(release: Mapping[str, Any]) -> str:
    """What to do; empty where the sentence of the release says so."""
    phase = _now(release)
    model = phases.in_a_command(str(release.get("model", "MODEL")), str(release.get("namespace", "NAMESPACE")))
    if phase == "promoted":
        kept = release.get("previous") or {}
        back = f"`kfp-serving rollback {model}` goes back to {kept.get('version')} until {utc(float(kept.get('until_unix_s') or 0))}"
        return back if kept else "nothing, it is done; `kfp-serving revalidate` looks whether it stays as good"
    if phase == "rolled_back":
        return "read above and in the report why; mend that and run it again, another artifact as another version"
    if phase == "rolling_back":
        return "run the same again: it finishes the way back"
    if phase == "held" or release.get("paused") or release.get("waits"):
        return ""
    return f"the next step goes on; where none comes, run the same again; `kfp-serving abort {model}` gives it up"


def sentence(release: Mapping[str, Any]) -> str:
    """Why the release ended as it did: what failed, else the verdict; why it is held and what to do. Empty when nothing is known yet."""
    failure = (release.get("failure") or {}).get("message") or (release.get("rollback") or {}).get("reason")
    verdict = (release.get("verdict") or {}).get("sentence")
    model = phases.in_a_command(str(release.get("model", "MODEL")), str(release.get("namespace", "NAMESPACE")))
    standing = phases.standing(model, release.get("paused"), release.get("waits"))
    if standing and _now(release) not in (*phases.FINAL, *phases.BACK):
        return standing
    if _now(release) == "held":
        why = str((release.get("held") or {}).get("message") or verdict or "the evidence did not suffice").rstrip(". ")
        go_on = phases.how_to_go_on(model, str(release.get("candidate_version", "it")), held=True)
        return f"{why}. Stable serves all requests. {go_on}"
    if _now(release) in phases.BACK:
        return str(failure or verdict or "")
    return str(verdict or failure or "")


def flow(release: Mapping[str, Any]) -> list[dict[str, str]]:
    """The boxes of the flow strip: name and state (done, now, bad, held, open)."""
    if _adopts(release):
        return [{"name": "adopt", "state": "done" if _now(release) == "promoted" else "bad" if _now(release) in phases.BACK else "now"}]
    boxes: list[tuple[str, Phase]] = [("register", "registered"), ("deploy", "deployed"), ("smoke", "smoked")]
    phase = _now(release)
    done_steps = {str(event.get("step")) for event in release.get("events") or [] if event.get("ok", True)}
    timeline = release.get("timeline") or []
    place: Phase = "canary" if timeline else "prepared"
    if phase is not None and phase not in phases.BACK:
        place = phase
    ended_badly = phase in phases.BACK
    found = []
    for name, until in boxes:
        done = phases.reached(until, place) or bool(done_steps & {name, until})
        found.append({"name": name, "state": "done" if done else "open"})
    steps = release.get("steps") or []
    passed = len(steps) if phases.reached("promoting", place) else _steps_passed(release, steps)
    for index, weight in enumerate(steps):
        begun = any(float(point.get("weight_percent", 0)) >= float(weight) for point in timeline)
        state = "done" if index < passed else "now" if index == passed and (begun or phase == "canary") and not ended_badly else "open"
        if ended_badly and index == passed and begun:
            state = "bad"
        found.append({"name": f"{float(weight):g} %", "state": state})
    if ended_badly:
        if release.get("switched_unix_s"):
            found.append({"name": "promote", "state": "bad"})
        if not any(box["state"] == "bad" for box in found):
            first_open = next((box for box in found if box["state"] == "open"), None)
            if first_open is not None:
                first_open["state"] = "bad"
        return [*found, {"name": _phase(release).replace("_", " "), "state": "bad"}]
    if phase == "held":
        return [*found, {"name": "held", "state": "held"}]
    return _standing(release, [*found, {"name": "promote", "state": {"promoted": "done", "promoting": "now"}.get(_phase(release), "open")}])


def _standing(release: Mapping[str, Any], boxes: list[dict[str, str]]) -> list[dict[str, str]]:
    """The boxes of a release that runs: where it waits for approve, or is paused, it is held."""
    if _now(release) in phases.FINAL:
        return boxes
    before = (release.get("waits") or {}).get("before")
    for box in boxes:
        if box["name"] == before or (release.get("paused") and box["state"] == "now"):
            box["state"] = "held"
    return boxes


def plots(release: Mapping[str, Any]) -> list[str]:
    """Weight, evidence, requests, failures and latency over the time of the canary, as SVG; empty without a timeline."""
    timeline = sorted(release.get("timeline") or [], key=lambda point: float(point.get("unix_s") or 0))
    if not timeline:
        return []
    begin = float(timeline[0].get("unix_s") or 0)
    seconds = [float(point.get("unix_s") or begin) - begin for point in timeline]

    def line(name: str, style: str, values: Sequence[float | None], **more: bool) -> Series:
        return Series(name, style, list(zip(seconds, values, strict=True)), **more)

    def per_arm(key: str) -> list[Series]:
        return [line(_arm_name(release, arm), arm, [_number(point, key, arm) for point in timeline], dashed=arm == "candidate") for arm in ARMS]

    fail_bound, pass_bound = _bounds(release)
    worse = [_number(point, "e_fail") for point in timeline]
    not_worse = [_number(point, "e_pass") for point in timeline]
    found = [
        svg.line_plot(
            "Share of the requests that goes to the candidate",
            [Series(_arm_name(release, "candidate"), "candidate", _shares(release, timeline, begin), steps=True)],
            unit=" %",
        ),
        svg.line_plot(
            "Evidence (log scale; 1 says nothing)",
            [line("candidate is worse", "fail", worse), line("candidate is not worse", "pass", not_worse, dashed=True)],
            log=True,
            bounds=[Bound(f"{fail_bound:g}: fail", "fail", fail_bound), Bound(f"{pass_bound:g}: pass", "pass", pass_bound)],
            floor=EVIDENCE_FLOOR,
            ceiling=EVIDENCE_CEILING,
        ),
        svg.line_plot("Requests so far", per_arm("requests")),
        svg.line_plot("Failures so far", per_arm("failures")),
    ]
    for key, title in OTHERS.items():
        lines = per_arm(key)
        if any(value for series in lines for _, value in series.points):
            found.append(svg.line_plot(title, lines))
    scores = per_arm("scores")
    if any(value is not None for series in scores for _, value in series.points):
        found.append(svg.line_plot("Mean score of the answers to golden requests", scores))
    for quantile in QUANTILES:
        pairs = [
            line(_arm_name(release, arm), arm, [_number(point, "latency_ms", arm, quantile) for point in timeline], dashed=arm == "candidate")
            for arm in ARMS
        ]
        if any(value is not None for series in pairs for _, value in series.points):
            found.append(svg.line_plot(f"Latency {quantile}, milliseconds", pairs))
    return found


def _shares(release: Mapping[str, Any], timeline: Sequence[Mapping[str, Any]], begin: float) -> list[tuple[float, float | None]]:
    """The candidate's share over time, to its end: 100 % once promoted, 0 % once taken back."""
    shares = [(float(point.get("unix_s") or begin) - begin, _number(point, "weight_percent")) for point in timeline]
    switched_s = float(release.get("switched_unix_s") or 0) - begin
    if switched_s > shares[-1][0]:  # nobody watched it there
        shares.append((switched_s, 100.0))
    phase = _now(release)
    if phase is None or phase not in SHARES:
        return shares
    last, ending = SHARES[phase]
    ends = [float(e.get("unix_s") or 0) - begin for e in release.get("events") or [] if e.get("step") in ending]
    return [*shares, (min((second for second in ends if second >= shares[-1][0]), default=shares[-1][0] + 1.0), last)]


def _steps_passed(release: Mapping[str, Any], steps: Sequence[float]) -> int:
    """How many canary steps were left behind; from the timeline where the record does not say."""
    if release.get("step_index") is not None:
        return int(release["step_index"])
    highest = max((float(point.get("weight_percent", 0)) for point in release.get("timeline") or []), default=0.0)
    return max(0, sum(float(step) <= highest for step in steps) - 1)


def _facts(release: Mapping[str, Any]) -> list[tuple[str, str]]:
    started, finished = release.get("started_unix_s"), release.get("finished_unix_s")
    adopts, namespace = _adopts(release), str(release.get("namespace", "?"))
    judge = {} if adopts else ((release.get("request") or {}).get("options") or {}).get("judge") or {}
    facts = [
        ("model", f"{namespace}/{release.get('model', '?')}"),
        ("RayService", str(release.get("rayservice") or "?")),
        ("users call", names.address(str(release.get("model", "?")), alias_name=release.get("alias"), route=release.get("route")).url(namespace)),
        ("stable version", "" if adopts else str(release.get("stable_version") or "none: this is the model's first")),
        ("adopted version" if adopts else "candidate version", str(release.get("candidate_version") or "?")),
        ("application", str(release.get("candidate_application") or "")),
        ("artifact", str((release.get("request") or {}).get("uri") or "")),
        ("canary steps", ", ".join(f"{float(step):g} %" for step in release.get("steps") or [])),
        ("started", utc(float(started)) if started else ""),
        ("finished", utc(float(finished)) if finished else "not yet"),
        ("took", svg.duration(float(finished) - float(started)) if started and finished else ""),
        ("run by", str(release.get("holder") or "")),
    ]
    if judge:
        points = []
        for key, what, least, most in MARGINS:
            given = judge.get(key)
            margin = f"{float(given):g}" if given else f"stable's recent rate (at least {least:g}, at most {most:g})"
            points.append(f"{what} by {margin}")
        facts.append(
            (
                "worse means",
                f"more often, in percentage points: {', '.join(points)}"
                + (
                    ", or is slower at p50/p95/p99 by " + "/".join(f"{float(m):g}" for m in judge.get("latency_margins_percent") or []) + " %"
                    if judge.get("judge_latency", True)
                    else ""
                ),
            )
        )
    margins = (((release.get("judge") or {}).get("state") or {}).get("golden") or {}).get("margins")
    if margins:
        score, useless = (100 * (_number(margins, name) or 0) for name in ("score", "garbage"))
        facts.append(("worse answers mean", f"a mean score lower by {score:g} points of 100, or {useless:g} points more useless ones, than stable's"))
    return [(name, value) for name, value in facts if value]


def _versions(release: Mapping[str, Any]) -> list[dict[str, str]]:
    timeline = release.get("timeline") or []
    if not timeline:
        return []
    last = timeline[-1]
    rows = []
    for arm in ARMS:
        requests, failures = _number(last, "requests", arm) or 0, _number(last, "failures", arm) or 0
        rate = f" ({100 * failures / requests:.2f} %)" if requests else ""
        row = {"name": _arm_name(release, arm), "arm": arm, "requests": f"{requests:,.0f}", "failed": f"{failures:,.0f}{rate}"}
        for key in OTHERS:
            number = _number(last, key, arm)
            row[key] = "-" if number is None or not math.isfinite(number) else f"{number:,.0f}"
        for quantile in QUANTILES:
            known = (_number(point, "latency_ms", arm, quantile) for point in reversed(timeline))  # after the switch it is not measured
            value = next((found for found in known if found is not None), None)
            row[quantile] = "-" if value is None else f"{value:,.1f}"
        rows.append(row)
    return rows


def _golden(release: Mapping[str, Any]) -> dict[str, Any] | None:
    """What both versions answered to the golden set, and the answers side by side of which the candidate lost most; None where none were asked."""
    known = (point for point in reversed(release.get("timeline") or []) if _number(point, "pairs"))  # after the switch nobody asks
    last = next(known, None)
    if last is None:
        return None
    rows, pairs = [], _number(last, "pairs") or 0
    for arm in ARMS:
        score, garbage = _number(last, "scores", arm), _number(last, "garbage", arm) or 0
        share = f"{garbage:,.0f} ({100 * garbage / pairs:.2f} %)"
        rows.append({"name": _arm_name(release, arm), "arm": arm, "score": "-" if score is None else f"{score:.4f}", "garbage": share})
    return {
        "told": f"{pairs:,.0f} golden requests, answered by both versions",
        "rows": rows,
        "examples": _playable((release.get("judge") or {}).get("examples") or []),
    }


def _playable(examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """With every key that the page looks at."""
    sides = [{arm: {"sound": None, **example[arm]} for arm in ARMS} for example in examples]
    return [{"request_sound": None, **example, **side} for example, side in zip(examples, sides, strict=True)]


def _metrics(release: Mapping[str, Any]) -> list[dict[str, Any]]:
    verdict = release.get("verdict") or {}
    fail_bound, pass_bound = _bounds(release)
    table = {**(verdict.get("metrics") or {})}
    if "e_fail" in verdict and "e_pass" in verdict:
        table["together"] = {"e_fail": verdict["e_fail"], "e_pass": verdict["e_pass"]}
    rows = []
    for name, found in table.items():
        worse, not_worse = _number(found, "e_fail"), _number(found, "e_pass")
        rows.append(
            {
                "name": METRICS.get(name, name),
                "e_fail": markup.odds(worse),
                "e_pass": markup.odds(not_worse),
                "failed": worse is not None and worse >= fail_bound,
                "passed": not_worse is not None and not_worse >= pass_bound,
            }
        )
    return rows


def _event(release: Mapping[str, Any], event: Mapping[str, Any]) -> dict[str, Any]:
    began = float(release.get("started_unix_s") or event.get("unix_s") or 0)
    at = float(event.get("unix_s") or began)
    return {
        "at": utc(at),
        "after": svg.duration(max(0.0, at - began)),
        "step": str(event.get("step") or ""),
        "message": str(event.get("message") or ""),
        "ok": bool(event.get("ok", True)),
    }


def _past(entry: Mapping[str, Any]) -> dict[str, str]:
    finished = entry.get("finished_unix_s")
    return {
        "version": str(entry.get("candidate_version") or "?"),
        "phase": str(entry.get("phase") or "?").replace("_", " "),
        "finished": utc(float(finished)) if finished else "",
        "sentence": str(entry.get("sentence") or ""),
    }


def _rollback_sentence(release: Mapping[str, Any]) -> str:
    rollback = release.get("rollback") or {}
    if "seconds" not in rollback:
        return ""
    leaked = rollback.get("leaked_requests")
    requests = "an unknown number of requests" if leaked is None else "1 request" if leaked == 1 else f"{int(leaked):,} requests"
    stable = release.get("stable_version") or "the stable version"
    return f"Rolled back: {stable} answered everything again after {float(rollback['seconds']):.1f} s; {requests} reached the candidate meanwhile."


def _bounds(release: Mapping[str, Any]) -> tuple[float, float]:
    judge = ((release.get("request") or {}).get("options") or {}).get("judge") or {}
    return 1 / float(judge.get("alpha_fail") or 0.01), 1 / float(judge.get("alpha_pass") or 0.05)


def _without_secrets(value: Any) -> Any:
    """The request as it was asked for, without the values of environment variables: people put secrets there."""
    if isinstance(value, Mapping):
        return {
            key: {name: "(not shown)" for name in inner} if key == "env_vars" and isinstance(inner, Mapping) else _without_secrets(inner)
            for key, inner in value.items()
        }
    return [_without_secrets(item) for item in value] if isinstance(value, list | tuple) else value


def _number(point: Mapping[str, Any], *keys: str) -> float | None:
    value: Any = point
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _arm_name(release: Mapping[str, Any], arm: str) -> str:
    version = release.get(f"{arm}_version")
    return f"{arm} {version}" if version else arm


def _adopts(release: Mapping[str, Any]) -> bool:
    """Whether it only records what served before."""
    adopted = (release.get("adoption") or {}).get("version")
    return adopted is not None and adopted == release.get("candidate_version") and not release.get("stable_version")


def _title(release: Mapping[str, Any]) -> str:
    if _adopts(release):
        return f"{release.get('model', 'model')}: what serves is adopted as {release.get('candidate_version')}"
    return f"{release.get('model', 'model')} {release.get('stable_version') or 'nothing'} to {release.get('candidate_version') or '?'}"


def _phase(release: Mapping[str, Any]) -> str:
    return str(release.get("phase") or "unknown")


def _now(release: Mapping[str, Any]) -> Phase | None:
    """The phase, that of an older record by its name of today; None when it is unknown."""
    phase = _phase(release)
    return phases.OLDER.get(phase) or next((known for known in phases.TRANSITIONS if known == phase), None)


def _outcome(release: Mapping[str, Any]) -> str:
    """Good, bad, open (nothing was decided) or running."""
    phase = _now(release)
    undecided = _phase(release) in phases.OLDER or (release.get("failure") or {}).get("error") == "Inconclusive"
    if phase == "rolled_back" and undecided:
        return "open"
    return OUTCOMES[phase] if phase else "running"


def plain(text: str) -> str:
    """Text in a Markdown line or table cell: no markup, no line breaks."""
    for mark in "\\`*_[]|#~=":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(escape(text, quote=False).split())


@cache
def templates() -> jinja2.Environment:
    """Of the pages; whatever is put into one is escaped."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("kfp_components.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    found.globals["colours"] = Markup(markup.colours("release-report"))
    return found
