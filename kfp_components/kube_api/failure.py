"""The error answers: `Status` objects with the code, reason and words of a real kube-apiserver, because clients match on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kfp_components.kube_api.kinds import Kind


class Failure(Exception):
    """A refused request; `status` is the body of its answer."""

    def __init__(self, code: int, reason: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.details = code, reason, message, details

    def status(self) -> dict[str, Any]:
        """The `Status` object."""
        body: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            body["reason"] = self.reason
        if self.details is not None:
            body["details"] = self.details
        return body | {"code": self.code}


@dataclass(frozen=True)
class Cause:
    """One fault in an object: the kind of fault, the field, and what is wrong with it."""

    reason: str
    field: str
    message: str

    def as_dict(self) -> dict[str, str]:
        """As `details.causes` has it."""
        return {"reason": self.reason, "message": self.message, "field": self.field}


RULES_NOT_CHECKED = Cause(
    "FieldValueInvalid",
    "<nil>",
    "Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation",
)


def blocking(causes: Sequence[Cause]) -> bool:
    """Whether a real server does not look at a custom resource's validation rules any more after these."""
    kinds = ("NotSupported", "Required", "TooLong", "TooMany", "TypeInvalid")
    return any(cause.reason in {f"FieldValue{kind}" for kind in kinds} for cause in causes)


def required(field: str, why: str = "") -> Cause:
    """A field that must be given."""
    return Cause("FieldValueRequired", field, "Required value" + (f": {why}" if why else ""))


def bad_value(field: str, value: Any, why: str) -> Cause:
    """A field with a value that is not allowed."""
    return Cause("FieldValueInvalid", field, f"Invalid value: {_show(value)}: {why}")


def bad_type(field: str, value: Any, wanted: str) -> Cause:
    """A field of the wrong JSON type, in the words of a custom resource's validation."""
    found = json_type(value)
    return Cause("FieldValueTypeInvalid", field, f'Invalid value: "{found}": {field} in body must be of type {wanted}: "{found}"')


def not_one_of(field: str, value: Any, allowed: Sequence[Any]) -> Cause:
    """A field outside its enumeration."""
    return Cause(
        "FieldValueNotSupported",
        field,
        f"Unsupported value: {_show(value)}: supported values: {', '.join(_show(a) for a in allowed)}",
    )


def duplicate(field: str, value: Any) -> Cause:
    """A second list item with the same key."""
    return Cause("FieldValueDuplicate", field, f"Duplicate value: {_show(value)}")


def immutable(field: str, why: str = "field is immutable") -> Cause:
    """A field that cannot be changed."""
    return Cause("FieldValueForbidden", field, f"Forbidden: {why}")


def json_type(value: Any) -> str:
    """The JSON Schema name of a value's type."""
    if value is None:
        return "null"
    for types, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array")):
        if isinstance(value, types):
            return name
    return "object"


def not_found(kind: Kind, name: str) -> Failure:
    """There is no such object."""
    return Failure(404, "NotFound", f'{kind.resource} "{name}" not found', _details(kind, name))


def no_resource(hint: str = "") -> Failure:
    """The server does not have this kind of object."""
    return Failure(404, "NotFound", "the server could not find the requested resource" + (f" ({hint})" if hint else ""), {})


def already_exists(kind: Kind, name: str) -> Failure:
    """The name is taken."""
    return Failure(409, "AlreadyExists", f'{kind.resource} "{name}" already exists', _details(kind, name))


def conflict(kind: Kind, name: str, why: str = "") -> Failure:
    """A precondition or resourceVersion does not hold."""
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    return Failure(409, "Conflict", f'Operation cannot be fulfilled on {kind.resource} "{name}": {why}', _details(kind, name))


def not_as_expected(kind: Kind, name: str, why: str) -> Failure:
    """A precondition of a deletion does not hold; the real server names the kind here, not the resource."""
    resource = f"{kind.kind}.{kind.group}" if kind.group else kind.kind
    return Failure(409, "Conflict", f'Operation cannot be fulfilled on {resource} "{name}": {why}', _details(kind, name) | {"kind": kind.kind})


def apply_conflict(found: Sequence[tuple[str, str]]) -> Failure:
    """Server-side apply would take fields from others; ``found`` holds (manager in words, field path), sorted by manager."""
    causes = [{"reason": "FieldManagerConflict", "message": f"conflict with {who}", "field": path} for who, path in found]
    if len(found) == 1:
        message = f"Apply failed with 1 conflict: conflict with {found[0][0]}: {found[0][1]}"
    else:
        lines: list[str] = []
        for who in dict.fromkeys(who for who, _ in found):
            lines += [f"conflicts with {who}:", *(f"- {path}" for other, path in found if other == who)]
        message = f"Apply failed with {len(found)} conflicts: " + "\n".join(lines)
    return Failure(409, "Conflict", message, {"causes": causes})


def invalid(kind: Kind, name: str, causes: Sequence[Cause]) -> Failure:
    """The object breaks its schema or rules."""
    words = [f"{c.field}: {c.message}" for c in causes]
    said = words[0] if len(words) == 1 else f"[{', '.join(words)}]"
    details = {"name": name, "kind": kind.kind, "causes": [c.as_dict() for c in causes]} | ({"group": kind.group} if kind.group else {})
    return Failure(422, "Invalid", f'{kind.kind}{"." + kind.group if kind.group else ""} "{name}" is invalid: {said}', details)


def forbidden(user: str, verb: str, group: str, resource: str, namespace: str, name: str) -> Failure:
    """The identity may not do this."""
    base = resource.split("/")[0] + (f".{group}" if group else "")
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    what = f'{base} "{name}"' if name else base
    message = f'{what} is forbidden: User "{user}" cannot {verb} resource "{resource}" in API group "{group}" {where}'
    details = {"kind": resource.split("/")[0]} | ({"name": name} if name else {}) | ({"group": group} if group else {})
    return Failure(403, "Forbidden", message, details)


def denied(webhook: str, why: str) -> Failure:
    """An admission rule of the real controller refuses the object."""
    return Failure(403, "Forbidden", f'admission webhook "{webhook}" denied the request: {why}')


def bad_request(message: str) -> Failure:
    """The request itself makes no sense."""
    return Failure(400, "BadRequest", message)


def expired(asked: int, oldest: int) -> Failure:
    """The watch history no longer reaches back that far."""
    return Failure(410, "Expired", f"too old resource version: {asked} ({oldest})")


UNAUTHORIZED = Failure(401, "Unauthorized", "Unauthorized")
NOT_ALLOWED = Failure(405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {})


def _details(kind: Kind, name: str) -> dict[str, Any]:
    return {"name": name, "kind": kind.plural} | ({"group": kind.group} if kind.group else {})


def _show(value: Any) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return {True: "true", False: "false", None: "null"}.get(value, str(value)) if not isinstance(value, (dict, list)) else str(value)
