"""Re-validation without Kubeflow Pipelines: a plain Kubernetes CronJob that runs ``kfp-serving revalidate`` in the component image."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from kfp_components import errors, names, uris
from kfp_components.cluster import Manifest
from kfp_components.ops.image import IMAGE
from kfp_components.request import RevalidateRules, parse_rules
from kfp_components.workflows.cron import Cron
from kfp_components.workflows.submit import Asked

REGISTRY = "KFP_SERVING_REGISTRY_URI"
RULES_AT, RULES_FILE = "/etc/kfp-serving", "rules.yaml"
LEAST: tuple[dict[str, list[str]], ...] = (
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "create", "update"]},
    {"apiGroups": [""], "resources": ["services"], "verbs": ["get"]},
    {"apiGroups": ["ray.io"], "resources": ["rayservices"], "verbs": ["get"]},
    {"apiGroups": ["serving.kserve.io"], "resources": ["inferenceservices"], "verbs": ["get"]},
)
"""All that a re-validation in the cluster asks of Kubernetes where it does not demote; what deploy/rbac.yaml grants is more."""

OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
MOST_NAME = 52
"""Of a CronJob: its Jobs have eleven characters more."""

SPARE_S, DEMOTION_S = 120, 7200
"""Beside the answers of each model, and of the demotions of a run, which are canaries."""


@dataclass(frozen=True)
class Job:
    """What is run, when, as whom; ``models`` is how many it is given time for."""

    name: str
    cron: Cron
    asked: Asked
    image: str | None
    service_account: str
    registry_uri: str | None
    registry_secret: str | None
    models: int

    def manifests(self) -> list[Manifest]:
        """The CronJob, after a ConfigMap with its rules where there are any. Raises `RequestInvalid`."""
        self._assert_possible()
        rules = self.asked.parameters.get("rules") or {}
        meta = {"namespace": self.asked.namespace, "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY}}
        if not rules:
            return [self._cronjob(meta, parse_rules({}))]
        held = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"{self.name}-rules", **meta}}
        held["data"] = {RULES_FILE: yaml.safe_dump(rules, sort_keys=False)}
        return [held, self._cronjob(meta, parse_rules(rules))]

    def text(self) -> str:
        """The same as YAML, with what is to be known of it."""
        told = [
            f"# kfp-serving revalidate by cron ({self.cron.kubernetes}, UTC), in the image and under an account that the Role of deploy/rbac.yaml is",
            "# bound to. A Job fails where a champion decayed (exit code 7) or could not be asked (3): that is how it is noticed.",
            f"# Without demote it asks no more of Kubernetes than: {_in_words()}.",
        ]
        return "\n".join(told) + "\n" + yaml.safe_dump_all(self.manifests(), sort_keys=False)

    def listed(self) -> Manifest:
        """The same as one object: of JSON, kubectl takes no array."""
        return {"apiVersion": "v1", "kind": "List", "items": self.manifests()}

    def _assert_possible(self) -> None:
        if self.asked.word not in ("revalidate", "revalidate-namespace"):
            raise errors.RequestInvalid(
                f"--cronjob runs a re-validation, not {self.asked.word}; leave it out, and Kubeflow Pipelines runs it by cron"
            )
        if not names.DNS_1123.fullmatch(self.name) or len(self.name) > MOST_NAME:
            raise errors.RequestInvalid(f"--name {self.name!r}: a CronJob's is of a-z, 0-9 and -, and of at most {MOST_NAME} characters")
        for option, name in (("--service-account", self.service_account), ("--registry-secret", self.registry_secret)):
            if name is not None and not OBJECT_NAME.fullmatch(name):  # it is not repeated: it may be what belongs into that Secret
                raise errors.RequestInvalid(f"{option}: it is no name of an object in Kubernetes (a-z, 0-9, - and .)")
        if self.registry_uri and self.registry_secret:
            raise errors.RequestInvalid("--registry-uri and --registry-secret say the same thing; give one of them")
        if self.registry_uri and (found := uris.credential_in(self.registry_uri)):
            raise errors.RequestInvalid(f"--registry-uri: it carries a credential, {found}; put it into a Secret and give --registry-secret")

    def _cronjob(self, meta: dict[str, Any], rules: RevalidateRules) -> Manifest:
        each_s = 60 * rules.max_minutes + SPARE_S
        pod: dict[str, Any] = {
            "serviceAccountName": self.service_account,
            "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [self._container()],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        }
        if self.asked.parameters.get("rules"):
            pod["volumes"].append({"name": "rules", "configMap": {"name": f"{self.name}-rules"}})
        return {
            "apiVersion": "batch/v1",
            "kind": "CronJob",
            "metadata": {"name": self.name, **meta},
            "spec": {
                "schedule": self.cron.kubernetes,
                "timeZone": "Etc/UTC",
                "concurrencyPolicy": "Forbid",
                "startingDeadlineSeconds": 3600,
                "successfulJobsHistoryLimit": 3,
                "failedJobsHistoryLimit": 10,
                "jobTemplate": {
                    "spec": {
                        "backoffLimit": 0,
                        "activeDeadlineSeconds": int(self.models * each_s + (DEMOTION_S if rules.demote else 0)),
                        "template": {"metadata": {"labels": {**meta["labels"]}}, "spec": pod},
                    }
                },
            },
        }

    def _container(self) -> dict[str, Any]:
        asked = self.asked.parameters
        command = ["kfp-serving", "revalidate", *([self.asked.model] if self.asked.model else []), "--namespace", self.asked.namespace]
        mounts = [{"name": "tmp", "mountPath": "/tmp"}]
        if asked.get("rayservice"):
            command += ["--rayservice", str(asked["rayservice"])]
        if asked.get("rules"):
            command += ["--rules", f"{RULES_AT}/{RULES_FILE}"]
            mounts.append({"name": "rules", "mountPath": RULES_AT})
        environment: list[dict[str, Any]] = [{"name": "HOME", "value": "/tmp"}]
        if self.registry_uri:
            environment.append({"name": REGISTRY, "value": self.registry_uri})
        if self.registry_secret:
            environment.append({"name": REGISTRY, "valueFrom": {"secretKeyRef": {"name": self.registry_secret, "key": REGISTRY}}})
        return {
            "name": "revalidate",
            "image": self.image or IMAGE,
            "command": command,
            "env": environment,
            "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}},
            "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": mounts,
        }


def _in_words() -> str:
    return "; ".join(f"{', '.join(rule['resources'])}: {', '.join(rule['verbs'])}" for rule in LEAST)
