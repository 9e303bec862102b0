"""A release while it runs, for a terminal: steps, weights, requests per version, evidence, verdict. Plain lines where there is no terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kfp_components import phases
from kfp_components.artifact import Lines, Progress, Tell
from kfp_components.phases import Phase
from kfp_components.release import Point, Release, Watcher

BAR = 30
EVENTS = 7
COLOURS: Mapping[Phase, str] = {
    **dict.fromkeys(phases.FORWARD, "cyan"),
    "promoted": "green",
    "held": "yellow",
    "rolling_back": "red",
    "rolled_back": "red",
}


def view(console: Console) -> tuple[AbstractContextManager[Any], Watcher]:
    """A context manager and the watcher that feeds it."""
    if not console.is_terminal:
        return nullcontext(), _Lines(console)
    live = Live(console=console, refresh_per_second=4, transient=False)
    return live, lambda record: live.update(render(record))


def reading(console: Console, shown: AbstractContextManager[Any]) -> Tell:
    """What hears how far an artifact is read before there is a release to show: a bar in the view's place, lines where there is no terminal."""
    if not isinstance(shown, Live):
        return Lines(lambda text: console.print(f"  {text}", soft_wrap=True, markup=False))

    def show(progress: Progress) -> None:
        bar = ProgressBar(total=progress.total_bytes, completed=progress.done_bytes, width=BAR, pulse=not progress.total_bytes)
        shown.update(Group(Text(str(progress)), bar))

    return show


class _Lines:
    def __init__(self, console: Console) -> None:
        self.console = console
        self.told = 0.0
        self.counted = 0.0

    def __call__(self, record: Release) -> None:
        for event in record.events:
            if event.unix_s > self.told:
                mark = "" if event.ok else "! "
                self.console.print(f"  {_clock(event.unix_s)} {mark}{event.step}: {event.message}", soft_wrap=True, markup=False)
                self.told = event.unix_s
        if record.timeline and record.timeline[-1].unix_s - self.counted >= 5:
            point = record.timeline[-1]
            self.counted = point.unix_s
            counts = ", ".join(
                f"{version}: {point.requests.get(arm, 0)} requests, {point.failures.get(arm, 0)} failed{_others(point, arm)}"
                for arm, version in (("stable", record.stable_version), ("candidate", record.candidate_version))
            )
            evidence = f"worse {_evidence(point.e_fail):.2g} : 1, not worse {_evidence(point.e_pass):.2g} : 1"
            told = " | ".join(part for part in (f"{point.weight_percent:g} %", counts, _golden(point), evidence) if part)
            self.console.print(f"  {_clock(point.unix_s)} {told}", soft_wrap=True, markup=False)


def render(record: Release) -> RenderableType:
    """One picture of a release."""
    parts: list[RenderableType] = [_steps(record)]
    if record.timeline:
        parts += [_versions(record), _evidence_bars(record)]
        if golden := _golden(record.timeline[-1]):
            parts.append(Text(golden))
    events = Text()
    for event in record.events[-EVENTS:]:
        events.append(f"{_clock(event.unix_s)} ", "dim")
        events.append(f"{event.step}: ", "bold" if event.ok else "bold red")
        events.append(event.message[:200] + "\n")
    parts.append(events)
    if record.standing:
        parts.append(Text(record.standing, "yellow"))
    elif record.phase == "held":
        go_on = phases.how_to_go_on(record.in_a_command, record.candidate_version, held=True)
        parts.append(Text(f"{record.sentence}\n{go_on}", "yellow"))
    title = f"{record.namespace}/{record.model}: {record.stable_version or 'nothing'} -> {record.candidate_version}"
    return Panel(Group(*parts), title=title, subtitle=record.phase.replace("_", " "), border_style=COLOURS[record.phase])


def _steps(record: Release) -> Text:
    boxes: list[tuple[str, Phase]] = [("register", "registered"), ("deploy", "deployed"), ("smoke", "smoked")]
    line = Text()
    for name, phase in boxes:
        line.append(f" {name} ", "green" if record.reached(phase) else "dim")
        line.append(">", "dim")
    for index, weight in enumerate(record.steps):
        style = "green" if record.step_index > index else "bold cyan" if record.phase == "canary" and record.step_index == index else "dim"
        line.append(f" {weight:g} % ", style)
        line.append(">", "dim")
    line.append(" promote ", "green" if record.phase == "promoted" else "dim")
    if record.phase == "held":
        line.append(" held ", "bold yellow")
    if record.phase in phases.BACK:
        line.append(f" {record.phase.replace('_', ' ')} ", "bold red")
    return line


def _versions(record: Release) -> Table:
    point = record.timeline[-1]
    table = Table(box=None, padding=(0, 2))
    for column in ("version", "share", "requests", "failed", "4xx", "gave up", "p50 ms", "p95 ms", "p99 ms"):
        table.add_column(column, justify="left" if column == "version" else "right")
    shares = {"stable": 100 - record.weight_percent, "candidate": record.weight_percent}
    for arm, version in (("stable", record.stable_version), ("candidate", record.candidate_version)):
        slow = point.latency_ms.get(arm, {})
        failed = point.failures.get(arm, 0)
        table.add_row(
            f"{version} ({arm})",
            f"{shares[arm]:g} %",
            f"{point.requests.get(arm, 0):,}",
            Text(f"{failed:,}", "red" if failed else "green"),
            *(_known(counted, arm) for counted in (point.client_errors, point.disconnects)),
            *(_milliseconds(slow.get(name)) for name in ("p50", "p95", "p99")),
        )
    return table


def _evidence_bars(record: Release) -> Text:
    point = record.timeline[-1]
    rules = {"alpha_fail": 0.01, "alpha_pass": 0.05, **(record.request.get("options") or {}).get("judge", {})}
    text = Text()
    for name, value, bound, style in (
        ("worse    ", _evidence(point.e_fail), 1 / rules["alpha_fail"], "red"),
        ("not worse", _evidence(point.e_pass), 1 / rules["alpha_pass"], "green"),
    ):
        filled = _filled(value, bound)
        text.append(f"evidence {name} ")
        text.append("█" * filled, style)
        text.append("░" * (BAR - filled), "dim")
        text.append(f" {value:.3g} of {bound:g}\n")
    return text


def _evidence(value: float | None) -> float:
    """NaN for what is missing: JSON has no such number, so it was stored as null."""
    return math.nan if value is None else value


def _filled(value: float, bound: float) -> int:
    """How much of the bar: on a log scale, whatever the value is (a broken one draws nothing, an endless one all)."""
    if math.isnan(value):
        return 0
    return round(BAR * min(1.0, max(0.0, math.log(min(max(value, 1.0), bound)) / math.log(bound))))


def _known(counted: Mapping[str, int], arm: str) -> str:
    """A count that older records lack."""
    return f"{counted[arm]:,}" if arm in counted else "-"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _others(point: Point, arm: str) -> str:
    refused, gave_up = point.client_errors.get(arm, 0), point.disconnects.get(arm, 0)
    return (f", {refused} refused (4xx)" if refused else "") + (f", {gave_up} gave up" if gave_up else "")


def _golden(point: Point) -> str:
    """What both versions answered to the golden set; empty where none was asked."""
    if not point.pairs:
        return ""
    scores = ", ".join(f"{arm}'s mean score {point.scores.get(arm, math.nan):.3f}, {point.garbage.get(arm, 0):,} useless" for arm in point.scores)
    return f"golden requests {point.pairs:,}: {scores}"


def _clock(unix_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(unix_s))
