"""What `rollout` offers: these names, and each function says which errors it raises and what it leaves behind then."""

import inspect
import re

import pytest

from kfp_components import errors, rollout

STEPS = {
    "register_model",
    "deploy_rayservice",
    "create_alias",
    "create_inference_service",
    "smoke_inference",
    "shift_traffic",
    "judge_canary",
    "canary_step",
    "promote_model",
}
WHOLE = {
    "promote_with_canary",
    "deploy_model",
    "roll_back",
    "finish_release",
    "tidy_release",
    "adopt_model",
    "undo_adoption",
    "revalidate_model",
    "demote_champion",
}
COMMANDS = {"abort_release", "pause_release", "resume_release", "approve_release"}
READING = {
    "open_run",
    "open_rollback",
    "plan",
    "read_status",
    "smoke_cases",
    "smoke_serving",
    "adoption_of",
    "adoptable",
    "adopted",
    "plan_adoption",
    "plan_undo",
    "champions",
    "last_look",
    "not_looked_at",
}
GITOPS = {"yield_field", "undo_yield", "export", "patch_files"}
VALUES = {"Asked", "Revalidation", "Release", "ReleaseStore", "Run", "Status", "Watcher", "Exported", "HandOver"}

RAISES = re.compile(r"\braises?\b")
LEFT = re.compile(r"\b(nothing is written|before anything is written|reads only|taken back|taken out|gives all traffic back|held|stays|goes on)\b")


def told(name: str) -> str:
    """Its docstring, and those that it refers to for what it does not say itself ("as `other`")."""
    text = " ".join((inspect.getdoc(getattr(rollout, name)) or "").split())
    others = [other for other in re.findall(r"(?:as|what) `(\w+)`", text) if other != name and hasattr(rollout, other)]
    return " ".join([text, *map(told, others)])


def test_the_public_names_are_these() -> None:
    assert set(rollout.__all__) == STEPS | WHOLE | COMMANDS | READING | GITOPS | VALUES | {"raise_if_decayed"}
    assert rollout.__all__ == sorted(rollout.__all__)
    public = {name for name, value in vars(rollout).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public == set(rollout.__all__)


@pytest.mark.parametrize("name", sorted(STEPS | WHOLE | COMMANDS | READING | GITOPS))
def test_each_says_what_it_raises_and_what_is_left_behind_then(name: str) -> None:
    text = told(name)
    named = {word for word in re.findall(r"`(\w+)`", text) if isinstance(getattr(errors, word, None), type)}
    assert named and RAISES.search(text.lower()), text
    assert LEFT.search(text.lower()), text
