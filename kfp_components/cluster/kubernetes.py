"""`Cluster` over the official Kubernetes client. The only module that imports it, and the only one that maps its errors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from kfp_components import errors, names
from kfp_components.clock import SystemClock
from kfp_components.cluster import KINDS, Endpoint, Manifest, Permission, Ref, delete_options
from kfp_components.cluster.endpoints import walk
from kfp_components.cluster.refusals import error_of, unknown_kind
from kfp_components.cluster.waiting import first_ready, looks

READ_TIMEOUT_S = 30.0
Query = list[tuple[str, str]]
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"


class KubernetesCluster:
    """A cluster reached by the standard means: the pod's service account, ``KUBECONFIG``, or ``~/.kube/config``."""

    def __init__(self, kubeconfig: str | Path | None = None, context: str | None = None) -> None:
        """Read the configuration; nothing is sent yet. Raises `NotFound` when there is none."""
        self.in_cluster = kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ
        settings = client.Configuration()
        where = str(kubeconfig) if kubeconfig else os.environ.get("KUBECONFIG")  # the client reads it at import only
        try:
            if self.in_cluster:
                config.load_incluster_config(client_configuration=settings)
            else:
                config.load_kube_config(config_file=where, context=context, client_configuration=settings)
        except (config.ConfigException, yaml.YAMLError, OSError, TypeError, ValueError) as error:
            told = str(error) if isinstance(error, config.ConfigException) else f"{where or 'the default file'} is not a kubeconfig ({_short(error)})"
            raise errors.NotFound(
                f"Kubernetes configuration: {told}; set KUBECONFIG, pass --kubeconfig, or start the embedded cluster with `kfp-serving local up`"
            ) from error
        settings.retries = False
        self.server = settings.host
        self._api = client.ApiClient(settings)

    def get(self, ref: Ref) -> Manifest | None:
        """The object, or None when there is none."""
        return self._call("GET", _path(ref.kind, ref.namespace, ref.name), str(ref), missing_ok=True)

    def list(self, kind: str, namespace: str, *, labels: str | None = None) -> list[Manifest]:
        """All objects of a kind in a namespace, optionally by label selector."""
        query = [("labelSelector", labels)] if labels else []
        found = self._call("GET", _path(kind, namespace), f"{kind} list in {namespace}", query=query)
        kind_of = KINDS[kind]
        return [{"apiVersion": kind_of.api_version, "kind": kind, **item} for item in (found or {}).get("items", [])]

    def create(self, manifest: Manifest) -> Manifest:
        """Make a new object; `Conflict` when the name exists already."""
        metadata = manifest["metadata"]
        path = _path(manifest["kind"], metadata.get("namespace", ""))
        what = f"{manifest['kind']} {metadata.get('namespace', '')}/{metadata.get('name') or metadata.get('generateName')}"
        return self._must("POST", path, what, body=manifest, query=[("fieldManager", names.MANAGER)])

    def apply(self, manifest: Manifest, *, manager: str, force: bool = False, subresource: Literal["status"] | None = None) -> Manifest:
        """Server-side apply. `Conflict` names the fields and their managers unless ``force``."""
        ref = Ref.of(manifest)
        path = _path(ref.kind, ref.namespace, ref.name) + (f"/{subresource}" if subresource else "")
        query = [("fieldManager", manager), ("force", "true" if force else "false")]
        return self._must("PATCH", path, str(ref), body=manifest, query=query, content_type=APPLY)

    def replace(self, manifest: Manifest) -> Manifest:
        """Compare-and-swap the whole object by the resourceVersion it carries; `Conflict` when it is stale."""
        ref = Ref.of(manifest)
        query = [("fieldManager", names.MANAGER)]
        return self._must("PUT", _path(ref.kind, ref.namespace, ref.name), str(ref), body=manifest, query=query)

    def patch(self, ref: Ref, body: Manifest, *, manager: str) -> Manifest:
        """JSON merge patch; compare-and-swap when ``body.metadata.resourceVersion`` is given."""
        path = _path(ref.kind, ref.namespace, ref.name)
        return self._must("PATCH", path, str(ref), body=body, query=[("fieldManager", manager)], content_type=MERGE)

    def delete(self, ref: Ref, *, uid: str | None = None, resource_version: str | None = None) -> bool:
        """Delete, optionally only that very object or that very state of it (`Conflict` otherwise); False when there was none."""
        body = delete_options(uid, resource_version)
        return self._call("DELETE", _path(ref.kind, ref.namespace, ref.name), str(ref), body=body, missing_ok=True) is not None

    def missing(self, wanted: Iterable[Permission], namespace: str) -> tuple[Permission, ...]:
        """Those that this identity does not have: by one SelfSubjectRulesReview, and by access reviews where that is not complete."""
        status = self._review("SelfSubjectRulesReview", {"namespace": namespace})
        rules = status.get("resourceRules") or []
        unlisted = [asked for asked in wanted if not any(_grants(rule, asked) for rule in rules)]
        return tuple(asked for asked in unlisted if not (status.get("incomplete") and self._may(asked, namespace)))

    def _may(self, asked: Permission, namespace: str) -> bool:
        about = {"namespace": namespace, "verb": asked.verb, "group": asked.group}
        about |= {"resource": KINDS[asked.kind].plural, "subresource": asked.subresource}
        return bool(self._review("SelfSubjectAccessReview", {"resourceAttributes": about}).get("allowed"))

    def _review(self, kind: str, spec: Manifest) -> Manifest:
        """The status of a review of what this identity may do."""
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
        return self._must("POST", f"/apis/authorization.k8s.io/v1/{kind.lower()}s", kind, body=body).get("status") or {}

    def wait(
        self,
        ref: Ref,
        *,
        ready: Callable[[Manifest], bool],
        failed: Callable[[Manifest], str | None],
        timeout_s: float,
        meanwhile: Callable[[], None],
    ) -> Manifest:
        """The first state that is ready; `DeployFailed` with the diagnosis, or `WaitTimeout` with the last one."""
        states = looks(lambda: self.get(ref), timeout_s=timeout_s, meanwhile=meanwhile, clock=SystemClock())
        return first_ready(states, ref, ready=ready, failed=failed, timeout_s=timeout_s)

    def endpoint(self, service: str, namespace: str, port: int) -> Endpoint:
        """Walk a Service to an address: its DNS name inside a cluster, else a ready address; `NotFound` says at which hop it broke."""
        return walk(self, service, namespace, port, in_cluster=self.in_cluster)

    def _must(self, method: str, path: str, what: str, **more: Any) -> Manifest:
        answer = self._call(method, path, what, **more)
        assert answer is not None
        return answer

    def _call(
        self,
        method: str,
        path: str,
        what: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Query | None = None,
        content_type: str = "application/json",
        missing_ok: bool = False,
    ) -> Manifest | None:
        try:
            response = self._send(method, path, query or [], body, content_type, (5.0, READ_TIMEOUT_S))
        except ApiException as error:
            if missing_ok and error.status == 404 and not unknown_kind(404, _status_of(error)):
                return None
            raise _translate(error, what, self.server) from error
        except HTTPError as error:
            raise _translate(error, what, self.server) from error
        answer: Manifest = json.loads(response.data)
        return answer

    def _send(
        self,
        method: str,
        path: str,
        query: Query,
        body: Mapping[str, Any] | None,
        content_type: str,
        timeout: tuple[float, float],
    ) -> Any:
        return self._api.call_api(
            path,
            method,
            query_params=query,
            header_params={"Content-Type": content_type, "Accept": "application/json"},
            body=dict(body) if body is not None else None,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _return_http_data_only=True,
            _request_timeout=timeout,
        )


