"""The commands of ``kfp-serving`` that have Kubeflow Pipelines do it: ``submit`` and ``schedule``; and a CronJob for where there is none."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kfp_components import errors, request
from kfp_components.cli_shared import Json, Kubeconfig, cluster, summary, told, values
from kfp_components.cluster import Cluster
from kfp_components.release import Release, ReleaseStore

if TYPE_CHECKING:
    from kfp_components.workflows.client import Pipelines, RunState, Schedule, Version
    from kfp_components.workflows.submit import Asked

PIPELINE = "promote, deploy (the first version of a model), rollback, revalidate (one model) or revalidate-namespace"

Pipeline = Annotated[str, typer.Argument(help=PIPELINE)]
RequestFile = Annotated[
    Path | None,
    typer.Argument(metavar="[FILE]", help="promote, deploy: the request, as for `kfp-serving promote`. Else YAML with the pipeline's parameters"),
]
Model = Annotated[str | None, typer.Option(help="of rollback and revalidate")]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="namespace of the RayService")]
RayService = Annotated[
    str | None,
    typer.Option("--rayservice", help="its name; default: the one that the model's release is on; with revalidate-namespace: only models on it"),
]
Reason = Annotated[str | None, typer.Option(help="of rollback; recorded with the release")]
Rules = Annotated[Path | None, typer.Option("--rules", help="of a re-validation: YAML or JSON, as for `kfp-serving revalidate`")]
Package = Annotated[
    Path | None, typer.Option("--package", help="compiled YAML of the pipeline; default: compiled now, from the library that is installed here")
]
Experiment = Annotated[str | None, typer.Option(help="made when it does not exist; default: the model")]
Host = Annotated[
    str | None, typer.Option(help="address of Kubeflow Pipelines; default: KF_PIPELINES_ENDPOINT; in a pod the cluster's own, as kfp.Client has it")
]
KfpNamespace = Annotated[
    str | None, typer.Option("--kfp-namespace", help="profile, where Kubeflow serves many users; default: kfp's own setting, else the pod's")
]
Token = Annotated[
    str | None,
    typer.Option(help="bearer token as env:NAME or file:/path, never itself; default: the service account's, in the file KF_PIPELINES_SA_TOKEN_PATH"),
]
Cookie = Annotated[str | None, typer.Option(help="session cookie (oauth2_proxy_kubeflow=..., authservice_session=...) as env:NAME or file:/path")]
CaFile = Annotated[Path | None, typer.Option(help="certificate authority of the host (PEM)")]

schedule_app = typer.Typer(
    no_args_is_help=True,
    help="Recurring runs in Kubeflow Pipelines, one at a time, missed ones not caught up with; or a Kubernetes CronJob (`create --cronjob`).",
)
ZONE = "in the time zone of Kubeflow's controller (CRON_SCHEDULE_TIMEZONE, UTC unless its administrator changed it)"
COLOURS = {"SUCCEEDED": "green", "FAILED": "red", "CANCELED": "yellow", "RUNNING": "cyan"}


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(submit)
    app.add_typer(schedule_app, name="schedule")


def submit(
    pipeline: Pipeline,
    file: RequestFile = None,
    model: Model = None,
    namespace: Namespace = None,
    rayservice: RayService = None,
    reason: Reason = None,
    rules: Rules = None,
    package: Package = None,
    experiment: Experiment = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="watch it and end as the local command would, or print its id")] = True,
    host: Host = None,
    kfp_namespace: KfpNamespace = None,
    token: Token = None,
    cookie: Cookie = None,
    ca_file: CaFile = None,
    kubeconfig: Kubeconfig = None,
    as_json: Json = False,
) -> None:
    """Run a pipeline in Kubeflow Pipelines: upload it where this version is not there yet, start a run, watch the release, end with its exit code.

    The release is read from the cluster where a kubeconfig is at hand, else the steps of the run are shown. Exit codes are those of the local
    command, and 8: the run failed and nothing that can be read says why. Ctrl-C leaves the run going.
    """
    from kfp_components.workflows import submit as submitting

    console = Console(stderr=as_json)
    reached, why_not = _reached(kubeconfig)
    asked = _asked(pipeline, file, reached, model=model, namespace=namespace, rayservice=rayservice, reason=reason, rules=rules)
    for name in asked.secrets:
        _warn(f"{name} looks like a secret and stands in plain text in the request, so in the run's parameters too")
    pipelines, version = _uploaded(asked, package, (host, kfp_namespace, token, cookie, ca_file))
    what = f"{asked.word} {asked.model or asked.namespace} {asked.parameters.get('version', '')}".strip()
    run_id = pipelines.start(
        version, asked.parameters, experiment=experiment or asked.experiment, name=f"{what} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    )
    page = pipelines.page(run_id)
    about = {"run_id": run_id, "run_url": page, "pipeline": version.pipeline, "version": version.name, "experiment": experiment or asked.experiment}
    if not follow:
        print(json.dumps({**about, "state": "PENDING"}) if as_json else run_id)
        if not as_json:
            print(page, file=sys.stderr)
        return
    console.print(f"run {run_id}: {page}", soft_wrap=True, markup=False)
    release = submitting.ReleaseOfRun(reached, asked, run_id, why_not=why_not)
    try:
        run, record = _follow(pipelines, run_id, release, console)
    except KeyboardInterrupt:
        stop = f"`kfp-serving abort {asked.model} -n {asked.namespace}` gives its release up; " if asked.releases else ""
        print(f"Run {run_id} goes on in Kubeflow, nobody looks any more; {stop}{page}", file=sys.stderr)
        raise
    except errors.TemporaryError as error:
        error.add_note(f"Run {run_id} goes on: {page}")
        raise
    if as_json:
        tasks = [asdict(task) for task in run.tasks]
        print(json.dumps({**about, "state": run.state, "error": run.error, "tasks": tasks, "release": summary(record) if record else None}))
    if asked.releases and record is None and release.why_not:
        _warn(f"the release record could not be read, the run's own word counts: {release.why_not}")
    submitting.conclude(asked, run, record, other=release.other, cluster=reached)
    if not as_json:
        told(record, False, console) if record else console.print(f"run {run_id}: {run.state}", markup=False)
    if run.state != "SUCCEEDED":
        _warn(f"the release is done, although run {run_id} is {run.state}: {run.said or page}")


@schedule_app.command()
def create(
    cron: Annotated[
        str, typer.Option(help="'minute hour day-of-month month day-of-week' (Sunday is 0), such as '0 6 * * 1'; six fields have seconds first")
    ],
    pipeline: Annotated[str, typer.Argument(help=PIPELINE)] = "revalidate-namespace",
    file: RequestFile = None,
    name: Annotated[str | None, typer.Option(help="of the schedule; default: the pipeline and what it is for")] = None,
    model: Model = None,
    namespace: Namespace = None,
    rayservice: RayService = None,
    reason: Reason = None,
    rules: Rules = None,
    package: Package = None,
    experiment: Experiment = None,
    cronjob: Annotated[
        bool, typer.Option("--cronjob", help="print a Kubernetes CronJob that re-validates instead, for `kubectl apply -f -`; nothing is asked")
    ] = False,
    image: Annotated[str | None, typer.Option(help="with --cronjob: the component image; default: KFP_SERVING_IMAGE")] = None,
    service_account: Annotated[str, typer.Option(help="with --cronjob: an account that deploy/rbac.yaml gives its Role to")] = "default-editor",
    registry_uri: Annotated[str | None, typer.Option(help="with --cronjob: KFP_SERVING_REGISTRY_URI; default: what the image has")] = None,
    registry_secret: Annotated[str | None, typer.Option(help="with --cronjob: the Secret whose key KFP_SERVING_REGISTRY_URI holds it")] = None,
    models: Annotated[int, typer.Option(min=1, max=10_000, help="with --cronjob: how many models it is given time for")] = 20,
    host: Host = None,
    kfp_namespace: KfpNamespace = None,
    token: Token = None,
    cookie: Cookie = None,
    ca_file: CaFile = None,
    kubeconfig: Kubeconfig = None,
    as_json: Json = False,
) -> None:
    """Run a pipeline by cron; by default a re-validation of every model of a namespace. The same again is what is there.

    Runs are red where `kfp-serving revalidate` ends with 7 or 3. The times of cron are those of Kubeflow's controller: UTC, unless changed there.
    """
    from kfp_components.workflows import cron as crons

    when = crons.parse(cron)
    reached = None if cronjob else _reached(kubeconfig)[0]
    asked = _asked(pipeline, file, reached, model=model, namespace=namespace, rayservice=rayservice, reason=reason, rules=rules)
    called = name or "-".join([asked.word, asked.model or asked.namespace])
    if cronjob:
        from kfp_components.workflows import cronjob as cronjobs
        from kfp_components.workflows import submit as submitting

        if not image and (warning := submitting.image_warning()):
            _warn(warning.replace("pipeline runs", "CronJob runs"))
        job = cronjobs.Job(called, when, asked, image, service_account, registry_uri, registry_secret, models)
        print(json.dumps(job.listed()) if as_json else job.text(), end="\n" if as_json else "")
        return
    pipelines, version = _uploaded(asked, package, (host, kfp_namespace, token, cookie, ca_file))
    found, made = pipelines.schedule(version, asked.parameters, name=called, cron=when, experiment=experiment or asked.experiment)
    times = [time.isoformat(sep=" ") for time in islice(when.times(datetime.now(UTC).replace(tzinfo=None)), 3)]
    if as_json:
        print(json.dumps({**found.as_dict(), "made": made, "next_if_utc": times}))
        return
    state = "made" if made else "there already, as asked for" + ("" if found.enabled else "; it is paused")
    print(f"schedule {found.name} ({found.cron}) is {state}: {found.id}\nnext: {', '.join(times)}, {ZONE}")


@schedule_app.command(name="list")
def list_schedules(
    everything: Annotated[bool, typer.Option("--all", help="also those of pipelines that are not this library's")] = False,
    host: Host = None,
    kfp_namespace: KfpNamespace = None,
    token: Token = None,
    cookie: Cookie = None,
    ca_file: CaFile = None,
    as_json: Json = False,
) -> None:
    """The schedules of this library's pipelines: cron (seconds first), whether they run, what for, and how the last run went."""
    from kfp_components.workflows.submit import PIPELINES

    pipelines = _pipelines((host, kfp_namespace, token, cookie, ca_file))
    ours = pipelines.pipelines([name.replace("_", "-") for name in PIPELINES.values()])
    found = [one for one in pipelines.schedules(ours) if everything or one.pipeline]
    if as_json:
        print(json.dumps([one.as_dict() for one in found]))
        return
    table = Table("name", "cron", "state", "pipeline", "for", "last run")
    for one in found:
        table.add_row(one.name, one.cron, "on" if one.enabled else "paused", one.pipeline or "-", _about(one), one.last_run or "-")
    Console().print(table)
    print(f"times are {ZONE}", file=sys.stderr)


