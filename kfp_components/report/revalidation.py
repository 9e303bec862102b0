"""What re-validations found, as a page that opens anywhere: all models, the worst first, and for each its looks over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from kfp_components.clock import utc
from kfp_components.report import plain, svg, templates
from kfp_components.report.svg import Bound, Series

ORDER = ("decayed", "unreachable", "not enough", "healthy")
"""The worst first."""
STYLES = {"decayed": "bad", "unreachable": "open", "not enough": "open", "healthy": "good"}
NEXT = {
    "decayed": "users still get what decayed, unless it says that it was demoted: promote another version, or let a look demote it",
    "unreachable": "mend what is said of it and look again",
    "not enough": "nothing: the next looks say more",
    "healthy": "nothing: the next look is another one",
}
"""What to do, by the worst outcome."""
SHOWN_PLOTS = 30
"""Models whose looks are drawn. Of the others the table has a line, and what is not healthy its sentence."""
FLOOR, CEILING = 1e-3, 1e6


def render(found: Sequence[Mapping[str, Any]], *, whole: bool = True) -> str:
    """The page as HTML text, of `Revalidation.as_dict` of each model; not ``whole``: to be put into another page. Whatever it holds is escaped."""
    ordered = _ordered(found)
    return (
        templates()
        .get_template("revalidation.html.j2")
        .render(
            whole=whole,
            title=f"Re-validation of {ordered[0]['namespace']}/{ordered[0]['model']}"
            if len(ordered) == 1
            else f"Re-validation of {len(ordered)} models",
            outcome=STYLES[str(ordered[0]["outcome"])] if ordered else "open",
            told=_counted(ordered),
            rows=[_row(one) for one in ordered],
            models=[_model(one, number < SHOWN_PLOTS) for number, one in enumerate(ordered) if number < SHOWN_PLOTS or one["outcome"] != "healthy"],
            when=utc(max(float(one["unix_s"]) for one in ordered)) if ordered else "",
        )
    )


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """The same in a few lines."""
    ordered = _ordered(found)
    lines = [f"## Re-validation: {_counted(ordered)}", "", "| model | version | outcome | evidence | what was found |", "|---|---|---|---|---|"]
    for one in ordered:
        model, version, told = plain(str(one["model"])), plain(str(one["version"] or "-")), plain(_told(one))
        evidence = f"{one['evidence']:.3g} : 1 that it decayed (said at {one['bound']:,.0f} : 1)"
        lines.append(f"| {model} | {version} | {one['outcome']} | {evidence} | {told} |")
    return "\n".join([*lines, "", f"- **Next**: {NEXT[str(ordered[0]['outcome'])] if ordered else 'nothing was looked at'}"]) + "\n"


def _ordered(found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The worst first."""
    return sorted(found, key=lambda one: (ORDER.index(str(one["outcome"])), str(one["namespace"]), str(one["model"])))


def _counted(found: Sequence[Mapping[str, Any]]) -> str:
    counts = [(outcome, sum(one["outcome"] == outcome for one in found)) for outcome in ORDER]
    return ", ".join(f"{number} {outcome}" for outcome, number in counts if number) or "no model"


def _row(one: Mapping[str, Any]) -> dict[str, str]:
    return {
        "model": f"{one['namespace']}/{one['model']}",
        "version": str(one["version"] or "-"),
        "outcome": str(one["outcome"]),
        "style": STYLES[str(one["outcome"])],
        "requests": f"{one['requests']:,}",
        "failures": f"{one['failures']:,}",
        "p50": _ms(one["p50_ms"]),
        "p95": _ms(one["p95_ms"]),
        "evidence": f"{one['evidence']:.3g} : {one['bound']:,.0f}",
        "since": utc(float(one["since_unix_s"])) if one.get("since_unix_s") and one["outcome"] == "decayed" else "",
        "sentence": _told(one),
    }


def _model(one: Mapping[str, Any], drawn: bool) -> dict[str, Any]:
    asked = [look for look in one["looks"] if look["requests"]]
    begin = float(asked[0]["unix_s"]) if asked else 0.0

    def line(name: str, style: str, key: str, *, dashed: bool = False) -> Series:
        return Series(name, style, [(float(look["unix_s"]) - begin, look[key]) for look in asked], dashed=dashed)

    failed = Series("failed", "fail", [(float(look["unix_s"]) - begin, 100 * look["failures"] / look["requests"]) for look in asked])
    bounds = [Bound(f"{one['bound']:,.0f}: decayed", "fail", float(one["bound"]))]
    plots = [
        svg.line_plot("Answers that are wrong or missing", [failed], unit=" %"),
        svg.line_plot("Latency, milliseconds", [line("p50", "stable", "p50_ms"), line("p95", "candidate", "p95_ms", dashed=True)]),
        svg.line_plot(
            "Evidence for a decay (log scale; 1 says nothing)",
            [line("decayed", "fail", "evidence")],
            log=True,
            bounds=bounds,
            floor=FLOOR,
            ceiling=CEILING,
        ),
    ]
    return {
        "name": f"{one['namespace']}/{one['model']} {one['version'] or ''}",
        "sentence": _told(one),
        "style": STYLES[str(one["outcome"])],
        "failed": one["failed"],
        "plots": [Markup(plot) for plot in plots] if len(asked) > 1 and drawn else [],
    }


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _told(one: Mapping[str, Any]) -> str:
    return "; ".join(str(one[part]) for part in ("sentence", "demotion") if one[part])
