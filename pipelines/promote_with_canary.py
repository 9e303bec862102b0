"""See `kfp_components.workflows.promote_with_canary`."""

from kfp_components.workflows.promote_with_canary import DEFAULT_STEPS, build, promote_with_canary

__all__ = ["DEFAULT_STEPS", "build", "promote_with_canary"]
