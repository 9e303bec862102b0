"""``kfp-serving``: the same functions as notebooks and pipelines, from a terminal.

Exit codes: 0 done, 1 the demo did not go as it should, users are not served (status) or an answer is wrong (smoke), 2 bad input (nothing was
touched), 3 try again, 4 taken back (stable serves), 5 held: too little evidence, or not approved (stable serves), 6 held: the meter is broken (stable
serves), 7 a champion decayed (revalidate), 8 a run in Kubeflow Pipelines failed and nobody says why (submit).
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from kfp_components import cli_kubeflow, errors, names, request, rollout
from kfp_components.cli_shared import Json, Kubeconfig
from kfp_components.cli_shared import cluster as _cluster
from kfp_components.cli_shared import summary as _summary
from kfp_components.cli_shared import told as _told
from kfp_components.cli_shared import values as _values
from kfp_components.cluster import Cluster
from kfp_components.registry import Absent
from kfp_components.release import Previous, Release, ReleaseStore, Watcher, records
from kfp_components.rollout.registered import attach_report
from kfp_components.rollout.run import nobody

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False, rich_markup_mode=None)
local_app = typer.Typer(no_args_is_help=True, help="The embedded cluster: a small Kubernetes API, a real Ray, stand-in controllers, on loopback.")
app.add_typer(local_app, name="local")
cli_kubeflow.add_to(app)

RequestFile = Annotated[
    Path, typer.Argument(help="YAML or JSON with the request: model, version, uri, namespace, rayservice, import_path, steps, options")
]
Home = Annotated[Path | None, typer.Option(help="folder of the embedded cluster; default KFP_SERVING_HOME or .kfp-serving")]
Model = Annotated[str, typer.Argument(help="name of the model")]
OneRayService = Annotated[str, typer.Argument(metavar="RAYSERVICE", help="name of the RayService")]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="namespace of the RayService")]
RayServiceName = Annotated[str | None, typer.Option("--rayservice", help="name of the RayService; default: the one that the release is on")]
Reason = Annotated[str, typer.Option(help="recorded with the release")]
AdoptFirst = Annotated[bool, typer.Option("--adopt", help="take over what serves the model now as its stable version first (as options.adopt)")]
Obeyed = Annotated[float, typer.Option(help="how long to wait until the step that runs has obeyed")]


@app.command()
def promote(
    file: RequestFile,
    first: Annotated[bool, typer.Option("--first", help="the model has no version yet: deploy it without a canary")] = False,
    adopt_first: AdoptFirst = False,
    kubeconfig: Kubeconfig = None,
    report_to: Annotated[Path | None, typer.Option("--report", help="write the report of the release here (HTML)")] = None,
    as_json: Json = False,
) -> None:
    """Promote a version with a canary; the same command again goes on where a killed one stopped."""
    from kfp_components import live

    console = Console(stderr=as_json)
    asked = _read(file, adopt_first)
    shown, watcher = live.view(console)
    run = rollout.open_run(asked, _cluster(kubeconfig), watch=watcher, reading=live.reading(console, shown))
    try:
        with shown:
            rollout.deploy_model(run) if first else rollout.promote_with_canary(run)
    except KeyboardInterrupt as interrupted:
        _tell_notes(interrupted)
        raise
    finally:
        if report_to is not None:
            _write_report(run.store, report_to)
            if run.record is not None and (why_not := attach_report(run, report_to.read_bytes(), report_to.resolve().as_uri())):
                print(why_not, file=sys.stderr)
    record = run.store.load()
    assert record is not None
    _told(record, as_json, console)


@app.command()
def plan(
    file: RequestFile,
    first: Annotated[bool, typer.Option("--first", help="the model has no version yet")] = False,
    adopt_first: AdoptFirst = False,
    kubeconfig: Kubeconfig = None,
    patch_to: Annotated[
        Path | None,
        typer.Option("--patch", help="write the files to commit where another tool applies serveConfigV2: a replacement in three commits, no canary"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check everything and print who applies what, and what would be written, as diffs; nothing is touched. Exit 2 where a run would be refused."""
    run = rollout.open_run(_read(file, adopt_first), _cluster(kubeconfig))
    changes = rollout.plan(run, first_version=first)
    if as_json:
        told = [
            {"change": str(change), "kind": change.ref.kind, "name": change.ref.name, "diff": change.diff(before)}
            for change, before, _ in changes.played()
        ]
        owners = [
            {"kind": owner.ref.kind, "name": owner.ref.name, "mode": owner.mode, "manager": owner.manager, "follows": owner.follows}
            for owner in changes.owners
        ]
        print(json.dumps({"owners": owners, "changes": told, "refused": str(changes.refused) if changes.refused else None}))
    else:
        print(changes)
    if patch_to is not None:
        for path, text in rollout.patch_files(changes, run).items():
            file_to = patch_to / path
            file_to.parent.mkdir(parents=True, exist_ok=True)
            file_to.write_text(text, encoding="utf-8", newline="")
            print(f"wrote {file_to}", file=sys.stderr)
    if changes.refused is not None:
        raise changes.refused


