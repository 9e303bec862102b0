"""Is a champion as good as it was?"""

from kfp import dsl

from kfp_components.ops.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def revalidate_model(
    model: str,
    namespace: str,
    rayservice: str,
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    rules: dict = {},  # noqa: B006  KFP reads the default from the signature
    models: int = 1,
    run_id: str = "",
    red: bool = True,
):
    """Ask what users get its golden set, through the alias as clients do, and compare it with its own record; the first look makes the record.

    Args:
        model: the model whose champion is asked.
        namespace: namespace of the RayService.
        rayservice: name of the RayService.
        rules: everything with a default; each wrong key is named (see kfp_components.request.RevalidateRules).
        models: how many models share the chance of a false accusation.
        run_id: identity of the run.
        red: fail when it decayed or cannot be asked; false where a later step does so for all models.
        report: what was found, as a page.
        summary: the same in a few lines.
        metrics: requests, failures, latency (ms) and evidence of this look.
    """
    from kfp_components.ops import runtime

    runtime.revalidate(model, namespace, rayservice, rules, models, run_id, report, summary, metrics, red)
