"""How long things take that are meant to be quick, each as a ratio to something known that is measured in the same run, by turns with it.

    python benchmarks/durations.py                  everything (three minutes on an idle machine); writes benchmarks/RESULTS.md
    python benchmarks/durations.py --only import    one part: import, component, cluster; writes nothing
    python benchmarks/durations.py --json           one JSON document on stdout; writes nothing

Tests assert no durations: a busy machine would fail them. A ratio of two things done by turns says much the same on a busy machine as on an idle
one, most of all where seconds of the processor are counted, not of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import results
import yaml
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from kfp_components import errors, names, rollout
from kfp_components.cluster import Cluster, Ref
from kfp_components.local import demo
from kfp_components.local.environment import DEFAULT_NAMESPACE, Embedded
from kfp_components.local.ray_process import ServeClient
from kfp_components.serving import rayservice
from kfp_components.traffic import Split
from kfp_components.traffic.ray_router import to_user_config

RUNS = 5
ROLLBACKS = 3
WEIGHTS = (10.0, 50.0, 25.0, 90.0, 0.0)
Seconds = dict[str, list[float]]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """Medians of ``runs`` each, in seconds ``of`` the processor or the clock; ``ratio`` is the one over the other."""

    what: str
    seconds: float
    against: str
    against_seconds: float
    ratio: float
    of: Literal["processor", "clock"]
    runs: int


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(PARTS), action="append", help="this part (may be given again); default: all")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"of each thing; default {RUNS}")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table, and write nothing")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the embedded cluster is stopped
    load = os.getloadavg()[0]
    rows: list[Row] = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for part in options.only or PARTS:
            steps, measure = PARTS[part]
            task = progress.add_task(part, total=steps(options.runs))

            def tell(what: str, task: Any = task, part: str = part) -> None:
                progress.update(task, advance=1, description=f"{part}: {what}")

            rows += measure(options.runs, tell)
    facts = {"machine": machine(), "load": round(load, 1), "rows": [asdict(row) for row in rows]}
    if options.json:
        print(json.dumps(facts))
        return 0
    Console().print(as_table(rows), f"{facts['machine']}; {facts['load']} processes waited for a processor at the start")
    if not options.only:
        results.write("durations", as_markdown(rows, facts))
    return 0


def imports(runs: int, tell: Tell) -> list[Row]:
    """Whole processes: start, import, end."""
    codes = {
        "an empty interpreter": "",
        "import pydantic, httpx": "import pydantic, httpx",
        "import kfp_components.rollout": "import kfp_components.rollout",
    }
    for code in codes.values():
        subprocess.run([sys.executable, "-c", code], check=True)  # the first one reads files from the disk
    took: Seconds = defaultdict(list)
    for _ in range(runs):
        for name, code in codes.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-c", code], check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            took[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            tell(name)
    empty, known, ours = codes
    return [row(took, ours, known, of="processor"), row(took, ours, empty, of="processor")]


NO_OPS = """
import json, resource, sys
from kfp import dsl, local
from kfp_components.ops.image import IMAGE

@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ours() -> str:
    from kfp_components import rollout
    return rollout.__name__

@dsl.component(base_image=IMAGE, install_kfp_package=False)
def theirs() -> str:
    return "nothing"

local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1])
def spent():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)

for component in (ours, theirs):
    component()
for _ in range(int(sys.argv[2])):
    for name, component in (("ours", ours), ("theirs", theirs)):
        before = spent()
        component()
        print(json.dumps([name, spent() - before]), file=sys.stderr, flush=True)
"""


def components(runs: int, tell: Tell) -> list[Row]:
    """A component that only imports the library, and KFP's own that does nothing, run by kfp.local."""
    told = {"ours": "our component that only imports the library, under kfp.local", "theirs": "KFP's own that does nothing"}
    took: Seconds = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "no_ops.py"
        script.write_text(textwrap.dedent(NO_OPS))
        command = [sys.executable, str(script), str(Path(folder) / "out"), str(runs)]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            other = []
            for line in process.stderr:
                if not line.startswith('["'):
                    other.append(line)
                    continue
                name, seconds = json.loads(line)
                took[told[name]].append(seconds)
                tell(told[name])
        if process.returncode != 0:
            raise SystemExit("".join(other[-20:]))
    return [row(took, told["ours"], told["theirs"], of="processor")]


WEIGHT = "a router's weight, from the call until it is effective"
ROLLBACK = "a rollback, until probes show that stable answers"
SERVE = "the same weight given to Serve itself (user_config)"
WRITE = "one write to the Kubernetes API"


