"""What the modules of `kfp-serving`'s commands share: options, a file as a mapping, a release in a sentence or as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from kfp_components import errors
from kfp_components.cluster import Cluster
from kfp_components.release import Release

Json = Annotated[bool, typer.Option("--json", help="print one JSON document instead of text")]
Kubeconfig = Annotated[Path | None, typer.Option(help="default: KUBECONFIG, the pod's service account, or ~/.kube/config")]


def cluster(kubeconfig: Path | None) -> Cluster:
    """The cluster of this process's surroundings. Raises `NotFound` where none is configured."""
    from kfp_components.cluster.kubernetes import KubernetesCluster

    return KubernetesCluster(kubeconfig)


def values(file: Path, *, empty: bool = False) -> dict[str, Any]:
    """A YAML or JSON file that holds a mapping. Raises `RequestInvalid`."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise errors.RequestInvalid(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise errors.RequestInvalid(f"{file}: byte {error.start} is not UTF-8; save it as UTF-8") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # whose text repeats the line, which may hold a secret
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else type(error).__name__
        raise errors.RequestInvalid(f"{file}: it is no YAML: {where}: {getattr(error, 'problem', None) or 'it cannot be read'}") from None
    if empty and values is None:
        return {}
    if not isinstance(values, dict):
        raise errors.RequestInvalid(f"{file}: expected a mapping with keys such as model, version, uri; found {type(values).__name__}")
    return values


def summary(record: Release) -> dict[str, Any]:
    """A release as commands tell it with --json."""
    rollback = record.rollback.model_dump() if record.rollback else None
    return {"model": record.model, "namespace": record.namespace, "rollback": rollback, **record.summary()}


def told(record: Release, as_json: bool, console: Console) -> None:
    """A release as commands tell it at their end."""
    if as_json:
        print(json.dumps(summary(record)))
    else:
        serves = f" ({record.stable_version} serves all requests)" if record.phase == "rolled_back" and record.rollback else ""
        phase = f"{record.phase.replace('_', ' ')}{serves}"
        console.print(f"{record.model} {record.candidate_version}: {f'{phase}. {record.sentence}'.rstrip()}", soft_wrap=True, markup=False)
