"""See `kfp_components.workflows.rollback`."""

from kfp_components.workflows.rollback import rollback

__all__ = ["rollback"]
