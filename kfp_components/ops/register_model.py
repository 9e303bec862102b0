"""Register the version and open the release."""

from kfp import dsl

from kfp_components.ops.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register_model(
    model: str,
    version: str,
    uri: str,
    namespace: str,
    rayservice: str,
    import_path: str,
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    registered_model: dsl.Output[dsl.Model],
    steps: list = [10, 25, 50],  # noqa: B006  KFP reads the default from the signature
    options: dict = {},  # noqa: B006
    run_id: str = "",
    first_version: bool = False,
    boxes: int = 0,
) -> dict:
    """Check everything, register the version as `candidate` and open the release record; nothing is written when a check fails.

    Args:
        model: DNS-1035 name of at most 53 characters; the public route is /{model}.
        version: name of the new version, such as v8.
        uri: where the artifact is (s3://, gs://, pvc://, hf://, https:// ...).
        namespace: namespace of the RayService.
        rayservice: name of the RayService that serves several models.
        import_path: module:attribute of the Serve application or its builder; must be on the RayService's allow-list.
        steps: ceilings of the candidate's share in percent, rising.
        options: everything with a default; each wrong key is named (see kfp_components.request.Options).
        run_id: identity of the run, so that a retried pod goes on and a second run is refused.
        first_version: the model has no stable version yet.
        report: the release so far, as a page.
        summary: the same in a few lines, what this step did and what comes next.
        metrics: seconds of this step, weight, evidence and counts.
        registered_model: where the version is, and what the registry knows of it.
        boxes: canary steps of the pipeline; a request with more is refused (0: not checked).

    Returns:
        The checked request, which the other steps take.
    """
    from kfp_components import rollout
    from kfp_components.ops import runtime

    values = {"model": model, "version": version, "uri": uri, "namespace": namespace, "rayservice": rayservice}
    run = runtime.open_run({**values, "import_path": import_path, "steps": steps, "options": options}, run_id)
    release = rollout.register_model(run, first_version=first_version, boxes=boxes or None)
    runtime.describe_model(run, release, registered_model)
    runtime.show(run, release, report, summary, metrics)
    return run.request.plain
