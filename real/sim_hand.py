"""The simulated robot's hand: franky-sim's, driven by the real client, told apart by the gripper that the cameras show.

A model compares closednesses, and one opening is another closedness to a Robotiq 2F-85 than to a Franka Hand.
"""

from __future__ import annotations

import numpy as np

from armworld.real.grippers import FrankaHand

# Of sim_assets' 2F-85: closedness, and the opening between its pads (m), measured at rest without an object.
CLOSEDNESS = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.975])
OPENING_M = np.array([0.0850, 0.0776, 0.0698, 0.0616, 0.0530, 0.0442, 0.0350, 0.0258, 0.0166, 0.0072, 0.0])
HAND_M = 0.08  # the Franka Hand's opening


def closedness_at(width_m: float, robot: str) -> float:
    """The closedness 0 open ... 1 closed at which `robot` (a name of `sim_assets`) is open by `width_m`."""
    if robot == "robotiq_2f85":
        return float(np.interp(width_m, OPENING_M[::-1], CLOSEDNESS[::-1]))
    return float(np.clip(1 - width_m / HAND_M, 0, 1))


class SimulatedHand(FrankaHand):
    """The simulated hand by the real client; its closedness is that of the gripper which the cameras show."""

    def __init__(self, host: str, robot: str) -> None:
        super().__init__(host)
        self.robot = robot
        self.max_width_m = float(OPENING_M[0]) if robot == "robotiq_2f85" else HAND_M

    def _closedness(self, width_m: float, widest_m: float) -> float:
        return closedness_at(width_m, self.robot)

    def _width(self, closedness: float) -> float:
        if self.robot == "robotiq_2f85":
            return float(np.interp(closedness, CLOSEDNESS, OPENING_M))
        return super()._width(closedness)
