"""The report: self-contained, escaped, right about what happened, and whole whatever is missing from the record."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from kfp_components import errors, live, report
from kfp_components.cluster import Ref
from kfp_components.cluster.changes import Apply, Delete, Owner, Plan
from kfp_components.judge.verdict import Verdict
from kfp_components.release import Evidence, Release
from kfp_components.release.revalidation import Look
from kfp_components.report import svg
from kfp_components.rollout import Revalidation

VOID = {"meta", "br", "hr", "img", "line", "link", "input"}


def release(**changes: Any) -> dict[str, Any]:
    """A record of a bad version that was caught in the second step."""
    timeline = [
        {
            "unix_s": 1_790_000_040.0 + 2 * second,
            "weight_percent": 10.0 if second < 5 else 25.0,
            "requests": {"stable": 180 * second, "candidate": 20 * second},
            "failures": {"stable": second // 4, "candidate": second},
            "client_errors": {"stable": 1, "candidate": 6},
            "disconnects": {"stable": 0, "candidate": 2},
            "e_fail": 1.9**second,
            "e_pass": 0.8**second,
            "latency_ms": {"stable": {"p50": 12.0, "p95": 24.9, "p99": 44.1}, "candidate": {"p50": 12.8, "p95": None, "p99": None}},
        }
        for second in range(9)
    ]
    return {
        "model": "bge",
        "namespace": "ai-ml",
        "rayservice": "ai-inference",
        "stable_version": "v1",
        "candidate_version": "v2",
        "phase": "rolled_back",
        "verdict": {
            "kind": "fail",
            "sentence": "the candidate is worse in errors: candidate failed 8 of 160 requests",
            "e_fail": 169.8,
            "e_pass": 0.17,
            "metrics": {"errors": {"e_fail": 338.6, "e_pass": 0.17}, "latency": {"e_fail": 1.0, "e_pass": 2.0}},
        },
        "failure": {"error": "CanaryFailed", "message": "model bge: the candidate is worse in errors: candidate failed 8 of 160 requests"},
        "started_unix_s": 1_790_000_000.0,
        "finished_unix_s": 1_790_000_060.0,
        "holder": "host/1/2",
        "steps": [10.0, 25.0, 50.0],
        "step_index": 1,
        "request": {
            "uri": "s3://models/bge/v2",
            "options": {"judge": {"alpha_fail": 0.01, "alpha_pass": 0.05}, "runtime_env": {"env_vars": {"KEY": "hush-hush"}}},
        },
        "timeline": timeline,
        "events": [
            {"unix_s": 1_790_000_001.0, "step": "registered", "message": "bge v2 registered", "ok": True},
            {"unix_s": 1_790_000_020.0, "step": "deployed", "message": "runs", "ok": True},
            {"unix_s": 1_790_000_030.0, "step": "smoked", "message": "2 cases", "ok": True},
            {"unix_s": 1_790_000_058.0, "step": "roll back", "message": "all traffic back to v1", "ok": False},
        ],
        "rollback": {"seconds": 1.24, "leaked_requests": 1, "reason": "errors"},
        **changes,
    }


class Page(HTMLParser):
    """Checks that tags are closed in order and collects what a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def drawings(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def test_page_is_whole_and_fetches_nothing() -> None:
    text = report.render(release())
    page = Page(text)
    assert page.fetched == []
    assert "script" not in page.tags
    assert "url(" not in text and "@import" not in text
    assert len(drawings(text)) == 9  # weight, evidence, requests, failures, 4xx, clients that gave up, p50, p95, p99: each is well-formed XML
    for said in ("bge v1 to v2", "rolled back", "candidate failed 8 of 160 requests", "answered everything again after 1.2 s; 1 request reached"):
        assert said in page.text
    assert "170 : 1" in page.text and "339 : 1" in page.text
    assert "8 (5.00 %)" in page.text


def test_values_of_environment_variables_are_not_shown() -> None:
    assert "hush-hush" not in report.render(release())
    assert "KEY" in report.render(release())


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 191 }}", "</svg><b>"])
def test_everything_is_escaped(hostile: str) -> None:
    events = [{"unix_s": 1.0, "step": hostile, "message": hostile, "ok": False}]
    texts = {"model": hostile, "stable_version": hostile, "candidate_version": hostile, "holder": hostile, "phase": hostile}
    record = release(**texts, verdict={"kind": "fail", "sentence": hostile, "metrics": {hostile: {}}}, events=events, request={"uri": hostile})
    text = report.render(record)
    page = Page(text)
    assert not {"script", "img"} & set(page.tags)
    assert hostile in page.text and "1337" not in page.text  # as text
    assert "<script" not in report.markdown(record)


