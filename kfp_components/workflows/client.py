"""Kubeflow Pipelines from outside, by ``kfp.Client``: upload a compiled pipeline as a version, start a run and look at it, schedule it.

Secrets are given by where they are (``env:NAME``, ``file:/path``), never themselves, and are in no message. ``kfp`` takes seconds to import: only
`Pipelines` does. What it reads of ``~/.config/kfp/context.json`` (namespace, cookie) counts; nothing is written there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from kfp_components import errors
from kfp_components.clock import Clock, SystemClock
from kfp_components.cluster.patience import Patience, persist
from kfp_components.ops.runtime import KFP_UI
from kfp_components.request import whole_numbers
from kfp_components.workflows.cron import Cron

ENDPOINT = "KF_PIPELINES_ENDPOINT"
"""Environment variable with the API's address, as kfp's own client has it."""

SA_TOKEN = "KF_PIPELINES_SA_TOKEN_PATH"
"""Environment variable with the path of a service-account token, as kfp's own client has it; it is read anew for each call."""

IN_CLUSTER = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
POD_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
"""Mounted into notebooks whose PodDefault gives access to Kubeflow Pipelines."""

FINISHED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
PAGE = 100
TIMEOUT_S = (5.0, 60.0)
"""To connect, and for an answer; kfp's client waits for ever."""

PATIENCE_S = 20.0
FOLLOW_PATIENCE_S = 300.0
"""For how long an API that is away is asked again: a run does not mind who looks."""

FOLLOW_S = 2.0
SETTLE_S = 1.0
"""After a schedule is made, until whoever did not see it yet has made another one of its name."""

LOG_IN = "give --token or --cookie (env:NAME or file:/path) of somebody who may, and --kfp-namespace of a profile that is theirs"


@dataclass(frozen=True)
class Access:
    """Where Kubeflow Pipelines is and how to get in. ``token``, ``cookie``: ``env:NAME`` or ``file:/path``; None: the surroundings'."""

    host: str | None = None
    namespace: str | None = None
    token: str | None = None
    cookie: str | None = None
    ca_file: Path | None = None


@dataclass(frozen=True)
class Task:
    """One step of a run as Kubeflow shows it."""

    name: str
    state: str
    error: str = ""


