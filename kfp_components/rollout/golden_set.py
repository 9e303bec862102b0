"""The golden set of a version, read from where it is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources

from kfp_components import errors, probes, uris
from kfp_components.probes import defaults, golden
from kfp_components.request import PromoteRequest, SmokeCase
from kfp_components.rollout import cases

PAST_THE_ROUTER = ("v2_grpc", "handle")
BUILTIN = "builtin:"
"""Before the name of a family: the library's own set, small and in plain English, for who has none yet."""


def of_request(asked: PromoteRequest) -> tuple[SmokeCase, ...]:
    """The cases that both versions of a canary are asked; none where the request names no golden set, or quality.max_pairs is 0.

    Raises as `read`, and `RequestInvalid` for a case that cannot be sent through the router.
    """
    told = asked.options.provenance
    if told.golden_set is None or not asked.options.quality.max_pairs:
        return ()
    try:
        found = defaults.as_called(asked, read(told.golden_set, told.golden_set_digest, asked.family))
    except errors.NotFound as error:
        raise errors.NotFound(f"{error}; both versions are to answer it. options.quality.max_pairs: 0 only registers where it is") from error
    if past := next((case for case in found if case.protocol in PAST_THE_ROUTER), None):
        raise errors.RequestInvalid(
            f"golden set {uris.shown(told.golden_set)}, case {past.name}: protocol {past.protocol} does not go through the router, which knows the "
            "versions apart; ask by HTTP"
        )
    for case in found if asked.options.quality.judge_url is None else ():
        if (case.family or asked.family) == "llm" and isinstance(case.reference, dict) and case.reference.get("judged"):
            raise errors.RequestInvalid(
                f"golden set {uris.shown(told.golden_set)}, case {case.name}: its reference says judged; say who judges: "
                "options.quality.judge_url and judge_model"
            )
    if all(case.reference is None and not case.expects for case in found):
        raise errors.RequestInvalid(
            f"golden set {uris.shown(told.golden_set)}: no case says what a good answer is (reference, expect, ...), so any answer would be as good"
        )
    probes.assert_askable(found)
    return cases.with_media(found, told.golden_set)


def read(uri: str, digest: str | None, family: str | None) -> tuple[SmokeCase, ...]:
    """The cases; ``family`` is whose evaluator scores those that do not say it.

    Raises `NotFound` where nothing is or it cannot be read from here, `Unreachable` when nobody can say, `RequestInvalid`, also for a reference that
    the evaluator does not take.
    """
    found = golden.parse(_text(uri, digest), uri)
    if any(case.reference is not None for case in found):
        from kfp_components import quality  # numpy: only who scores pays for it

        quality.assert_references(found, family)
    return found


def digest_of(given: Sequence[SmokeCase]) -> str:
    """Of what is asked, in any order and however long may be waited for it.

    An optional field of a case that is not given is no part of it, so a later library may add one.
    """
    lines = sorted(case.model_dump_json(exclude={"timeout_s", *(key for key, value in case if value is None and key != "body")}) for case in given)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _text(uri: str, digest: str | None) -> str:
    if uri.startswith(BUILTIN):
        return _builtin(uri.removeprefix(BUILTIN))
    content = cases.fetch(uri, digest, "golden set")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise errors.RequestInvalid(f"golden set {uris.shown(uri)}: it is not text ({error.reason} at byte {error.start})") from error


def _builtin(family: str) -> str:
    sets = {
        file.name.removesuffix(".jsonl"): file for file in resources.files("kfp_components.quality.sets").iterdir() if file.name.endswith(".jsonl")
    }
    if family not in sets:
        raise errors.RequestInvalid(f"golden set {BUILTIN}{family}: the library brings none of that name; there are {', '.join(sorted(sets))}")
    return sets[family].read_text(encoding="utf-8")