@app.command(name="yield")
def yield_command(
    rayservice: OneRayService,
    namespace: Namespace,
    undo: Annotated[bool, typer.Option("--undo", help="leave the field to the tool that applies it again")] = False,
    kubeconfig: Kubeconfig = None,
    as_json: Json = False,
) -> None:
    """Hand serveConfigV2 over from Flux, Argo CD, Helm ... to this library, and print what to commit then. Nothing that runs is changed.

    Run it before the field is taken out of git: it makes us owner of the field too. Without that, server-side apply deletes the field, and every
    application with it.
    """
    hand = rollout.undo_yield if undo else rollout.yield_field
    told = hand(_cluster(kubeconfig), namespace, rayservice)
    print(json.dumps(told.as_dict()) if as_json else told)


@app.command()
def export(
    rayservice: OneRayService,
    namespace: Namespace,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="write it here instead of printing it")] = None,
    kubeconfig: Kubeconfig = None,
    as_json: Json = False,
) -> None:
    """The RayService as it should stand in git now, without what the server and other tools put there; serveConfigV2 to the letter."""
    found = rollout.export(_cluster(kubeconfig), namespace, rayservice)
    if found.note:
        print(found.note, file=sys.stderr)
    if output is not None:
        output.write_text(found.text, encoding="utf-8", newline="")
        print(f"wrote {output}", file=sys.stderr)
    if as_json:
        print(json.dumps({"text": found.text, "note": found.note or None, "output": str(output) if output else None}))
    elif output is None:
        print(found.text, end="")


@app.command(name="router-package")
def router_package_command(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="write it here; default: the working directory, under a name with its version and digest")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the router as a zip, for a Ray image without this library, and print what its RayService's owner says then (kfp-serving/router-from)."""
    from kfp_components.serving import router_package

    written = router_package.write(output)
    print(json.dumps(dataclasses.asdict(written)) if as_json else written)