def test_flow_shows_where_it_ended() -> None:
    def states(**changes: Any) -> dict[str, str]:
        return {box["name"]: box["state"] for box in report.flow(release(**changes))}

    assert states() == {"register": "done", "deploy": "done", "smoke": "done", "10 %": "done", "25 %": "bad", "50 %": "open", "rolled back": "bad"}
    assert set(states(phase="promoted", step_index=3).values()) == {"done"}
    running = states(phase="canary", step_index=1)
    assert (running["10 %"], running["25 %"], running["50 %"], running["promote"]) == ("done", "now", "open", "open")
    at_smoke = states(timeline=[], step_index=0, events=release()["events"][:2])
    assert (at_smoke["deploy"], at_smoke["smoke"], at_smoke["10 %"]) == ("done", "bad", "open")
    without_index = release(phase="promoted")
    del without_index["step_index"]
    assert {box["state"] for box in report.flow(without_index)} == {"done"}


def test_share_falls_to_nothing_when_it_is_taken_back() -> None:
    first = drawings(report.plots(release())[0])[0]
    tooltips = [found.text or "" for found in first.iter() if found.tag.endswith("title")]
    assert tooltips[0].endswith("candidate v2: 10 %") and tooltips[-1] == "after 18 s\ncandidate v2: 0 %"


def shares(**changes: Any) -> list[str]:
    """What the tooltips of the plot of shares say."""
    first = drawings(report.plots(release(**changes))[0])[0]
    return [(found.text or "").replace("\ncandidate v2", "") for found in first.iter() if found.tag.endswith("title")]


@pytest.mark.parametrize("watched", [True, False])
def test_a_promotion_that_went_back_later_had_all_requests_until_then(watched: bool) -> None:
    began = release()["timeline"][0]["unix_s"]
    at_100 = [{**release()["timeline"][-1], "unix_s": began + 20 + second, "weight_percent": 100.0, "latency_ms": {}} for second in range(5)]
    told = [("promoting", 19.0), ("promote", 20.0), ("promoted", 26.0), ("roll back", 200.0)]
    record: dict[str, Any] = {
        "timeline": [*release()["timeline"], *at_100][: None if watched else len(release()["timeline"])],
        "switched_unix_s": began + 20.0,
        "step_index": 3,
        "events": [{"unix_s": began + at_s, "step": step, "message": "", "ok": step != "roll back"} for step, at_s in told],
    }
    found = shares(**record)
    assert "after 20 s: 100 %" in found and found[-1] == "after 3 min 20 s: 0 %" and sum(text.endswith(": 0 %") for text in found) == 1
    assert [(box["name"], box["state"]) for box in report.flow(release(**record))][-3:] == [
        ("50 %", "done"),
        ("promote", "bad"),
        ("rolled back", "bad"),
    ]
    assert "| 12.8 |" in report.markdown(release(**record)), "latency as it was measured last"
    assert shares(**record, phase="promoted")[-1].endswith(": 100 %")


def test_flow_shows_where_a_release_stands() -> None:
    def held(**changes: Any) -> list[str]:
        boxes = report.flow(release(**{"phase": "canary", "failure": None, **changes}))
        return [box["name"] for box in boxes if box["state"] == "held"]

    paused = {"by": "me", "since_unix_s": 1_790_000_050.0}
    assert held() == [] and held(paused=paused) == ["25 %"]
    assert held(waits={"before": "50 %", "until_unix_s": 1_790_000_090.0}, step_index=2) == ["50 %"]
    assert held(waits={"before": "promote", "until_unix_s": 1_790_000_090.0}, step_index=3) == ["promote"]
    assert held(paused=paused, phase="promoted", step_index=3) == []


@given(
    missing=st.sets(st.sampled_from(sorted(release()))),
    phase=st.sampled_from(["promoted", "rolled_back", "canary", "prepared", "inconclusive", "new"]),
)
@settings(max_examples=60, deadline=None)
def test_tolerates_missing_parts(missing: set[str], phase: str) -> None:
    record = {key: value for key, value in release(phase=phase).items() if key not in missing}
    Page(report.render(record))
    assert report.markdown(record).startswith("## ")


@pytest.mark.parametrize(
    "point", [{}, {"unix_s": 3.0}, {"unix_s": 3.0, "requests": {}, "latency_ms": {"stable": None}}, {"e_fail": 1e300, "e_pass": 0.0, "unix_s": 1}]
)
def test_tolerates_poor_points(point: dict[str, Any]) -> None:
    for timeline in ([point], [point, *release()["timeline"]]):
        Page(report.render(release(timeline=timeline)))
        assert all("nan" not in plot and "inf" not in plot.lower().replace("info", "") for plot in report.plots(release(timeline=timeline)))


def older_points() -> list[dict[str, Any]]:
    """A timeline as it was written before client errors and clients that gave up were judged."""
    return [{key: value for key, value in point.items() if key not in ("client_errors", "disconnects")} for point in release()["timeline"]]


