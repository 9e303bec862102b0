"""Time to the first token of a language model's stream through the router, against the application's own route, on real Ray.

    python benchmarks/llm_first_token.py             writes benchmarks/RESULTS.md (3 minutes)
    python benchmarks/llm_first_token.py --print     writes nothing

While a release runs, one replica answers both: at the public route, where the router is told the version, and at its internal route. Requests go one
after the other, each prompt is new, and who is first changes from pair to pair; the interval is a bootstrap over pairs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import results
from durations import machine
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from steady import Ratio, ratio

from kfp_components import names, rollout
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.local.demo import RAY_CLUSTER
from kfp_components.local.environment import DEFAULT_NAMESPACE, Embedded
from kfp_components.request import PromoteRequest, parse

PAIRS, WARM, TOKENS = 150, 5, 12
MODEL, RAYSERVICE = "chat", "llm"
MOST = 1.3


def request(version: str) -> PromoteRequest:
    """Two equal versions of the small model that a package ships."""
    return parse(
        {
            "model": MODEL,
            "version": version,
            "uri": "hf://google/gemma-3-270m@main",
            "namespace": DEFAULT_NAMESPACE,
            "rayservice": RAYSERVICE,
            "import_path": "kfp_components.models.llm:build",
            "steps": [50],
            "options": {"lease_s": 3600.0, "ready_timeout_s": 180.0},
        }
    )


async def stream(session: aiohttp.ClientSession, url: str, number: int) -> tuple[float, float]:
    """Seconds to the first token and to the end. Raises when the request fails."""
    content = f"Parcel {number} has left the house. Where is it now?"
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": TOKENS, "temperature": 0, "stream": True}
    began, first_s = time.perf_counter(), 0.0
    async with session.post(f"{url}/v1/chat/completions", json=body, headers={names.VERSION_HEADER: "v1"}) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if line.startswith(b"data: {") and not first_s:
                first_s = time.perf_counter() - began
    return first_s, time.perf_counter() - began


async def measure(router: str, direct: str, pairs: int, progress: Progress) -> list[Ratio]:
    """Ratios router / direct of the first token and of the whole answer."""
    task = progress.add_task("pairs", total=pairs)
    seen: list[list[tuple[float, float]]] = [[], []]
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        for pair in range(-WARM, pairs):
            order = (router, direct) if pair % 2 else (direct, router)
            took = {url: await stream(session, url, 10_000 + 2 * pair + turn) for turn, url in enumerate(order)}
            if pair >= 0:
                for which in (0, 1):
                    seen[which].append((took[router][which], took[direct][which]))
                progress.update(task, advance=1)
    return [ratio(of, found) for of, found in zip(("first token, ms", f"all {TOKENS} tokens, ms"), seen, strict=True)]


def set_up(api: KubernetesCluster) -> tuple[rollout.Run, str, str]:
    """A release in its canary; the public route and stable's own."""
    metadata = {"name": RAYSERVICE, "namespace": DEFAULT_NAMESPACE}
    spec = {"serveConfigV2": "applications: []\n", "rayClusterConfig": RAY_CLUSTER}
    api.apply({"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata, "spec": spec}, manager="kubectl-client-side-apply")
    rollout.deploy_model(rollout.open_run(request("v1"), api))
    run = rollout.open_run(request("v2"), api)
    rollout._deploy_and_smoke(run, first_version=False)
    rollout.shift_traffic(run, 50.0)
    url = api.endpoint(names.alias(MODEL), DEFAULT_NAMESPACE, names.SERVE_PORT).base_url
    return run, url + names.public_route(MODEL), url + names.version_route(MODEL, "v1")


def measured(pairs: int, progress: Progress) -> list[Ratio]:
    """On an embedded cluster of its own."""
    with tempfile.TemporaryDirectory() as folder:
        embedded = Embedded(Path(folder))
        try:
            embedded.up()
            with embedded.used():
                run, router, direct = set_up(embedded.cluster())
                found = asyncio.run(measure(router, direct, pairs, progress))
                rollout.roll_back(run, "measured")
        finally:
            embedded.down()
    return found


def as_markdown(ratios: list[Ratio], load: float) -> str:
    """For RESULTS.md."""
    lines = ["## First token of a stream: through the router against the application's own route", ""]
    lines += ["| | router | direct | ratio | 95 % interval | pairs |", "|---|---|---|---|---|---|"]
    lines += [f"| {r.of} | {r.adopted:.1f} | {r.untouched:.1f} | {r.ratio:.3f} | {r.low:.3f} to {r.high:.3f} | {r.blocks} |" for r in ratios]
    within = "within" if ratios[0].high <= MOST else "NOT within"
    told = f"The first token's ratio is {within} {MOST:g}. gemma-3-270m on one thread, a replica of each version. "
    return "\n".join([*lines, "", f"{told}{machine()}; load average {load:.1f} at the start."])


def main() -> int:
    """1 when it costs more than it may."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--print", action="store_true", help="write nothing")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        found = measured(args.pairs, progress)
    text = as_markdown(found, load)
    print(text)
    if not args.print:
        results.write("llm-first-token", text)
    return int(found[0].ratio > MOST)


if __name__ == "__main__":
    sys.exit(main())