@app.command()
def adopt(
    namespace: Namespace,
    rayservice: Annotated[str, typer.Option("--rayservice", help="the RayService that serves it")],
    model: Annotated[str | None, typer.Argument(help="its name in Kubeflow; with --all it is found for each application")] = None,
    application: Annotated[str | None, typer.Option(help="the Serve application; default: the one at the route")] = None,
    route: Annotated[str | None, typer.Option(help="the route prefix that users call; default: the application's, else /MODEL")] = None,
    alias: Annotated[str | None, typer.Option(help="the Service that users call; default: MODEL-predictor")] = None,
    version: Annotated[str | None, typer.Option(help="what to call the running version; default: its args.version, else found-DIGEST")] = None,
    uri: Annotated[str | None, typer.Option(help="where its artifact is, for the registry")] = None,
    model_format: Annotated[str, typer.Option(help="shown in Kubeflow's UI")] = "custom",
    everything: Annotated[bool, typer.Option("--all", help="every application of the RayService")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="take away what the adoption made; what serves goes on")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what is there and what would be made; nothing is touched")] = False,
    kubeconfig: Kubeconfig = None,
    as_json: Json = False,
) -> None:
    """Record what serves a model now as its stable version. Nothing of it restarts or is changed; only what is missing is made."""
    cluster, console = _cluster(kubeconfig), Console(stderr=as_json)
    if everything == (model is not None):
        raise errors.RequestInvalid("adopt takes one MODEL, or --all")
    own = (("--application", application), ("--route", route), ("--alias", alias), ("--version", version), ("--uri", uri))
    if undo and (given := [flag for flag, value in own if value]):
        raise errors.RequestInvalid(f"{given[0]} is not for --undo, which takes away what the adoption made and nothing else; leave it out")
    names_given = [flag for flag, value in (("--application", application), ("--route", route), ("--alias", alias), ("--version", version)) if value]
    if everything and (names_given or uri):
        raise errors.RequestInvalid(f"{(names_given or ['--uri'])[0]} is of one model; name the model instead of --all")
    models: list[tuple[str | None, str]]
    if model:
        models = [(application, model)]
    elif undo:
        models = [(None, name) for name in rollout.adopted(cluster, namespace, rayservice)]
    else:
        models = [*rollout.adoptable(cluster, namespace, rayservice).items()]
    told: list[dict[str, Any]] = []
    runs, in_the_way = [], list[str]()
    for found, name in models:
        target = request.parse_target({"model": name, "namespace": namespace, "rayservice": rayservice})
        if undo:
            run = rollout.open_rollback(target, cluster)
            if dry_run:
                sentences = rollout.plan_undo(run)
                told.append({"model": name, "found": [], "changes": sentences})
                console.print(f"{name}: {'; '.join(sentences) or 'nothing was made'}", soft_wrap=True, markup=False)
                continue
            record = rollout.undo_adoption(run)
            told.append(_summary(record))
            console.print(f"{record.model}: the adoption is undone; what serves goes on", soft_wrap=True, markup=False)
            continue
        asked = rollout.Asked(found, route, alias, version, uri, model_format)
        run = rollout.open_run(rollout.adoption_of(cluster, target, asked), cluster)
        if dry_run or everything:
            try:
                sentences, changes = rollout.plan_adoption(run)
            except errors.InputError as error:
                in_the_way.append(str(error))
                continue
        if dry_run:
            told.append({"model": name, "found": sentences, "changes": [str(change) for change in changes]})
            console.print(f"{name}: {'; '.join(sentences)}\n{changes}", soft_wrap=True, markup=False)
            continue
        runs.append(run)
    if in_the_way:
        alone = "; nothing was touched: the others can be adopted one by one, by name" if everything else ""
        raise errors.RequestInvalid(f"{'; '.join(in_the_way)}{alone}")
    for run in runs:
        record = rollout.adopt_model(run)
        told.append({**_summary(record), "found": [event.message for event in record.events if event.step == "adopt"]})
        for event in record.events:
            console.print(f"{record.model}: {event.message}", soft_wrap=True, markup=False)
    if as_json:
        print(json.dumps(told if everything else told[0]))


@app.command()
def smoke(
    file: RequestFile,
    version: Annotated[str | None, typer.Option(help="a version that runs, asked at its own route; default: whatever users get")] = None,
    kubeconfig: Kubeconfig = None,
    as_json: Json = False,
) -> None:
    """Send a request's smoke cases, else its family's, to what serves. Nothing is written; exit 1 where an answer is wrong, 3 without one."""
    asked = _read(file, adopt_first=False)
    run = rollout.open_run(asked, _cluster(kubeconfig), registry=Absent(errors.RequestInvalid("registry: smoke does not ask it")))
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        found = rollout.smoke_serving(run, version, told=partial(_show, progress, progress.add_task("", total=1), 0, asked.model))
    if as_json:
        cases = [{key: getattr(one, key) for key in ("case", "problem", "unreachable", "seconds", "first_s", "version")} for one in found]
        print(json.dumps({"model": asked.model, "version": version, "passed": not any(one.problem for one in found), "cases": cases}))
    for one in () if as_json else found:
        print(f"FAILED  {one.problem}" if one.problem else f"passed  {one.case} ({one.seconds:.3g} s)")
    if any(one.problem for one in found):
        raise typer.Exit(3 if any(one.unreachable for one in found) else 1)


@app.command()
def rollback(
    model: Model,
    namespace: Namespace,
    rayservice: RayServiceName = None,
    reason: Reason = "asked for",
    kubeconfig: Kubeconfig = None,
    as_json: Json = False,
) -> None:
    """Give up a release: all traffic to stable in one write, verified, then tidied up. A promoted one too, while its old version is kept."""
    from kfp_components import live

    console = Console(stderr=as_json)
    shown, watcher = live.view(console)
    run = _open(model, namespace, rayservice, kubeconfig, watcher)
    before = run.store.load()
    if before is not None and not before.open:
        console.print(
            f"nothing to roll back: the release of {before.candidate_version} is finished; only checking that the right version answers. "
            "To go back to an earlier version, promote that one.",
            soft_wrap=True,
        )
    with shown:
        record = rollout.roll_back(run, reason)
    _told(record, as_json, console)


