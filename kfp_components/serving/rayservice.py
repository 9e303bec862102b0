"""Surgery on one application of a RayService's ``serveConfigV2``, and readers of its status.

``serveConfigV2`` is one string that holds every application of the endpoint. The functions here replace, remove or reconfigure
exactly one of them, keep comments and order, and `assert_others_unchanged` proves that the rest is the same.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import CommentMark, YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarstring import SingleQuotedScalarString
from ruamel.yaml.tokens import CommentToken

from kfp_components import errors

FAILED_STATES = ("DEPLOY_FAILED", "UNHEALTHY")
LOG_TAIL_CHARACTERS = 600
EXCEPTION_LINE = re.compile(r"^((?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt)\b: .{1,300})$", re.MULTILINE)

PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./:-]*[A-Za-z0-9_/]")
NOT_PLAIN = ("yes", "no", "on", "off", "true", "false", "null")
"""A text is written without quotes when every reader takes it for a text: this one reads YAML 1.2, the operator 1.1 (``no`` is false there)."""


class _Representer(RoundTripRepresenter):
    def represent_float(self, data: float) -> ScalarNode:
        node: ScalarNode = super().represent_float(data)
        if "e" in node.value and "." not in node.value:
            node.value = node.value.replace("e", ".0e")  # 1e-05 is a text in YAML 1.1
        return node


_Representer.add_representer(float, _Representer.represent_float)


def _yaml() -> YAML:
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def serve_config(rayservice: Mapping[str, Any] | None) -> str:
    """The ``serveConfigV2`` of a RayService as it was read; empty when there is none."""
    return str(((rayservice or {}).get("spec") or {}).get("serveConfigV2") or "")


def parse(text: str) -> CommentedMap:
    """The configuration as a tree that remembers comments. Raises `RequestInvalid` when it is not a mapping with applications."""
    try:
        tree = _yaml().load(text)
    except (YAMLError, ValueError, IndexError) as error:  # a date of month 13 is a ValueError
        mark = getattr(error, "problem_mark", None)
        told = f"line {mark.line + 1}: {getattr(error, 'problem', error)}" if mark else str(error)
        raise errors.RequestInvalid(f"serveConfigV2: not YAML ({' '.join(told.split())}); mend the RayService first") from error
    if tree is None:  # nothing, or comments only
        tree = CommentedMap()
        if text.strip():
            tree.ca.comment = [None, [CommentToken(text.rstrip() + "\n", CommentMark(0))]]
    if not isinstance(tree, CommentedMap):
        raise errors.RequestInvalid(f"serveConfigV2: expected a mapping with `applications`, found {type(tree).__name__}; mend the RayService first")
    if tree.get("applications") is None:
        tree["applications"] = CommentedSeq()
    found = tree["applications"]
    if not isinstance(found, list):
        raise errors.RequestInvalid("serveConfigV2: `applications` is not a list; mend the RayService first")
    for index, entry in enumerate(found):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            raise errors.RequestInvalid(f"serveConfigV2: entry {index} of `applications` is not a mapping with a name; mend the RayService first")
    applications = [entry["name"] for entry in found]
    twice = {name for name in applications if applications.count(name) > 1}
    if twice:
        raise errors.RequestInvalid(f"serveConfigV2: application {sorted(twice)[0]!r} stands there twice; mend the RayService first")
    return tree


def dump(tree: CommentedMap) -> str:
    """The text of a tree, with its comments and order; without the comments where the text would not be YAML with them."""
    text = _text(tree)
    try:
        parse(text)
    except errors.RequestInvalid:
        return _text(_commented(_plain(tree)))
    return text


def applications(text: str) -> dict[str, dict[str, Any]]:
    """Plain copies of all applications, by name, in their order. What JSON does not know (dates, tagged scalars) is a string in them."""
    return {entry["name"]: _plain(entry) for entry in parse(text)["applications"]}


def digests(text: str) -> dict[str, str]:
    """SHA-256 of each application's canonical JSON, by name: equal digests mean an equal configuration."""
    return {name: hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest() for name, entry in applications(text).items()}


def assert_others_unchanged(before: str, after: str, changed: Collection[str]) -> None:
    """Prove that only the named applications differ. Raises `Conflict` naming the first other one; nothing has been written then."""
    old, new = digests(before), digests(after)
    for name in (*old, *new):
        if name not in changed and old.get(name) != new.get(name):
            raise errors.Conflict(f"serveConfigV2: application {name!r} would change although only {sorted(changed)} may; nothing was written")


