"""The demo: a real model, real users, a good version promoted and a bad one caught, all on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kfp_components import errors, names, report, rollout
from kfp_components.local.environment import DEFAULT_NAMESPACE, Embedded
from kfp_components.local.load import Tally, Users
from kfp_components.release import Release
from kfp_components.request import PromoteRequest, parse

MODEL = "bge"
RAYSERVICE = "ai-inference"
RATE_PER_S = 20.0
FAULTS = ("errors", "slow_tail", "garbage", "fails_to_start")
SENTENCE = "A cat sits on the mat."
KNOWN = {"/embeddings/0/0": 0.126535, "/embeddings/0/1": -0.032851, "/embeddings/0/2": -0.02906, "/embeddings/0/3": 0.044407}
"""First numbers of all-MiniLM-L6-v2 for `SENTENCE`: a version that answers fast and wrong does not give them."""

JUDGE: dict[str, Any] = {
    "error_margin_percent": 2.0,
    "latency_margins_percent": [30.0, 60.0, 60.0],  # a laptop is noisy
    "latency_fail_margins_percent": [15.0, 20.0, 20.0],
    "max_minutes": 4.0,
}

RAY_CLUSTER = {
    "rayVersion": "2.60.0",
    "headGroupSpec": {
        "rayStartParams": {},
        "template": {"spec": {"containers": [{"name": "ray-head", "image": "rayproject/ray:2.60.0"}]}},
    },
}


def request(version: str, *, model: str = MODEL, fault: str | None = None, **options: Any) -> PromoteRequest:
    """A version of the demo's model: all-MiniLM-L6-v2, which cuts texts at 64 tokens in v1 and at 128 later; ``fault`` makes it a bad one."""
    args: dict[str, Any] = {"max_tokens": 64 if version == "v1" else 128}
    if fault is not None:
        args["fault"] = fault
    smoke = [
        {"name": "plain", "path": "/embed", "body": {"texts": [SENTENCE]}, "expect": KNOWN, "expect_shape": {"/embeddings": [1, 384]}},
        {
            "name": "v2 infer",
            "protocol": "v2",
            "body": {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [SENTENCE]}]},
            "expect": {"/model_name": model, "/outputs/0/datatype": "FP32", "/outputs/0/shape": [1, 384]},
        },
    ]
    defaults = {
        "model_format": "embedding",
        "args": args,
        "smoke": smoke,
        "judge": JUDGE,
        "watch_s": 2.0,
        "keep_previous_s": 4.0,
        "lease_s": 20.0,
        "ready_timeout_s": 120.0,
        "rayservice_template": RAY_CLUSTER,
    }
    return parse(
        {
            "model": model,
            "version": version,
            "uri": f"https://models.example/all-minilm-l6-v2/{model}/{version}",
            "namespace": DEFAULT_NAMESPACE,
            "rayservice": RAYSERVICE,
            "import_path": "kfp_components.models.embedding:build",
            "options": {**defaults, **options},
        }
    )


@dataclass
class Outcome:
    """What the demo ended with. ``unexcused`` are failures that users saw from anybody but the bad candidate."""

    releases: list[Release] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    reports: list[Path] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def unexcused(self) -> dict[str, int]:
        """Failures by version and kind, without those of candidates that were rolled back."""
        bad = tuple(f"{record.candidate_version} " for record in self.releases if record.phase != "promoted")
        return {kind: count for kind, count in self.tally.failed.items() if not (bad and kind.startswith(bad))}


def run(
    embedded: Embedded,
    *,
    say: Callable[[str], None],
    watch: Callable[[PromoteRequest], tuple[Any, rollout.Watcher]],
    fault: str = "errors",
) -> Outcome:
    """Deploy v1, send users to it, promote v2, promote a bad v3. ``watch`` gives a context manager and a watcher for each release."""
    outcome = Outcome()
    with embedded.used():
        cluster = embedded.cluster()
        first = request("v1")
        _timed(outcome, say, "deploy v1, the first version", lambda: rollout.deploy_model(rollout.open_run(first, cluster)))
        endpoint = cluster.endpoint(names.alias(MODEL), DEFAULT_NAMESPACE, names.SERVE_PORT)
        with Users(endpoint, names.public_route(MODEL), embedded.home / "users.json", rate_per_s=RATE_PER_S) as users:
            say(f"users send {RATE_PER_S:g} requests a second to {names.address(MODEL).url(DEFAULT_NAMESPACE)}")
            time.sleep(3)
            for asked, title in ((request("v2"), "promote v2, a good version"), (request("v3", fault=fault), f"promote v3, a bad version ({fault})")):
                _timed(outcome, say, title, lambda asked=asked: _promote(outcome, embedded, asked, watch))  # type: ignore[misc]
            outcome.tally = users.stop()
    return outcome


def _promote(outcome: Outcome, embedded: Embedded, asked: PromoteRequest, watch: Callable[[PromoteRequest], tuple[Any, rollout.Watcher]]) -> None:
    with ExitStack() as stack:
        view, watcher = watch(asked)
        stack.enter_context(view)
        run_of = rollout.open_run(asked, embedded.cluster(), watch=watcher)
        try:
            record = rollout.promote_with_canary(run_of)
        except errors.RolloutStopped:
            found = run_of.store.load()
            assert found is not None
            record = found
    outcome.releases.append(record)
    path = embedded.home / "reports" / f"{asked.model}-{asked.version}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report.render(record.model_dump(mode="json")), encoding="utf-8")
    outcome.reports.append(path)


def _timed(outcome: Outcome, say: Callable[[str], None], title: str, step: Callable[[], Any]) -> None:
    say(title)
    began = time.monotonic()
    step()
    outcome.seconds[title] = round(time.monotonic() - began, 1)