@app.command()
def tidy(
    namespace: Namespace,
    model: Annotated[str | None, typer.Argument(help="one model; default: all of the namespace")] = None,
    kubeconfig: Kubeconfig = None,
    as_json: Json = False,
) -> None:
    """Put away what no run waits for: an old version whose time is over, a candidate that was held for too long."""
    cluster, console = _cluster(kubeconfig), Console(stderr=as_json)
    stopped: errors.KfpServingError | None = None
    told: list[dict[str, Any]] = []
    for record in _records(cluster, namespace, model):
        try:
            tidied = rollout.tidy_release(rollout.open_run(record.asked(), cluster))
            told.append({**_summary(tidied), "told": _put_away(record, tidied)})
            console.print(f"{record.model}: {_put_away(record, tidied)}", soft_wrap=True, markup=False)
        except errors.KfpServingError as error:  # the others are tidied up all the same
            console.print(f"{record.model}: {error}", soft_wrap=True, markup=False)
            stopped = stopped or error
    if as_json:
        print(json.dumps(told))
    if stopped is not None:
        raise stopped


def _put_away(before: Release, after: Release) -> str:
    """What tidy did, in words."""
    if after.previous is not None:
        return f"nothing to put away yet; {_kept(after, after.previous)}"
    if before.previous is not None:
        return f"{before.previous.version} is removed"
    if before.phase == "held" and after.phase == "rolled_back":
        return f"{after.candidate_version} was held for too long and is taken back"
    return "nothing to put away"


def _kept(record: Release, previous: Previous) -> str:
    until = datetime.fromtimestamp(previous.until_unix_s, UTC).isoformat(timespec="seconds")
    return f"{previous.version} is kept until {until}; until then `kfp-serving rollback {record.in_a_command}` is one write"


@app.command()
def abort(
    model: Model,
    namespace: Namespace,
    rayservice: RayServiceName = None,
    reason: Reason = "",
    timeout_s: Annotated[float, typer.Option(help="how long to wait until the step that runs has ended the release")] = 300.0,
    kubeconfig: Kubeconfig = None,
    as_json: Json = False,
) -> None:
    """Give up a release that runs, or that nobody runs: all traffic to stable, the candidate goes. Waits until it is so."""
    _command("abort", model, namespace, rayservice, reason, timeout_s, kubeconfig, as_json)


@app.command()
def pause(
    model: Model,
    namespace: Namespace,
    rayservice: RayServiceName = None,
    reason: Reason = "",
    timeout_s: Obeyed = 60.0,
    kubeconfig: Kubeconfig = None,
    as_json: Json = False,
) -> None:
    """A release stays where it is: the candidate keeps its weight and is watched, and budgets do not run."""
    _command("pause", model, namespace, rayservice, reason, timeout_s, kubeconfig, as_json)


@app.command()
def resume(
    model: Model,
    namespace: Namespace,
    rayservice: RayServiceName = None,
    reason: Reason = "",
    timeout_s: Obeyed = 60.0,
    kubeconfig: Kubeconfig = None,
    as_json: Json = False,
) -> None:
    """A paused release goes on."""
    _command("resume", model, namespace, rayservice, reason, timeout_s, kubeconfig, as_json)


@app.command()
def approve(
    model: Model,
    namespace: Namespace,
    rayservice: RayServiceName = None,
    reason: Reason = "",
    timeout_s: Obeyed = 60.0,
    kubeconfig: Kubeconfig = None,
    as_json: Json = False,
) -> None:
    """A release that waits for approve goes on; one that is held is promoted as it is."""
    _command("approve", model, namespace, rayservice, reason, timeout_s, kubeconfig, as_json)


