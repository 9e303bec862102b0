"""The judge: ticks in, a verdict out at every look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import Any, Literal

from kfp_components import markup
from kfp_components.judge import batch, error_rate, golden, latency, split, stuck
from kfp_components.judge.counts import ArmCounts, Tick, pack, pack_bounds, quantile_s, unpack, unpack_bounds
from kfp_components.judge.golden import Answered, Margins
from kfp_components.request import JudgeRules

Kind = Literal["pass", "fail", "inconclusive", "error"]

ERROR_MARGINS = (0.005, 0.02)
"""Least and greatest margin of the failure rate where none is given; in between it is stable's own recent rate. Half a percent takes some thousand
requests to test; above two, a stable version that is broken itself would let anything pass."""

OTHER_MARGINS = (0.01, 0.05)
"""The same for client errors and for clients that give up. Wider: how often they happen depends on the users at least as much as on the version,
and rates of 10 to 30 % are common, where a narrow margin would take ten thousand requests."""

MARGIN_HISTORY = 200
"""Stable requests before its own rate may widen a margin."""

FAIL_SHARES = {
    **{"errors": 0.45, "latency": 0.4, "client_errors": 0.075, "disconnects": 0.075},
    **{"quality": 0.4, "garbage": 0.4, "paired_latency": 0.1},
}
"""Each metric's part in the average that FAIL asks for, of the parts of those that are judged; fixed beforehand (any such average of e-values is
one). 4xx and disconnects see faults that are mostly gross, and a gross one makes up for its small part with one to three requests more; equal parts
would cost that for every fault. With a golden set the others' parts are half of what they are without, which costs them a request or two."""

BY_WEIGHT_SHARE = 2 / 3
"""A rate's FAIL is two parts by the weight, which is quicker, and one by the counted requests, which is right however the split came about."""

NAMES = {
    **{"errors": "errors", "client_errors": "client errors (4xx)", "disconnects": "clients that give up", "latency": "latency"},
    **{"quality": "quality of its answers", "garbage": "useless answers", "paired_latency": "latency of golden requests"},
}
STYLES = {"pass": "good", "fail": "bad"}
RATES = ("errors", "client_errors", "disconnects")
COUNTED = ("requests", "failures", "client_errors", "disconnects")


@dataclass(frozen=True)
class Verdict:
    """``e_fail`` is the combined evidence that the candidate is worse, ``e_pass`` the weakest metric's evidence that it is not; 1 means none.

    ``sentence`` is one that a person can quote. ``metrics`` holds both e-values for each metric.
    """

    kind: Kind
    sentence: str
    e_fail: float
    e_pass: float
    metrics: dict[str, dict[str, float]]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    def _repr_html_(self) -> str:
        return shown(self.kind, self.sentence, {**self.metrics, "together": {"e_fail": self.e_fail, "e_pass": self.e_pass}})


def shown(kind: str, sentence: str, metrics: Mapping[str, Mapping[str, float | None]]) -> str:
    """A verdict as HTML for a notebook, with the evidence of each metric."""
    rows = [
        f'<tr><td>{escape(NAMES.get(name, name))}</td><td class="number">{markup.odds(found.get("e_fail"))}</td>'
        f'<td class="number">{markup.odds(found.get("e_pass"))}</td></tr>'
        for name, found in metrics.items()
    ]
    head = '<tr><th>evidence that the candidate is</th><th class="number">worse</th><th class="number">not worse</th></tr>'
    told = f'<p><span class="pill {STYLES.get(kind, "open")}">{escape(kind)}</span>{escape(sentence)}</p>'
    return markup.framed(f"{told}<table>{head}{''.join(rows)}</table>")


