"""What a run over many models found."""

from kfp import dsl

from kfp_components.ops.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def collect_revalidations(
    namespace: str,
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    rayservice: str = "",
    model: str = "",
    run_id: str = "",
    red: bool = True,
):
    """Read what the steps of this run noted of every model, write one report, and fail when a champion decayed or could not be asked.

    Args:
        namespace: namespace of the models.
        rayservice: only the models of this one; empty: of all.
        model: only this one; then rayservice is needed.
        run_id: identity of the run.
        red: fail when one decayed or could not be asked. KFP keeps no output of a step that failed, so a step before it writes the page.
        report: all models, the worst first, as a page.
        summary: the same in a few lines.
        metrics: how many models had which outcome.
    """
    from kfp_components.ops import runtime

    runtime.collect_revalidations(namespace, rayservice, model, run_id, report, summary, metrics, red)
