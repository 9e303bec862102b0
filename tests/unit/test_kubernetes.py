"""The adapter to a real API without one: what it asks, answered by the test."""

from typing import Any

from kfp_components.cluster import Permission
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.rollout import preflight


class Reviews(KubernetesCluster):
    """Grants what ``rules`` say; counts what it is asked."""

    def __init__(self, rules: list[dict[str, Any]], *, incomplete: bool = False) -> None:
        self.rules, self.incomplete, self.asked = rules, incomplete, list[str]()

    def _must(self, method: str, path: str, what: str, **more: Any) -> dict[str, Any]:
        self.asked.append(what)
        return {"status": {"resourceRules": self.rules, "incomplete": self.incomplete, "allowed": False}}


ALL = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}


def test_d22_all_permissions_are_asked_for_in_one_review() -> None:
    for rules, missing in (([ALL], ()), ([], preflight.PERMISSIONS)):
        place = Reviews(rules)
        assert place.missing(preflight.PERMISSIONS, "ai-ml") == missing
        assert place.asked == ["SelfSubjectRulesReview"]


def test_d22_only_where_that_is_not_complete_what_it_does_not_list_is_asked_for_by_itself() -> None:
    place = Reviews([{**ALL, "verbs": ["get"]}], incomplete=True)
    refused = Permission("create", "Event")
    assert place.missing((Permission("get", "Service"), refused), "ai-ml") == (refused,)
    assert place.asked == ["SelfSubjectRulesReview", "SelfSubjectAccessReview"]
