"""Surgery on one application of a RayService's ``serveConfigV2``, and readers of its status.

``serveConfigV2`` is one string that holds every application of the endpoint. The functions here replace, remove or reconfigure
exactly one of them, keep comments and order, and `assert_others_unchanged` proves that the rest is the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from kfp_components import errors, names
from kfp_components.serving import yaml_text
from kfp_components.serving.yaml_text import Indents, Node

FAILED_STATES = ("DEPLOY_FAILED", "UNHEALTHY")
LOG_TAIL_CHARACTERS, MESSAGE_CHARACTERS = 600, 300
MEND = "mend the application and run again"
ROUTER_MISSING = re.compile(r"No module named '?kfp_components|runtime.?env", re.IGNORECASE)
"""In what Serve says of a router that its image, or its runtime_env, does not bring."""

EXCEPTION_LINE = re.compile(r"^((?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt)\b: .{1,300})", re.MULTILINE)
RAISED_LINE = re.compile(r"(?:[^\W\d]\w*\.)*[^\W\d]\w*(?:: .*)?")
"""The line below the frames of a traceback, whatever the exception is called, and with or without a message."""

DIRECT_CAUSE = "The above exception was the direct cause of the following exception:"
COLOR = re.compile(r"\x1b\[[0-9;]*m")
"""Ray colours the first line of a task's traceback."""

BYTE_ORDER_MARK = "\ufeff"
DEFAULT_APPLICATION = "default"
"""What Ray calls an application without a name."""

NOT_THERE = "# not there before its first application"
FIRST = "# the first application; without it this was "
"""Said behind a line that is added, so that the text is as it was, to the letter, once the only application is gone again."""

WAS_NULL, WAS_NOT_THERE = "[   ", "[    "
"""The same in JSON, which has no comments: more blanks behind the bracket than anybody writes, and none before the other."""


def serve_config(rayservice: Mapping[str, Any] | None) -> str:
    """The ``serveConfigV2`` of a RayService as it was read; empty when there is none."""
    return str(((rayservice or {}).get("spec") or {}).get("serveConfigV2") or "")


@dataclass(frozen=True)
class _Configuration:
    """A ``serveConfigV2`` as it was read. Nobody changes what is in it."""

    text: str
    """Without a byte order mark."""
    root: Node | None
    listed: Node | None
    """What ``applications`` has; None without that key. Of kind scalar when it has nothing."""
    names: tuple[str, ...]
    """Of the applications, in their order."""
    written: tuple[str, ...]
    """Their canonical JSON."""
    besides: str
    """Canonical JSON of all other keys."""

    @property
    def entries(self) -> list[Node]:
        """The applications, in their order."""
        return self.listed.items if self.listed else []

    @property
    def indents(self) -> Indents:
        """As the applications are indented, else as the rest is."""
        return yaml_text.indents_of(self.text, [*self.entries, *([self.root] if self.root else [])], Indents())

    @property
    def key(self) -> int:
        """The index of ``applications`` in the root."""
        assert self.root is not None
        return next(index for index, (key, _) in enumerate(self.root.pairs) if key.value == "applications")


