"""From a Service to an address, over any `Cluster`."""

from __future__ import annotations

from kfp_components import errors, names
from kfp_components.cluster import Cluster, Endpoint, Ref

MAX_HOPS = 5


def walk(cluster: Cluster, service: str, namespace: str, port: int, *, in_cluster: bool = False) -> Endpoint:
    """Walk a Service, through ExternalName aliases, to an address.

    Inside a cluster its DNS name is used, so that the request goes the way of every client; the walk proves that the hops exist.
    Outside (a laptop, the embedded cluster) the first ready address of its EndpointSlices is.
    Raises `NotFound` that says at which hop it broke.
    """
    host = names.service_host(service, namespace)
    hops: list[str] = []
    name, space = service, namespace
    for _ in range(MAX_HOPS):
        found = cluster.get(Ref("Service", name, space))
        hops.append(f"Service {space}/{name}")
        if found is None:
            raise errors.NotFound(f"{' -> '.join(hops)}: it does not exist; clients of {host} get no answer")
        spec = found.get("spec", {})
        if spec.get("type") != "ExternalName":
            break
        target = str(spec.get("externalName", ""))
        hops.append(target)
        parts = target.removesuffix(".").split(".")
        if len(parts) < 3 or parts[2] != "svc":
            raise errors.NotFound(f"{' -> '.join(hops)}: not a cluster-local Service; it cannot be walked")
        name, space = parts[0], parts[1]
    else:
        raise errors.NotFound(f"{' -> '.join(hops)}: more than five hops; it looks like a loop")
    if in_cluster:
        return Endpoint(f"http://{host}:{port}", host, tuple(hops))
    port_name = next((p.get("name") for p in spec.get("ports", []) if p.get("port") == port), None)
    for piece in cluster.list("EndpointSlice", space, labels=f"kubernetes.io/service-name={name}"):
        target_port = next((p["port"] for p in piece.get("ports") or [] if p.get("name") == port_name), None)
        for entry in piece.get("endpoints") or []:
            if target_port and entry.get("conditions", {}).get("ready", True) and entry.get("addresses"):
                address = entry["addresses"][0]
                return Endpoint(f"http://{address}:{target_port}", host, (*hops, f"{address}:{target_port}"))
    raise errors.NotFound(f"{' -> '.join(hops)}: it has no ready endpoint on port {port}; is the RayService running?")
