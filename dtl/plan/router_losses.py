"""Report the losses that the routers of a mixture of experts add to that of the task."""

from __future__ import annotations

from dtl.models.router_outputs import find_router_losses, has_routers
from dtl.plan.records import DecisionLog
from dtl.plan.request import PlanRequest


def log_router_losses(request: PlanRequest, log: DecisionLog) -> None:
    """Add a decision on the losses of routers, if the model has any. Raises DtlError if the config
    requests them of a model without routers."""
    config, requested = request.model_config, request.config.train.router_aux_loss_coef
    if config is None:
        return
    settings = find_router_losses(config, requested)
    if settings is not None:
        log.add("router loss", f"{settings.balance_coefficient:g}", settings.reason)
    elif has_routers(config) and requested is None:
        log.add(
            "router loss",
            "none",
            "the base does not set output_router_logits; train.router_aux_loss_coef adds it",
        )