class Judge:
    """Compares two versions by the rules of a request. ``state`` is JSON; a judge made from it goes on exactly where the other stopped."""

    def __init__(
        self, rules: JudgeRules, state: dict[str, Any] | None = None, history: ArmCounts | None = None, margins: Margins | None = None
    ) -> None:
        """``history``: what stable did before the canary; it fixes the margins where none are given. ``margins``: those of answers to a golden set,
        which are judged from now on; the state keeps those that it began with."""
        self.rules = rules
        if state is not None:
            self.state = state if "rates" in state else _of_older_version(state, rules)
            if margins is not None and "golden" not in self.state:
                self.state = {**self.state, "golden": golden.start(margins)}
            return
        empty = {**dict.fromkeys(COUNTED, 0), "latency_counts": pack(())}
        self.state = {
            "rates": {name: _start(name, margin) for name, margin in _margins(rules, history or ArmCounts()).items()},
            "pending": None,
            "latency": latency.start(),
            "split": split.start(),
            "weight_percent": None,
            "stuck_looks": 0,
            "stable": empty,
            "candidate": dict(empty),
            "bounds_s": [],
            **({"golden": golden.start(margins)} if margins is not None else {}),
        }

    @property
    def pairs(self) -> int:
        """Golden requests that both versions answered, judged so far."""
        return golden.pairs(self.state["golden"]) if "golden" in self.state else 0

    @property
    def golden_cases(self) -> str | None:
        """Digest of the golden set whose answers are judged; None while none are."""
        return str(self.state["golden"]["margins"]["cases"]) if "golden" in self.state else None

    @property
    def pairs_suffice(self) -> bool:
        """Whether more golden requests would say nothing that is asked for: what they can show is shown."""
        return "golden" in self.state and min(found["e_pass"] for found in self._golden().values()) >= 1 / self.rules.alpha_pass

    @property
    def candidate_requests(self) -> int:
        """Requests of the candidate judged so far."""
        return int(self.state["candidate"]["requests"])

    def observe(
        self,
        tick: Tick,
        *,
        weight_percent: float,
        sticky: bool = False,
        unwatched: bool = False,
        pairs: Sequence[Answered] = (),
        few_users: bool = False,
    ) -> Verdict:
        """Add a tick, and ``pairs`` of answers to golden requests, and say what is known now.

        With ``few_users`` PASS may rest on the golden requests alone: users send too little for a verdict in time. It needs their latency too then.

        Ticks are judged in batches that hold requests of both versions (see `batch`); what a batch lacks is kept in the state until the next look.
        A tick may hold requests of another weight when it is the first one with a new weight, or follows a time when nobody renewed the weight's
        lease (``unwatched``). A batch never mixes weights, since failures that come and go for both versions would then look like one version's: the
        batch before such a tick is judged as it is if it holds both versions, and the tick for itself. What holds one version only is counted in the
        totals and is no evidence. Nor is the split tested there; with ``sticky`` routing, which sends users, not requests, by weight, it never is,
        and failures are held against the counted requests alone.
        """
        state = dict(self.state)
        warm = state["candidate"]["requests"] >= self.rules.warm_up_requests
        if (
            tick.bounds_s
            and state["bounds_s"]
            and pack_bounds(tick.bounds_s) not in (state["bounds_s"], pack_bounds(unpack_bounds(state["bounds_s"])))
        ):
            _forget_latency(state)
        for arm, counted in (("stable", tick.stable), ("candidate", tick.candidate)):
            total = _total(state[arm]) + counted
            state[arm] = {**{key: getattr(total, key) for key in COUNTED}, "latency_counts": pack(total.latency_counts)}
        state["bounds_s"] = pack_bounds(tick.bounds_s) if tick.bounds_s else state["bounds_s"]
        judged = tick if warm and self.rules.judge_latency else _without_latency(tick)
        pending = state.get("pending")
        spans = unwatched or state.get("weight_percent") != weight_percent
        if pending is not None:
            gathered = batch.unpack(pending, tick.bounds_s)
            if spans and batch.holds_both(gathered):
                self._judge(state, gathered)
            elif not spans:
                judged = batch.add(gathered, judged)
        state["pending"] = None
        if batch.holds_both(judged) if spans else batch.closes(judged, weight_percent):
            self._judge(state, judged)
        elif not spans and judged.stable.ended + judged.candidate.ended:
            state["pending"] = batch.pack(judged)
        if not (sticky or spans):
            self._judge_by_weight(state, tick, weight_percent)
            state["split"] = split.update(state["split"], tick.candidate.arrived, tick.stable.arrived, weight_percent)
        state["weight_percent"] = weight_percent
        waits = stuck.looks_stuck(tick.candidate.waiting, tick.stable.waiting, weight_percent) or self._looks_hung(state, tick)
        state["stuck_looks"] = state.get("stuck_looks", 0) + 1 if waits else 0
        if pairs and "golden" in state:
            state["golden"] = golden.update(state["golden"], pairs)
        self.state = state
        return self._verdict(tick, weight_percent, few_users)

    def _golden(self) -> dict[str, dict[str, float]]:
        found = golden.evidence(self.state["golden"])
        return found if self.rules.judge_latency else {name: found[name] for name in ("quality", "garbage")}

    def _looks_hung(self, state: dict[str, Any], tick: Tick) -> bool:
        stable, candidate = _total(state["stable"]), _total(state["candidate"])
        answered_s = quantile_s(stable.latency_counts, unpack_bounds(state["bounds_s"]), 1.0)
        slowest_s = None if answered_s is None else max(answered_s, *tick.stable.waits_s, 0.0)
        waiting = len(tick.candidate.waits_s)
        return stuck.looks_hung(tick.candidate.waits_s, slowest_s, candidate.ended + waiting, stable.ended)

    def _judge(self, state: dict[str, Any], tick: Tick) -> None:
        """A batch is evidence now. ``state`` is changed at its top level only: what it held before may have been given out."""
        rates = {}
        for name, known in state["rates"].items():
            sizes = _sizes(name, tick)
            rates[name] = {
                **known,
                "fail": error_rate.fail_update(known["fail"], *sizes),
                "pass": error_rate.pass_update(known["pass"], *sizes, known["margin"], wide=_wide(name)),
            }
        state["rates"] = rates
        if self.rules.judge_latency:
            state["latency"] = latency.update(
                state["latency"], tick, fail_margins=self.rules.fail_margins_percent, pass_margins=self.rules.latency_margins_percent
            )

    def _judge_by_weight(self, state: dict[str, Any], tick: Tick, weight_percent: float) -> None:
        rates = {}
        for name, known in state["rates"].items():
            _, _, x_c, x_s = _sizes(name, tick)
            rates[name] = {**known, "by_weight": error_rate.weight_update(known["by_weight"], x_c, x_s, weight_percent)}
        state["rates"] = rates

    def totals(self) -> dict[str, Any]:
        """Cumulative counts and latency quantiles (milliseconds) of both versions, for the record and the report."""
        arms = ("stable", "candidate")
        return {
            "requests": {arm: self.state[arm]["requests"] for arm in arms},
            "failures": {arm: self.state[arm]["failures"] for arm in arms},
            "client_errors": {arm: self.state[arm].get("client_errors", 0) for arm in arms},
            "disconnects": {arm: self.state[arm].get("disconnects", 0) for arm in arms},
            "latency_ms": {arm: self._quantiles_ms(arm) for arm in arms},
            **(golden.totals(self.state["golden"]) if "golden" in self.state else {}),
        }

    def _quantiles_ms(self, arm: str) -> dict[str, float | None]:
        counted, bounds_s = unpack(self.state[arm]["latency_counts"]), unpack_bounds(self.state["bounds_s"])
        found = {f"p{round(q * 100)}": quantile_s(counted, bounds_s, q) for q in latency.QUANTILES}
        return {name: None if value is None else round(value * 1000, 2) for name, value in found.items()}

    def _verdict(self, tick: Tick, weight_percent: float, few_users: bool) -> Verdict:
        metrics = {name: _evidence(self.state["rates"][name]) for name in RATES}
        if self.rules.judge_latency:
            rows = self.state["latency"]
            worse = error_rate.mixed([value for row in rows["fail"] for value in row])
            not_worse = min(error_rate.mixed(rows["pass"][row]) for row in range(len(latency.QUANTILES)))
            metrics["latency"] = {"e_fail": worse, "e_pass": not_worse}
        e_pass, alone = min(found["e_pass"] for found in metrics.values()), False
        if "golden" in self.state:
            answers = self._golden()
            e_pass = min(e_pass, answers["quality"]["e_pass"], answers["garbage"]["e_pass"])
            e_golden = min(found["e_pass"] for found in answers.values())
            alone = few_users and e_golden > e_pass
            e_pass = e_golden if alone else e_pass
            metrics |= answers
        shares = {name: FAIL_SHARES[name] for name in metrics}
        e_fail = sum(shares[name] * found["e_fail"] for name, found in metrics.items()) / sum(shares.values())
        wrong_split = error_rate.mixed(self.state["split"]) >= 1 / self.rules.alpha_split
        counts = self._counts_sentence()
        if tick.broken:
            kind, why = "error", f"{tick.broken}; the counts cannot be trusted"
        elif wrong_split:
            seen = self.state["candidate"]["requests"] / max(1, self.state["candidate"]["requests"] + self.state["stable"]["requests"])
            kind, why = "error", f"the router was told {weight_percent:g} %, but {seen:.1%} of the requests went to the candidate; the split is wrong"
        elif "golden" in self.state and (unfit := golden.unfit(self.state["golden"])):
            kind, why = "error", unfit
        elif self.state["stuck_looks"] * self.rules.tick_s >= stuck.PERSISTENCE_S:
            kind = "fail"
            why = f"the candidate hangs: {tick.candidate.waiting:,} of its requests wait for an answer, {tick.stable.waiting:,} of stable's; {counts}"
        elif e_fail >= 1 / self.rules.alpha_fail:
            worst = max(metrics, key=lambda name: shares[name] * metrics[name]["e_fail"])
            what = (
                "clients give up on the candidate, it hangs or answers too late"
                if worst == "disconnects"
                else f"the candidate is worse in {NAMES[worst]}"
            )
            kind, why = "fail", f"{what}: {counts}; evidence {e_fail:,.0f} : 1, bound {1 / self.rules.alpha_fail:,.0f} : 1"
        elif e_pass >= 1 / self.rules.alpha_pass:
            bound = f"evidence {e_pass:,.0f} : 1, bound {1 / self.rules.alpha_pass:,.0f} : 1"
            kind, why = "pass", f"the candidate is not worse {self._margins_sentence(alone)}: {counts}; {bound}"
        else:
            kind, why = (
                "inconclusive",
                (f"undecided so far: {counts}; for worse {e_fail:.2g} : 1, for not worse {self._margins_sentence(alone)} {e_pass:.2g} : 1"),
            )
        return Verdict(kind, why, e_fail, e_pass, metrics)  # type: ignore[arg-type]

    def _margins_sentence(self, alone: bool) -> str:
        """The margins that PASS is about; ``alone``: it rests on golden requests only."""
        answers = golden.margins_sentence(self.state["golden"], latency=alone and self.rules.judge_latency) if "golden" in self.state else ""
        if alone:
            return f"by more than {answers}, by golden requests alone (users send too few for a verdict in time)"
        points = ", ".join(f"{100 * self.state['rates'][name]['margin']:.3g} in {NAMES[name]}" for name in RATES)
        p50, p95, p99 = self.rules.latency_margins_percent
        slow = f", {p50:g} % in p50, {p95:g} % in p95, {p99:g} % in p99" if self.rules.judge_latency else ""
        return f"by more than {points.replace(' in ', ' points in ', 1)}{slow}{f', {answers}' if answers else ''}"

    def _counts_sentence(self) -> str:
        parts = []
        for arm in ("candidate", "stable"):
            total = _total(self.state[arm])
            rate = f" ({total.failures / total.requests:.1%})" if total.requests else ""
            refused = f", refused {total.client_errors:,} (4xx)" if total.client_errors else ""
            gave_up = f", {total.disconnects:,} client{'s' if total.disconnects > 1 else ''} gave up" if total.disconnects else ""
            p95 = quantile_s(total.latency_counts, unpack_bounds(self.state["bounds_s"]), 0.95) if self.rules.judge_latency else None
            slow = f", p95 {round(p95 * 1000, 2):g} ms" if p95 is not None else ""
            parts.append(f"{arm} failed {total.failures:,} of {total.requests:,} requests{rate}{refused}{gave_up}{slow}")
        return ", ".join([*parts, *([golden.sentence(self.state["golden"])] if self.pairs else [])])