@dataclass(frozen=True)
class RunState:
    """A run at one moment."""

    id: str
    state: str
    error: str = ""
    tasks: tuple[Task, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether it has ended, one way or another."""
        return self.state in FINISHED

    @property
    def said(self) -> str:
        """What Kubeflow knows of why it failed; empty where that is nothing."""
        told = [f"{task.name}: {task.error}" for task in self.tasks if task.error]
        return "; ".join([*told, *([self.error] if self.error else [])])


@dataclass(frozen=True)
class Version:
    """An uploaded version of a pipeline; ``name`` is the digest of its text."""

    pipeline: str
    pipeline_id: str
    id: str
    name: str


@dataclass(frozen=True)
class Schedule:
    """A recurring run. ``cron`` has six fields, seconds first; empty where it is periodic. ``pipeline``: None where it is none of ours."""

    id: str
    name: str
    cron: str
    enabled: bool
    pipeline: str | None = None
    pipeline_id: str = ""
    version_id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    max_concurrency: int = 1
    no_catchup: bool = True
    created_at: str = ""
    last_run: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def differs(self, wanted: Schedule) -> str:
        """What another one asks otherwise, in words; empty where it asks the same."""
        names = ("cron", "pipeline_id", "version_id", "parameters", "max_concurrency", "no_catchup")
        about = [(name, getattr(self, name), getattr(wanted, name)) for name in names]
        return "; ".join(f"{name} is {here!r}, asked for {there!r}" for name, here, there in about if here != there)


def secret(reference: str | None, option: str) -> str | None:
    """The secret that is there. Raises `RequestInvalid`, which does not repeat what it was given: that may be the secret."""
    if reference is None:
        return None
    kind, _, where = reference.partition(":")
    if kind == "env" and re.fullmatch(r"[A-Za-z_]\w*", where):
        found = os.environ.get(where, "")
        what = f"environment variable {where} is not set, or empty"
    elif kind == "file" and where:
        try:
            found, what = Path(where).expanduser().read_text(encoding="utf-8"), f"file {where} is empty"
        except (OSError, UnicodeDecodeError) as error:
            raise errors.RequestInvalid(f"{option} file {where}: {getattr(error, 'strerror', None) or 'it is no text'}") from None
    else:
        raise errors.RequestInvalid(f"{option}: give env:NAME or file:/path, where the secret is; never the secret itself, which others could read")
    if not (found := found.strip()):
        raise errors.RequestInvalid(f"{option}: {what}")
    if not found.isprintable() or not found.isascii():
        raise errors.RequestInvalid(f"{option}: what is there is not one line of plain text, so it is no token or cookie")
    return found


class Pipelines:
    """One Kubeflow Pipelines API. Every method raises `Unreachable`, `PermissionDenied`, `NotFound` or `RequestInvalid` in this library's words."""

    def __init__(self, access: Access, *, clock: Clock | None = None) -> None:
        """Asks once for the server's health. Raises `RequestInvalid` without an address or a profile."""
        self.clock = clock or SystemClock()
        self._patience = Patience(PATIENCE_S)
        self.host, in_pod = _host(access)
        token, cookie = secret(access.token, "--token"), secret(access.cookie, "--cookie")
        if access.ca_file is not None and not access.ca_file.is_file():
            raise errors.RequestInvalid(f"--ca-file {access.ca_file}: there is no such file")
        self._secrets = [found for found in (token, cookie) if found]
        self._client = self._connected(access, token, cookie, in_pod)
        health = self._asked("asking for its health", self._client._healthz_api.healthz_service_get_healthz, once=True)
        self.namespace = access.namespace or self._client.get_user_namespace() or None
        if health.multi_user and self.namespace is None:
            self.namespace = POD_NAMESPACE.read_text(encoding="utf-8").strip() if POD_NAMESPACE.is_file() else None
            if self.namespace is None:
                raise errors.RequestInvalid(f"Kubeflow Pipelines {self.host} serves many users: say whose namespace by --kfp-namespace")

    def _connected(self, access: Access, token: str | None, cookie: str | None, in_pod: bool) -> Any:
        """kfp's client, less its habits: it knocks five times for 25 s, writes to the home folder, follows a redirect to a login page, and waits
        without end."""
        import kfp
        import kfp_server_api
        import urllib3
        from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials
        from kfp_server_api.exceptions import ApiException

        class Client(kfp.Client):  # type: ignore[misc]
            def _load_config(self, *args: Any, **options: Any) -> Any:
                config = super()._load_config(*args, **options)
                config.retries = urllib3.Retry(total=0, redirect=0, raise_on_redirect=False)
                return config

            def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
                return kfp_server_api.V2beta1GetHealthzResponse(multi_user=False)  # whose namespace it is, is found out above

        token_file = os.environ.get(SA_TOKEN) or (str(POD_TOKEN) if in_pod and POD_TOKEN.is_file() else None)
        if token_file and not Path(token_file).is_file():
            raise errors.RequestInvalid(f"{SA_TOKEN}: there is no file {token_file}; unset it, or give --token")
        credentials = ServiceAccountTokenVolumeCredentials(token_file) if token_file and not (token or cookie) else None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it is a client of version 2
                client = Client(
                    host=self.host,
                    namespace=access.namespace or "kubeflow",  # its word for none
                    existing_token=token,
                    cookies=cookie,
                    ssl_ca_cert=str(access.ca_file) if access.ca_file else None,
                    credentials=credentials,
                )
        except (ValueError, KeyError, TypeError):
            raise errors.RequestInvalid(f"{kfp.Client._LOCAL_KFP_CONTEXT}: not a context of kfp's client; mend or delete it") from None
        rest = client._run_api.api_client.rest_client
        plain = rest.request

        def asked(*args: Any, **options: Any) -> Any:
            try:
                answer = plain(*args, **{**options, "_request_timeout": options.get("_request_timeout") or TIMEOUT_S})
            except ApiException as error:  # the client takes its body for UTF-8, whatever a proxy answers
                error.body = (error.body or b"").decode(errors="replace").encode()
                raise
            if not _is_mapping(answer.data):  # it would be read as an answer that says nothing
                correct = f"correct --host (https://kubeflow.example/pipeline), or {LOG_IN}"
                if answer.data.lstrip()[:1] == b"<":
                    raise errors.RequestInvalid(f"Kubeflow Pipelines {self.host}: a web page answers: {correct}")
                raise errors.RequestInvalid(f"Kubeflow Pipelines {self.host}: what answers is not its API: {correct}")
            return answer

        rest.request = asked
        return client

    def page(self, run_id: str) -> str:
        """Where a person looks at a run: below ``KFP_SERVING_KFP_UI``, where that says where people open Kubeflow Pipelines, else below the host."""
        return f"{(os.environ.get(KFP_UI) or self.host).rstrip('/')}/#/runs/details/{run_id}"

    def upload(self, package: Path, description: str = "") -> Version:
        """The version of exactly this content, which is uploaded where it is not there. Its name is its digest, so two that race make one."""
        pipeline = pipeline_name(package)
        name = f"sha256-{hashlib.sha256(package.read_bytes()).hexdigest()[:16]}"
        api, told = self._client._pipelines_api, {"description": description} if description else {}
        about = self._client.api_models.V2beta1Pipeline(name=pipeline, display_name=pipeline, namespace=self.namespace)
        owner = self._made_once(
            f"pipeline {pipeline}", lambda: self._named("pipelines", pipeline), lambda: api.pipeline_service_create_pipeline(about)
        )
        found = self._made_once(
            f"version {name} of pipeline {pipeline}",
            lambda: self._named("pipeline_versions", name, owner.pipeline_id),
            lambda: self._client._upload_api.upload_pipeline_version(str(package), name=name, pipelineid=owner.pipeline_id, **told),
        )
        return Version(pipeline, owner.pipeline_id, found.pipeline_version_id, name)

    def start(self, version: Version, parameters: Mapping[str, Any], *, experiment: str, name: str) -> str:
        """Start a run; its id."""
        models = self._client.api_models
        run = models.V2beta1Run(
            experiment_id=self._experiment(experiment),
            display_name=name,
            pipeline_version_reference=models.V2beta1PipelineVersionReference(version.pipeline_id, version.id),
            runtime_config=models.V2beta1RuntimeConfig(parameters=dict(parameters)),
        )
        start = partial(self._client._run_api.run_service_create_run, run)
        return str(self._asked(f"starting {name}", start, once=True).run_id)

    def state(self, run_id: str, *, patience: Patience | None = None) -> RunState:
        """The run as it is now."""
        run = self._asked(f"reading run {run_id}", lambda: self._client.get_run(run_id), patience=patience)
        details = (run.run_details.task_details if run.run_details else None) or []
        named = [(task.display_name or task.task_id or "", task) for task in details]
        tasks = [Task(name, task.state or "PENDING", _text(task.error)) for name, task in named if not _is_plumbing(name) or task.error]
        return RunState(run_id, run.state or "PENDING", _text(run.error), tuple(tasks))

    def follow(self, run_id: str, tell: Callable[[RunState], None] = lambda _state: None) -> RunState:
        """Wait for its end, telling how it is each time it is looked at. An API that is away is asked again for `FOLLOW_PATIENCE_S`."""
        while True:
            state = self.state(run_id, patience=Patience(FOLLOW_PATIENCE_S))
            tell(state)
            if state.finished:
                return state
            self.clock.sleep(FOLLOW_S)

    def schedule(self, version: Version, parameters: Mapping[str, Any], *, name: str, cron: Cron, experiment: str) -> tuple[Schedule, bool]:
        """A recurring run, and whether it was made now: one run at a time, missed ones are not caught up with. The same again is what is there.

        The server takes the same name twice, so of those that are made at the same moment all but one take themselves away. Raises `NameTaken` where
        the name has another content, saying what differs.
        """
        wanted = Schedule("", name, cron.kubeflow, True, version.pipeline, version.pipeline_id, version.id, whole_numbers(dict(parameters)))
        experiment_id = self._experiment(experiment)
        if there := self._schedules_named(name):
            return self._same(there, wanted), False
        made = self._asked(
            f"scheduling {name}",
            lambda: self._client.create_recurring_run(
                experiment_id,
                name,
                cron_expression=wanted.cron,
                max_concurrency="1",  # an int64, which the API's JSON writes as text
                no_catchup=True,
                params=dict(parameters),
                pipeline_id=version.pipeline_id,
                version_id=version.id,
            ),
            once=True,
        )
        self.clock.sleep(SETTLE_S)
        there = self._schedules_named(name)
        if not there:
            raise errors.NotFound(f"schedule {name}: it was made, and is gone again: somebody else deleted it")
        first = there[0]
        if first.id == made.recurring_run_id:
            return first, True
        self._delete(made.recurring_run_id, name)
        return self._same([first], wanted), False

    def schedules(self, pipelines: Mapping[str, str]) -> list[Schedule]:
        """Those of the namespace, oldest first, each with the state of its last run. ``pipelines``: id -> name of those of this library."""
        found = [_schedule(one, pipelines) for one in self._recurring("listing schedules")]
        return [Schedule(**{**vars(one), "last_run": self._last_run(one.id)}) for one in found]

    def pipelines(self, names: Iterator[str] | list[str]) -> dict[str, str]:
        """Id -> name of the uploaded ones among these."""
        query = _filter("IN", "name", {"stringValues": {"values": sorted(names)}})
        ask = partial(self._client.list_pipelines, namespace=self.namespace)
        found = self._pages("listing pipelines", "pipelines", ask, filter=query)
        return {one.pipeline_id: one.name or one.display_name for one in found}

    def change(self, name: str, verb: str) -> Schedule:
        """``pause``, ``resume`` or ``delete`` the schedule of a name or id. Raises `NotFound` that lists those there are, `RequestInvalid` for a name
        that several have."""
        there = [_schedule(one, {}) for one in self._recurring("listing schedules")]
        found = [one for one in there if one.id == name] or [one for one in there if one.name == name]
        if not found:
            raise errors.NotFound(f"schedule {name}: it does not exist; there are {', '.join(one.name for one in there) or 'none'}")
        if len(found) > 1:
            raise errors.RequestInvalid(f"schedule {name}: {len(found)} have that name; give the id: {', '.join(one.id for one in found)}")
        act = {"pause": self._client.disable_recurring_run, "resume": self._client.enable_recurring_run}
        if verb == "delete":
            self._delete(found[0].id, name)
        else:
            self._asked(f"{verb} of schedule {name}", lambda: act[verb](found[0].id))
        return Schedule(**{**vars(found[0]), "enabled": verb == "resume"})

    def _delete(self, schedule_id: str, name: str) -> None:
        with contextlib.suppress(errors.NotFound):  # an answer was lost, or somebody else did it
            self._asked(f"deleting schedule {name}", lambda: self._client.delete_recurring_run(schedule_id))

    def _same(self, there: list[Schedule], wanted: Schedule) -> Schedule:
        same = next((one for one in there if not one.differs(wanted)), None)
        if same is None:
            raise errors.NameTaken(
                f"schedule {wanted.name}: it exists and is not what is asked for: {there[0].differs(wanted)}. Give another --name, or "
                f"`kfp-serving schedule delete {wanted.name}` first"
            )
        return Schedule(**{**vars(same), "pipeline": wanted.pipeline})

    def _schedules_named(self, name: str) -> list[Schedule]:
        query = _filter("EQUALS", "display_name", {"stringValue": name})
        found = [_schedule(one, {}) for one in self._recurring(f"looking for schedule {name}", query)]
        return sorted(found, key=lambda one: (one.created_at, one.id))

    def _recurring(self, doing: str, query: str | None = None) -> list[Any]:
        ask = partial(self._client.list_recurring_runs, namespace=self.namespace)
        return self._pages(doing, "recurring_runs", ask, sort_by="created_at", filter=query)

    def _last_run(self, schedule_id: str) -> str | None:
        query = _filter("EQUALS", "recurring_run_id", {"stringValue": schedule_id})
        ask = partial(self._client.list_runs, page_size=1, sort_by="created_at desc", namespace=self.namespace, filter=query)
        found = self._asked("reading its last run", ask).runs
        return str(found[0].state) if found else None

    def _experiment(self, name: str) -> str:
        about = self._client.api_models.V2beta1Experiment(display_name=name, namespace=self.namespace)
        make = self._client._experiment_api.experiment_service_create_experiment
        found = self._made_once(f"experiment {name}", lambda: self._named("experiments", name), lambda: make(about))
        return str(found.experiment_id)

    def _named(self, what: str, name: str, pipeline_id: str = "") -> Any:
        """The one of that name, None where there is none."""
        query, doing = _filter("EQUALS", "name", {"stringValue": name}), f"looking for {name}"
        lists: dict[str, Callable[..., Any]] = {
            "pipelines": lambda **page: self._client.list_pipelines(namespace=self.namespace, filter=query, **page),
            "pipeline_versions": lambda **page: self._client.list_pipeline_versions(pipeline_id, filter=query, **page),
            "experiments": lambda **page: self._client.list_experiments(namespace=self.namespace, filter=query, **page),
        }
        return next(iter(self._pages(doing, what, lists[what])), None)

    def _made_once(self, what: str, find: Callable[[], Any], make: Callable[[], Any]) -> Any:
        """What is there, else what is made; where another one made it at the same moment, what that made."""
        found = find()
        if found is not None:
            return found
        try:
            return self._asked(f"making {what}", make)
        except _Exists as error:
            if (found := find()) is None:
                raise errors.NameTaken(f"{error}; who asks may not see it") from None
            return found

    def _pages(self, doing: str, what: str, ask: Callable[..., Any], **first: Any) -> list[Any]:
        """All there are. A page's token holds filter and order: a server that is told them again finds that they do not match."""
        found: list[Any] = []
        about: dict[str, Any] = first
        while True:
            answer = self._asked(doing, partial(ask, page_size=PAGE, **about))
            found += getattr(answer, what) or []
            if not answer.next_page_token:
                return found
            about = {"page_token": answer.next_page_token}

    def _asked(self, doing: str, call: Callable[[], Any], *, once: bool = False, patience: Patience | None = None) -> Any:
        """The answer. A server that is away is asked again, unless asking twice could do it twice."""
        asking = partial(self._mapped, doing, call)
        return asking() if once else persist(asking, self.clock, patience or self._patience)

    def _mapped(self, doing: str, call: Callable[[], Any]) -> Any:
        from kfp_server_api.exceptions import ApiException
        from urllib3.exceptions import HTTPError, SSLError

        what = f"Kubeflow Pipelines {self.host}: {doing}"
        try:
            return call()
        except ApiException as error:  # what is raised instead has no part of it: its text holds the headers of the answer
            raised = self._refused(what, int(error.status or 0), error.body or error.reason)
        except (HTTPError, OSError) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, SSLError):
                raised = errors.RequestInvalid(f"{what}: its certificate cannot be verified; give --ca-file, or correct the address")
            else:
                raised = errors.Unreachable(f"{what}: {type(reason).__name__}; is it running, and reachable from here?")
        raise raised from None

    def _refused(self, what: str, status: int, body: Any) -> errors.KfpServingError:
        told = self._sentence(body)
        if 300 <= status < 400:
            return errors.PermissionDenied(f"{what}: it sends to another page ({status}), as a login does; {LOG_IN}")
        if status in (401, 403):
            return errors.PermissionDenied(f"{what}: {status} {told}; {LOG_IN}")
        if status == 404:
            return errors.NotFound(f"{what}: 404 {told}; is --host right (https://kubeflow.example/pipeline)?")
        if status == 409 or (status == 400 and "already exist" in told):
            return _Exists(f"{what}: {told}")
        if status == 0 and "SSL" in told:
            return errors.RequestInvalid(f"{what}: its certificate cannot be verified; give --ca-file, or correct the address")
        if 400 <= status < 500 and status not in (408, 429):
            hint = "; the server says so too where the login may not do it" if told.startswith("Failed to create a pipeline") else ""
            return errors.RequestInvalid(f"{what}: {status} {told}{hint}")
        return errors.Unreachable(f"{what}: {status} {told}; try again")

    def _sentence(self, body: Any) -> str:
        """What an error says, in one line, less any secret of ours."""
        text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
        with contextlib.suppress(ValueError):
            found = json.loads(text)
            if isinstance(found, dict):
                text = str(next((found[key] for key in ("message", "error", "error_message") if found.get(key)), text))
        if text.lstrip()[:1] == "<":
            text = "a page instead of an answer"
        for one in self._secrets:
            text = text.replace(one, "***")
        return " ".join(text.split())[:400]