@lru_cache(maxsize=256)
def _read(text: str) -> _Configuration:
    """Raises `RequestInvalid` when it is not a mapping with applications."""
    text = text.removeprefix(BYTE_ORDER_MARK)
    try:
        root = yaml_text.read(text)
    except ValueError as error:
        raise errors.RequestInvalid(f"serveConfigV2: not YAML ({error}); mend the RayService first") from error
    if root is not None and root.kind != "mapping":
        raise errors.RequestInvalid(f"serveConfigV2: expected a mapping with `applications`, found a {root.kind}; mend the RayService first")
    listed = root.get("applications") if root else None
    found = (root.value.get("applications") if root else None) or []
    if found and (listed is None or listed.kind == "alias"):
        what = f"the alias *{listed.anchor}" if listed else "merged in by <<"
        raise errors.RequestInvalid(
            f"serveConfigV2: `applications` is {what}, so nothing can be edited in it alone; write the list itself below `applications`, and mend "
            "the RayService so first"
        )
    if not isinstance(found, list):
        raise errors.RequestInvalid("serveConfigV2: `applications` is not a list; mend the RayService first")
    for index, entry in enumerate(found):
        name = entry.get("name", DEFAULT_APPLICATION) if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            raise errors.RequestInvalid(
                f"serveConfigV2: entry {index} of `applications` is not a mapping whose name is a text; mend the RayService first"
            )
    names = tuple(entry.get("name", DEFAULT_APPLICATION) for entry in found)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise errors.RequestInvalid(f"serveConfigV2: application {twice[0]!r} stands there twice; mend the RayService first")
    besides = {key: value for key, value in root.value.items() if key != "applications"} if root else {}
    return _Configuration(
        text,
        root,
        listed,
        names,
        tuple(json.dumps(entry, sort_keys=True) for entry in found),
        json.dumps(besides, sort_keys=True),
    )


def applications(text: str) -> dict[str, dict[str, Any]]:
    """Plain copies of all applications, by name, in their order. What JSON does not know (dates, tagged scalars) is a string in them.

    One without a name is called ``default``, as Ray calls it. Raises `RequestInvalid` when the text is not a mapping with applications.
    """
    return {name: entry for name, entry in zip(_read(text).names, _plain([node.value for node in _read(text).entries]), strict=True)}


def digests(text: str) -> dict[str, str]:
    """SHA-256 of each application's canonical JSON, by name: equal digests mean an equal configuration."""
    found = _read(text)
    return {name: hashlib.sha256(entry.encode()).hexdigest() for name, entry in zip(found.names, found.written, strict=True)}


def assert_others_unchanged(before: str, after: str, changed: Collection[str]) -> None:
    """Prove that only the named applications differ. Raises `Conflict` naming the first other one; nothing has been written then."""
    old, new = digests(before), digests(after)
    for name in (*old, *new):
        if name not in changed and old.get(name) != new.get(name):
            raise errors.Conflict(f"serveConfigV2: application {name!r} would change although only {sorted(changed)} may; nothing was written")


def with_application(text: str, application: Mapping[str, Any]) -> str:
    """The text with one application replaced where it stands, or added at the end, in the style of the others; what is equal stays to the letter.

    Raises `RequestInvalid` when an anchor that goes is used elsewhere, `Conflict` when the text cannot be edited so that all else means the same.
    """
    wanted = _plain(application)
    name = wanted.get("name", DEFAULT_APPLICATION)
    found = _read(text)
    if name not in found.names:
        return _proven(text, _added(found, wanted), name, wanted)
    entry = found.entries[found.names.index(name)]
    if "name" not in entry.value:
        wanted.pop("name", None)  # what its owner left to Ray is not written
    if yaml_text.same(entry.value, wanted):
        return text
    assert found.listed is not None
    edited = yaml_text.updated(found.text, found.listed, entry, wanted, found.indents)
    if _wrong(found, edited, name, wanted):  # as when one of its own aliases stands for what changes
        edited = yaml_text.replaced(found.text, found.listed, entry, wanted, found.indents)
    return _proven(text, edited, name, wanted)


def without_application(text: str, name: str) -> str:
    """The text without the lines of one application; unchanged when it is not there. Raises as `with_application` does."""
    found = _read(text)
    if name not in found.names:
        return text
    return _proven(text, _removed(found, found.names.index(name)), name, None)


def with_user_config(text: str, application: str, deployment: str, user_config: Mapping[str, Any]) -> str:
    """The text with one deployment's ``user_config`` replaced, as it is when it has that already.

    Raises `NotFound` when the application or deployment is not there, else as `with_application` does.
    """
    entry = _application(text, application)
    for piece in entry.get("deployments") or []:
        if piece.get("name") == deployment:
            piece["user_config"] = dict(user_config)
            return with_application(text, {"name": application, **entry})
    raise errors.NotFound(f"serveConfigV2: application {application!r} has no deployment {deployment!r}")