def _margins(rules: JudgeRules, history: ArmCounts) -> dict[str, float]:
    """Each rate's margin, a fraction: as given, else stable's own rate within limits."""
    found = {}
    for name, given, requests, number, (least, most) in (
        ("errors", rules.error_margin_percent, history.requests, history.failures, ERROR_MARGINS),
        ("client_errors", rules.client_error_margin_percent, history.requests, history.client_errors, OTHER_MARGINS),
        ("disconnects", rules.disconnect_margin_percent, history.ended, history.disconnects, OTHER_MARGINS),
    ):
        own = number / requests if requests >= MARGIN_HISTORY else 0.0
        found[name] = min(most, max(least, own)) if given is None else given / 100
    return found


def _wide(name: str) -> bool:
    return name != "errors"


def _start(name: str, margin: float) -> dict[str, Any]:
    """State of a rate at the beginning: its margin and the logarithms of its e-processes."""
    return {
        "margin": margin,
        "fail": error_rate.fail_start(),
        "by_weight": error_rate.fail_start(),
        "pass": error_rate.pass_start(wide=_wide(name)),
    }


def _of_older_version(state: dict[str, Any], rules: JudgeRules) -> dict[str, Any]:
    """The state of a judge that knew errors alone: it goes on, the other rates begin now. Its margin may be one that is too wide today."""
    rates = {name: _start(name, margin) for name, margin in _margins(rules, ArmCounts()).items()}
    margin = state["margin"] if rules.error_margin_percent is not None else min(ERROR_MARGINS[1], state["margin"])
    same_margin = margin == state["margin"]
    rates["errors"].update(margin=margin, fail=state["fail"], **({"pass": state["pass"]} if same_margin else {}))
    return {**{key: value for key, value in state.items() if key not in ("margin", "fail", "pass")}, "rates": rates, "pending": None}


