"""Is the artifact what its digest and its signature say? Asked at the door of a release, before anything is written.

What counts as the digest:

=====================  =============================================================================================================
a file, an object      its SHA-256
a folder, a prefix     the one that a signature of `model-signing` (OpenSSF Model Signing 1.0) has for its subject: SHA-256 over the
                       SHA-256 digests of the files, in the order of their paths. git's own files at its top and the signature itself
                       are left out. It does not cover the files' names; a signature does. Links are refused: what they point to
                       could change after the check
``oci://``             SHA-256 of the manifest (or image index) that the reference names. It pins the layers, so none is read
=====================  =============================================================================================================

What is compared: the request's digest, the one in the URI (``oci://host/name@sha256:...``), the one that the registry knows. A digest of a file, a
mounted claim or an ``oci://`` reference is found out without being asked for, and registered, so that the next look has something to compare with;
``https://`` and ``s3://`` are read when there is something to compare, because that is a download.

What cannot be read from here is recorded as *not verified*, with the reason. ``verify: if_readable`` therefore trusts whoever can make the artifact
unreadable from here; ``verify: required`` does not. The replicas read it again, later and by themselves.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from kfp_components import errors, uris
from kfp_components.artifact import folders, oci, s3, signature, web
from kfp_components.artifact.content import Away, Found, Lines, Missing, Progress, Reading, Tell, Unreadable, nobody
from kfp_components.request import PromoteRequest, pinned_digest

DIGEST_TOLD = re.compile(r"\bdigest (sha256:[0-9a-f]{64})")


class Reader(NamedTuple):
    """``find`` lists what is there. ``unasked``: it is read even if there is nothing to compare with. ``quick``: a plan reads it too."""

    find: Callable[[str, Reading], Found]
    unasked: bool = False
    quick: bool = False


READERS: Mapping[str, Reader] = {
    "file": Reader(folders.find_file, unasked=True),
    "pvc": Reader(folders.find_claim, unasked=True),
    "http": Reader(web.find),
    "https": Reader(web.find),
    "s3": Reader(s3.find),
    "oci": Reader(oci.find, unasked=True, quick=True),
}
"""Scheme of the URI -> how it is read. All others are *not verified*."""


@dataclass(frozen=True)
class Verified:
    """What was found. ``digest`` is that of what was read, ``by`` who says that it must be so; ``why_not`` is None when something was read.

    ``via``: other hosts that it was read from.
    """

    digest: str | None = None
    by: str | None = None
    by_signature: str | None = None
    why_not: str | None = None
    via: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """For people, record and registry. A digest that was seen stands at its beginning: `told_digest` finds it there."""
        if self.why_not is not None:
            return f"not verified: {self.why_not}"
        alone = "" if self.by_signature else " found; nothing says which it must be"
        told = [f"digest {self.digest}" + (f" verified, {self.by}" if self.by else alone)]
        told += [f"signature of {self.by_signature} verified"] if self.by_signature else []
        return ", ".join(told) + (f"; read by way of {', '.join(self.via)}" if self.via else "")


def told_digest(sentence: str) -> str | None:
    """The digest of a `Verified`, from its sentence: a release that was taken up again does not read the artifact again."""
    found = DIGEST_TOLD.match(sentence)
    return found[1] if found else None


def verify(asked: PromoteRequest, registered_digest: str | None = None, tell: Tell = nobody, *, dry: bool = False) -> Verified:
    """Read the artifact and compare it with the digest and the signature that are given; ``tell`` hears how far it is. Nothing is left behind.

    ``dry``: only what is quick is read, as a plan does; the rest is looked for, and refused where it is certain that a run would refuse it.

    Raises `ArtifactRejected` for other bytes, for a signature that does not hold, and for what cannot be read although the request demands it;
    `NotFound` where there is no such thing; `Unreachable` when nobody can say now.
    """
    rules = asked.options.artifact
    digest, by = _wanted(asked, registered_digest)
    what = f"model {asked.model} version {asked.version}: artifact {uris.shown(asked.uri)}"
    if rules.verify == "off":
        return Verified(why_not="options.artifact.verify is off")
    something = digest is not None or rules.signature is not None
    if rules.verify == "required" and not something:
        raise errors.ArtifactRejected(
            f"{what}: options.artifact.verify is required, but there is neither a digest nor a signature; give options.digest "
            "or options.artifact.signature"
        )
    try:
        return _read(asked, digest, by, Reading(uris.shown(asked.uri), rules, tell), something, dry)
    except (Away, Unreadable) as why:
        if not something:
            return Verified(why_not=str(why))
        if isinstance(why, Away):
            raise errors.Unreachable(f"{what}: {why}; the same command tries again, options.artifact.verify: off goes on without") from why
        if isinstance(why, Missing):
            raise errors.NotFound(f"{what}: {why}; put it there, or correct the URI") from why
        if rules.verify == "required" or rules.signature is not None:
            raise errors.ArtifactRejected(f"{what}: it has to be verified, but {why}") from why
        return Verified(why_not=str(why))
    except _Other as other:
        raise errors.ArtifactRejected(f"{what}: {other}") from other


class _Other(Exception):
    """The bytes are other ones; says which."""


def _wanted(asked: PromoteRequest, registered_digest: str | None) -> tuple[str | None, str | None]:
    """The digest that it must have, and who says so."""
    said = (
        (asked.options.digest, "as options.digest says"),
        (pinned_digest(asked.uri), "as the URI says"),
        (registered_digest, "as the registry says"),
    )
    return next(((digest, by) for digest, by in said if digest), (None, None))


def _read(asked: PromoteRequest, digest: str | None, by: str | None, reading: Reading, something: bool, dry: bool) -> Verified:
    rules = reading.rules
    scheme = urlsplit(asked.uri).scheme
    reader = READERS.get(scheme)
    if reader is None:
        raise Unreadable(f"{scheme}:// cannot be read here")
    if not something and not reader.unasked:
        raise Unreadable("neither a digest nor a signature is given")
    if rules.signature is not None and scheme == "oci":
        raise Unreadable("a signature is of files, and of an oci:// artifact only the manifest is read; give its digest instead")
    found = reader.find(asked.uri, reading).without(_inside(asked.uri, rules.signature.uri if rules.signature else None))
    if dry and not reader.quick:
        then = [f"compares the digest with {digest}, {by}"] if digest else ["registers the digest"] if rules.signature is None else []
        then += ["verifies the signature"] if rules.signature is not None else []
        return Verified(why_not=f"a plan does not read it; a run reads {found} and {' and '.join(then)}")
    if rules.signature is None:
        return _compared(Verified(reading.digest_of(found), by, via=reading.via), digest)
    with tempfile.TemporaryDirectory(prefix="kfp-serving-artifact-") as folder:
        kept = None if found.root is not None else Path(folder) / "artifact"
        seen = _compared(Verified(reading.digest_of(found, kept), by, via=reading.via), digest)
        signed = signature.file_of(rules.signature, READERS, rules, Path(folder))
        reading.say("verifying the signature")
        try:
            held = signature.verify(rules.signature, signed, found.root or kept or Path())
        except ValueError as reason:
            whose = f"its signature {uris.shown(rules.signature.uri)}"
            raise _Other(f"{whose} does not hold: {reason}; it is another artifact, or somebody else signed it") from None
    return Verified(seen.digest, by, held, via=reading.via)


def _compared(seen: Verified, digest: str | None) -> Verified:
    if digest is not None and seen.digest != digest:
        raise _Other(
            f"its digest is {seen.digest}, not {digest}, {seen.by}; it is another artifact, or it was changed: correct the digest, or give the new "
            "artifact a new version"
        )
    return seen


def _inside(uri: str, signature_uri: str | None) -> str | None:
    """The signature's path in the artifact's folder, where it lies there: no signature can cover itself."""
    folder = uri.rstrip("/") + "/"
    return unquote(signature_uri.removeprefix(folder)) if signature_uri and signature_uri.startswith(folder) else None


__all__ = ["READERS", "Lines", "Progress", "Reader", "Tell", "Verified", "nobody", "told_digest", "verify"]
