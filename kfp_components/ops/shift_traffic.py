"""Give the candidate a share of the requests."""

from kfp import dsl

from kfp_components.ops.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def shift_traffic(request: dict, weight_percent: float, run_id: str = "") -> dict:
    """Give the candidate a share of the requests, verified at the router; the share is a lease that lapses unless a step renews it.

    Args:
        request: what register_model returned.
        weight_percent: the share, 0 to 100.
        run_id: identity of the run, so that a retried pod goes on and a second run is refused.

    Returns:
        The request, for the next step.
    """
    from kfp_components import rollout
    from kfp_components.ops import runtime

    rollout.shift_traffic(runtime.open_run(request, run_id), weight_percent)
    return request
