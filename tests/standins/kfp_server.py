"""A stand-in for the API server of Kubeflow Pipelines, on loopback, for the real ``kfp.Client``. It does what the source of 2.17 says.

Every body is checked against the swagger models of `kfp_server_api`; names of pipelines (in a namespace), of versions (in a pipeline) and of experiments
are unique (409), those of recurring runs are not; lists have pages (20, at most 200), filters and an order; parameters are checked against the pipeline,
as are cron (robfig's, five or six fields) and max_concurrency (1 to 10); without a login it answers 401, or sends to a login page.

What it does not do: run anything (a run goes through the states of its `Outcome`, one further with each look), start recurring runs, authorise by
namespace, run in the mode that keeps pipelines as Kubernetes objects, archive, delete pipelines, filters other than EQUALS and IN, report any field that
this library does not read. Tasks and errors of a run are what the test says; a real backend says little more than an exit code.
"""

import base64
import email
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.policy import HTTP
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api
import yaml
from loopback import Answering, served

API = "/apis/v2beta1"
TOKEN, COOKIE = "t0ken-of-the-test", "oauth2_proxy_kubeflow=c00kie-of-the-test"
PLAIN: dict[str, type | tuple[type, ...]] = {"str": str, "bool": bool, "int": int, "float": (int, float), "datetime": str, "object": object}
KINDS = {"STRING": str, "NUMBER_INTEGER": (int, float), "NUMBER_DOUBLE": (int, float), "BOOLEAN": bool, "LIST": list, "STRUCT": dict}
FILTERS = {"EQUALS": "stringValue", "IN": "stringValues", 1: "stringValue", 8: "stringValues"}
LIMITS = ((0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 6))