def test_d2_client_errors_and_clients_that_gave_up_are_shown_and_older_records_are_read() -> None:
    page = Page(report.render(release()))
    assert "Client errors (4xx) so far" in page.text and "Clients that gave up so far" in page.text
    assert "answers 4xx by stable's recent rate (at least 1, at most 5)" in page.text
    old = report.render(release(timeline=older_points()))
    assert len(drawings(old)) == 7 and "| candidate v2 | 160 | 8 (5.00 %) | - | - | 12.8 |" in report.markdown(release(timeline=older_points()))


def seen(record: dict[str, Any]) -> str:
    console = Console(width=160, file=io.StringIO(), force_terminal=False)
    fields = {key: value for key, value in record.items() if key in Release.model_fields}
    console.print(live.render(Release(**{"request_digest": "d", **fields})))
    _, watcher = live.view(console)
    watcher(Release(**{"request_digest": "d", **fields}))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_d2_the_live_view_shows_client_errors_and_clients_that_gave_up_and_reads_older_records() -> None:
    text = seen(release())
    assert "4xx" in text and "gave up" in text and "v2: 160 requests, 8 failed, 6 refused (4xx), 2 gave up" in text
    assert "v2: 160 requests, 8 failed |" in seen(release(timeline=older_points()))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300, 1e308, 0.0, -1.0, None])
def test_d13_no_evidence_breaks_the_live_view_or_the_report(value: float | None) -> None:
    for key in ("e_fail", "e_pass"):
        record = release(timeline=[*release()["timeline"], {**release()["timeline"][-1], key: value}], verdict={"kind": "pass", key: value})
        assert "evidence" in seen(record)
        Page(report.render(record))
        report.markdown(record)


def test_a_real_record_renders() -> None:
    record = Release(model="bge", namespace="ai-ml", rayservice="rs", candidate_version="v1", request={}, request_digest="d")
    page = Page(report.render(record.model_dump(mode="json")))
    assert "this is the model's first" in page.text


def test_markdown_is_short_and_escaped() -> None:
    text = report.markdown(release(model="b|g*e"))
    assert text.startswith("## b\\|g\\*e v1 to v2: rolled back\n")
    assert "| candidate v2 | 160 | 8 (5.00 %) | 6 | 2 | 12.8 | - | - |" in text
    assert len(text.splitlines()) < 25


@given(st.floats(1e-6, 1e12))
def test_linear_ticks_hold_the_highest_value(highest: float) -> None:
    ticks = svg.linear_ticks(highest)
    assert ticks[0] == 0 and 2 <= len(ticks) <= 6
    assert highest <= ticks[-1] * (1 + 1e-9) and ticks[-2] < highest