def _command(
    kind: str, model: str, namespace: str, rayservice: str | None, reason: str, timeout_s: float, kubeconfig: Path | None, as_json: bool
) -> None:
    from kfp_components import live

    console = Console(stderr=as_json)
    shown, watcher = live.view(console)
    commands = {
        "abort": rollout.abort_release,
        "pause": rollout.pause_release,
        "resume": rollout.resume_release,
        "approve": rollout.approve_release,
    }
    run = _open(model, namespace, rayservice, kubeconfig, watcher)
    with shown:
        record = commands[kind](run, reason, timeout_s=timeout_s)
    obeyed = {"pause": record.paused is not None, "resume": record.paused is None, "approve": record.waits is None}.get(kind, True)
    if not record.done and not obeyed:
        console.print(f"{kind} is written on the Lease. No step runs just now; the next one does it before anything else.", soft_wrap=True)
    _told(record, as_json, console)


@app.command()
def status(
    namespace: Namespace,
    model: Annotated[str | None, typer.Argument(help="one model; default: all of the namespace")] = None,
    kubeconfig: Kubeconfig = None,
    report_to: Annotated[Path | None, typer.Option("--report", help="write the report of the model's last release here (HTML)")] = None,
    as_json: Json = False,
) -> None:
    """Models of a namespace: what the router does now, beside what was written last; exit 1 when users are not served, 3 when that is not known."""
    if report_to is not None and model is None:
        raise errors.RequestInvalid("--report writes the report of one model; name the model too")
    cluster = _cluster(kubeconfig)
    found = [(record, rollout.read_status(cluster, record)) for record in _records(cluster, namespace, model)]
    if report_to is not None and model:
        _write_report(ReleaseStore(cluster, model, namespace), report_to)
    if as_json:
        print(json.dumps([_row(record, status) for record, status in found]))
    else:
        _tell_status(Console(), found)
    states = [status.ready for _, status in found]
    if not all(states):
        raise typer.Exit(1 if False in states else 3)


@app.command()
def revalidate(
    namespace: Namespace,
    model: Annotated[str | None, typer.Argument(help="one model; default: every model of the namespace that has a version in front of users")] = None,
    rayservice: RayServiceName = None,
    rules_from: Annotated[Path | None, typer.Option("--rules", help="YAML or JSON: golden_set, requests, error_margin_percent, ...")] = None,
    golden_set: Annotated[str | None, typer.Option(help="URI of the cases to ask; default: the registered one, else the smoke cases")] = None,
    requests: Annotated[int | None, typer.Option(help="how many are sent to each model; default 200; the first look has --record-requests")] = None,
    record_requests: Annotated[int | None, typer.Option(help="how many are sent in the first look, which makes the record; default 3000")] = None,
    demote: Annotated[bool | None, typer.Option("--demote/--no-demote", help="where a champion decayed, give users the version before")] = None,
    kubeconfig: Kubeconfig = None,
    report_to: Annotated[Path | None, typer.Option("--report", help="write what was found here (HTML)")] = None,
    as_json: Json = False,
) -> None:
    """Is what users get as good as it was? Ask it its golden set and compare it with its own record; the first look makes the record.

    Exit 7 where a champion decayed, 3 where one could not be asked. Traffic is not touched, unless --demote says so.
    """
    cluster, console = _cluster(kubeconfig), Console(stderr=True)
    given = {"golden_set": golden_set, "requests": requests, "record_requests": record_requests, "demote": demote}
    values = _values(rules_from, empty=True) if rules_from else {}
    if report_to is not None:
        _assert_writable(report_to)
    rules = request.parse_rules(values | {key: value for key, value in given.items() if value is not None})
    targets = [_target(cluster, model, namespace, rayservice)] if model else rollout.champions(cluster, namespace, rayservice)
    found: list[rollout.Revalidation] = []
    stopped: BaseException | None = None
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        whole = progress.add_task("", total=len(targets))
        for number, target in enumerate(targets):
            shown = partial(_show, progress, whole, number, target.model)
            try:
                run = rollout.open_rollback(target, cluster, watch=partial(_show_demotion, progress, whole))
                found.append(rollout.revalidate_model(run, rules, models=len(targets), tell=shown))
            except errors.KfpServingError as error:
                found.append(rollout.not_looked_at(cluster, target, str(error)))
                stopped = error if model else None
            except KeyboardInterrupt as error:  # what was found until now is not lost
                stopped = error
                break
            shown(1, 1)
    if as_json:
        print(json.dumps([one.as_dict() for one in found]))
    else:
        _tell_revalidations(Console(), found)
    if report_to is not None:
        from kfp_components.report import revalidation

        report_to.write_text(revalidation.render([one.as_dict() for one in found]), encoding="utf-8")
    if stopped is not None:
        raise stopped
    rollout.raise_if_decayed(found)


