"""External launchers (accelerate, torchrun, srun, MPI): read the layout that they fix."""

from __future__ import annotations

from collections.abc import Mapping

from dtl.launch.launched_task import LAUNCHER
from dtl.plan.records import ExternalLaunch


def read_external_launch(environment: Mapping[str, str]) -> ExternalLaunch:
    """Return the layout that a launcher has left in the environment variables."""
    zero_stage, offload = None, None
    by_accelerate = any(name.startswith("ACCELERATE_") for name in environment)
    if environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        zero_stage = int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
        device = environment.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none")
        offload = "optimizer" if device != "none" else "none"
    elif by_accelerate:
        zero_stage = 0
    world_size = environment.get("WORLD_SIZE", "1")
    default = "the external launcher"
    return ExternalLaunch(
        launcher="accelerate launch" if by_accelerate else environment.get(LAUNCHER, default),
        world_size=int(world_size),
        local_world_size=int(environment.get("LOCAL_WORLD_SIZE", world_size)),
        zero_stage=zero_stage,
        offload=offload,
    )