def _changing(verb: str, done: str) -> Callable[..., None]:
    def command(
        name: Annotated[str, typer.Argument(help="name or id of the schedule")],
        host: Host = None,
        kfp_namespace: KfpNamespace = None,
        token: Token = None,
        cookie: Cookie = None,
        ca_file: CaFile = None,
        as_json: Json = False,
    ) -> None:
        found = _pipelines((host, kfp_namespace, token, cookie, ca_file)).change(name, verb)
        print(json.dumps({"id": found.id, "name": found.name, "done": done}) if as_json else f"schedule {found.name} is {done}")

    return command


for _verb, _done, _help in (
    ("pause", "paused", "Start no more runs until it is resumed; one that runs goes on."),
    ("resume", "resumed", "Start runs again; those missed meanwhile are not caught up with."),
    ("delete", "deleted", "Delete a schedule; its runs stay."),
):
    schedule_app.command(name=_verb, help=_help)(_changing(_verb, _done))


def _asked(pipeline: str, file: Path | None, reached: Cluster | None, *, rules: Path | None, **options: str | None) -> Asked:
    """What is asked, from the file and the options, which win. Nothing is written, and Kubeflow is not asked."""
    from kfp_components.workflows import submit as submitting

    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    given |= {"rules": values(rules, empty=True)} if rules else {}
    word = submitting.word_of(pipeline)
    found = values(file, empty=True) if file else {}
    if word in ("promote", "deploy"):
        if file is None:
            raise errors.RequestInvalid(f"{word} takes a request: a file as for `kfp-serving promote`")
        if given:
            raise errors.RequestInvalid(f"--{next(iter(given))} is not for {word}, whose request says everything")
        return submitting.asked_of(word, found)
    found |= given
    if word != "revalidate-namespace" and not found.get("rayservice") and found.get("model") and found.get("namespace") and reached is not None:
        target = request.parse_target({"model": found["model"], "namespace": found["namespace"], "rayservice": "any"})
        record = ReleaseStore(reached, target.model, target.namespace).load_record()
        found |= {"rayservice": record.rayservice} if record else {}
    return submitting.asked_of(word, found)