class _Exists(errors.NameTaken):
    """Somebody else was faster."""


def pipeline_name(package: Path) -> str:
    """The name in a compiled pipeline. Raises `NotFound` or `RequestInvalid`."""
    return str(_spec(package)["pipelineInfo"]["name"])


def assert_parameters(package: Path, parameters: Mapping[str, Any]) -> None:
    """Raise `RequestInvalid` for parameters that the pipeline does not have, and for those that it needs and is not given."""
    known = ((_spec(package).get("root") or {}).get("inputDefinitions") or {}).get("parameters") or {}
    strange = sorted(set(parameters) - set(known))
    missing = sorted(name for name, about in known.items() if name not in parameters and "defaultValue" not in about and not about.get("isOptional"))
    if strange or missing:
        told = [f"it has no parameter {', '.join(strange)}"] * bool(strange) + [f"it needs {', '.join(missing)}"] * bool(missing)
        raise errors.RequestInvalid(f"pipeline {pipeline_name(package)}: {'; '.join(told)}; its parameters are {', '.join(sorted(known))}")


def _spec(package: Path) -> dict[str, Any]:
    try:
        found = next(iter(yaml.safe_load_all(package.read_text(encoding="utf-8"))))
        if isinstance(found["pipelineInfo"]["name"], str):
            return dict(found)
    except OSError as error:
        raise errors.NotFound(f"{package}: {error.strerror}; `kfp-serving compile` writes the pipelines") from error
    except (yaml.YAMLError, KeyError, TypeError, StopIteration, ValueError, RecursionError):
        pass
    raise errors.RequestInvalid(f"{package}: not a compiled pipeline; `kfp-serving compile` writes them")


