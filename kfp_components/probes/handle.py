"""A DeploymentHandle through Ray Client: as another application in the cluster calls the model. The only probe that needs Ray installed.

Connecting takes seconds and starts a process on the head, so this is for models that are called by handle.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import platform
import threading
from pathlib import Path
from typing import Any

from kfp_components import errors
from kfp_components.cluster import Endpoint
from kfp_components.probes.answer import Answer, late
from kfp_components.request import SmokeCase

INSTALL = 'pip install "ray[client,serve]=={}"'
_process = threading.Lock()
"""Of the one connection to Ray that a process has."""


def assert_installed(case: str) -> None:
    """Raise `RequestInvalid` where Ray is missing."""
    if importlib.util.find_spec("ray") is None:
        wanted = INSTALL.format("VERSION")
        raise errors.RequestInvalid(
            f"smoke case {case}: handle needs Ray, which is not installed here; {wanted}, of the version that the cluster has"
        )


class Handle:
    """``serve.get_app_handle(application)``, its methods called with the body. ``dashboard`` and ``client`` are those ports of the Ray head."""

    def __init__(self, dashboard: Endpoint, client: Endpoint, application: str) -> None:
        """Connect. Raises `RequestInvalid` where the versions differ or this process has a Ray already, `Unreachable` where nobody answers."""
        import ray
        from ray import serve

        address = client.base_url.partition("://")[2]
        self._request = f"handle of application {application} at ray://{address}"
        ours = {"Ray": ray.__version__, "Python": platform.python_version()}
        if told := mismatch(ours, _versions(dashboard)):
            raise errors.RequestInvalid(f"{self._request}: {told}")
        if ray.is_initialized() or not _process.acquire(blocking=False):
            raise errors.RequestInvalid(f"{self._request}: this process is connected to a Ray already; call ray.shutdown() first")
        try:
            self._context = ray.init(f"ray://{address}", log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, TimeoutError, RuntimeError) as error:
            _process.release()
            raise errors.Unreachable(f"{self._request}: {' -> '.join(client.path)}: {type(error).__name__}: {error}") from error
        try:
            self._handle = serve.get_app_handle(application)
        except Exception as error:  # Serve raises its own and RayError
            self.close()
            raise errors.Unreachable(f"{self._request}: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Disconnect."""
        try:
            self._context.disconnect()
        finally:
            _process.release()

    def request(self, case: SmokeCase) -> str:
        """Application, address and method."""
        return f"{self._request}, {case.call or '__call__'}"

    def ask(self, case: SmokeCase) -> Answer:
        """One call. What the application raises is an answer with status 500."""
        answer = Answer(kind="application/json")
        called = getattr(self._handle, case.call) if case.call else self._handle
        with answer.timed():
            try:
                sent = called.remote() if case.body is None else called.remote(case.body)
                answer.value = sent.result(timeout_s=case.timeout_s)
                answer.status = 200
                answer.content = _written(answer.value)
            except TimeoutError:
                answer.broken = late(case.timeout_s)
            except Exception as error:  # Ray raises what the application raised, and much of its own
                cause = getattr(error, "cause", None) or error  # of a RayTaskError, whose own text is a traceback
                answer.status, answer.content = 500, f"{type(cause).__name__}: {cause}".encode()
        return answer


def _written(value: Any) -> bytes:
    """For messages."""
    try:
        return json.dumps(value, default=repr).encode()
    except (TypeError, ValueError, RecursionError):  # keys that JSON does not have, or a value within itself
        return repr(value).encode(errors="replace")


def mismatch(ours: dict[str, str], theirs: dict[str, str]) -> str | None:
    """Why Ray Client cannot connect, None where it can: it takes the same Ray and the same minor version of Python. Unknown ones are let through."""
    if theirs.get("Ray") not in (None, ours["Ray"]):
        return f"Ray is {ours['Ray']} here and {theirs['Ray']} in the cluster, Ray Client takes the same: {INSTALL.format(theirs['Ray'])}"
    minor = theirs.get("Python", ours["Python"]).split(".")[:2]
    if minor != ours["Python"].split(".")[:2]:
        python = ".".join(minor)
        return (
            f"Python is {ours['Python']} here and {theirs['Python']} in the cluster, Ray Client takes the same minor version: run this with {python}"
        )
    return None


def _versions(dashboard: Endpoint) -> dict[str, str]:
    """As the Ray head's dashboard says them. Raises `Unreachable`."""
    import httpx

    url = f"{dashboard.base_url}/api/v0/cluster_metadata"
    try:
        answer = httpx.get(url, headers=_token(), timeout=10.0, trust_env=False)
        found = answer.raise_for_status().json()["data"]
        return {name: str(found[key]) for name, key in (("Ray", "rayVersion"), ("Python", "pythonVersion")) if found.get(key)}
    except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise errors.Unreachable(f"{' -> '.join(dashboard.path)}: {url}: the versions of Ray and Python cannot be read: {error}") from error


def _token() -> dict[str, str]:
    """The header that Ray's dashboard wants where its authentication is on: RAY_AUTH_TOKEN, else the file RAY_AUTH_TOKEN_PATH; {} without either."""
    token, path = os.environ.get("RAY_AUTH_TOKEN"), os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not token and path:
        token = Path(path).read_text(encoding="utf-8").strip()
    return {"authorization": f"Bearer {token}"} if token else {}
