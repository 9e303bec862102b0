"""The embedded Kubernetes API: a small API server on loopback, for machines without a cluster.

Reading order: `server` (start, stop, kubeconfig) -> `http` (one request: who, what, which verb) -> `access` (may they) -> `verbs`
(create, update, patch, apply, delete, collect) -> `patches` and `ssa` (how a patch becomes an object; pure) -> `schema`
(defaults, unknown fields, validation; pure) -> `kinds` (the table of kinds, with their `schemas`) -> `store` (sqlite, the only
writer). `failure` holds the error answers, `discovery` what clients read before they start, `table` what `kubectl get` prints,
`proto` the protobuf bodies that kubectl sends, `tls` the certificate. What a real cluster does and this one does not is
`server.NOT_SUPPORTED`; it is refused, never faked.
"""
