"""What adoption costs users while no release runs: an adopted model against one that was never touched, on real Ray, by turns.

    python benchmarks/steady.py             writes benchmarks/RESULTS.md (5 minutes)
    python benchmarks/steady.py --print     writes nothing

Equal applications at routes of their own. A block is four short runs, A B B A or B A A B by turns, so that what drifts strikes both alike; the
ratio of a block is that of its means, and the interval is a bootstrap over blocks. Before the adoption the same is measured of the same
applications: what differs then is the applications' own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np
import results
from durations import machine
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from kfp_components import names, rollout
from kfp_components.cluster import Ref
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.local.demo import RAY_CLUSTER
from kfp_components.local.environment import DEFAULT_NAMESPACE, Embedded
from kfp_components.request import PromoteRequest, parse, parse_target
from kfp_components.serving import rayservice

BLOCKS = 140
REQUESTS = 40
"""Of a short run; the first `WARM` are not counted."""
WARM, CLIENTS = 8, 8
PAIRS = (("adopted-a", "untouched-a"), ("adopted-b", "untouched-b"))
"""By turns, so that the luck of one replica is not taken for a cost."""
RAYSERVICE, APPLICATION = "steady", "tests.e2e.apps:build"
BODY = {"texts": ["the invoice was sent twice"] * 4}
STEADY = "adopted, no release"
WITHIN = (0.95, 1.05)
READY_S = 120.0


@dataclass(frozen=True)
class Ratio:
    """Adopted over untouched, with its 95 % interval."""

    of: str
    adopted: float
    untouched: float
    ratio: float
    low: float
    high: float
    blocks: int


def text() -> str:
    """As an owner would write it."""
    entries = [f"- name: {name}\n  route_prefix: /{name}\n  import_path: {APPLICATION}\n  args: {{version: v1}}\n" for pair in PAIRS for name in pair]
    return "# equal, but for their names\napplications:\n" + "".join(entries)


async def short_run(session: aiohttp.ClientSession, url: str) -> tuple[float, float]:
    """Median seconds of an answer and answers a second, of clients without pause. Raises when a request fails."""
    took: list[float] = []
    left = REQUESTS + WARM
    began = 0.0

    async def client() -> None:
        nonlocal left, began
        while left > 0:
            left -= 1
            counts = left < REQUESTS
            at = time.perf_counter()
            if counts and not began:
                began = at
            async with session.post(f"{url}/embed", json=BODY) as answer:
                await answer.read()
                answer.raise_for_status()
            if counts:
                took.append(time.perf_counter() - at)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return statistics.median(took), len(took) / (time.perf_counter() - began)


async def measure(base_url: str, blocks: int, progress: Progress, what: str) -> list[Ratio]:
    """Both ratios over that many blocks."""
    task = progress.add_task(what, total=blocks)
    seen: list[list[tuple[float, float]]] = []
    """Of each block: (adopted, untouched) of the median and of the throughput."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=60)) as session:
        for name in (name for pair in PAIRS for name in pair):
            await short_run(session, f"{base_url}/{name}")
        for block in range(blocks):
            ours, theirs = PAIRS[block % len(PAIRS)]
            order = (ours, theirs, theirs, ours) if block // len(PAIRS) % 2 else (theirs, ours, ours, theirs)
            found = [(name, await short_run(session, f"{base_url}/{name}")) for name in order]
            seen.append(
                [
                    (
                        statistics.fmean(run[number] for name, run in found if name == ours),
                        statistics.fmean(run[number] for name, run in found if name == theirs),
                    )
                    for number in (0, 1)
                ]
            )
            progress.update(task, advance=1)
    ratios = [ratio(of, [block[number] for block in seen]) for number, of in enumerate(("p50, ms", "answers a second"))]
    for each in ratios:
        progress.console.print(f"{what}: {each}", soft_wrap=True)
    return ratios