def cluster(runs: int, tell: Tell) -> list[Row]:
    """On the embedded cluster, with the demo's model and nobody's requests."""
    took: Seconds = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        embedded = Embedded(Path(folder))
        try:
            embedded.up()
            tell("the embedded cluster is up")
            with embedded.used(), embedded.serve() as serve:
                api = embedded.cluster()
                rollout.deploy_model(rollout.open_run(demo.request("v1"), api))
                tell("v1 runs")
                api.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "durations", "namespace": DEFAULT_NAMESPACE}})
                for number in range(ROLLBACKS):
                    asked = demo.request(f"v{number + 2}", lease_s=600.0).model_copy(update={"steps": (max(WEIGHTS),)})
                    run = rollout.open_run(asked, api)
                    rollout._deploy_and_smoke(run, first_version=False)
                    tell(f"v{number + 2} runs beside v1")
                    for weight in WEIGHTS[:runs] if number == 0 else ():
                        measure_weight(took, run, serve, weight)
                        tell(WEIGHT)
                    rollout.shift_traffic(run, 50.0)
                    rollback = rollout.roll_back(run, "measured").rollback
                    assert rollback is not None
                    took[ROLLBACK].append(rollback.seconds)
                    tell(ROLLBACK)
        finally:
            embedded.down()
    return [row(took, ours, known, of="clock") for ours in (WEIGHT, ROLLBACK) for known in (SERVE, WRITE)]


def measure_weight(took: Seconds, run: rollout.Run, serve: ServeClient, weight: float) -> None:
    """Through the RayService, as a release does it; then another weight straight to Serve; then a write that nobody acts on."""
    version = run.request.version

    def split(percent: float) -> Split:
        return Split("v1", version, percent, time.time() + 600.0)

    def through_us() -> None:
        wanted = split(weight)
        run.router.set_weight(wanted)
        wait_for(run, wanted)

    def through_serve() -> None:
        wanted = split(weight + 1.0)
        text = serve_config(run.cluster)
        changed = rayservice.with_user_config(text, names.router_application(demo.MODEL), names.ROUTER_DEPLOYMENT, to_user_config(demo.MODEL, wanted))
        serve.put_applications({"applications": yaml.safe_load(changed)["applications"]})
        wait_for(run, wanted)

    ref = Ref("ConfigMap", "durations", DEFAULT_NAMESPACE)
    took[WEIGHT].append(timed(through_us))
    took[SERVE].append(timed(through_serve))
    took[WRITE].append(timed(lambda: run.cluster.patch(ref, {"data": {"weight": str(weight)}}, manager="durations")))


def wait_for(run: rollout.Run, split: Split) -> None:
    """Look at the router until it routes by the split. `run.router.wait_until_applied` looks less often."""
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        with suppress(errors.TemporaryError):
            if run.router.observed_weight().weight_percent == split.weight_percent:
                return
        time.sleep(0.01)
    raise SystemExit(f"the router does not route by {split} after a minute")


def serve_config(api: Cluster) -> str:
    """What the RayService asks of Serve."""
    found = api.get(Ref("RayService", demo.RAYSERVICE, DEFAULT_NAMESPACE))
    assert found is not None
    return str(found["spec"]["serveConfigV2"])


PARTS: dict[str, tuple[Callable[[int], int], Callable[[int, Tell], list[Row]]]] = {
    "import": (lambda runs: 3 * runs, imports),
    "component": (lambda runs: 2 * runs, components),
    "cluster": (lambda runs: 2 + 2 * ROLLBACKS + min(runs, len(WEIGHTS)), cluster),
}
"""Part -> how many steps it has, and what measures it."""


def timed(action: Callable[[], Any]) -> float:
    """Seconds by the clock."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def row(took: Seconds, what: str, against: str, *, of: Literal["processor", "clock"]) -> Row:
    """Medians and their ratio."""
    ours, known = statistics.median(took[what]), statistics.median(took[against])
    return Row(what, round(ours, 4), against, round(known, 4), round(ours / known, 2), of, len(took[what]))


def machine() -> str:
    """Processor, memory, Python."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = found[0] if found else model
    memory = psutil.virtual_memory().total / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"


def as_table(rows: list[Row]) -> Table:
    """For a terminal."""
    table = Table("what", "seconds", "against", "seconds", "ratio", "of the", "runs")
    for each in rows:
        table.add_row(each.what, f"{each.seconds:.3f}", each.against, f"{each.against_seconds:.3f}", f"{each.ratio:.2f}", each.of, str(each.runs))
    return table


def as_markdown(rows: list[Row], facts: dict[str, Any]) -> str:
    """For RESULTS.md."""
    lines = ["| what | seconds | against | seconds | ratio | seconds of the | runs |", "|---|---|---|---|---|---|---|"]
    lines += [f"| {r.what} | {r.seconds:.3f} | {r.against} | {r.against_seconds:.3f} | {r.ratio:.2f} | {r.of} | {r.runs} |" for r in rows]
    told = f"Medians, by turns in one run. {facts['machine']}; load average {facts['load']} at the start."
    return "## Durations\n\n" + "\n".join(lines) + f"\n\n{told}"


if __name__ == "__main__":
    sys.exit(main())
