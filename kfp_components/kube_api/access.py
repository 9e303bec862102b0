"""Who may do what: bearer tokens stand for accounts, accounts hold rules in the form of RBAC's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kfp_components.kube_api.failure import UNAUTHORIZED, forbidden


@dataclass(frozen=True)
class Rule:
    """These verbs on these resources (``services``, ``rayservices/status``); ``*`` stands for all."""

    verbs: tuple[str, ...]
    resources: tuple[str, ...]
    groups: tuple[str, ...] = ("*",)
    namespaces: tuple[str, ...] = ("*",)

    def allows(self, verb: str, group: str, resource: str, namespace: str) -> bool:
        """Whether the rule covers it; a request across all namespaces (namespace '') needs a rule for all."""
        asked = ((self.verbs, verb), (self.groups, group), (self.resources, resource), (self.namespaces, namespace))
        return all("*" in allowed or value in allowed for allowed, value in asked)


@dataclass(frozen=True)
class Account:
    """An identity and what it may do."""

    name: str
    rules: tuple[Rule, ...]

    def may(self, verb: str, group: str, resource: str, namespace: str) -> bool:
        """Whether one of the rules allows it."""
        return any(rule.allows(verb, group, resource, namespace) for rule in self.rules)

    def require(self, verb: str, group: str, resource: str, namespace: str, name: str = "") -> None:
        """Raise the 403 of a real server unless allowed."""
        if not self.may(verb, group, resource, namespace):
            raise forbidden(self.name, verb, group, resource, namespace, name)


ADMIN = Account("embedded-admin", (Rule(("*",), ("*",)),))


def authenticate(header: str, accounts: Mapping[str, Account]) -> Account:
    """The account of an Authorization header; raises 401."""
    scheme, _, token = header.partition(" ")
    account = accounts.get(token.strip()) if scheme.lower() == "bearer" else None
    if account is None:
        raise UNAUTHORIZED
    return account


def read_token_file(path: Path) -> dict[str, Account]:
    """Accounts of a token file: one bare admin token, or ``{token: {"name": ..., "rules": [{"verbs": [...], ...}]}}``.

    An account without ``rules`` may do everything. Raises ValueError when the file holds neither form.
    """
    text = path.read_text().strip()
    if not text.startswith("{"):
        if not text or any(c.isspace() for c in text):
            raise ValueError(f"token file {path}: found {'several words' if text else 'nothing'}; write one token or a JSON object of accounts")
        return {text: ADMIN}
    accounts: dict[str, Account] = {}
    for token, entry in json.loads(text).items():
        rules = tuple(Rule(**{key: tuple(values) for key, values in rule.items()}) for rule in entry.get("rules", []))
        accounts[token] = Account(entry["name"], rules if "rules" in entry else ADMIN.rules)
    return accounts
