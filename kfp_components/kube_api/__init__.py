"""A Kubernetes API without its HTTP: what a real server does to objects, in this process and without an event loop.

Reading order: `verbs` (create, update, patch, apply, delete, collect) -> `patches` and `ssa` (how a patch becomes an object; pure)
-> `schema` (defaults, unknown fields, validation; pure) -> `kinds` (the table of kinds, with their `schemas`) -> `store` (sqlite, the
only writer). `failure` holds the error answers, `selectors` label and field selectors, `access` who may do what.

Two users: ``cluster.memory`` calls the verbs in process, ``local.apiserver`` serves them over HTTPS. It imports nothing of the rest.
"""