def _host(access: Access) -> tuple[str, bool]:
    """The address, and whether it is the one of this pod's own cluster."""
    given = (access.host or os.environ.get(ENDPOINT) or "").strip()
    if not given and POD_NAMESPACE.is_file():
        return IN_CLUSTER, True
    if not given:
        raise errors.RequestInvalid(
            f"Kubeflow Pipelines: no address; give --host or set {ENDPOINT} (https://kubeflow.example/pipeline, or http://localhost:8080 after "
            "`kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80`)"
        )
    if "@" in given or any(character.isspace() for character in given) or "?" in given or "#" in given:
        raise errors.RequestInvalid("--host: give scheme, host and path only; a login goes by --token or --cookie")
    host = (given if "://" in given else f"https://{given}").rstrip("/")
    with contextlib.suppress(ValueError):  # a port or a bracket that is none
        parts = urlsplit(host)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return host, False
    raise errors.RequestInvalid(f"--host {host}: it is no address; expected https://host/path, such as https://kubeflow.example/pipeline")


def _filter(operation: str, key: str, value: Mapping[str, Any]) -> str:
    return json.dumps({"predicates": [{"operation": operation, "key": key, **value}]})


def _schedule(found: Any, pipelines: Mapping[str, str]) -> Schedule:
    reference = found.pipeline_version_reference
    pipeline_id = (reference.pipeline_id if reference else None) or ""
    return Schedule(
        id=found.recurring_run_id,
        name=found.display_name or "",
        cron=(found.trigger.cron_schedule.cron if found.trigger and found.trigger.cron_schedule else "") or "",
        enabled=found.status == "ENABLED",
        pipeline=pipelines.get(pipeline_id),
        pipeline_id=pipeline_id,
        version_id=(reference.pipeline_version_id if reference else None) or "",
        parameters=whole_numbers((found.runtime_config.parameters if found.runtime_config else None) or {}),
        max_concurrency=int(found.max_concurrency or 0),
        no_catchup=bool(found.no_catchup),
        created_at=found.created_at.isoformat() if found.created_at else "",
    )


def _is_mapping(data: bytes) -> bool:
    """Whether it is JSON as each answer of the API is."""
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False


def _is_plumbing(name: str) -> bool:
    """Whether it is a node of the backend that stands for no step of ours."""
    return name in ("executor", "root") or name.endswith("-driver") or name.startswith("root.")


def _text(error: Any) -> str:
    return " ".join(str(getattr(error, "message", "") or "").split()) if error else ""
