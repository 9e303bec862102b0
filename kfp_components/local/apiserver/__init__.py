"""The embedded Kubernetes API: ``kube_api`` as a small API server on loopback, for machines without a cluster.

Reading order: `server` (start, stop, kubeconfig) -> `http` (one request: who, what, which verb) -> ``kube_api.verbs`` (what it does).
`discovery` is what clients read before they start, `table` what `kubectl get` prints, `proto` the protobuf bodies that kubectl
sends, `tls` the certificate. What a real cluster does and this one does not is `server.NOT_SUPPORTED`; it is refused, never faked.
"""
