"""`armworld sweep camera|horizon`: measure along something that a user can choose."""

from __future__ import annotations

from typing import Annotated, Any

import tyro

from armworld.evaluation.camera_sweep import CameraSweep, camera_sweep
from armworld.evaluation.horizon import HorizonSweep, horizon_sweep

SweepConfig = (
    Annotated[CameraSweep, tyro.conf.subcommand("camera", prefix_name=False)]
    | Annotated[HorizonSweep, tyro.conf.subcommand("horizon", prefix_name=False)]
)


def sweep(config: CameraSweep | HorizonSweep) -> dict[str, Any]:
    """Run the study that was asked for."""
    return camera_sweep(config) if isinstance(config, CameraSweep) else horizon_sweep(config)
