"""The schemas of the kinds, as far as users of this project, KubeRay, KServe and Gateway API write them; `kinds` tables them.

Data in the form of a CustomResourceDefinition's OpenAPI v3 schema. List and map types, defaults, limits and required fields
follow Kubernetes 1.34, KubeRay 1.6, KServe 0.20 and Gateway API 1.5. Pod templates stay open below the container: everything
is kept.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

STR: Schema = {"type": "string"}
INT: Schema = {"type": "integer"}
BOOL: Schema = {"type": "boolean"}
TIME: Schema = {"type": "string", "format": "date-time"}
ANY: Schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
INT_OR_STR: Schema = {"x-kubernetes-int-or-string": True}


def obj(*required: str, **properties: Schema) -> Schema:
    """A closed object with these fields."""
    return {"type": "object", "properties": properties} | ({"required": list(required)} if required else {})


def open_obj(*required: str, **properties: Schema) -> Schema:
    """An object that keeps fields the schema does not name."""
    return obj(*required, **properties) | {"x-kubernetes-preserve-unknown-fields": True}


def arr(items: Schema, **more: Any) -> Schema:
    """An atomic list."""
    return {"type": "array", "items": items} | more


def keyed(items: Schema, *keys: str, merge_key: str = "") -> Schema:
    """A list whose items are known by some of their fields."""
    kind = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}
    return arr(items) | kind | ({"x-kubernetes-patch-merge-key": merge_key} if merge_key else {})


def mapping(values: Schema) -> Schema:
    """An open map of equal values."""
    return {"type": "object", "additionalProperties": values}


def choice(*values: str) -> Schema:
    """A string out of a few."""
    return {"type": "string", "enum": list(values)}


def limited(base: Schema, **more: Any) -> Schema:
    """A schema with more constraints; ``defaults`` stands for ``default``."""
    return base | {("default" if k == "defaults" else k): v for k, v in more.items()}


OWNER = obj("apiVersion", "kind", "name", "uid", apiVersion=STR, kind=STR, name=STR, uid=STR, controller=BOOL, blockOwnerDeletion=BOOL)
METADATA = obj(
    name=STR,
    generateName=STR,
    namespace=STR,
    uid=STR,
    resourceVersion=STR,
    generation=INT,
    creationTimestamp=limited(TIME, nullable=True),
    deletionTimestamp=limited(TIME, nullable=True),
    deletionGracePeriodSeconds=INT,
    selfLink=STR,
    labels=mapping(STR),
    annotations=mapping(STR),
    finalizers=arr(STR) | {"x-kubernetes-list-type": "set", "x-kubernetes-patch-strategy": "merge"},
    ownerReferences=keyed(OWNER | {"x-kubernetes-map-type": "atomic"}, "uid", merge_key="uid"),
    managedFields=arr(ANY),
)


def whole(required: tuple[str, ...] = (), **parts: Schema) -> Schema:
    """The schema of a whole object."""
    return obj(*required, apiVersion=STR, kind=STR, metadata=METADATA, **parts)


CONDITION = open_obj(
    "type",
    "status",
    type=STR,
    status=choice("True", "False", "Unknown"),
    reason=STR,
    message=STR,
    lastTransitionTime=TIME,
    observedGeneration=INT,
)
OBJECT_REF = obj(apiVersion=STR, kind=STR, name=STR, namespace=STR, uid=STR, resourceVersion=STR, fieldPath=STR) | {"x-kubernetes-map-type": "atomic"}

NAMESPACE = whole(spec=obj(finalizers=arr(STR)), status=obj(phase=STR, conditions=keyed(CONDITION, "type", merge_key="type")))
CONFIG_MAP = whole(data=mapping(STR), binaryData=mapping(STR), immutable=BOOL)
SECRET = whole(data=mapping(STR), stringData=mapping(STR), type=STR, immutable=BOOL)
SERVICE_ACCOUNT = whole(
    automountServiceAccountToken=BOOL,
    imagePullSecrets=arr(obj(name=STR)),
    secrets=keyed(OBJECT_REF, "name", merge_key="name"),
)
SERVICE_PORT = obj(
    "port",
    name=STR,
    protocol=limited(choice("TCP", "UDP", "SCTP"), defaults="TCP"),
    appProtocol=STR,
    port=INT,
    targetPort=INT_OR_STR,
    nodePort=INT,
)
SERVICE_SPEC = obj(
    type=choice("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
    externalName=STR,
    ports=keyed(SERVICE_PORT, "port", "protocol", merge_key="port"),
    selector=mapping(STR) | {"x-kubernetes-map-type": "atomic"},
    clusterIP=STR,
    clusterIPs=arr(STR),
    externalIPs=arr(STR),
    externalTrafficPolicy=STR,
    internalTrafficPolicy=STR,
    ipFamilies=arr(STR),
    ipFamilyPolicy=STR,
    sessionAffinity=choice("None", "ClientIP"),
    sessionAffinityConfig=ANY,
    publishNotReadyAddresses=BOOL,
    healthCheckNodePort=INT,
    loadBalancerClass=STR,
    loadBalancerSourceRanges=arr(STR),
    allocateLoadBalancerNodePorts=BOOL,
    trafficDistribution=STR,
)
SERVICE = whole(spec=SERVICE_SPEC, status=obj(loadBalancer=ANY, conditions=keyed(CONDITION, "type", merge_key="type")))
EVENT = whole(
    ("metadata", "involvedObject"),
    involvedObject=OBJECT_REF,
    reason=STR,
    message=STR,
    source=obj(component=STR, host=STR),
    firstTimestamp=limited(TIME, nullable=True),
    lastTimestamp=limited(TIME, nullable=True),
    eventTime=limited(TIME, nullable=True),
    count=INT,
    type=STR,
    series=obj(count=INT, lastObservedTime=TIME),
    action=STR,
    related=OBJECT_REF,
    reportingComponent=STR,
    reportingInstance=STR,
)
LEASE = whole(
    spec=obj(
        holderIdentity=STR,
        leaseDurationSeconds=INT,
        acquireTime=TIME,
        renewTime=TIME,
        leaseTransitions=INT,
        strategy=STR,
        preferredHolder=STR,
    )
)
ENDPOINT = obj(
    "addresses",
    addresses=arr(STR) | {"x-kubernetes-list-type": "set"},
    conditions=obj(ready=BOOL, serving=BOOL, terminating=BOOL),
    hostname=STR,
    targetRef=OBJECT_REF,
    nodeName=STR,
    zone=STR,
    hints=ANY,
    deprecatedTopology=mapping(STR),
)
ENDPOINT_SLICE = whole(
    ("addressType", "endpoints"),
    addressType=choice("IPv4", "IPv6", "FQDN"),
    endpoints=arr(ENDPOINT),
    ports=arr(obj(name=limited(STR, defaults=""), protocol=limited(STR, defaults="TCP"), port=INT, appProtocol=STR)),
)

CONTAINER = open_obj(
    "name",
    name=STR,
    image=STR,
    command=arr(STR),
    args=arr(STR),
    ports=keyed(open_obj("containerPort", containerPort=INT, name=STR, protocol=limited(STR, defaults="TCP")), "containerPort", "protocol"),
    env=keyed(open_obj("name", name=STR, value=STR), "name"),
    resources=open_obj(limits=mapping(INT_OR_STR), requests=mapping(INT_OR_STR)),
)
POD_SPEC = open_obj(containers=keyed(CONTAINER, "name"), initContainers=keyed(CONTAINER, "name"))
POD_TEMPLATE = obj(
    metadata=obj(name=STR, namespace=STR, labels=mapping(STR), annotations=mapping(STR), finalizers=arr(STR)),
    spec=limited(POD_SPEC, required=["containers"]),
)
EMBEDDED_SERVICE = obj(apiVersion=STR, kind=STR, metadata=ANY, spec=SERVICE_SPEC, status=ANY)
HEAD_GROUP = obj(
    "template",
    template=POD_TEMPLATE,
    rayStartParams=mapping(STR),
    headService=EMBEDDED_SERVICE,
    enableIngress=BOOL,
    serviceType=STR,
    resources=mapping(INT_OR_STR),
    labels=mapping(STR),
)
WORKER_GROUP = obj(
    "groupName",
    "maxReplicas",
    "minReplicas",
    "template",
    groupName=STR,
    replicas=limited(INT, defaults=0, format="int32"),
    minReplicas=limited(INT, defaults=0),
    maxReplicas=limited(INT, defaults=2147483647),
    numOfHosts=limited(INT, defaults=1),
    idleTimeoutSeconds=INT,
    suspend=BOOL,
    rayStartParams=mapping(STR),
    template=POD_TEMPLATE,
    scaleStrategy=obj(workersToDelete=arr(STR)),
    resources=mapping(INT_OR_STR),
    labels=mapping(STR),
)
RAY_CLUSTER_SPEC = obj(
    "headGroupSpec",
    rayVersion=STR,
    suspend=BOOL,
    managedBy=choice("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"),
    enableInTreeAutoscaling=BOOL,
    autoscalerOptions=ANY,
    gcsFaultToleranceOptions=ANY,
    authOptions=ANY,
    upgradeStrategy=ANY,
    headServiceAnnotations=mapping(STR),
    headGroupSpec=HEAD_GROUP,
    workerGroupSpecs=arr(WORKER_GROUP),
)
SERVE_STATUS = obj(
    rayClusterName=STR,
    applicationStatuses=mapping(
        obj(
            status=STR,
            message=STR,
            healthLastUpdateTime=TIME,
            serveDeploymentStatuses=mapping(obj(status=STR, message=STR, healthLastUpdateTime=TIME)),
        )
    ),
    rayClusterStatus=ANY,
    targetCapacity=INT,
    trafficRoutedPercent=INT,
    lastTrafficMigratedTime=TIME,
)
RAY_SERVICE = whole(
    spec=obj(
        serveConfigV2=STR,
        rayClusterConfig=RAY_CLUSTER_SPEC,
        serveService=EMBEDDED_SERVICE,
        excludeHeadPodFromServeSvc=BOOL,
        rayClusterDeletionDelaySeconds=limited(INT, minimum=0),
        serviceUnhealthySecondThreshold=INT,
        deploymentUnhealthySecondThreshold=INT,
        suspend=BOOL,
        upgradeStrategy=obj(type=choice("NewCluster", "NewClusterWithIncrementalUpgrade", "None"), clusterUpgradeOptions=ANY),
    ),
    status=obj(
        conditions=keyed(limited(CONDITION, required=["lastTransitionTime", "message", "reason", "status", "type"]), "type"),
        serviceStatus=STR,
        numServeEndpoints=INT,
        observedGeneration=INT,
        lastUpdateTime=TIME,
        activeServiceStatus=SERVE_STATUS,
        pendingServiceStatus=SERVE_STATUS,
    ),
)

MODEL = open_obj(
    "modelFormat",
    modelFormat=obj("name", name=limited(STR, defaults=""), version=STR),
    runtime=STR,
    protocolVersion=STR,
    storageUri=STR,
    storage=ANY,
    name=limited(STR, defaults=""),
    env=keyed(open_obj("name", name=STR, value=STR), "name"),
    resources=open_obj(limits=mapping(INT_OR_STR), requests=mapping(INT_OR_STR)),
)
COMPONENT = open_obj(
    model=MODEL,
    containers=keyed(CONTAINER, "name"),
    minReplicas=INT,
    maxReplicas=INT,
    timeout=INT,
    canaryTrafficPercent=limited(INT, format="int64"),
    serviceAccountName=STR,
    labels=mapping(STR),
    annotations=mapping(STR),
)
URL_STATUS = obj(url=STR, name=STR, CACerts=STR, audience=STR)
TRAFFIC = obj(revisionName=STR, configurationName=STR, latestRevision=BOOL, tag=STR, percent=limited(INT, format="int64"), url=STR)
COMPONENT_STATUS = obj(
    url=STR,
    restUrl=STR,
    grpcUrl=STR,
    address=URL_STATUS,
    latestReadyRevision=STR,
    latestCreatedRevision=STR,
    latestRolledoutRevision=STR,
    previousRolledoutRevision=STR,
    traffic=arr(TRAFFIC),
)
INFERENCE_SERVICE = whole(
    spec=obj("predictor", predictor=COMPONENT, transformer=COMPONENT, explainer=COMPONENT, canary=arr(ANY)),
    status=obj(
        url=STR,
        address=URL_STATUS,
        annotations=mapping(STR),
        clusterServingRuntimeName=STR,
        servingRuntimeName=STR,
        components=mapping(COMPONENT_STATUS),
        conditions=arr(limited(CONDITION, properties=CONDITION["properties"] | {"severity": STR, "status": STR})),
        deploymentMode=STR,
        modelStatus=obj(
            "transitionStatus",
            transitionStatus=limited(choice("", "UpToDate", "InProgress", "BlockedByFailedLoad", "InvalidSpec"), defaults="UpToDate"),
            states=obj(
                "activeModelState",
                activeModelState=limited(choice("", "Pending", "Standby", "Loading", "Loaded", "FailedToLoad"), defaults="Pending"),
                targetModelState=limited(choice("", "Pending", "Standby", "Loading", "Loaded", "FailedToLoad"), defaults=""),
            ),
            copies=obj("failedCopies", failedCopies=limited(INT, defaults=0), totalCopies=INT),
            lastFailureInfo=obj(location=STR, reason=STR, message=STR, modelRevisionName=STR, time=TIME, exitCode=INT),
        ),
        observedGeneration=limited(INT, format="int64"),
    ),
)

PORT = limited(INT, minimum=1, maximum=65535, format="int32")
GATEWAY_GROUP = "gateway.networking.k8s.io"
NAME = limited(STR, minLength=1, maxLength=253)
PARENT_REF = obj(
    "name",
    group=limited(STR, defaults=GATEWAY_GROUP),
    kind=limited(STR, defaults="Gateway"),
    namespace=STR,
    name=NAME,
    sectionName=STR,
    port=PORT,
)
BACKEND = obj("name", group=limited(STR, defaults=""), kind=limited(STR, defaults="Service"), name=NAME, namespace=STR, port=PORT)
HEADER = obj("name", "value", name=limited(STR, minLength=1, maxLength=256), value=limited(STR, minLength=1, maxLength=4096))
HEADER_CHANGE = obj(set=keyed(HEADER, "name"), add=keyed(HEADER, "name"), remove=arr(STR, maxItems=16) | {"x-kubernetes-list-type": "set"})
FILTER = obj(
    "type",
    type=choice(
        "RequestHeaderModifier",
        "ResponseHeaderModifier",
        "RequestMirror",
        "RequestRedirect",
        "URLRewrite",
        "ExtensionRef",
        "CORS",
    ),
    requestHeaderModifier=HEADER_CHANGE,
    responseHeaderModifier=HEADER_CHANGE,
    requestMirror=obj("backendRef", backendRef=BACKEND, percent=limited(INT, minimum=0, maximum=100), fraction=ANY),
    requestRedirect=ANY,
    urlRewrite=ANY,
    extensionRef=ANY,
    cors=ANY,
)
MATCH_KIND = limited(choice("Exact", "RegularExpression"), defaults="Exact")
PATH = obj(
    type=limited(choice("Exact", "PathPrefix", "RegularExpression"), defaults="PathPrefix"),
    value=limited(STR, maxLength=1024, defaults="/"),
)
MATCH = obj(
    path=limited(PATH, defaults={"type": "PathPrefix", "value": "/"}),
    headers=keyed(obj("name", "value", type=MATCH_KIND, name=NAME, value=STR), "name"),
    queryParams=keyed(obj("name", "value", type=MATCH_KIND, name=NAME, value=STR), "name"),
    method=choice("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"),
)
MATCHES = arr(MATCH, maxItems=64, default=[{"path": {"type": "PathPrefix", "value": "/"}}])
WEIGHTED = obj(
    "name",
    **BACKEND["properties"],
    weight=limited(INT, minimum=0, maximum=1000000, defaults=1, format="int32"),
    filters=arr(FILTER),
)
RULE = obj(
    name=STR,
    matches=MATCHES,
    filters=arr(FILTER, maxItems=16),
    backendRefs=arr(WEIGHTED, maxItems=16),
    timeouts=obj(request=STR, backendRequest=STR),
    retry=ANY,
    sessionPersistence=ANY,
)
HTTP_ROUTE = whole(
    ("spec",),
    spec=obj(
        parentRefs=arr(PARENT_REF, maxItems=32),
        hostnames=arr(limited(STR, minLength=1, maxLength=253), maxItems=16),
        rules=arr(RULE, minItems=1, maxItems=16, default=[{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}]}]),
        useDefaultGateways=STR,
    ),
    status=obj(
        "parents",
        parents=arr(
            obj(
                "controllerName",
                "parentRef",
                parentRef=PARENT_REF,
                controllerName=limited(STR, minLength=1),
                conditions=keyed(limited(CONDITION, required=["lastTransitionTime", "message", "reason", "status", "type"]), "type"),
            ),
            maxItems=32,
        ),
    ),
)
