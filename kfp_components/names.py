"""Every derived name, label, annotation and field manager. Nothing else in the library builds names."""

import re
from dataclasses import dataclass
from importlib.metadata import version as version_of

DISTRIBUTION = "kfp-serving-components"
"""What pip calls this library."""

MANAGER = "kfp-components"
"""Field manager of everything this library steers (server-side apply)."""

TEMPLATE_MANAGER = "kfp-components-template"
"""Field manager of what was created once from a template (a RayService's cluster) and is the owner's afterwards."""

ISVC_LABEL = "serving.kserve.io/inferenceservice"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGED_BY = "kfp-serving"
MODEL_LABEL = "kfp-serving/model"
REVALIDATION_LABEL = "kfp-serving/revalidation"
DEPLOYMENT_MODE = "serving.kserve.io/deploymentMode"
"""Annotation that makes KServe leave our stub alone when its value is ``ModelMesh`` (see shared/CONTROLPLANE.md)."""

ALLOWED_IMPORTS = "kfp-serving/allowed-import-paths"
"""Annotation on a RayService: comma-separated patterns (``acme_models.*``) of import paths that a request may deploy."""

ALLOW_RUNTIME_ENV = "kfp-serving/allow-runtime-env"
"""Annotation on a RayService: ``true`` lets requests bring pip packages or code by ``runtime_env``."""

ROUTER_FROM = "kfp-serving/router-from"
"""Annotation on a RayService: where the router may come from: ``pip``, URIs of zips that ``kfp-serving router-package`` writes, ``image``, with
commas or blanks between them. Without it ``image``, and ``pip`` where `ALLOW_RUNTIME_ENV` is ``true``."""

GITOPS = "kfp-serving/gitops"
"""Annotation on an object that GitOps or somebody else applies: ``yielded`` says that its owner leaves to us what we write of it."""

COMMAND = "kfp-serving/command"
"""Annotation on a release's Lease: ``abort``, ``pause``, ``resume`` or ``approve``, obeyed by the step that runs and taken off by it."""

COMMAND_BY, COMMAND_AT, COMMAND_REASON = "kfp-serving/command-by", "kfp-serving/command-at", "kfp-serving/command-reason"
"""Annotations beside it: who asked, when, and why; left out by kubectl, whose name and time stand in managedFields."""

CREATED_BY_RELEASE = "kfp-serving/created-by-release"
"""Annotation on a RayService that a release created: which one, so that its rollback removes that object and no other."""

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
"""Annotation in which ``kubectl apply`` keeps what it was given."""

SERVE_PORT = 8000
GRPC_PORT = 9000
"""Of Serve's gRPC proxy, where the RayService has one: ``grpc_options`` of ``serveConfigV2``, and the port in ``spec.serveService``."""

DASHBOARD_PORT, RAY_CLIENT_PORT = 8265, 10001
"""Of the Ray head."""

VERSION_HEADER = "x-model-version"
ROUTER_HEADER = "x-model-router"
"""On every answer of the router's own pages, with its application: they are asked for where it may stand, which may be a version's route by now."""
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
VERSION = re.compile(r"[a-z0-9]([-a-z0-9._]*[a-z0-9])?")
PREDICTOR_SUFFIX = "-predictor"
MAX_MODEL_CHARACTERS = 63 - len(PREDICTOR_SUFFIX)


def alias(model: str) -> str:
    """Name of the ExternalName Service that clients call."""
    return model + PREDICTOR_SUFFIX


STUB_VERSION, STUB_URI = "kfp-serving/version", "kfp-serving/uri"
"""Annotations of the stub: the version that serves, and where that is from."""

SERVED = "rayservice://"
"""Begins what stands for the URI of a version of which only is known where it runs."""


def registered(model: str, namespace: str) -> str:
    """Name in the registry: models of two namespaces do not meet."""
    return f"{namespace}.{model}"


def service_host(service: str, namespace: str) -> str:
    """Cluster-local DNS name of a Service."""
    return f"{service}.{namespace}.svc.cluster.local"


def serve_service(rayservice: str) -> str:
    """Name of the Service that KubeRay makes in front of the Serve proxies."""
    return f"{rayservice}-serve-svc"


def head_service(rayservice: str) -> str:
    """Name of the Service that KubeRay makes in front of the Ray head."""
    return f"{rayservice}-head-svc"


def public_route(model: str) -> str:
    """Route prefix that users call, where no other one was adopted or asked for."""
    return f"/{model}"


@dataclass(frozen=True)
class Address:
    """What clients call: a Service, and a route prefix below it. It belongs to the application that serves; to the router while a release runs."""

    alias: str
    route: str

    def host(self, namespace: str) -> str:
        """DNS name of the Service."""
        return service_host(self.alias, namespace)

    def url(self, namespace: str) -> str:
        """What the stub shows."""
        return f"http://{self.host(namespace)}:{SERVE_PORT}{self.route.rstrip('/')}"

    @property
    def prefix(self) -> str:
        """What a path below the route begins with: empty for ``/``."""
        return self.route.rstrip("/")


def address(model: str, *, alias_name: str | None = None, route: str | None = None) -> Address:
    """The model's address; ``{model}-predictor`` and ``/{model}`` where nothing else is given."""
    return Address(alias_name or alias(model), route or public_route(model))


def version_route(model: str, version: str) -> str:
    """Internal route prefix of one version; no model can claim it, as a DNS label does not start with a dot."""
    return f"/.versions/{model}/{version}"


def model_of_version_route(route: str) -> str | None:
    """The model whose version has that internal route; None for any other route."""
    parts = route.split("/")
    return parts[2] if len(parts) == 4 and parts[:2] == ["", ".versions"] else None


def router_route(model: str) -> str:
    """Internal route prefix of the router while it does not stand on the public route; no version is called ``router``."""
    return version_route(model, "router")


def application(model: str, version: str) -> str:
    """Name of the Serve application that holds one version, where it was not adopted under another name."""
    return f"{model}-{version}"


def router_application(model: str) -> str:
    """Name of the Serve application that splits traffic between the versions of a model."""
    return f"{model}-router"


ROUTER_DEPLOYMENT = "Router"
ROUTER_IMPORT_PATH = "kfp_components.router.app:build"


def requirement() -> str:
    """How pip is asked for this very version of the library."""
    return f"{DISTRIBUTION}=={version_of(DISTRIBUTION)}"


def release(model: str) -> str:
    """Name of the ConfigMap that holds the release record, and of the Lease that keeps a second run out."""
    return f"{model}-release"


def revalidation(model: str) -> str:
    """Name of the ConfigMap that holds what the re-validations of a model found so far."""
    return f"{model}-revalidation"


def canary(model: str) -> str:
    """Name of the ConfigMap that holds what a canary measured: timeline and state of the judge. It may be missing."""
    return f"{release(model)}-canary"