def _assert_writable(path: Path) -> None:
    """Raise `RequestInvalid` before anything is done, not when it is over."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise errors.RequestInvalid(f"--report {path}: it cannot be written there; name a file in a folder that exists")


def _show(progress: Progress, task: TaskID, before: int, model: str, done: int, number: int) -> None:
    progress.update(task, description=f"{model}: {done:,} of {number:,}" if number > 1 else model, completed=before + done / number)


def _show_demotion(progress: Progress, task: TaskID, record: Release) -> None:
    at = f" {record.weight_percent:g} %" if record.phase == "canary" else ""
    progress.update(task, description=f"{record.model}: back to the previous version, {record.phase}{at}")


def _tell_revalidations(console: Console, found: list[rollout.Revalidation]) -> None:
    table = Table("model", "version", "outcome", "asked", "failed", "p50 ms", "p95 ms")
    for one in found:
        look = one.look
        table.add_row(one.model, one.version or "-", one.outcome, f"{look.requests:,}", f"{look.failures:,}", _ms(look.p50_ms), _ms(look.p95_ms))
    console.print(table)
    for one in found:
        if one.outcome != "healthy":
            console.print(f"{one.model}: {one.sentence}", soft_wrap=True, markup=False)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _tell_status(console: Console, found: list[tuple[Release, rollout.Status]]) -> None:
    table = Table("model", "rayservice", "traffic", "ready", "last release", "phase", "verdict")
    for record, status in found:
        traffic = "not known" if status.traffic is None else ", ".join(f"{version} {share:g} %" for version, share in status.traffic.items())
        ready = {True: "yes", False: "NO", None: "not known"}[status.ready]
        table.add_row(record.model, record.rayservice, traffic, ready, record.candidate_version, record.phase.replace("_", " "), record.sentence)
    console.print(table)
    for record, status in found:
        for note in status.notes:
            console.print(f"{record.model}: {note}", soft_wrap=True, markup=False)
        if record.previous is not None:
            console.print(f"{record.model}: {_kept(record, record.previous)}", soft_wrap=True, markup=False)


@app.command()
def demo(
    home: Home = None,
    fault: Annotated[str, typer.Option(help="what the bad version does: errors, slow_tail, garbage, fails_to_start")] = "errors",
    keep: Annotated[bool, typer.Option("--keep", help="leave the embedded cluster running")] = False,
    as_json: Json = False,
) -> None:
    """On this machine: a real model under real traffic, a good version promoted, a bad one caught. Ends with the reports' paths."""
    from kfp_components import live
    from kfp_components.local import demo as play
    from kfp_components.local.environment import Embedded

    if fault not in play.FAULTS:
        raise errors.RequestInvalid(f"--fault {fault!r} is not known; known are {', '.join(play.FAULTS)}")
    console = Console(stderr=as_json)
    embedded = Embedded(home)
    began = time.monotonic()
    try:
        embedded.down(console.print)  # what an interrupted demo left
        embedded.up(console.print)
        outcome = play.run(embedded, say=lambda text: console.rule(text, align="left"), watch=lambda _asked: live.view(console), fault=fault)
    finally:
        if not keep:
            embedded.down(console.print)
    good, bad = outcome.releases
    right = good.phase == "promoted" and bad.phase == "rolled_back" and not outcome.unexcused
    facts: dict[str, Any] = {
        "right": right,
        "good": {"version": good.candidate_version, "phase": good.phase, **good.summary()},
        "bad": {
            "version": bad.candidate_version,
            "phase": bad.phase,
            "rollback": bad.rollback.model_dump() if bad.rollback else None,
            **bad.summary(),
        },
        "users": outcome.tally.as_dict(),
        "failures_not_caused_by_the_bad_version": outcome.unexcused,
        "seconds": {**outcome.seconds, "all": round(time.monotonic() - began, 1)},
        "reports": [str(path) for path in outcome.reports],
    }
    if as_json:
        print(json.dumps(facts))
    else:
        _tell_demo(console, facts)
    raise typer.Exit(0 if right else 1)


