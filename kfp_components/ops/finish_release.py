"""The exit task of a pipeline."""

from kfp import dsl

from kfp_components.ops.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finish_release(model: str, namespace: str, rayservice: str, report: dsl.Output[dsl.HTML], run_id: str = ""):
    """Verify that users are served, end what this run left unfinished, and keep the report; another run's release is not touched.

    Args:
        model: the model that was released.
        namespace: namespace of the RayService.
        rayservice: name of the RayService.
        run_id: identity of the run.
        report: the release as a page.
    """
    from kfp_components import errors, rollout
    from kfp_components.ops import runtime

    try:
        run = runtime.open_unfinished(model, namespace, rayservice, run_id)
        release = rollout.finish_release(run)
        why = "This run left no release of its own."
    except errors.NotFound as nothing_was_begun:
        release, why = None, str(nothing_was_begun)
    if release is not None:
        runtime.keep_report(run, release, report.path, report.uri)
    else:
        runtime.write_no_report(why, report.path)
