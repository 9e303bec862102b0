"""Whether this run tests a real cluster: KUBE_API=kubeconfig takes the cluster of KUBECONFIG in place of the embedded one (`make test-cluster`).

Without a KUBECONFIG such a run skips every test, each with the reason, and says so at its end. A KUBECONFIG that is there and does not work is a fault.
"""

import functools
import os
from pathlib import Path

import pytest

ENVIRONMENT = "KUBE_API"


@functools.cache
def why_not() -> str | None:
    """Why a run that was asked for a real cluster has none; None when it has one, or when none was asked for."""
    word = os.environ.get(ENVIRONMENT, "")
    if word not in ("", "kubeconfig"):
        known = "leave it out for the embedded API, or set it to kubeconfig for the cluster of KUBECONFIG"
        pytest.exit(f"{ENVIRONMENT}={word}: not known; {known}", returncode=pytest.ExitCode.USAGE_ERROR)
    if not word or os.environ.get("KUBECONFIG"):
        return None
    return "no real cluster: KUBECONFIG is not set; let it name the kubeconfig file of one"


@functools.cache
def kubeconfig() -> Path | None:
    """The file of the cluster to test, None for the embedded one. For fixtures: skips the test when a real one was asked for and there is none."""
    if reason := why_not():
        pytest.skip(reason)
    if not os.environ.get(ENVIRONMENT):
        return None
    path = Path(os.environ["KUBECONFIG"]).absolute()
    if not path.is_file():
        pytest.exit(f"KUBECONFIG={path}: not a file; name one kubeconfig file", returncode=pytest.ExitCode.USAGE_ERROR)
    return path