def _tell_demo(console: Console, facts: dict[str, Any]) -> None:
    console.rule("what happened", align="left")
    for which in ("good", "bad"):
        found = facts[which]
        console.print(f"{found['version']} ({which}): {found['phase'].replace('_', ' ')}. {found['sentence']}", soft_wrap=True, markup=False)
    rollback_facts = facts["bad"]["rollback"] or {}
    if rollback_facts:
        leaked = rollback_facts["leaked_requests"]
        told = "an unknown number of" if leaked is None else leaked
        console.print(f"rollback: {rollback_facts['seconds']:g} s, {told} request(s) reached the bad version meanwhile")
    users = facts["users"]
    console.print(f"users sent {users['sent']:,} requests; answered {users['answered']}; failed {users['failed'] or 'none'}", markup=False)
    console.print(f"failures that the bad version did not cause: {sum(facts['failures_not_caused_by_the_bad_version'].values())}")
    console.print(f"seconds: {facts['seconds']}", markup=False)
    for path in facts["reports"]:
        console.print(f"report: {path}", soft_wrap=True)
    console.print("all as it should be" if facts["right"] else "NOT as it should be")


@app.command(name="compile")
def compile_command(
    check: Annotated[bool, typer.Option("--check", help="compare byte for byte, write nothing")] = False,
    steps: Annotated[str, typer.Option(help="one canary box for each")] = "10,25,50",
    output: Annotated[Path, typer.Option(help="where the YAML goes")] = Path("compiled"),
    packages: Annotated[
        list[str] | None,
        typer.Option(
            help="without an image of your own: what each pod installs when it starts, kfp-serving-components[mlflow]==VERSION; may be repeated"
        ),
    ] = None,
    index_url: Annotated[
        list[str] | None, typer.Option(help="with --packages: where pip finds them; may be repeated, the further ones are extra indexes")
    ] = None,
    base_image: Annotated[str | None, typer.Option(help="with --packages: an image with Python 3.11 to 3.13 and pip; else python:3.11-slim")] = None,
    as_json: Json = False,
) -> None:
    """Write every component and pipeline as YAML for the Kubeflow UI. KFP_SERVING_IMAGE names your image; --packages does without one."""
    from kfp_components.workflows import compile as compiling

    if (index_url or base_image) and not packages:
        raise errors.RequestInvalid(
            "--index-url and --base-image say how --packages are installed; give --packages, or name your image by KFP_SERVING_IMAGE"
        )
    image = {"base_image": base_image} if base_image else {}
    at_start = compiling.AtStart(tuple(packages), tuple(index_url or ()), **image) if packages else None
    try:
        parsed = tuple(int(step) for step in steps.split(","))
    except ValueError:
        raise errors.RequestInvalid(f"--steps {steps!r}: expected whole percents with commas between them, such as 10,25,50") from None
    if check:
        different = compiling.differences(output, parsed, at_start)
        if different:
            raise errors.RequestInvalid(f"{output}: {', '.join(different)} differ from the sources; run `kfp-serving compile` and commit")
    else:
        compiling.compile_all(output, parsed, at_start)
    files = sorted(path.relative_to(output).as_posix() for path in output.rglob("*.yaml"))
    if as_json:
        print(json.dumps({"output": str(output), "files": files, "wrote": not check}))
    else:
        print(f"{output}: as the sources compile" if check else f"wrote {output}")


@local_app.command()
def up(home: Home = None, as_json: Json = False) -> None:
    """Start the embedded cluster and print how to use it."""
    from kfp_components.local import controllers, environment
    from kfp_components.local.apiserver import server

    embedded = environment.Embedded(home)
    embedded.up(_say(as_json))
    not_supported = [*server.NOT_SUPPORTED, *controllers.NOT_SUPPORTED]
    if as_json:
        facts = {"home": str(embedded.home), "environment": embedded.environment(), "grpc": embedded.grpc_target}
        print(json.dumps({**facts, "not_supported": not_supported}))
        return
    for name, value in embedded.environment().items():
        print(f"export {name}={value}")
    print(f"gRPC (KServe's GRPCInferenceService): {embedded.grpc_target}, with metadata application=<name of a version's application>")
    print("What the embedded cluster does not do (it refuses, never fakes):")
    for line in not_supported:
        print(f"  - {line}")


