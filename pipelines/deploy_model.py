"""See `kfp_components.workflows.deploy_model`."""

from kfp_components.workflows.deploy_model import deploy_model

__all__ = ["deploy_model"]