class Refused(Exception):
    """An answer that is none: HTTP status, gRPC code, sentence."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def faults(value: Any, kind: str, where: str, models: Any = kfp_server_api) -> list[str]:
    """What in a JSON value is not of a swagger type of ``models``."""
    if value is None:
        return []
    if kind in PLAIN:
        return [] if isinstance(value, PLAIN[kind]) else [f"{where}: {kind} expected, not {type(value).__name__}"]
    if inner := re.fullmatch(r"list\[(.*)\]", kind):
        return [found for index, item in enumerate(value) for found in faults(item, inner[1], f"{where}[{index}]", models)]
    if inner := re.fullmatch(r"dict\(str, (.*)\)", kind):
        return [found for key, item in value.items() for found in faults(item, inner[1], f"{where}.{key}", models)]
    model = getattr(models, kind)
    if not model.openapi_types:  # an enumeration
        allowed = [text for name, text in vars(model).items() if name.isupper()]
        return [] if value in allowed else [f"{where}: {value!r} is none of {allowed}"]
    if not isinstance(value, dict):
        return [f"{where}: {kind} expected, not {type(value).__name__}"]
    types = {model.attribute_map[name]: of for name, of in model.openapi_types.items()}
    strange = [f"{where}.{key}: {kind} has no such field" for key in value if key not in types]
    return strange + [found for key, item in value.items() if key in types for found in faults(item, types[key], f"{where}.{key}", models)]


@dataclass
class Outcome:
    """How the runs of a pipeline go: the states that are seen one after the other, the steps at the end, and what each look causes."""

    states: tuple[str, ...] = ("PENDING", "RUNNING", "SUCCEEDED")
    tasks: tuple[tuple[str, str, str], ...] = (("work", "SUCCEEDED", ""),)
    looked: Callable[[str, int], None] = lambda _run_id, _look: None


@dataclass
class KfpServer:
    """Its state, to look at. ``away``: so many answers are 503. ``door``: what who is not let in gets. ``together``: lists (``pipelines``,
    ``versions``, ...) whose first requests wait for each other."""

    url: str = ""
    multi_user: bool = False
    door: str = "401"
    away: int = 0
    together: dict[str, threading.Barrier] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    pipelines: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    recurring: dict[str, dict[str, Any]] = field(default_factory=dict)
    texts: dict[str, Any] = field(default_factory=dict)
    looks: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes, kind: str) -> Any:
        """To one request that was let in. Raises `Refused`."""
        if method == "GET" and (barrier := self.together.get(path.rpartition("/")[2])) is not None:
            barrier.wait(30)
            self.together.pop(path.rpartition("/")[2], None)
        with self.lock:
            for verb, pattern, act, model in self._routes():
                if verb == method and (found := re.fullmatch(pattern, path)):
                    content = json.loads(body) if model else body
                    if model and (wrong := faults(content, model, "body")):
                        self.strange += wrong
                        raise Refused(400, 3, "; ".join(wrong))
                    return act(query, _file(content, kind) if "upload" in path else content, *found.groups())
        raise Refused(404, 5, "Not Found")

    def _routes(self) -> list[tuple[str, str, Callable[..., Any], str | None]]:
        one = "/([^/:]+)"
        return [
            ("GET", "/healthz", lambda _q, _b: {"multi_user": self.multi_user}, None),
            ("POST", "/pipelines", lambda _q, body: self._pipeline(body), "V2beta1Pipeline"),
            ("GET", "/pipelines", lambda query, _b: self._list("pipelines", self._seen(self.pipelines, query), query), None),
            ("POST", "/pipelines/upload_version", self._version, None),
            ("GET", f"/pipelines{one}/versions", self._versions, None),
            ("POST", "/experiments", lambda _q, body: self._experiment(body), "V2beta1Experiment"),
            ("GET", "/experiments", lambda query, _b: self._list("experiments", self._seen(self.experiments, query), query), None),
            ("POST", "/runs", lambda _q, body: self._run(body), "V2beta1Run"),
            ("GET", "/runs", lambda query, _b: self._list("runs", [*self.runs.values()], query), None),
            ("GET", f"/runs{one}", lambda _q, _b, run_id: self._look(run_id), None),
            ("POST", "/recurringruns", lambda _q, body: self._recurring(body), "V2beta1RecurringRun"),
            ("GET", "/recurringruns", lambda query, _b: self._list("recurringRuns", self._seen(self.recurring, query), query), None),
            ("POST", f"/recurringruns{one}:disable", lambda _q, _b, id: self._mode(id, "DISABLE"), None),
            ("POST", f"/recurringruns{one}:enable", lambda _q, _b, id: self._mode(id, "ENABLE"), None),
            ("DELETE", f"/recurringruns{one}", lambda _q, _b, id: self._known(self.recurring, id) and self.recurring.pop(id) and {}, None),
        ]

    def _pipeline(self, body: dict[str, Any]) -> Any:
        name, namespace = body.get("name") or body.get("display_name"), body.get("namespace", "")
        if not name:
            raise Refused(400, 3, "name is required")
        self._assert_free(self.pipelines, "pipeline", name=name, namespace=namespace)
        made = {**body, "pipeline_id": _id(), "name": name, "display_name": body.get("display_name") or name, "created_at": self._now()}
        return self.pipelines.setdefault(made["pipeline_id"], made)

    def _version(self, query: dict[str, str], content: bytes) -> Any:
        owner = self._known(self.pipelines, query["pipelineid"])
        text = next(iter(yaml.safe_load_all(content)))
        if "pipelineInfo" not in text:
            raise Refused(400, 3, "Failed to read a pipeline spec file")
        self._assert_free(self.versions, "pipeline version", name=query["name"], pipeline_id=owner["pipeline_id"])
        made = {"pipeline_id": owner["pipeline_id"], "pipeline_version_id": _id(), "name": query["name"], "display_name": query["name"]}
        made |= {"description": query.get("description", ""), "created_at": self._now()}
        self.texts[made["pipeline_version_id"]] = text
        return self.versions.setdefault(made["pipeline_version_id"], made)

    def _versions(self, query: dict[str, str], _body: Any, pipeline_id: str) -> Any:
        self._known(self.pipelines, pipeline_id)
        return self._list("pipeline_versions", [one for one in self.versions.values() if one["pipeline_id"] == pipeline_id], query)

    def _experiment(self, body: dict[str, Any]) -> Any:
        if self.multi_user and not body.get("namespace"):
            raise Refused(400, 3, "Invalid input error: Experiment's namespace cannot be empty in multi-user mode")
        self._assert_free(self.experiments, "experiment", display_name=body["display_name"], namespace=body.get("namespace", ""))
        made = {**body, "experiment_id": _id(), "created_at": self._now()}
        return self.experiments.setdefault(made["experiment_id"], made)

    def _run(self, body: dict[str, Any]) -> Any:
        self._assert_parameters(body)
        made = {**body, "run_id": _id(), "state": "PENDING", "created_at": self._now()}
        return self.runs.setdefault(made["run_id"], made)

    def _look(self, run_id: str) -> Any:
        run = self._known(self.runs, run_id)
        outcome = self.outcomes.get(self.texts[run["pipeline_version_reference"]["pipeline_version_id"]]["pipelineInfo"]["name"], Outcome())
        look = self.looks[run_id] = self.looks.get(run_id, -1) + 1
        run["state"] = outcome.states[min(look, len(outcome.states) - 1)]
        outcome.looked(run_id, look)
        ended = look >= len(outcome.states) - 1
        details = [
            {
                "task_id": _id(),
                "display_name": name,
                "state": end if ended else "RUNNING",
                **({"error": {"code": 2, "message": said}} if ended and said else {}),
            }
            for name, end, said in (("root", "SUCCEEDED", ""), *outcome.tasks)
        ]
        return {**run, "run_details": {"task_details": details}}

    def _recurring(self, body: dict[str, Any]) -> Any:
        if not 1 <= int(body.get("max_concurrency", 0)) <= 10:
            raise Refused(400, 3, f"Max concurrency of a recurring run must be at least 1 and at most 10. Received {body.get('max_concurrency')}")
        if wrong := _cron_fault(body["trigger"]["cron_schedule"]["cron"]):
            raise Refused(400, 3, f"Schedule cron is not a supported format(https://godoc.org/github.com/robfig/cron). Error: {wrong}")
        experiment = self._assert_parameters(body)
        made = {
            **body,
            "recurring_run_id": _id(),
            "status": f"{body['mode']}D",
            "namespace": experiment.get("namespace", ""),
            "created_at": self._now(),
        }
        return self.recurring.setdefault(made["recurring_run_id"], made)

    def _mode(self, recurring_id: str, mode: str) -> Any:
        self._known(self.recurring, recurring_id).update(mode=mode, status=f"{mode}D")
        return {}

    def _assert_parameters(self, body: dict[str, Any]) -> dict[str, Any]:
        """The experiment. As the server checks a run's or a recurring run's inputs."""
        experiment = self._known(self.experiments, body["experiment_id"])
        version = self._known(self.versions, body["pipeline_version_reference"]["pipeline_version_id"])
        known = self.texts[version["pipeline_version_id"]]["root"]["inputDefinitions"]["parameters"]
        given = body["runtime_config"].get("parameters") or {}
        for name, about in known.items():
            if name not in given and "defaultValue" not in about and not about.get("isOptional"):
                raise Refused(400, 3, f"parameter {name} is not optional, yet has neither default value nor user provided value")
            if name in given and not isinstance(given[name], KINDS[about["parameterType"]]):
                raise Refused(400, 3, f"input parameter {name} requires type {about['parameterType'].lower()}")
        if extra := [name for name in given if name not in known]:
            raise Refused(400, 3, f"parameter(s) provided are not required by pipeline: {', '.join(extra)}")
        return experiment

    def _list(self, what: str, there: list[dict[str, Any]], query: dict[str, str]) -> Any:
        token = {"from": 0, "filter": query.get("filter"), "sort": query.get("sort_by")}
        if query.get("page_token"):
            if "IN" in query.get("filter", ""):  # it compares what it reads in the token with what it is told, and lists of values differ
                raise Refused(400, 3, "page token does not match the supplied sort by and/or filtering criteria")
            token = json.loads(base64.b64decode(query["page_token"]))
        for predicate in json.loads(token["filter"])["predicates"] if token["filter"] else []:
            there = [one for one in there if _matches(one, predicate)]
        there = sorted(there, key=lambda one: one["created_at"], reverse=(token["sort"] or "").endswith(" desc"))
        size = min(int(query.get("page_size") or 0) or 20, 200)
        first, rest = there[token["from"] : token["from"] + size], there[token["from"] + size :]
        more = {**token, "from": token["from"] + size}
        return {what: first, "total_size": len(there)} | ({"next_page_token": base64.b64encode(json.dumps(more).encode()).decode()} if rest else {})

    def _seen(self, there: dict[str, dict[str, Any]], query: dict[str, str]) -> list[dict[str, Any]]:
        return [one for one in there.values() if not self.multi_user or one.get("namespace", "") == query.get("namespace", "")]

    def _known(self, there: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
        if name not in there:
            raise Refused(404, 5, f"ResourceNotFoundError: {name} not found")
        return there[name]

    def _assert_free(self, there: dict[str, dict[str, Any]], what: str, **about: str) -> None:
        if any(all(one.get(key, "") == value for key, value in about.items()) for one in there.values()):
            name = about.get("name") or about.get("display_name")
            raise Refused(409, 6, f"Already exist error: Failed to create a new {what}. The name {name} already exists. Please specify a new name")

    def _now(self) -> str:
        """Seconds as the server has them, which rise with each object so that their order is known."""
        made = sum(len(there) for there in (self.pipelines, self.versions, self.experiments, self.runs, self.recurring))
        return (datetime(2026, 11, 28, tzinfo=UTC) + timedelta(seconds=made)).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextmanager
def kfp_server() -> Iterator[KfpServer]:
    """A server, while the block runs."""
    found = KfpServer()

    class Handler(Answering):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            found.asked.append(f"{self.command} {parts.path.removeprefix(API)}")
            if found.door == "open page" or parts.path == "/dex/auth":
                return self.answer(200, b"<html>who are you?</html>", "text/html")
            if found.away:
                found.away -= 1
                return self._json(503, {"error": "restarting", "code": 14, "message": "restarting"})
            if self.headers.get("authorization") != f"Bearer {TOKEN}" and self.headers.get("cookie") != COOKIE:
                if found.door == "login":
                    return self.answer(302, b"", "text/html", location="/dex/auth?secret=in-the-address")
                return self._json(int(found.door), {"code": 16, "message": f"Unauthenticated: {self.headers.get('authorization')} is nobody"})
            try:
                return self._json(200, found.answer(self.command, parts.path.removeprefix(API), query, body, self.headers.get("content-type", "")))
            except Refused as error:
                told = (
                    {"error_message": str(error), "error_details": str(error)}
                    if "/upload" in parts.path
                    else {"code": error.code, "message": str(error)}
                )
                return self._json(error.status, told)

        do_POST = do_DELETE = do_GET

        def _json(self, status: int, value: Any) -> None:
            self.answer(status, json.dumps(value).encode(), "application/json")

    with served(Handler) as host:
        found.url = f"http://{host}"
        yield found


def _matches(one: dict[str, Any], predicate: dict[str, Any]) -> bool:
    operation = predicate["operation"]
    if operation not in FILTERS:
        raise Refused(400, 3, f"the stand-in does not filter by {operation}")
    key, wanted = predicate["key"], predicate[FILTERS[operation]]
    if key not in ("name", "display_name", "recurring_run_id"):
        raise Refused(400, 3, f'no support for filtering on unrecognized field "{key}"')
    value = one.get(key) or (one.get("display_name") if key == "name" else None)
    return value in (wanted["values"] if isinstance(wanted, dict) else [wanted])


def _cron_fault(text: str) -> str:
    """What robfig/cron 1.2 finds wrong, as far as numbers go: day of week may be left out."""
    fields = text.split()
    if not 5 <= len(fields) <= 6:
        return f"Expected 5 to 6 fields, found {len(fields)}: {text}"
    for part, (least, most) in zip(fields, LIMITS, strict=False):
        for number in re.findall(r"(?<![/\d])\d+", part):
            if not least <= int(number) <= most:
                return f"End of range ({number}) above maximum ({most}): {part}"
    return ""


def _file(content: bytes, kind: str) -> bytes:
    """The uploaded file of a multipart body."""
    message = email.message_from_bytes(f"content-type: {kind}\r\n\r\n".encode() + content, policy=HTTP)
    return next(part.get_payload(decode=True) for part in message.iter_parts())  # type: ignore[attr-defined, no-any-return]


def _id() -> str:
    return str(uuid.uuid4())