def _path(kind: str, namespace: str, name: str = "") -> str:
    of = KINDS[kind]
    middle = f"/namespaces/{namespace}" if namespace and kind != "Namespace" else ""
    return f"{of.path}{middle}/{of.plural}" + (f"/{name}" if name else "")


def _grants(rule: Mapping[str, Any], asked: Permission) -> bool:
    """Whether a ResourceRule of RBAC covers it for objects of any name."""

    def lists(key: str, *values: str) -> bool:
        return bool({"*", *values} & set(rule.get(key) or []))

    wild = (f"*/{asked.subresource}",) if asked.subresource else ()
    return (
        lists("verbs", asked.verb) and lists("apiGroups", asked.group) and lists("resources", asked.resource, *wild) and not rule.get("resourceNames")
    )


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _status_of(error: ApiException) -> dict[str, Any]:
    try:
        found = json.loads(error.body or "{}")
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}


def _translate(error: Exception, what: str, server: str) -> errors.KfpServingError:
    """Map an error of the client to one of ours, keeping the server's own words."""
    if not isinstance(error, ApiException) or not error.status:
        return errors.Unreachable(
            f"Kubernetes API {server}: no answer while asking for {what} ({type(error).__name__}); is it running and reachable?"
        )
    return error_of(error.status, _status_of(error), what, server, str(error.reason))
