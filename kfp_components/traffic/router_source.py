"""Where a release's router comes from, of what the RayService's owner allows: by pip, as a zip (``py_modules``), or in the Ray image.

Found out before anything is written. `choose` only computes; `find` looks: it asks pip, and fetches a zip. What nobody can look into from here (a zip
in S3 or in the image, the image itself) is taken as said by the owner, and the router says of which version it is once it runs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tenacity import Retrying, retry_if_result, stop_after_attempt, wait_fixed

from kfp_components import errors, names, uris
from kfp_components.clock import Clock, SystemClock
from kfp_components.serving import rayservice, router_package

PIP, IMAGE = "pip", "image"
FETCHED, TAKEN = ("http", "https"), ("s3", "file")
"""Schemes of a zip: those that can be looked into from here, and those that cannot."""

PIP_OPTIONS = ("--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-cache-dir")
RAY_WITH_PIP_OPTIONS = (2, 49)
"""The first that takes ``pip_install_options`` in a runtime_env (its wheels were looked into). Without them every dependency would be installed; and
for a field that Ray does not know Serve refuses the whole ``serveConfigV2``, of all models (400, measured with Ray 2.60)."""

PIP_TIMEOUT_S = 30.0
MAX_TOLD = 400
PIP_CANNOT_TELL = re.compile(r"connection broken|timed out|HTTP error (?:429|5\d\d)|Could not fetch URL \S+: (?!4(?!29)\d\d )")
"""In what pip says when it had no answer from an index, though it ends with "No matching distribution" all the same (measured with pip 23.2)."""
FETCH_TIMEOUT_S = 20.0
FETCHES, FETCH_AGAIN_S = 3, 1.0
MAX_ZIP_BYTES = 5_000_000
CODE = ("pip", "uv", "conda", "py_modules", "working_dir", "container", "image_uri", "py_executable")
"""Keys of a runtime_env that bring code: an application that has one says nothing of the image."""


@dataclass(frozen=True)
class Source:
    """The choice: what the router's application gets as ``runtime_env``, and where it comes from in words."""

    runtime_env: Mapping[str, Any]
    told: str


@dataclass(frozen=True)
class Look:
    """What was seen of one source: whether the router can be had there, and why. ``there`` is None where that cannot be told now."""

    there: bool | None
    told: str


def find(found: Mapping[str, Any], protocol: int, clock: Clock | None = None) -> Source:
    """The first source that the RayService allows and where the router can be had.

    ``protocol`` is what the library speaks. Raises `RequestInvalid` for an annotation that cannot be read, and when there is none, naming each;
    `Unreachable` when one cannot tell whether it has the router.
    """
    metadata = found["metadata"]
    where = f"RayService {metadata.get('namespace')}/{metadata['name']}"
    annotations = metadata.get("annotations") or {}
    return choose(where, allowed(where, annotations), lambda source: _look(source, found, protocol, clock or SystemClock()))


def allowed(where: str, annotations: Mapping[str, str]) -> tuple[str, ...]:
    """What the owner allows, in the order in which it is tried. Raises `RequestInvalid`."""
    said = annotations.get(names.ROUTER_FROM)
    if said is None:
        return (PIP, IMAGE) if annotations.get(names.ALLOW_RUNTIME_ENV) == "true" else (IMAGE,)
    entries = tuple(dict.fromkeys(entry for entry in re.split(r"[,\s]+", said) if entry))
    ways = "write `pip`, `image`, or the URI of a zip that `kfp-serving router-package` writes (https://, http://, s3:// or file:///)"
    if not entries:
        raise errors.RequestInvalid(f"{where}: annotation {names.ROUTER_FROM} is there and says nothing: take it off, or {ways}")
    for entry in entries:
        if wrong := _wrong(entry):
            raise errors.RequestInvalid(
                f"{where}: annotation {names.ROUTER_FROM}: {uris.shown(entry)!r} {wrong}; {ways}, with commas between several"
            )
    zips = [entry for entry in entries if entry not in (PIP, IMAGE)]
    return tuple(source for source in (PIP, *zips, IMAGE) if source in entries)