def with_application(text: str, application: Mapping[str, Any]) -> str:
    """The text with one application replaced where it stands, or added at the end."""
    tree = parse(text)
    entries = tree["applications"]
    for index, entry in enumerate(entries):
        if entry["name"] == application["name"]:
            _update(entry, application)
            entries[index] = entry
            break
    else:
        if not entries and not tree.fa.flow_style():
            entries.fa.set_block_style()
        entries.append(_commented(application))
    return dump(tree)


def without_application(text: str, name: str) -> str:
    """The text without one application; unchanged when it is not there."""
    tree = parse(text)
    entries = tree["applications"]
    kept = [index for index, entry in enumerate(entries) if entry["name"] != name]
    if len(kept) == len(entries):
        return text
    if not kept:
        tree["applications"] = CommentedSeq()
        tree["applications"].fa.set_flow_style()  # in block style an empty list is written below the comment of its key, which is not YAML
        return dump(tree)
    for index in reversed(range(len(entries))):
        if index not in kept:
            del entries[index]
    return dump(tree)


def with_user_config(text: str, application: str, deployment: str, user_config: Mapping[str, Any]) -> str:
    """The text with one deployment's ``user_config`` replaced, as it is when it has that already.

    Raises `NotFound` when the application or deployment is not there.
    """
    tree = parse(text)
    for entry in tree["applications"]:
        if entry["name"] == application:
            for piece in entry.get("deployments", []):
                if piece["name"] == deployment:
                    if _plain(piece.get("user_config")) == _plain(user_config):
                        return text
                    piece["user_config"] = _commented(user_config)
                    return dump(tree)
            raise errors.NotFound(f"serveConfigV2: application {application!r} has no deployment {deployment!r}")
    raise errors.NotFound(f"serveConfigV2: no application {application!r}; deploy the model first")


def with_route(text: str, application: str, route: str | None) -> str:
    """The text with one application's ``route_prefix`` replaced; None takes the key away, which means ``/`` to Serve."""
    tree = parse(text)
    for entry in tree["applications"]:
        if entry["name"] == application:
            if route is None:
                entry.pop("route_prefix", None)
            else:
                entry["route_prefix"] = route
    return dump(tree)


def owner(text: str, route: str) -> str | None:
    """Name of the application that has a route prefix; one that names none has ``/``, as Serve has it."""
    return next((name for name, entry in applications(text).items() if entry.get("route_prefix", "/") == route), None)


def beside(text: str, route: str) -> list[str]:
    """Sentences about applications whose routes are below ``route``, or above it: Serve gives a request to the longest route that fits."""
    found = []
    for name, entry in applications(text).items():
        other = entry.get("route_prefix", "/")
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
    for piece in applications(text).get(application, {}).get("deployments", []):
        if piece["name"] == deployment:
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
    text = "; ".join(dict.fromkeys(message for message in messages if message)) or "no message"
    raised = EXCEPTION_LINE.findall(text)
    if raised:
        text = f"{raised[-1]} (the end of the replica's error: ... {text[-LOG_TAIL_CHARACTERS:].strip()})"
    elif len(text) > LOG_TAIL_CHARACTERS:
        text = "... " + text[-LOG_TAIL_CHARACTERS:]
    where = f"RayService {metadata.get('namespace')}/{metadata['name']}"
    return f"{where}: application {name} {found.get('status', 'is not reported')}: {text}; mend the application and run again"


def _update(entry: CommentedMap, wanted: Mapping[str, Any]) -> None:
    """Make ``entry`` equal to ``wanted`` and keep the comments of what stays."""
    for key in [key for key in entry if key not in wanted]:
        del entry[key]
    for key, value in wanted.items():
        if key not in entry or entry[key] != value:
            entry[key] = _commented(value)


def _text(tree: CommentedMap) -> str:
    out = io.StringIO()
    _yaml().dump(tree, out)
    return out.getvalue()


def _plain(tree: Any) -> Any:
    """A copy without comments, in JSON's types; what JSON does not know is a string in it."""
    return json.loads(json.dumps(tree, default=str))


def _commented(value: Any) -> Any:
    if isinstance(value, Mapping):
        return CommentedMap((_commented(key), _commented(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return CommentedSeq([_commented(item) for item in value])
    if isinstance(value, str) and (value.lower() in NOT_PLAIN or not PLAIN.fullmatch(value)):
        return SingleQuotedScalarString(value)
    return value