@given(st.floats(0.001, 1e7))
def test_time_ticks_are_few_and_inside(end_s: float) -> None:
    ticks = svg.time_ticks(end_s)
    assert ticks[0] == (0.0, "0 s") and len(ticks) <= 7
    assert ticks[-1][0] <= end_s


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (150, "2 min 30 s"), (3600, "1 h"), (3905, "1 h 5 min"), (86400, "24 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert svg.duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (0.05, "0.05"), (1200, "1,200"), (20_000, "20 k"), (1e6, "1e6"), (1e-4, "1e-4"), (2.5, "2.5")])
def test_axis_numbers(value: float, text: str) -> None:
    assert svg.short_number(value) == text


def test_plot_draws_gaps_and_keeps_inside() -> None:
    line = svg.Series("a", "stable", [(0, 1.0), (1, None), (2, 5.0), (3, 1e9)])
    drawing = ElementTree.fromstring(svg.line_plot("t", [line], ceiling=10))
    paths = [found for found in drawing.iter() if found.tag.endswith("path")]
    assert len(paths) == 2
    heights = [float(number) for path in paths for number in re.findall(r"[ML][\d.]+ ([\d.]+)", path.get("d") or "")]
    assert min(heights) >= svg.TOP and max(heights) <= 250 - svg.BOTTOM
    assert ElementTree.fromstring(svg.line_plot("t", [])) is not None


def test_names_in_a_plot_do_not_lie_on_each_other_or_run_over_the_edge() -> None:
    bounds = [svg.Bound("100: fail", "fail", 100.0), svg.Bound("20: pass", "pass", 20.0)]
    line = svg.Series("a", "stable", [(0.0, 1e-4), (75.0, 1e4)])
    texts = [found for found in ElementTree.fromstring(svg.line_plot("t", [line], log=True, bounds=bounds)).iter() if found.tag.endswith("text")]
    fail_y, pass_y = (float(found.attrib["y"]) for found in texts if found.attrib["class"].startswith("bound"))
    assert pass_y - fail_y >= 12
    (last,) = [found for found in texts if found.text == "1 min 15 s"]
    assert last.attrib["text-anchor"] == "end" and float(last.attrib["x"]) <= 560


def test_an_adoption_is_told_as_what_it_is() -> None:
    adopted = {
        "model": "bge",
        "namespace": "ai-ml",
        "rayservice": "ai",
        "candidate_version": "found-1",
        "candidate_application": "embed",
        "route": "/v1",
        "phase": "promoted",
        "adoption": {"version": "found-1", "application": "embed"},
        "events": [{"unix_s": 1.0, "step": "adopt", "message": "application embed at /v1 is version found-1: nothing of it is touched"}],
    }
    page = report.render(adopted)
    assert "bge: what serves is adopted as found-1" in page and "nothing to found-1" not in page
    assert "http://bge-predictor.ai-ml.svc.cluster.local:8000/v1" in page and "worse means" not in page
    assert [box["name"] for box in report.flow(adopted)] == ["adopt"]
    later = report.render({**adopted, "candidate_version": "v2", "stable_version": "found-1", "stable_application": "embed"})
    assert "bge found-1 to v2" in later


# --- in a notebook ----------------------------------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script>"
STUB = {"kind": "A", "metadata": {"name": "a", "namespace": "n"}, "spec": {"version": "v1", "uri": HOSTILE}}
PLAN = Plan(
    (Apply({**STUB, "spec": {"version": "v2", "uri": HOSTILE}}, f"why {HOSTILE}"), Delete(Ref("B", "b", "n"), "no longer wanted")),
    {Ref("A", "a", "n"): STUB, Ref("B", "b", "n"): {"kind": "B", "metadata": {"name": "b"}, "spec": "-- old"}},
    (Owner(Ref("A", "a", "n"), "commit", "flux", f"commit it {HOSTILE}"),),
    errors.ManagedElsewhere(f"A n/a: it is managed by Flux {HOSTILE}"),
)
METRICS = {"client_errors": {"e_fail": 0.5, "e_pass": 1234.0}}
LOOK = Look(unix_s=1.0, outcome="decayed", sentence=f"v1 decayed {HOSTILE}", requests=100, failures=33, evidence=200.0)
VALUES = [
    (Release(**{"request_digest": "d", **{key: value for key, value in release(holder=HOSTILE).items()}}), "release-report"),
    (Revalidation("m", "n", "r", "v1", LOOK, (LOOK, LOOK)), "release-report"),
    (PLAN, "kfp-serving"),
    (Verdict("fail", f"worse {HOSTILE}", 0.25, 1234.0, METRICS), "kfp-serving"),
    (Evidence(kind="fail", sentence=f"worse {HOSTILE}", e_pass=1234.0, metrics={**METRICS}), "kfp-serving"),
]


@pytest.mark.parametrize(("value", "name"), VALUES, ids=lambda value: type(value).__name__)
def test_a_notebook_gets_a_piece_whose_style_stays_inside(value: Any, name: str) -> None:
    html = value._repr_html_()
    page = Page(html)
    assert not {"html", "head", "body", "meta", "script", "img"} & set(page.tags) and page.fetched == []
    assert HOSTILE in page.text
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    rules = re.findall(r"([^{}]+)\{[^{}]*\}", re.sub(r"@media[^{]*\{", "", style))
    assert len(rules) > 10
    for selector in ",".join(rules).split(","):
        themed = selector.strip().removeprefix(".vscode-dark ").removeprefix(".vscode-light ")
        assert re.match(rf"(\[data-jp-theme-light=\w+\] )?\.{name}\b", themed), selector
    assert f'class="{name}' in html, "and there is something that it is for"


def test_a_plan_shows_what_is_done_with_each_object_and_whose_it_is() -> None:
    html = PLAN._repr_html_()
    assert [found for found in re.findall(r"<b>([^<]*)</b>", html)] == ["apply A n/a", "delete B n/b"]
    changed = re.findall(r'<span class="(plus|minus)">([^<]*)</span>', html)
    assert ("minus", "-  version: v1") in changed and ("plus", "+  version: v2") in changed and ("minus", "-spec: -- old") in changed
    text = Page(html).text
    assert "it is managed by Flux" in text and "commit it" in text and "no longer wanted" in text


@pytest.mark.parametrize("kind", ["Verdict", "Evidence"])
def test_a_verdict_shows_the_evidence_for_and_against(kind: str) -> None:
    html = next(value for value, _ in VALUES if type(value).__name__ == kind)._repr_html_()
    together = "0.25 : 1" if kind == "Verdict" else "-"
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(<td.*?)</tr>", html)]
    assert rows == [["client errors (4xx)", "0.5 : 1", "1,234 : 1"], ["together", together, "1,234 : 1"]]
    assert '<span class="pill bad">fail</span>' in html