def ratio(of: str, pairs: list[tuple[float, float]]) -> Ratio:
    """The geometric mean of the blocks' ratios; its interval by 20,000 bootstrap samples of the blocks."""
    logs = np.log([ours / theirs for ours, theirs in pairs])
    source = np.random.default_rng(4)
    means = logs[source.integers(0, len(logs), (20_000, len(logs)))].mean(axis=1)
    low, high = np.exp(np.percentile(means, [2.5, 97.5]))
    scale = 1000.0 if of.endswith("ms") else 1.0
    ours, theirs = (scale * statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    return Ratio(of, ours, theirs, float(np.exp(logs.mean())), float(low), float(high), len(pairs))


def set_up(api: KubernetesCluster, embedded: Embedded) -> None:
    """The owner's RayService runs."""
    metadata = {"name": RAYSERVICE, "namespace": DEFAULT_NAMESPACE, "annotations": {names.ALLOWED_IMPORTS: "tests.e2e.*"}}
    spec = {"serveConfigV2": text(), "rayClusterConfig": RAY_CLUSTER}
    api.apply({"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata, "spec": spec}, manager="kubectl-client-side-apply")
    deadline = time.monotonic() + READY_S
    with embedded.serve() as serve:
        while time.monotonic() < deadline:
            states = [each["status"] for each in serve.get_status()["applications"].values()]
            if len(states) == 2 * len(PAIRS) and set(states) == {"RUNNING"}:
                return
            time.sleep(0.2)
    raise SystemExit(f"the applications do not run after {READY_S:g} s: {states}")


def candidate(model: str) -> PromoteRequest:
    """An equal version beside it."""
    return parse(
        {
            "model": model,
            "version": "v2",
            "uri": f"s3://models/{model}/v2",
            "namespace": DEFAULT_NAMESPACE,
            "rayservice": RAYSERVICE,
            "import_path": APPLICATION,
            "steps": [1],
            "options": {"lease_s": 3600.0, "ready_timeout_s": READY_S},
        }
    )


def begin(api: KubernetesCluster, model: str) -> rollout.Run:
    """A release that has got as far as its first share of the requests."""
    run = rollout.open_run(candidate(model), api)
    rollout._deploy_and_smoke(run, first_version=False)
    rollout.shift_traffic(run, 1.0)
    return run


def written(api: KubernetesCluster) -> str:
    """serveConfigV2 as it is."""
    return rayservice.serve_config(api.get(Ref("RayService", RAYSERVICE, DEFAULT_NAMESPACE)))


def measured(blocks: int, progress: Progress) -> tuple[dict[str, list[Ratio]], bool]:
    """What was measured -> ratios; and whether the text was the owner's all the while, but for the release."""
    found: dict[str, list[Ratio]] = {}
    few = max(4, blocks // 4)  # of what is only told for comparison
    with tempfile.TemporaryDirectory() as folder:
        embedded = Embedded(Path(folder))
        try:
            embedded.up()
            with embedded.used():
                api = embedded.cluster()
                set_up(api, embedded)
                url = api.endpoint(names.serve_service(RAYSERVICE), DEFAULT_NAMESPACE, names.SERVE_PORT).base_url
                found["nothing adopted yet"] = asyncio.run(measure(url, few, progress, "before the adoption"))
                for model, _ in PAIRS:
                    target = parse_target({"model": model, "namespace": DEFAULT_NAMESPACE, "rayservice": RAYSERVICE})
                    rollout.adopt_model(rollout.open_run(rollout.adoption_of(api, target), api))
                same = written(api) == text()
                found[STEADY] = asyncio.run(measure(url, blocks, progress, "adopted"))
                runs = [begin(api, model) for model, _ in PAIRS]
                found["while a release runs (1 %)"] = asyncio.run(measure(url, few, progress, "while a release runs"))
                for run in runs:
                    rollout.roll_back(run, "measured")
                same = same and written(api) == text()
                found["after a release that was taken back"] = asyncio.run(measure(url, few, progress, "after a release"))
        finally:
            embedded.down()
    return found, same


def as_markdown(found: dict[str, list[Ratio]], same: bool, load: float) -> str:
    """For RESULTS.md."""
    lines = [
        "## Steady state: an adopted model against an untouched one",
        "",
        "| | of | adopted | untouched | ratio | 95 % interval | blocks |",
        "|---|---|---|---|---|---|---|",
    ]
    for what, ratios in found.items():
        for r in ratios:
            lines.append(f"| {what} | {r.of} | {r.adopted:.2f} | {r.untouched:.2f} | {r.ratio:.3f} | {r.low:.3f} to {r.high:.3f} | {r.blocks} |")
    ours = [r for what, ratios in found.items() if what == STEADY for r in ratios]
    within = all(WITHIN[0] <= r.low and r.high <= WITHIN[1] for r in ours)
    told = f"Adopted, without a release: {'both' if within else 'NOT both'} intervals lie within {WITHIN[0]:g} and {WITHIN[1]:g}. "
    told += f"serveConfigV2 {'is' if same else 'is NOT'} the owner's text to the letter, after the adoption and after the release."
    how = f"{CLIENTS} clients without pause, small JSON; blocks of four runs of {REQUESTS} requests, by turns. {machine()}; "
    how += f"load average {load:.1f} at the start."
    return "\n".join([*lines, "", told, "", how])


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="write nothing")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help=f"of four runs each; default {BLOCKS}")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the embedded cluster is stopped
    load = os.getloadavg()[0]
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        found, same = measured(options.blocks, progress)
    told = as_markdown(found, same, load)
    print(told)
    if not options.print:
        results.write("steady", told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