def with_route(text: str, application: str, route_prefix: str | None) -> str:
    """The text with another ``route_prefix`` of one application, below its name where it has none yet; without that line when it is None.

    So the old value, None for a key that was not there, gives the old text again. Raises `NotFound` when the application is not there,
    `RequestInvalid` when its route is null: it is not reached over HTTP, and nobody could tell later that it was not; else as `with_application`.
    """
    entry = _application(text, application)
    if route_of(entry) is None:
        raise errors.RequestInvalid(
            f"serveConfigV2: application {application!r} has `route_prefix: null`, it is not reached over HTTP; give it a route first"
        )
    found = _read(text)
    node = found.entries[found.names.index(application)]
    if node.kind != "mapping" or (route_prefix is not None and node.get("route_prefix") is not None):
        return with_application(text, {"name": application, **entry, "route_prefix": route_prefix})
    standing = [key.value for key, _ in node.pairs]
    if route_prefix is None:
        if "route_prefix" not in standing:
            return text
        edited = yaml_text.without_pair(found.text, node, standing.index("route_prefix"))
        merged = _application(edited, application).get("route_prefix")
        del entry["route_prefix"]
        entry |= {} if merged is None else {"route_prefix": merged}
    else:
        after = standing.index("name") if "name" in standing else -1
        edited = yaml_text.with_pairs(found.text, node, {"route_prefix": route_prefix}, found.indents, after)
        entry["route_prefix"] = route_prefix
    return _proven(text, edited, application, entry)


def says_route(text: str, application: str) -> bool:
    """Whether the application's own entry says its route: else it is ``/`` by default, or merged in from elsewhere."""
    found = _read(text)
    return application in found.names and found.entries[found.names.index(application)].get("route_prefix") is not None


def route_of(entry: Mapping[str, Any]) -> str | None:
    """The route prefix of an application's entry: ``/`` where it names none, as Serve has it; None where it is not reached over HTTP."""
    route: str | None = entry.get("route_prefix", "/")
    return route


def owner(text: str, route: str) -> str | None:
    """Name of the application that has a route prefix."""
    return next((name for name, entry in applications(text).items() if route_of(entry) == route), None)


def beside(text: str, route: str) -> list[str]:
    """Sentences about applications whose routes are below ``route``, or above it: Serve gives a request to the longest route that fits."""
    found = []
    for name, entry in applications(text).items():
        other = route_of(entry)
        if not other or other == route:
            continue
        if f"{other}/".startswith(f"{route.rstrip('/')}/"):
            found.append(f"requests below {other} go to application {name}, not to what is at {route}")
        elif f"{route}/".startswith(f"{other.rstrip('/')}/"):
            found.append(f"application {name} at {other} gets what is not below {route}")
    return found


def with_owner(text: str, route: str, application: str, aside: Mapping[str, str], *, implied: bool = False) -> str:
    """The text in which ``application`` has the route; that one of ``aside`` (application -> internal route) that had it stands at its own one.

    ``implied``: the route is ``/`` and is not written down. Raises `ApplicationRemoved` when the application is not there, `NameTaken` when the route
    is somebody else's.
    """
    if application not in applications(text):
        raise errors.ApplicationRemoved(
            f"application {application} is not in serveConfigV2 any more, somebody else took it out; users are not sent to what is not there"
        )
    had = owner(text, route)
    if had == application:
        return text
    if had is not None:
        if had not in aside:
            raise errors.NameTaken(f"route {route} belongs to application {had}, which is not of this release; somebody else wrote that")
        text = with_route(text, had, aside[had])
    return with_route(text, application, None if implied else route)