def choose(where: str, sources: Sequence[str], look: Callable[[str], Look]) -> Source:
    """The first of the sources at which the router is there; none after it is looked at. Raises `RequestInvalid` naming each and why not.

    Raises `Unreachable` at one that cannot tell: what a release runs on must not depend on a moment's outage.
    """
    missing: list[str] = []
    for source in sources:
        seen = look(source)
        if seen.there is None:
            raise errors.Unreachable(
                f"{where}: annotation {names.ROUTER_FROM}: whether the router can be had from {source} cannot be told now: {seen.told}; run again, "
                "or take that source out of the annotation"
            )
        if seen.there:
            return Source(runtime_env(source), "; ".join((f"the router comes {seen.told}", *(f"not {told}" for told in missing))))
        missing.append(seen.told)
    raise errors.RequestInvalid(
        f"{where}: a release needs a router, and it cannot be had from what annotation {names.ROUTER_FROM} allows: {'; '.join(missing)}. "
        f"{rayservice.router_ways()}"
    )


def runtime_env(source: str) -> dict[str, Any]:
    """Of the router's application."""
    if source == PIP:
        return {"pip": {"packages": [names.requirement()], "pip_check": False, "pip_install_options": list(PIP_OPTIONS)}}
    return {} if source == IMAGE else {"py_modules": [source]}


def _wrong(entry: str) -> str | None:
    """What is wrong with an entry of the annotation."""
    if entry in (PIP, IMAGE):
        return None
    if credential := uris.credential_in(entry):
        return f"carries a credential ({credential}), and many can read it: Ray's pods and this library fetch the zip without one"
    try:
        parts = urlsplit(entry)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"is not a URI ({error})"
    if parts.scheme not in FETCHED + TAKEN:
        return "is not a source"
    if not entry.startswith(f"{parts.scheme}:"):
        return f"has a scheme that Ray does not know, as it is not in small letters: write {parts.scheme}://"
    if parts.scheme == "file" and not entry.startswith("file:///"):
        return "is not the path of a file: three slashes and where it lies in the image, as in file:///opt/router.zip"
    if parts.scheme != "file" and not host:
        return "has no host"
    if not parts.path.endswith(".zip") or {"?", "#"} & set(entry):
        return "does not end with .zip, by which Ray knows it"
    return "has no name before .zip" if parts.path.endswith("/.zip") else None


def _look(source: str, found: Mapping[str, Any], protocol: int, clock: Clock) -> Look:
    if source == PIP:
        return _pip(found)
    if source == IMAGE:
        return _image(found)
    if source.startswith(FETCHED):
        tries = Retrying(
            sleep=clock.sleep,
            retry=retry_if_result(lambda seen: seen.there is None),
            stop=stop_after_attempt(FETCHES),
            wait=wait_fixed(FETCH_AGAIN_S),
            retry_error_callback=lambda state: state.outcome and state.outcome.result(),
        )
        return tries(_zip, source, protocol)
    return Look(True, f"from {source} (py_modules), which nobody can look into from here: the RayService's owner says that it is there")


def _pip(found: Mapping[str, Any]) -> Look:
    needed, wanted = ".".join(map(str, RAY_WITH_PIP_OPTIONS)), names.requirement()
    version = str(((found.get("spec") or {}).get("rayClusterConfig") or {}).get("rayVersion") or "")
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None:
        said = f"{version[:60]!r}" if version else "(not set)"
        return Look(False, f"by pip: spec.rayClusterConfig.rayVersion {said} does not say which Ray it is, as in 2.60.0, and it takes Ray {needed}")
    if (int(numbers[1]), int(numbers[2])) < RAY_WITH_PIP_OPTIONS:
        return Look(False, f"by pip: Ray {version} knows no pip_install_options, which keep the library's dependencies away; Ray {needed} does")
    return _ask_pip(wanted)


