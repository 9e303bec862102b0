"""One run of a pipeline of this library, from what is asked to how it ended: its parameters, its text, its release while it runs, its last word."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp_components import errors, phases, request, rollout
from kfp_components.clock import Clock, SystemClock
from kfp_components.cluster import Cluster
from kfp_components.ops.image import IMAGE
from kfp_components.release import Release, ReleaseStore
from kfp_components.workflows import client
from kfp_components.workflows.client import RunState

PIPELINES = {
    "promote": "promote_with_canary",
    "deploy": "deploy_model",
    "rollback": "rollback",
    "revalidate": "revalidate",
    "revalidate-namespace": "revalidate_namespace",
}
"""What a person calls it -> the function in `kfp_components.workflows`, whose name is taken too."""

NOT_READ_S = 30.0
"""A cluster that did not answer is not asked again for so long: the run is followed meanwhile."""


@dataclass(frozen=True)
class Asked:
    """What a run is to do. ``model`` is None for all of a namespace."""

    word: str
    parameters: Mapping[str, Any]
    namespace: str
    model: str | None
    boxes: int = 0
    secrets: tuple[str, ...] = ()

    @property
    def function(self) -> str:
        """Name of the pipeline's function."""
        return PIPELINES[self.word]

    @property
    def name(self) -> str:
        """The pipeline's name in Kubeflow."""
        return self.function.replace("_", "-")

    @property
    def experiment(self) -> str:
        """The experiment that its runs go to where no other one is named: one for each model."""
        return self.model or f"{self.namespace}-revalidation"

    @property
    def releases(self) -> bool:
        """Whether it has a release record."""
        return self.word in ("promote", "deploy", "rollback")

    @property
    def target(self) -> request.ModelTarget:
        """Of one model."""
        return request.parse_target({key: self.parameters[key] for key in ("model", "namespace", "rayservice")})


def word_of(pipeline: str) -> str:
    """The word for a pipeline, by that or by its own name. Raises `RequestInvalid` that lists them."""
    names = {name: word for word, name in PIPELINES.items()} | {word.replace("-", "_"): word for word in PIPELINES}
    if (found := names.get(pipeline.replace("-", "_"))) is None:
        raise errors.RequestInvalid(f"pipeline {pipeline!r} is not known; known are {', '.join(PIPELINES)}")
    return found


def asked_of(pipeline: str, values: Mapping[str, Any]) -> Asked:
    """What is asked, from a request (promote, deploy) or a pipeline's parameters. Raises `RequestInvalid` that names each wrong key."""
    word = word_of(pipeline)
    if word in ("promote", "deploy"):
        asked = request.parse(values)
        if word == "deploy":  # its pipeline has no steps, so nothing may depend on them
            asked = request.parse({key: value for key, value in values.items() if key != "steps"})
        steps = {"steps": list(asked.steps)} if word == "promote" else {}
        plain = asked.plain
        about = {key: plain[key] for key in ("model", "version", "uri", "namespace", "rayservice", "import_path")}
        parameters = {**about, **steps, "options": plain.get("options", {})}
        boxes = len(asked.steps) if word == "promote" else 0
        return Asked(word, parameters, asked.namespace, asked.model, boxes, tuple(request.plain_secrets(asked)))
    known = {"namespace", "rayservice"} | ({"model"} if word != "revalidate-namespace" else set()) | ({"reason"} if word == "rollback" else {"rules"})
    if strange := sorted(map(str, set(values) - known)):
        raise errors.RequestInvalid(f"{word}: {', '.join(strange)} is not a known key; known are {', '.join(sorted(known))}")
    parameters = {key: value for key, value in values.items() if value not in (None, "")}
    if "rules" in parameters:
        rules = request.parse_rules(parameters["rules"])
        parameters["rules"] = rules.model_dump(mode="json", exclude_defaults=True)
    needed = known - {"rules", "reason"} - ({"rayservice"} if word == "revalidate-namespace" else set())
    if missing := sorted(needed - set(parameters)):
        raise errors.RequestInvalid(f"{word}: {', '.join(missing)} is missing; give it by --{' and --'.join(missing)}, or in the file")
    texts = {key: value for key, value in parameters.items() if key != "rules"}
    if wrong := sorted(key for key, value in texts.items() if not isinstance(value, str)):
        raise errors.RequestInvalid(f"{word}: {wrong[0]} is {texts[wrong[0]]!r}, which is no text")
    found = Asked(word, parameters, parameters["namespace"], parameters.get("model"))
    request.parse_target({"model": found.model or "any", "namespace": found.namespace, "rayservice": parameters.get("rayservice") or "any"})
    return found


def compiled(asked: Asked, folder: Path) -> Path:
    """The pipeline from the installed library, as a file in ``folder``: byte for byte the same for the same library, image and number of steps."""
    from kfp import compiler

    from kfp_components.workflows import compile as compiling
    from kfp_components.workflows import promote_with_canary

    path = folder / f"{asked.function}.yaml"
    if asked.word == "promote":
        default = promote_with_canary.DEFAULT_STEPS
        boxes = default if asked.boxes == len(default) else tuple(round(100 * (box + 1) / (asked.boxes + 1)) for box in range(asked.boxes))
        pipeline = promote_with_canary.build(boxes)
    else:
        module = importlib.import_module(f"kfp_components.workflows.{compiling.PIPELINES[asked.function]}")
        pipeline = getattr(module, asked.function)
    compiler.Compiler().compile(pipeline, str(path))
    return path


