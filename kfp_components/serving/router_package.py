"""The router as a zip, for a Ray image that lacks this library: Ray takes it as one of an application's ``py_modules``.

It holds what the router imports of this library and nothing else, the same bytes wherever it is made of the same sources. Ray puts what is in it in
front of what the image has, so an older version there stands in nobody's way. Ray takes the top level away from a zip that has a single folder there
(measured with Ray 2.60, for every scheme but its own ``gcs://``); this one has three entries.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from kfp_components import errors, names
from kfp_components.router.policy import PROTOCOL

ABOUT = "kfp-serving-router.json"
"""Says of which version it is, and which protocol its router speaks."""

PACKAGE = Path(__file__).parents[1]
IMPORTED = "kfp_components/router/app.py"
WRITTEN_AT = (1980, 1, 1, 0, 0, 0)
NEEDED = {ABOUT, IMPORTED, "kfp_components/__init__.py"}
PLACE = re.compile(rf"kfp_components/|{names.DISTRIBUTION.replace('-', '_')}-[^/]+\.dist-info/")
"""Where everything but `ABOUT` lies: what else came along would stand in front of the image's."""
VERSION = re.compile(r"[0-9A-Za-z.+!_-]{1,64}")
MAX_BYTES = 10_000_000
"""Of all that is in it, unpacked."""


@dataclass(frozen=True)
class RouterPackage:
    """What a zip says of itself."""

    version: str
    protocol: int


def build(version: str | None = None) -> bytes:
    """The zip. ``version``: what its router calls itself; default: this library's."""
    version = version or names.requirement().partition("==")[2]
    about = {"distribution": names.DISTRIBUTION, "version": version, "protocol": PROTOCOL}
    metadata = f"Metadata-Version: 2.1\nName: {names.DISTRIBUTION}\nVersion: {version}\n"
    sources = (PACKAGE / "__init__.py", *(PACKAGE / "router").glob("*.py"))
    contents = {
        ABOUT: (json.dumps(about) + "\n").encode(),
        f"{names.DISTRIBUTION.replace('-', '_')}-{version}.dist-info/METADATA": metadata.encode(),  # where the router finds its version
        **{path.relative_to(PACKAGE.parent).as_posix(): path.read_bytes() for path in sources},
    }
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as package:  # compressed it would be other bytes with another zlib
        for name in sorted(contents):
            entry = zipfile.ZipInfo(name, WRITTEN_AT)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            package.writestr(entry, contents[name])
    return written.getvalue()


def read(content: bytes) -> RouterPackage:
    """What a zip is. Raises ValueError saying why it is none of ours."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as package:
            inside = package.namelist()
            ours = set(inside) >= NEEDED and sum(entry.file_size for entry in package.infolist()) <= MAX_BYTES
            contents = {name: package.read(name) for name in inside} if ours else {}
    except Exception as error:  # by what is wrong zipfile raises BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError, zlib.error ...
        raise ValueError(f"not a zip that can be read ({type(error).__name__}: {str(error)[:200]})") from error
    if not ours:
        raise ValueError(f"a zip, but not what `kfp-serving router-package` writes ({ABOUT} and {IMPORTED} at its top)")
    infos = {name.partition("/")[0] for name in inside if ".dist-info/" in name and PLACE.match(name)}
    strange = [name for name in inside if name != ABOUT and (not PLACE.match(name) or ".." in re.split(r"[/\\]", name))]
    if strange or len(infos) > 1:
        what = repr(strange[0][:100]) if strange else "several dist-info folders"
        raise ValueError(f"a zip, but not what `kfp-serving router-package` writes: it holds {what}")
    try:
        about = json.loads(contents[ABOUT])
        version, protocol = about["version"], about["protocol"]
        if not (isinstance(version, str) and VERSION.fullmatch(version) and type(protocol) is int):
            raise ValueError("a version in letters and digits, and a protocol that is a whole number")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{ABOUT} in it does not say version and protocol ({type(error).__name__}: {str(error)[:100]})") from error
    return RouterPackage(version, protocol)


@dataclass(frozen=True)
class Written:
    """A zip that was written: ``annotations`` are what the RayService's owner may set for it, one for each place where it can be put."""

    file: str
    sha256: str
    version: str
    protocol: int
    annotations: tuple[str, ...]

    def __str__(self) -> str:
        examples = [f"  kubectl annotate rayservice RAYSERVICE -n NAMESPACE --overwrite {annotation}" for annotation in self.annotations]
        return "\n".join(
            (
                f"wrote {self.file}: router of version {self.version}, protocol {self.protocol}, sha256 {self.sha256}",
                "Put it where every Ray pod can read it, under a name of its own (Ray fetches a URI once), and say so on the RayService, one of:",
                *examples,
            )
        )


def write(output: Path | None = None) -> Written:
    """Write the zip, by default into the working directory under a name that changes with what is in it: Ray keeps what it unpacked by the URI.

    Raises `RequestInvalid` for a name that Ray takes for no zip, or a place that cannot be written.
    """
    content = build()
    digest, about = hashlib.sha256(content).hexdigest(), read(content)
    path = output or Path(f"kfp-serving-router-{about.version}-{digest[:12]}.zip")
    if path.suffix != ".zip":
        raise errors.RequestInvalid(f"--output {path}: Ray takes a file for a zip by its name; let it end with .zip")
    if not re.fullmatch(r"[\w.+-]+", path.name, re.ASCII):
        raise errors.RequestInvalid(
            f"--output {path}: its name stands in a URI and in an annotation; write it with letters, digits and . _ + - alone, as in router-1.zip"
        )
    try:
        path.write_bytes(content)
    except OSError as error:
        raise errors.RequestInvalid(f"--output {path}: {error}") from error
    places = ("https://HOST/PATH/", "s3://BUCKET/PATH/", "file:///PATH/IN/THE/IMAGE/")
    return Written(str(path), digest, about.version, about.protocol, tuple(f"{names.ROUTER_FROM}='{place}{path.name}'" for place in places))
