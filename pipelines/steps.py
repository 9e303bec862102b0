"""See `kfp_components.workflows.steps`."""

from kfp_components.workflows.steps import RUN_ID, deploy_and_smoke, uncached

__all__ = ["RUN_ID", "deploy_and_smoke", "uncached"]
