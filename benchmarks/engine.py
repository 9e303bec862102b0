"""What a release costs the API server: calls and bytes written, of the first landed version (3ebeca9) and of this one, in the same made-up world.

    python benchmarks/engine.py             writes benchmarks/RESULTS.md (5 minutes)
    python benchmarks/engine.py --print     writes nothing

See `engine_world` for the world. A wait is a list and a watch, or one read a second, an access review a call.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import results

HERE = Path(__file__).resolve().parent
FIRST = "3ebeca9"


def count(tree: Path, minutes: float, speed: float) -> dict[str, Any]:
    """The world's counts with the package of that tree."""
    command = [sys.executable, "-P", str(HERE / "engine_world.py"), "--minutes", str(minutes), "--speed", str(speed)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tree)}, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(before: dict[str, Any], now: dict[str, Any], minutes: float) -> str:
    """Both, side by side."""
    lines = [
        "## Engine: what a release costs the Kubernetes API",
        "",
        f"**One promote in KFP's mode, each step a process of its own** (calls; {FIRST} and now)",
        "",
        "| step | calls before | calls now | bytes written before | bytes written now |",
        "|---|---|---|---|---|",
    ]
    for step, found in now["release"].items():
        old = before["release"][step]
        lines.append(f"| {step} | {old['calls']} | {found['calls']} | {old['bytes_written']:,} | {found['bytes_written']:,} |")
    sums = [sum(step[key] for step in found["release"].values()) for key in ("calls", "bytes_written") for found in (before, now)]
    lines.append(f"| all | {sums[0]} | {sums[1]} | {sums[2]:,} | {sums[3]:,} |")
    lines += [
        "",
        f"**An hour of canary at 20 requests a second, a look each second, undecided** (measured over {minutes:g} minutes)",
        "",
        "| | before | now |",
        "|---|---|---|",
    ]
    for name, told in (
        ("calls", lambda hour: f"{hour['calls']:,}"),
        ("MB written", lambda hour: f"{hour['bytes_written'] / 1e6:.2f}"),
        ("writes of the RayService", lambda hour: str(hour["by"].get("apply RayService", 0))),
        ("by verb and kind", lambda hour: ", ".join(f"{key} {number}" for key, number in hour["by"].items())),
    ):
        lines.append(f"| {name} | {told(before['hour'])} | {told(now['hour'])} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="write nothing")
    parser.add_argument("--minutes", type=float, default=60.0, help="of canary")
    parser.add_argument("--speed", type=float, default=30.0, help="how much faster time runs there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "first"
        git = ["git", "-C", str(HERE)]
        subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(tree), FIRST], check=True)
        try:
            before = count(tree, options.minutes, options.speed)
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(tree)], check=True)
    text = table(before, count(HERE.parent, options.minutes, options.speed), options.minutes)
    print(text)
    if not options.print:
        results.write("engine", text)


if __name__ == "__main__":
    main()
