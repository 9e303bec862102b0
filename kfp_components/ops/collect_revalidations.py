"""What a run over many models found."""

from kfp import dsl

from kfp_components.ops.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def collect_revalidations(namespace: str, report: dsl.Output[dsl.HTML], rayservice: str = "", run_id: str = ""):
    """Read what the steps of this run noted of every model, write one report, and fail when a champion decayed or could not be asked.

    Args:
        namespace: namespace of the models.
        rayservice: only the models of this one; empty: of all.
        run_id: identity of the run.
        report: all models, the worst first, as a page.
    """
    from kfp_components.ops import runtime

    runtime.collect_revalidations(namespace, rayservice, run_id, report.path)
