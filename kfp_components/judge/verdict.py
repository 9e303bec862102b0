"""The judge: ticks in, a verdict out at every look."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from html import escape
from typing import Any, Literal

from kfp_components.judge import error_rate, latency, split, stuck
from kfp_components.judge.counts import ArmCounts, Tick, quantile_s
from kfp_components.request import JudgeRules

Kind = Literal["pass", "fail", "inconclusive", "error"]
DEFAULT_MARGIN = 0.005
MARGIN_HISTORY = 200
"""Stable requests before its own failure rate may widen the margin."""


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
        return f"<p><b>{self.kind}</b> {escape(self.sentence)}</p>"


class Judge:
    """Compares two versions by the rules of a request. ``state`` is JSON; a judge made from it goes on exactly where the other stopped."""

    def __init__(self, rules: JudgeRules, state: dict[str, Any] | None = None, history: ArmCounts | None = None) -> None:
        """``history``: what stable did before the canary; it fixes the margin where none is given."""
        self.rules = rules
        if state is not None:
            self.state = state
            return
        before = history or ArmCounts()
        margin = (rules.error_margin_percent or 0.0) / 100
        if rules.error_margin_percent is None:
            own = before.failures / before.requests if before.requests >= MARGIN_HISTORY else 0.0
            margin = max(DEFAULT_MARGIN, own)
        empty = {"requests": 0, "failures": 0, "latency_counts": []}
        self.state = {
            "margin": margin,
            "fail": error_rate.fail_start(),
            "pass": error_rate.pass_start(),
            "latency": latency.start(),
            "split": split.start(),
            "weight_percent": None,
            "stuck_looks": 0,
            "stable": empty,
            "candidate": dict(empty),
            "bounds_s": [],
        }

    @property
    def candidate_requests(self) -> int:
        """Requests of the candidate judged so far."""
        return int(self.state["candidate"]["requests"])

    def observe(self, tick: Tick, *, weight_percent: float, sticky: bool = False, unwatched: bool = False) -> Verdict:
        """Add a tick and say what is known now.

        The split is not tested where the tick may hold requests of another weight: in the first one with a new weight and after a time when nobody
        renewed the weight's lease (``unwatched``); nor with ``sticky`` routing, which sends users, not requests, by weight.
        """
        state = dict(self.state)
        warm = state["candidate"]["requests"] >= self.rules.warm_up_requests
        for arm, counted in (("stable", tick.stable), ("candidate", tick.candidate)):
            total = ArmCounts(state[arm]["requests"], state[arm]["failures"], tuple(state[arm]["latency_counts"])) + counted
            state[arm] = {"requests": total.requests, "failures": total.failures, "latency_counts": list(total.latency_counts)}
        state["bounds_s"] = list(tick.bounds_s) or state["bounds_s"]
        sizes = (tick.candidate.requests, tick.stable.requests, tick.candidate.failures, tick.stable.failures)
        state["fail"] = error_rate.fail_update(state["fail"], *sizes)
        state["pass"] = error_rate.pass_update(state["pass"], *sizes, state["margin"])
        if self.rules.judge_latency and warm:
            state["latency"] = latency.update(
                state["latency"], tick, fail_margins=self.rules.fail_margins_percent, pass_margins=self.rules.latency_margins_percent
            )
        if not (sticky or unwatched) and state.get("weight_percent") == weight_percent:
            state["split"] = split.update(state["split"], tick.candidate.arrived, tick.stable.arrived, weight_percent)
        state["weight_percent"] = weight_percent
        waits = stuck.looks_stuck(tick.candidate.waiting, tick.stable.waiting, weight_percent)
        state["stuck_looks"] = state.get("stuck_looks", 0) + 1 if waits else 0
        self.state = state
        return self._verdict(tick, weight_percent)

    def totals(self) -> dict[str, Any]:
        """Cumulative counts and latency quantiles (milliseconds) of both versions, for the record and the report."""
        arms = ("stable", "candidate")
        return {
            "requests": {arm: self.state[arm]["requests"] for arm in arms},
            "failures": {arm: self.state[arm]["failures"] for arm in arms},
            "latency_ms": {arm: self._quantiles_ms(arm) for arm in arms},
        }

    def _quantiles_ms(self, arm: str) -> dict[str, float | None]:
        counted, bounds_s = self.state[arm]["latency_counts"], self.state["bounds_s"]
        found = {f"p{round(q * 100)}": quantile_s(counted, bounds_s, q) for q in latency.QUANTILES}
        return {name: None if value is None else round(value * 1000, 2) for name, value in found.items()}

    def _verdict(self, tick: Tick, weight_percent: float) -> Verdict:
        metrics = {"errors": {"e_fail": error_rate.mixed(self.state["fail"]), "e_pass": error_rate.mixed(self.state["pass"])}}
        if self.rules.judge_latency:
            rows = self.state["latency"]
            worse = error_rate.mixed([value for row in rows["fail"] for value in row])
            not_worse = min(error_rate.mixed(rows["pass"][row]) for row in latency.PASS_ROWS)
            metrics["latency"] = {"e_fail": worse, "e_pass": not_worse}
        e_fail = sum(found["e_fail"] for found in metrics.values()) / len(metrics)
        e_pass = min(found["e_pass"] for found in metrics.values())
        wrong_split = error_rate.mixed(self.state["split"]) >= 1 / self.rules.alpha_split
        counts = self._counts_sentence()
        if tick.broken:
            kind, why = "error", f"{tick.broken}; the counts cannot be trusted"
        elif wrong_split:
            seen = self.state["candidate"]["requests"] / max(1, self.state["candidate"]["requests"] + self.state["stable"]["requests"])
            kind, why = "error", f"the router was told {weight_percent:g} %, but {seen:.1%} of the requests went to the candidate; the split is wrong"
        elif self.state["stuck_looks"] * self.rules.tick_s >= stuck.PERSISTENCE_S:
            kind = "fail"
            why = f"the candidate hangs: {tick.candidate.waiting:,} of its requests wait for an answer, {tick.stable.waiting:,} of stable's; {counts}"
        elif e_fail >= 1 / self.rules.alpha_fail:
            worst = max(metrics, key=lambda name: metrics[name]["e_fail"])
            kind, why = "fail", f"the candidate is worse in {worst}: {counts}; evidence {e_fail:,.0f} : 1, bound {1 / self.rules.alpha_fail:,.0f} : 1"
        elif e_pass >= 1 / self.rules.alpha_pass:
            kind, why = "pass", f"the candidate is not worse: {counts}; evidence {e_pass:,.0f} : 1, bound {1 / self.rules.alpha_pass:,.0f} : 1"
        else:
            kind, why = "inconclusive", f"undecided so far: {counts}; for worse {e_fail:.2g} : 1, for not worse {e_pass:.2g} : 1"
        return Verdict(kind, why, e_fail, e_pass, metrics)  # type: ignore[arg-type]

    def _counts_sentence(self) -> str:
        parts = []
        for arm in ("candidate", "stable"):
            requests, failures = self.state[arm]["requests"], self.state[arm]["failures"]
            rate = f" ({failures / requests:.1%})" if requests else ""
            quantiles = self._quantiles_ms(arm)
            slow = f", p95 {quantiles['p95']:g} ms" if self.rules.judge_latency and quantiles["p95"] is not None else ""
            parts.append(f"{arm} failed {failures:,} of {requests:,} requests{rate}{slow}")
        return ", ".join(parts)