def _ask_pip(wanted: str) -> Look:
    """Whether pip, as it is configured for this process, would install it. It tries an index that does not answer three times by itself."""
    command = [sys.executable, "-P", "-m", "pip", "install", "--dry-run", "--ignore-installed", "-vv", "--no-input", "--retries=2", *PIP_OPTIONS]
    surroundings = {**os.environ, "PIP_QUIET": "0"}  # which would keep from us what -vv says
    try:
        done = subprocess.run(
            [*command, wanted], capture_output=True, text=True, errors="replace", timeout=PIP_TIMEOUT_S, stdin=subprocess.DEVNULL, env=surroundings
        )
    except subprocess.TimeoutExpired:
        return Look(None, f"by pip: pip here did not say within {PIP_TIMEOUT_S:g} s whether its index has {wanted}")
    except OSError as error:
        return Look(False, f"by pip: pip cannot be asked here ({error})")
    if done.returncode == 0:
        return Look(True, f"by pip: {wanted} without dependencies, which pip's index here has (Ray's pods ask theirs)")
    said = [line.removeprefix("ERROR: ").strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    if unanswered := next((line for line in said if PIP_CANNOT_TELL.search(line)), None):
        return Look(None, f"by pip: pip here has no answer from its index ({_shown(unanswered)})")
    if missing := next((line for line in said if line.startswith("No matching distribution")), None):
        return Look(False, f"by pip: pip here has no {wanted} ({_shown(missing)})")
    told = " ".join((done.stderr.strip() or done.stdout.strip()).split()) or "it said nothing"
    return Look(False, f"by pip: pip here failed (exit code {done.returncode}: {_shown(told.removeprefix('ERROR: '))})")


def _shown(told: str) -> str:
    """What pip said, its end, without credentials."""
    for uri in uris.in_text(told):
        told = told.replace(uri, uris.shown(uri))
    return told[-MAX_TOLD:]


def _zip(uri: str, protocol: int) -> Look:
    try:
        package = router_package.read(_fetched(uri))
    except errors.Unreachable as error:
        return Look(None, f"from {uri}: {error}")
    except ValueError as error:
        return Look(False, f"from {uri}: {error}")
    if package.protocol != protocol:
        return Look(
            False, f"from {uri}: its router, of version {package.version}, speaks protocol {package.protocol}, and this library speaks {protocol}"
        )
    return Look(True, f"from {uri} (py_modules): version {package.version}, protocol {package.protocol}")


def _fetched(uri: str) -> bytes:
    """What is there. Raises ValueError where there is no such thing or it is too large, `Unreachable` where that cannot be told now."""
    import httpx  # as in kfp_components.probes

    end = time.monotonic() + FETCH_TIMEOUT_S
    content = bytearray()
    try:
        # trust_env: unlike the cluster's own addresses, which this library asks directly, a zip may lie behind a proxy or a company's CA
        with httpx.Client(timeout=FETCH_TIMEOUT_S / 2, trust_env=True, follow_redirects=True) as client:
            with client.stream("GET", uri, headers={"accept-encoding": "identity"}) as answer:
                if answer.status_code == 429 or answer.status_code >= 500:
                    raise errors.Unreachable(f"answered {answer.status_code}")
                if answer.status_code != 200:
                    raise ValueError(f"answered {answer.status_code}")
                for piece in answer.iter_bytes():
                    content += piece
                    if len(content) > MAX_ZIP_BYTES:
                        raise ValueError(f"longer than {MAX_ZIP_BYTES // 1_000_000} MB, which no router is")
                    if time.monotonic() > end:
                        raise errors.Unreachable(f"not here after {FETCH_TIMEOUT_S:g} s")
    except (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.DecodingError, httpx.InvalidURL) as error:
        raise ValueError(f"cannot be fetched ({type(error).__name__}: {error})") from error
    except httpx.HTTPError as error:
        raise errors.Unreachable(f"no answer ({type(error).__name__}: {error})") from error
    except (OSError, ImportError) as error:  # SSL_CERT_FILE that is no such file, a SOCKS proxy without socksio
        raise ValueError(f"cannot be fetched here ({type(error).__name__}: {error})") from error
    return bytes(content)


def _image(found: Mapping[str, Any]) -> Look:
    known = next(_from_the_image(found), None)
    if known:
        return Look(True, f"from the Ray image: application {known} runs from it with this library")
    return Look(
        True,
        f"from the Ray image, which nobody can look into from here: it has to hold {names.requirement()} (other ways: annotation "
        f"{names.ROUTER_FROM} with `pip` or the URI of a zip)",
    )


def _from_the_image(found: Mapping[str, Any]) -> Iterator[str]:
    """Applications that run now and import this library from nowhere else."""
    for name, entry in rayservice.applications(rayservice.serve_config(found)).items():
        environment = entry.get("runtime_env") or {}
        runs = rayservice.application_status(found, name).get("status") == "RUNNING"
        if runs and str(entry.get("import_path")).startswith("kfp_components.") and not set(environment) & set(CODE):
            yield name