def user_config(text: str, application: str, deployment: str) -> dict[str, Any] | None:
    """A deployment's ``user_config``, None when there is no such application or deployment."""
    for piece in applications(text).get(application, {}).get("deployments") or []:
        if piece.get("name") == deployment:
            found = piece.get("user_config")
            return dict(found) if isinstance(found, dict) else {}
    return None


def refuse_replicas(where: str, text: str, application: str, deployment: str) -> None:
    """Raise `NameTaken`, naming the object ``where`` it stands, when the deployment may have more than one replica."""
    for piece in applications(text).get(application, {}).get("deployments") or []:
        if piece.get("name") != deployment:
            continue
        found = [f"{key}: {piece[key]}" for key in ("num_replicas", "autoscaling_config") if piece.get(key) not in (None, 1)]
        if found:
            raise errors.NameTaken(
                f"{where}: application {application}, deployment {deployment} has {found[0]}; the router is one replica, because each counts "
                f"and leases the weight for itself: take {found[0].split(':')[0]} out of that entry"
            )


def application_status(rayservice: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What KubeRay reports of one application: the pending cluster's entry where there is one, else the active one's, else ``{}``."""
    status = rayservice.get("status") or {}
    for side in ("pendingServiceStatus", "activeServiceStatus"):
        found = ((status.get(side) or {}).get("applicationStatuses") or {}).get(name)
        if found:
            return dict(found)
    return {}


def last_writer(rayservice: Mapping[str, Any], ours: str) -> str:
    """A sentence on who wrote ``serveConfigV2`` last beside ourselves, by its managedFields."""
    entries = [
        entry
        for entry in (rayservice.get("metadata") or {}).get("managedFields") or []
        if entry.get("manager") != ours and "f:serveConfigV2" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
    ]
    if not entries:
        return "Nobody else owns serveConfigV2 now"
    last = max(entries, key=lambda entry: str(entry.get("time") or ""))
    return f"serveConfigV2 was written by {last['manager']} at {last.get('time', 'an unknown time')}"


def observed(rayservice: Mapping[str, Any]) -> bool:
    """Whether the operator has seen this generation. While the head is Pending it lags; then False."""
    return int((rayservice.get("status") or {}).get("observedGeneration") or 0) >= int(rayservice["metadata"].get("generation") or 0)


def ready(name: str) -> Callable[[Mapping[str, Any]], bool]:
    """Condition for `Cluster.wait`: this generation is observed and the application runs."""
    return lambda rayservice: observed(rayservice) and application_status(rayservice, name).get("status") == "RUNNING"


def failed(name: str) -> Callable[[Mapping[str, Any]], str | None]:
    """Failure condition for `Cluster.wait`: the diagnosis once the application has failed, else None."""

    def diagnose_if_failed(rayservice: Mapping[str, Any]) -> str | None:
        found = application_status(rayservice, name)
        if not observed(rayservice) or found.get("status") not in FAILED_STATES:
            return None
        return diagnosis(rayservice, name)

    return diagnose_if_failed


def diagnosis(rayservice: Mapping[str, Any], name: str) -> str:
    """One paragraph: application, state, its message, the messages of its deployments, and the tail of the replica's error."""
    metadata = rayservice["metadata"]
    found = application_status(rayservice, name)
    messages = [str(found.get("message") or "").strip()]
    for deployment, state in (found.get("serveDeploymentStatuses") or {}).items():
        if state.get("status") != "HEALTHY" and state.get("message"):
            messages.append(f"deployment {deployment} {state.get('status')}: {str(state['message']).strip()}")
    messages = [COLOR.sub("", message) for message in dict.fromkeys(messages) if message]
    told = text = "; ".join(messages) or "no message"
    raised = [cause for message in messages if (cause := root_cause(message))]
    if raised:
        text = f"{raised[-1]} (the end of the replica's error: ... {text[-LOG_TAIL_CHARACTERS:].strip()})"
    elif len(text) > LOG_TAIL_CHARACTERS:
        text = "... " + text[-LOG_TAIL_CHARACTERS:]
    where = f"RayService {metadata.get('namespace')}/{metadata['name']}"
    do = f"the router could not be had so. {router_ways()}" if _is_router(rayservice, name) and ROUTER_MISSING.search(told) else MEND
    return f"{where}: application {name} {found.get('status', 'is not reported')}: {text}; {do}"


def router_ways() -> str:
    """How the router may come to the Ray cluster, and who says so."""
    return (
        f"The RayService's owner says in annotation {names.ROUTER_FROM} where it may come from: `pip` (an index that has {names.requirement()}), the "
        f"URI of a zip that `kfp-serving router-package` writes, or `image` where the Ray image holds {names.requirement()}; then run again"
    )


def _is_router(rayservice: Mapping[str, Any], name: str) -> bool:
    return applications(serve_config(rayservice)).get(name, {}).get("import_path") == names.ROUTER_IMPORT_PATH


def root_cause(message: str) -> str | None:
    """The line of the exception that a message of Ray's is about; None where it has no traceback.

    That is the last one, or, where it was raised ``from`` another one, the first of that chain. One that was raised while another was handled
    stands for itself: the other may have been handled well.
    """
    found: list[tuple[str, bool]] = []
    above, chained = "", False
    for line in COLOR.sub("", message).splitlines():
        if line == DIRECT_CAUSE:
            chained = True
        elif above.startswith(("  ", "ray::")) and RAISED_LINE.fullmatch(line):
            found.append((line[:MESSAGE_CHARACTERS], chained))
            chained = False
        above = line
    if not found:
        return next(iter(EXCEPTION_LINE.findall(message)[-1:]), None)
    index = len(found) - 1
    while index and found[index][1]:
        index -= 1
    return found[index][0]


def _application(text: str, name: str) -> dict[str, Any]:
    """Raises `NotFound`."""
    found = applications(text).get(name)
    if found is None:
        raise errors.NotFound(f"serveConfigV2: no application {name!r}; deploy the model first")
    return found


def _added(found: _Configuration, wanted: dict[str, Any]) -> str:
    text, root, listed, indents = found.text, found.root, found.listed, found.indents
    if root is None:
        return yaml_text.append_lines(text, _end_of_nothing(text), _first_lines(wanted, indents), 0)
    if listed is None and root.flow:
        added = yaml_text.with_pairs(text, root, {"applications": []}, indents)
        return _with_blanks(_added(_read(added), wanted), WAS_NOT_THERE)
    if listed is None:
        return yaml_text.append_lines(text, root.end, _first_lines(wanted, indents), yaml_text.column(text, root.first))
    if listed.items:
        return yaml_text.with_items(text, listed, [wanted], indents)
    if root.flow and listed.kind == "scalar":
        added = _added(_read(yaml_text.replaced(text, root, listed, [], indents)), wanted)
        return _with_blanks(added, WAS_NULL) if text[listed.start : listed.end] == "null" else added
    key, value = root.pairs[found.key]
    assert value.colon is not None
    was = text[value.colon : value.end]
    if listed.kind == "sequence" and (root.flow or was != " []" or text[key.marker] == "?"):
        return yaml_text.with_items(text, listed, [wanted], indents, root)
    lines = yaml_text.lines([wanted], indents)
    if listed.kind == "scalar":
        lines[0] += f"  {FIRST}{was.strip() or 'empty'}"
    text = text[: value.colon] + text[value.end :]
    return yaml_text.append_lines(text, value.colon, lines, yaml_text.column(text, root.first) + indents.dash)


def _first_lines(wanted: dict[str, Any], indents: Indents) -> list[str]:
    first, *others = yaml_text.lines({"applications": [wanted]}, indents)
    return [f"{first}  {NOT_THERE}", *others]


def _with_blanks(text: str, bracket: str) -> str:
    listed = _read(text).listed
    assert listed is not None
    return text[: listed.opened - 1] + bracket + text[listed.opened :]


def _end_of_nothing(text: str) -> int:
    """Where a text without content goes on: at its end, or below the start of its document when that is marked."""
    marks = list(re.finditer(r"^---(?=\s|$)", text, re.MULTILINE))
    return marks[-1].end() if marks else len(text)


def _removed(found: _Configuration, index: int) -> str:
    text, root, listed = found.text, found.root, found.listed
    assert root is not None and listed is not None
    if len(listed.items) > 1:
        return yaml_text.without_item(text, listed, index)
    key, value = root.pairs[found.key]
    item = listed.items[0]
    if listed.flow:
        bracket = text[listed.opened - 1 : item.start] if item.end == listed.end - 1 else ""
        if bracket == WAS_NOT_THERE:
            return yaml_text.without_pair(text, root, found.key)
        return yaml_text.replaced(text, root, value, None, found.indents) if bracket == WAS_NULL else yaml_text.without_item(text, listed, 0)
    first_line, key_line = (yaml_text.BREAK.split(text[at:], maxsplit=1)[0] for at in (item.marker, key.marker))
    if key_line.endswith(NOT_THERE):
        return yaml_text.without_pair(text, root, found.key, comments=False)
    _, said, was = first_line.partition(FIRST)
    text = yaml_text.without_item(text, listed, 0)
    behind = value.colon or 0
    if value.start < listed.first:  # its anchor or tag
        properties = yaml_text.PROPERTIES.match(text, value.start, listed.first)
        behind = properties.end("last") if properties else behind
    empty = f" {was}" if said else " []"
    return text if was == "empty" else text[:behind] + empty + text[behind:]


def _wrong(found: _Configuration, after: str, name: str, wanted: dict[str, Any] | None) -> str | None:
    """What is not as it should be in a text after an edit, None when only that application changed, to what is wanted (None: it is gone)."""
    try:
        now = _read(after)
    except errors.RequestInvalid as error:
        return str(error).removesuffix("; mend the RayService first")
    before = dict(zip(found.names, found.written, strict=True))
    then = dict(zip(now.names, now.written, strict=True))
    left = [key for key in then if key != name]
    if left != [key for key in before if key != name]:
        return "other applications would be there"
    for key in left:
        if then[key] != before[key]:
            return f"application {key!r} would change"
    if now.besides != found.besides:
        return "keys beside `applications` would change"
    there = applications(after).get(name)
    return None if (there is None) == (wanted is None) and yaml_text.same(there, wanted) else f"application {name!r} would not be as it should"


def _proven(before: str, after: str, name: str, wanted: dict[str, Any] | None) -> str:
    """``after``, with the byte order mark of ``before``. Raises `RequestInvalid` or `Conflict` when `_wrong`."""
    found = _read(before)
    wrong = _wrong(found, after, name, wanted)
    if wrong is None:
        return (BYTE_ORDER_MARK if before.startswith(BYTE_ORDER_MARK) else "") + after
    inside = list(found.entries[found.names.index(name)].walk()) if name in found.names else []
    used = {node.target for node in (found.root.walk() if found.root else ()) if node.target and node not in inside}
    for node in inside:
        if node in used:
            raise errors.RequestInvalid(
                f"serveConfigV2: application {name!r} defines &{node.anchor}, which stands elsewhere as *{node.anchor}: {wrong}; "
                f"write the value in place of *{node.anchor} and run again"
            )
    raise errors.Conflict(f"serveConfigV2: application {name!r} cannot be edited where it stands: {wrong}; nothing was written")


def _plain(tree: Any) -> Any:
    """A copy in JSON's types; what JSON does not know is a string in it."""
    return json.loads(json.dumps(tree, default=str))