def _reached(kubeconfig: Path | None) -> tuple[Cluster | None, str]:
    """The cluster, or why there is none. One that is named has to be there."""
    try:
        return cluster(kubeconfig), ""
    except errors.NotFound as error:
        if kubeconfig is not None:
            raise
        return None, str(error)


Login = tuple[str | None, str | None, str | None, str | None, Path | None]


def _pipelines(login: Login) -> Pipelines:
    from kfp_components.workflows import client

    return client.Pipelines(client.Access(*login))


def _uploaded(asked: Asked, package: Path | None, login: Login) -> tuple[Pipelines, Version]:
    """The pipeline there, once it is known to take what is asked."""
    from kfp_components import names
    from kfp_components.workflows import submit as submitting

    with tempfile.TemporaryDirectory(prefix="kfp-serving-") as folder:
        if package is None and (warning := submitting.image_warning()):
            _warn(warning)
        text = package or submitting.compiled(asked, Path(folder))
        submitting.assert_package(asked, text)
        pipelines = _pipelines(login)
        return pipelines, pipelines.upload(text, "" if package else names.requirement())


def _follow(pipelines: Pipelines, run_id: str, release: Any, console: Console) -> tuple[RunState, Release | None]:
    """Show the release, or the steps while there is none, until the run ended."""
    from kfp_components import live

    shown, watcher = live.view(console)
    steps = _Steps(console, shown)

    def tell(run: RunState) -> None:
        record = release.look()
        watcher(record) if record is not None else steps.tell(run)

    with shown:
        run = pipelines.follow(run_id, tell)
        record = release.look(at_last=True)
        if record is not None:
            watcher(record)
    return run, record


class _Steps:
    """The steps of a run: a table in the view's place, a line for each change where there is no terminal."""

    def __init__(self, console: Console, shown: AbstractContextManager[Any]) -> None:
        self._console, self._live = console, shown if isinstance(shown, Live) else None
        self._last: dict[str, str] = {}

    def tell(self, run: RunState) -> None:
        if self._live is not None:
            table = Table("step", "state", title=f"run {run.id}: {run.state}")
            for task in run.tasks:
                table.add_row(task.name, Text(task.state, COLOURS.get(task.state, "dim")))
            self._live.update(table)
            return
        now = {"run": run.state} | {task.name: task.state for task in run.tasks}
        for name, state in now.items():
            if self._last.get(name) != state:
                self._console.print(f"  {datetime.now():%H:%M:%S} {name}: {state}", soft_wrap=True, markup=False)
        self._last = now


def _about(schedule: Schedule) -> str:
    known = schedule.parameters
    target = "/".join(str(known[key]) for key in ("namespace", "model") if known.get(key))
    rules = ", ".join(f"{key} {value}" for key, value in (known.get("rules") or {}).items())
    return f"{target} ({rules})" if rules else target


def _warn(text: str) -> None:
    print(f"Warning: {text}", file=sys.stderr)
