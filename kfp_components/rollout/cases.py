"""The cases that are sent: a request's own or those of its family, a golden set's; and the media that go with them, read from where they are."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, urlsplit

from kfp_components import artifact, errors, uris
from kfp_components.artifact.content import Away, Reading, Unreadable
from kfp_components.probes import defaults
from kfp_components.request import ArtifactRules, Media, PromoteRequest, SmokeCase

MOST_MIB = 64
"""Of a golden set, and of each of its media."""


def smoke(request: PromoteRequest) -> tuple[SmokeCase, ...]:
    """The request's own smoke cases, else those of its family; () where it says that there are to be none, and for a family that is not known."""
    if request.options.skip_smoke:
        return ()
    return defaults.as_called(request, request.options.smoke) or defaults.cases(request)


def with_media(cases: Iterable[SmokeCase], beside: str | None = None) -> tuple[SmokeCase, ...]:
    """The cases, their media as ``data:`` URIs; a relative one is beside the golden set at ``beside``. Each file is read once.

    Raises `NotFound` for one that is not there or cannot be read from here, `Unreachable`, `RequestInvalid` for another digest than the case says.
    """
    read: dict[Media, Media] = {}
    found = []
    for case in cases:
        media = case.media
        if media is not None and not media.uri.startswith("data:"):
            if media not in read:
                content = fetch(_where(case, media, beside), media.digest, f"smoke case {case.name}: media")
                inline = f"data:{media.media_type};base64,{base64.b64encode(content).decode()}"
                read[media] = media.model_copy(update={"uri": inline})
            case = case.model_copy(update={"media": read[media]})
        found.append(case)
    return tuple(found)


def fetch(uri: str, digest: str | None, what: str) -> bytes:
    """The file that is there, at most `MOST_MIB` of it.

    Raises `NotFound` where nothing is or it cannot be read from here, `Unreachable` when nobody can say, `RequestInvalid` for another digest.
    """
    shown = f"{what} {uris.shown(uri)}"
    reader = artifact.READERS.get(urlsplit(uri).scheme)
    if reader is None or urlsplit(uri).scheme == "oci":
        raise errors.RequestInvalid(f"{shown}: it is read from file:///, https:// or s3://; a golden set may be builtin:embedding too")
    reading = Reading(uris.shown(uri), ArtifactRules(max_download_mib=MOST_MIB))
    try:
        with tempfile.TemporaryDirectory(prefix="kfp-serving-cases-") as folder:
            there = reader.find(uri, reading)
            if not there.single:
                raise errors.RequestInvalid(f"{shown}: it is a folder; name the file")
            kept = Path(folder) / "file"
            seen = reading.digest_of(there, kept)
            content = kept.read_bytes()
    except Away as error:
        raise errors.Unreachable(f"{shown}: {error}") from error
    except Unreadable as error:
        raise errors.NotFound(f"{shown}: {error}") from error
    if digest is not None and seen != digest:
        raise errors.RequestInvalid(f"{shown}: its digest is {seen}, and {digest} was said; what changed says nothing about the version")
    return content


def _where(case: SmokeCase, media: Media, beside: str | None) -> str:
    if urlsplit(media.uri).scheme:
        return media.uri
    if beside is None or media.uri.startswith("/") or ".." in media.uri.split("/"):
        raise errors.RequestInvalid(
            f"smoke case {case.name}: media {media.uri}: it is no URI, nor the path of a file beside its golden set; write file:///, https://, s3:// "
            "or data:"
        )
    return f"{beside.partition('?')[0].rpartition('/')[0]}/{quote(media.uri)}"