def assert_package(asked: Asked, package: Path) -> None:
    """Raise `RequestInvalid` unless the file is that pipeline and takes these parameters."""
    if (name := client.pipeline_name(package)) != asked.name:
        raise errors.RequestInvalid(f"{package}: it is the pipeline {name}, and {asked.word} is {asked.name}")
    client.assert_parameters(package, asked.parameters)


def image_warning() -> str:
    """What is to be said of the image that the installed library compiles in; empty where it was named."""
    if os.environ.get("KFP_SERVING_IMAGE"):
        return ""
    return f"the pipeline runs in the image {IMAGE}, which has no registry: set KFP_SERVING_IMAGE to yours, unless every node has it"


class ReleaseOfRun:
    """The release record in the cluster while it is of one run of Kubeflow Pipelines."""

    def __init__(self, cluster: Cluster | None, asked: Asked, run_id: str, *, why_not: str = "", clock: Clock | None = None) -> None:
        """``why_not`` says why there is no cluster."""
        self._clock = clock or SystemClock()
        self._store = ReleaseStore(cluster, asked.model, asked.namespace) if cluster and asked.releases and asked.model else None
        self._holder, self._identity = f"kfp/{run_id}", ""
        self._again = 0.0
        self.why_not = why_not
        self.other: Release | None = None
        """The model's record as it was read last, where that is of another run."""

    def look(self, *, at_last: bool = False) -> Release | None:
        """The record; None while it is not of this run, or cannot be read, which `why_not` says then."""
        if self._store is None or (self._clock.monotonic() < self._again and not at_last):
            return None
        try:
            found = self._store.load()
        except errors.KfpServingError as error:
            self.why_not, self._again = str(error), self._clock.monotonic() + NOT_READ_S
            return None
        self.why_not, self.other = "", None
        if found is None or not (found.holder == self._holder or (self._identity and found.identity == self._identity)):
            self.other = found
            return None
        self._identity = found.identity  # an abort from elsewhere writes another holder
        return found


def conclude(asked: Asked, run: RunState, release: Release | None, *, other: Release | None = None, cluster: Cluster | None = None) -> None:
    """Return where the run did what was asked, else raise what the local command would: as the release says, as the looks of a re-validation say, as
    an error of a step names it. Raises `RunFailed` where nothing of this says why."""
    if asked.releases and release is not None:
        return _as_recorded(asked, release)
    if run.state == "SUCCEEDED":
        return
    what = f"run {run.id} of {asked.name} {run.state}"
    if not asked.releases and cluster is not None:
        _as_looked(asked, run.id, cluster)
    for name in re.findall(r"\b([A-Z][A-Za-z]+): ", run.said):
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, errors.KfpServingError):
            raise kind(f"{what}: {run.said}")
    if other is not None and not other.done and asked.word != "rollback":
        raise errors.ReleaseHeld(
            f"{what} before it had a release of its own; {other.holder} is at one of {other.candidate_version} ({other.phase.replace('_', ' ')})"
        )
    said = run.said or "Kubeflow does not say why"
    raise errors.RunFailed(f"{what}: {said}; `kubectl logs -l pipeline/runid={run.id} --tail=-1 -n NAMESPACE` of its pods does")


def _as_recorded(asked: Asked, record: Release) -> None:
    about = f"model {record.namespace}/{record.model}: {record.candidate_version}"
    if record.phase == "promoted" or (record.phase == "rolled_back" and asked.word == "rollback"):
        return
    if record.phase == "rolled_back":
        failure = record.failure
        raise _kind(failure.error if failure else "", errors.RolledBack)(failure.message if failure else f"{about} was taken back")
    if record.phase == "held" and record.held:
        told = phases.how_to_go_on(record.in_a_command, record.candidate_version, held=True)
        error = _kind(record.held.error, errors.Inconclusive)(record.held.message)
        error.add_note(told)
        raise error
    serves = f"; {record.stable_version} serves" if record.stable_version and not record.weight_percent else ""
    left = errors.ReleaseLeft(f"{about} is {record.phase.replace('_', ' ')}, and its run has ended{serves}")
    left.add_note(phases.how_to_go_on(record.in_a_command, record.candidate_version))
    raise left


def _kind(name: str, default: type[errors.KfpServingError]) -> type[errors.KfpServingError]:
    kind = getattr(errors, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, errors.KfpServingError) else default


def _as_looked(asked: Asked, run_id: str, cluster: Cluster) -> None:
    """Raise what the looks of that run say, where it noted any that can be read."""
    try:
        rayservice = asked.parameters.get("rayservice")
        targets = [asked.target] if asked.model else rollout.champions(cluster, asked.namespace, rayservice)
        found = [rollout.last_look(cluster, target, run_id) for target in targets]
    except errors.KfpServingError:
        return
    if any(one.look.unix_s for one in found):
        rollout.raise_if_decayed(found)
