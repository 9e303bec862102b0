"""The pipelines of `kfp_components.workflows` under the name of this folder, for work in a checkout; not installed."""
