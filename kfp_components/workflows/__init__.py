"""The KFP pipelines that compose the components, and their compiler: ``python -m kfp_components.workflows.compile --out DIR [--check]``.

Not called ``pipelines``: `kfp_components.pipelines` belongs to the distribution `kfp-components`, and a top-level `pipelines` to everybody. The
folder `pipelines/` of the repository re-exports these modules; it is not installed.
"""