def _sizes(name: str, tick: Tick) -> tuple[int, int, int, int]:
    """Requests of candidate and stable that a rate is about, and those among them that it counts."""
    c, s = tick.candidate, tick.stable
    if name == "errors":
        return c.requests, s.requests, c.failures, s.failures
    if name == "client_errors":
        return c.requests, s.requests, c.client_errors, s.client_errors
    return c.ended, s.ended, c.disconnects, s.disconnects


def _evidence(rate: dict[str, Any]) -> dict[str, float]:
    """FAIL: an average of the tests by the router's weight and by the counted requests."""
    worse = BY_WEIGHT_SHARE * error_rate.mixed(rate["by_weight"]) + (1 - BY_WEIGHT_SHARE) * error_rate.mixed(rate["fail"])
    return {"e_fail": worse, "e_pass": error_rate.mixed(rate["pass"])}


def _total(stored: dict[str, Any]) -> ArmCounts:
    """A version's totals from the state; that of an older version lacks some."""
    numbers: dict[str, Any] = {key: int(stored.get(key, 0)) for key in COUNTED}
    return ArmCounts(latency_counts=unpack(stored["latency_counts"]), **numbers)


def _forget_latency(state: dict[str, Any]) -> None:
    """The router counts in other buckets now (it was updated): what was counted in the former ones is no longer to be compared."""
    state["latency"] = {**latency.start(), **{side: state["latency"][side] for side in ("fail", "pass")}}
    for arm in ("stable", "candidate"):
        state[arm] = {**state[arm], "latency_counts": pack(())}
    if state.get("pending") is not None:
        state["pending"] = {arm: {**counted, "latency_counts": pack(())} for arm, counted in state["pending"].items()}


def _without_latency(tick: Tick) -> Tick:
    return replace(tick, stable=replace(tick.stable, latency_counts=()), candidate=replace(tick.candidate, latency_counts=()))
