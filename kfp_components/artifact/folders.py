"""``file:///`` and ``pvc://``: what lies on this machine, or on a claim that is mounted here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kfp_components.artifact.content import CHUNK_BYTES, File, Found, Missing, Reading, Unreadable


def find_file(uri: str, _reading: Reading) -> Found:
    """The file or folder. Raises `Unreadable`; that there is none says nothing: the replicas have a disk of their own."""
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise Unreadable(f"file://{parts.netloc} is another machine's; write file:/// and the path")
    path = Path(unquote(parts.path))
    with _readable(path):
        if not path.exists():
            raise Unreadable(f"{path} is not on this machine")
        return _found(path)


def find_claim(uri: str, reading: Reading) -> Found:
    """The same on a claim that ``options.artifact.mounts`` says to be mounted. Raises `Unreadable`, `Missing` for what is not on the claim."""
    parts = urlsplit(uri)
    mount = reading.rules.mounts.get(parts.netloc)
    if mount is None:
        raise Unreadable(f"claim {parts.netloc} is not mounted here, as far as options.artifact.mounts says")
    root = Path(mount)
    path = root / unquote(parts.path).lstrip("/")
    with _readable(path):
        if not root.is_dir():
            raise Unreadable(f"claim {parts.netloc} is not mounted here: there is no folder {root}, which options.artifact.mounts names")
        if not path.resolve().is_relative_to(root.resolve()):
            raise Unreadable(f"{parts.path} leads out of claim {parts.netloc}")
        if not path.exists():
            raise Missing(f"{parts.path} is not on claim {parts.netloc}")
        return _found(path)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What this identity may not look into, and what is no path at all, is `Unreadable`."""
    try:
        yield
    except OSError as error:
        raise Unreadable(f"{error.filename or path} cannot be read here ({error.strerror or error})") from error
    except ValueError as error:  # a NUL in it
        raise Unreadable(f"{str(path)!r} is not the path of a file ({error})") from error


def _found(path: Path) -> Found:
    if path.is_symlink():
        raise Unreadable(f"{path} is a link; name what it points to")
    if path.is_file():
        return Found((File("", path.stat().st_size, partial(_chunks, path)),), path)
    return Found(tuple(_file(path, inner) for inner in _below(path)), path)


def _below(folder: Path) -> Iterator[Path]:
    """All that is in it but folders. Raises OSError for a part that may not be looked into: without it the digest would be another one."""

    def stop(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=stop):
        links = [inner for inner in folders if Path(place, inner).is_symlink()]
        yield from (Path(place, inner) for inner in (*links, *files))


def _file(folder: Path, path: Path) -> File:
    name = path.relative_to(folder).as_posix()
    if path.is_symlink() or not path.is_file():
        raise Unreadable(f"{name} in it is a link or a special file; put the file itself there")
    return File(name, path.stat().st_size, partial(_chunks, path))


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
