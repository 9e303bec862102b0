"""See `kfp_components.workflows.revalidate`."""

from kfp_components.workflows.revalidate import revalidate, revalidate_namespace

__all__ = ["revalidate", "revalidate_namespace"]
