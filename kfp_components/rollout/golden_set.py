"""The golden set of a version, read from where it is."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

from kfp_components import artifact, errors, uris
from kfp_components.artifact.content import Away, Reading, Unreadable
from kfp_components.probes import golden
from kfp_components.request import ArtifactRules, PromoteRequest, SmokeCase

MOST_MIB = 64
BUILTIN = "builtin:"
"""Before the name of a family: the library's own set, small and in plain English, for who has none yet."""


def of_request(asked: PromoteRequest) -> tuple[SmokeCase, ...]:
    """The cases that both versions of a canary are asked; none where the request names no golden set, or quality.max_pairs is 0.

    Raises as `read`, and `RequestInvalid` for a reference that its family's evaluator does not take.
    """
    told = asked.options.provenance
    if told.golden_set is None or not asked.options.quality.max_pairs:
        return ()
    from kfp_components import quality  # numpy: only a step that has a golden set pays for it

    cases = read(told.golden_set, told.golden_set_digest)
    quality.assert_references(cases, asked.family)
    return cases


def read(uri: str, digest: str | None) -> tuple[SmokeCase, ...]:
    """The cases. Raises `NotFound` where nothing is or it cannot be read from here, `Unreachable` when nobody can say, `RequestInvalid`."""
    return golden.parse(_text(uri, digest), uri)


def digest_of(cases: Sequence[SmokeCase]) -> str:
    """Of what is asked, in any order and however long may be waited for it.

    An optional field of a case that is not given is no part of it, so a later library may add one.
    """
    lines = sorted(case.model_dump_json(exclude={"timeout_s", *(key for key, value in case if value is None and key != "body")}) for case in cases)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _text(uri: str, digest: str | None) -> str:
    if uri.startswith(BUILTIN):
        return _builtin(uri.removeprefix(BUILTIN))
    shown, what = uris.shown(uri), f"golden set {uris.shown(uri)}"
    reader = artifact.READERS.get(urlsplit(uri).scheme)
    if reader is None or urlsplit(uri).scheme == "oci":
        raise errors.RequestInvalid(f"{what}: it is read from file:///, https:// or s3://, or it is {BUILTIN} and a family")
    reading = Reading(shown, ArtifactRules(max_download_mib=MOST_MIB))
    try:
        with tempfile.TemporaryDirectory(prefix="kfp-serving-golden-") as folder:
            there = reader.find(uri, reading)
            if not there.single:
                raise errors.RequestInvalid(f"{what}: it is a folder; name the file")
            kept = Path(folder) / "golden.jsonl"
            seen = reading.digest_of(there, kept)
            content = kept.read_bytes()
    except Away as error:
        raise errors.Unreachable(f"{what}: {error}") from error
    except Unreadable as error:
        raise errors.NotFound(f"{what}: {error}") from error
    if digest is not None and seen != digest:
        raise errors.RequestInvalid(f"{what}: its digest is {seen}, and {digest} was registered; a changed set says nothing about the version")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise errors.RequestInvalid(f"{what}: it is not text ({error.reason} at byte {error.start})") from error


def _builtin(family: str) -> str:
    sets = {
        file.name.removesuffix(".jsonl"): file for file in resources.files("kfp_components.quality.sets").iterdir() if file.name.endswith(".jsonl")
    }
    if family not in sets:
        raise errors.RequestInvalid(f"golden set {BUILTIN}{family}: the library brings none of that name; there are {', '.join(sorted(sets))}")
    return sets[family].read_text(encoding="utf-8")
