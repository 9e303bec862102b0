"""What is read: files in the order of their paths, in pieces, hashed on the way, and how far that is."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from kfp_components.request import ArtifactRules

CHUNK_BYTES = 1 << 20
GIT = (".git", ".gitattributes", ".github", ".gitignore")
"""Not part of a folder's digest where they stand at its top, as in model-signing."""


class Unreadable(Exception):
    """The bytes cannot be had here, or not by this identity; says why. What that means is up to the request."""


class Missing(Unreadable):
    """Who must know says that there is no such thing."""


class Away(Exception):
    """No answer, or one that says "later": nothing is known."""


@dataclass(frozen=True)
class Progress:
    """How far a reading is. ``total_bytes`` is None where the source does not say."""

    what: str
    done_bytes: int = 0
    total_bytes: int | None = None
    doing: str = "reading to verify it"

    def __str__(self) -> str:
        amount = size(self.done_bytes) + (f" of {size(self.total_bytes)}" if self.total_bytes else "")
        return f"artifact {self.what}: {self.doing}" + (f", {amount}" if self.done_bytes else "")


Tell = Callable[[Progress], None]
"""Hears of every piece that was read, a MiB or less; so it must be quick. It is told once before the first one."""


def nobody(_progress: Progress) -> None:
    """Hears it where nobody looks."""


class Lines:
    """Says the first thing at once, and then how far it is every ``every_s`` seconds: for logs."""

    def __init__(self, say: Callable[[str], None], every_s: float = 10.0, now: Callable[[], float] = time.monotonic) -> None:
        self.say, self.every_s, self.now = say, every_s, now
        self.next_s: float | None = None

    def __call__(self, progress: Progress) -> None:
        """Hear it."""
        now_s = self.now()
        if self.next_s is None or now_s >= self.next_s:
            self.say(str(progress))
            self.next_s = now_s + self.every_s


def size(number_bytes: int) -> str:
    """For people: ``1.2 GB``."""
    for unit, of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number_bytes >= of:
            return f"{number_bytes / of:.1f} {unit}"
    return f"{number_bytes} bytes"


@dataclass(frozen=True)
class File:
    """One file. ``name`` is its path in the folder, ``""`` where the artifact is this file; ``chunks`` reads it anew at every call."""

    name: str
    size_bytes: int | None
    chunks: Callable[[], Iterator[bytes]]


@dataclass(frozen=True)
class Found:
    """What is there: one file, or a folder's. ``root`` is where it lies on this machine; None: it has to be downloaded."""

    files: tuple[File, ...]
    root: Path | None = None

    @property
    def single(self) -> bool:
        """Whether it is one file and no folder."""
        return len(self.files) == 1 and not self.files[0].name

    @property
    def total_bytes(self) -> int | None:
        """Of all files; None where one does not say."""
        sizes = [file.size_bytes for file in self.files]
        return None if None in sizes else sum(filter(None, sizes))

    def without(self, name: str | None) -> Found:
        """Without one of its files, and what git keeps there. Raises `Missing` when nothing is left."""
        if self.single:
            return self
        kept = tuple(file for file in self.files if file.name != name and file.name.split("/")[0] not in GIT)
        if not kept:
            raise Missing("it holds no file")
        return replace(self, files=tuple(sorted(kept, key=lambda file: file.name.split("/"))))

    def __str__(self) -> str:
        files = "1 file" if len(self.files) == 1 else f"{len(self.files)} files"
        return files + (f", {size(self.total_bytes)}," if self.total_bytes is not None else "")


@dataclass
class Reading:
    """One look at one URI, which is ``shown`` so: what it may cost, who hears of it, and by way of which other hosts it went."""

    shown: str
    rules: ArtifactRules
    tell: Tell = nobody
    via: tuple[str, ...] = ()
    done_bytes: int = 0
    total_bytes: int | None = field(default=None)

    def say(self, doing: str) -> None:
        """What is done that is no reading."""
        self.tell(Progress(self.shown, self.done_bytes, self.total_bytes, doing))

    def fits(self, number_bytes: int) -> None:
        """Raise `Unreadable` for more than may be downloaded."""
        if number_bytes > self.rules.max_download_mib << 20:
            raise Unreadable(
                f"it is bigger than options.artifact.max_download_mib allows, {self.rules.max_download_mib} MiB; raise that to have it read"
            )

    def digest_of(self, found: Found, keep: Path | None = None) -> str:
        """``sha256:...`` of all of it; what is downloaded is put below ``keep``, where that is given. Raises `Unreadable`, `Missing`, `Away`."""
        self.total_bytes = found.total_bytes
        if found.root is None:
            self.fits(self.total_bytes or 0)
        self.tell(Progress(self.shown, 0, self.total_bytes))
        digests = [self._sha256(file, found.root is None, keep) for file in found.files]
        whole = digests[0] if found.single else hashlib.sha256(b"".join(digests)).digest()
        return f"sha256:{whole.hex()}"

    def _sha256(self, file: File, downloaded: bool, keep: Path | None) -> bytes:
        hashed = hashlib.sha256()
        try:
            target = _kept(keep, file.name)
            with target.open("wb") if target else _Nowhere() as kept:
                for chunk in file.chunks():
                    hashed.update(chunk)
                    self.done_bytes += len(chunk)
                    if downloaded:
                        self.fits(self.done_bytes)
                    kept.write(chunk)
                    self.tell(Progress(self.shown, self.done_bytes, self.total_bytes))
        except OSError as error:  # no right to read it, no room to keep it
            raise Unreadable(f"{file.name or 'it'} cannot be read here ({error.strerror or error})") from error
        return hashed.digest()


class _Nowhere:
    """Keeps nothing."""

    def __enter__(self) -> _Nowhere:
        return self

    def __exit__(self, *_about: object) -> None:
        return

    def write(self, _chunk: bytes) -> None:
        return


def _kept(keep: Path | None, name: str) -> Path | None:
    """Where a file is kept; its folder is made. Names come from elsewhere: one that leads out is refused."""
    if keep is None:
        return None
    if not name:
        return keep
    refuse_name(name)
    target = keep / name
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def refuse_name(name: str) -> None:
    """Raise `Unreadable` for a path that is none below a folder."""
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
        raise Unreadable(f"{name!r} in it is not the path of a file in a folder")