@local_app.command()
def down(home: Home = None, as_json: Json = False) -> None:
    """Stop the embedded cluster and forget its contents; logs stay."""
    from kfp_components.local.environment import Embedded

    embedded = Embedded(home)
    embedded.down(_say(as_json))
    if as_json:
        print(json.dumps({"home": str(embedded.home), "running": embedded.running()}))


def _say(as_json: bool) -> Callable[[str], None]:
    """Where what is being done is told: beside a document."""
    return partial(print, file=sys.stderr if as_json else sys.stdout)


@local_app.command(name="status")
def local_status(home: Home = None, as_json: Json = False) -> None:
    """Which parts of the embedded cluster run."""
    from kfp_components.local.environment import Embedded

    embedded = Embedded(home)
    found = {part.name: {"pid": part.pid, "alive": part.alive} for part in embedded.parts()}
    if as_json:
        print(json.dumps({"running": embedded.running(), "home": str(embedded.home), "grpc": embedded.grpc_target, "parts": found}))
        return
    print(f"{embedded.home}: {'running' if embedded.running() else 'not running'}")
    if embedded.grpc_target:
        print(f"  gRPC: {embedded.grpc_target}")
    for name, part in found.items():
        print(f"  {name}: pid {part['pid']}, {'alive' if part['alive'] else 'gone'}")


def _open(model: str, namespace: str, rayservice: str | None, kubeconfig: Path | None, watch: Watcher = nobody) -> rollout.Run:
    """A run for what steers a release; the RayService is the release's own unless it is named."""
    cluster = _cluster(kubeconfig)
    return rollout.open_rollback(_target(cluster, model, namespace, rayservice), cluster, watch=watch)


def _target(cluster: Cluster, model: str, namespace: str, rayservice: str | None) -> request.ModelTarget:
    target = request.parse_target({"model": model, "namespace": namespace, "rayservice": rayservice or model})
    if rayservice is None and (record := ReleaseStore(cluster, model, namespace).load_record()) is not None:
        target = target.model_copy(update={"rayservice": record.rayservice})
    return target


def _read(file: Path, adopt_first: bool) -> request.PromoteRequest:
    values = _values(file)
    if adopt_first:
        values = {**values, "options": {**(values.get("options") or {}), "adopt": True}}
    return request.parse(values)


def _records(cluster: Cluster, namespace: str, model: str | None) -> list[Release]:
    """The releases of a namespace, or of one model. Raises `NotFound` when that was never released."""
    found = records(cluster, namespace, model)
    if model and not found:
        raise errors.NotFound(f"model {namespace}/{model}: it was never released; there is no {names.release(model)} ConfigMap")
    return found


def _row(record: Release, status: rollout.Status) -> dict[str, Any]:
    return {
        "url": record.address.url(record.namespace),
        "previous": record.previous.model_dump() if record.previous else None,
        **status.as_dict(),
        **record.summary(),
    }


def _write_report(store: ReleaseStore, path: Path) -> None:
    from kfp_components import report

    record = store.load()
    if record is not None:
        path.write_text(report.render(record.model_dump(mode="json")), encoding="utf-8")


def main() -> NoReturn:
    """Run a command; an error of ours is one paragraph on stderr and its exit code."""
    try:
        code = app(standalone_mode=False)  # typer gives the code of an Exit back, and 130 for Ctrl-C
    except errors.KfpServingError as error:
        told = [str(error), *getattr(error, "__notes__", [])]
        sentences = [text if text.endswith((".", "`", "?")) else f"{text}." for text in told[:-1]]
        print(f"{type(error).__name__}: {' '.join([*sentences, told[-1]])}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as ended:  # a signal
        _tell_notes(ended)
        raise
    except Exception as error:
        code = getattr(error, "exit_code", None)  # click's usage errors
        if code is None:
            raise
        error.show()  # type: ignore[attr-defined]
        sys.exit(code)
    sys.exit(code if isinstance(code, int) else 0)


def _tell_notes(ended: BaseException) -> None:
    """Where a step that was interrupted left the release."""
    for note in getattr(ended, "__notes__", []):
        print(note, file=sys.stderr)


if __name__ == "__main__":
    main()
