"""Process of the simulated cameras: draws the scene that the models were trained in, at the simulated robot's joints.

The physics is franky-sim's FR3 with a Franka Hand; what the cameras show is our own scene (lab, arm, gripper, object)
in the same pose, so that a model sees what it knows. Both arms have the same kinematics.
"""

from __future__ import annotations

import argparse
import threading
import time

import numpy as np

from armworld.real.sim_block import RobotSample, SharedBlock
from armworld.real.sim_hand import closedness_at
from armworld.real.sim_server import _end_with_parent, parse
from armworld.sim_assets.catalog import OBJECTS

AWAY = (0.0, 0.0, -5.0, 0.0)  # under the floor
GRIPPER_STEPS = 100  # physics steps of 2 ms after which the drawn gripper stands at its new opening


class Twin:
    """Our own scene, posed like the simulated robot."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from armworld.envs.scene import SceneConfig
        from armworld.envs.simulator import Simulator

        self._object = arguments.object
        self._bystander = next((name for name in OBJECTS if name != arguments.object), None)
        objects = tuple(name for name in (arguments.object, self._bystander) if name)
        size = tuple(arguments.size)
        config = SceneConfig(robot=arguments.robot, lab=arguments.lab, objects=objects)
        self._robot = arguments.robot
        self._scene = Simulator(config, max_image_size=size)
        self._size, self._closed = size, -1.0
        self._scene.reset()

    def pose(self, sample: RobotSample, bystander: np.ndarray | None = None) -> None:
        """Arm, gripper and object as in the sample, another object at x, y, z (m) and yaw (rad) [4] or out of sight."""
        import mujoco

        scene, closed = self._scene, closedness_at(sample.width_m, self._robot)
        if abs(closed - self._closed) > 0.01:
            self._closed = closed
            scene.data.actuator("gripper").ctrl[:] = closed
            for _ in range(GRIPPER_STEPS):
                scene.data.qpos[scene.kinematics.qpos_index] = sample.joints
                scene.data.qvel[scene.kinematics.dof_index] = 0
                mujoco.mj_step(scene.model, scene.data)
        if self._object:
            joint = scene.data.joint(self._object)
            joint.qpos[:], joint.qvel[:] = sample.object_pose, 0
        if self._bystander:
            x, y, z, yaw = AWAY if bystander is None else bystander
            joint = scene.data.joint(self._bystander)
            joint.qpos[:], joint.qvel[:] = [x, y, z, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)], 0
        scene.set_arm(sample.joints)

    def draw(self, camera: str) -> np.ndarray:
        """uint8 [*size, 3] RGB."""
        return self._scene.renderer.render(self._scene.data, camera, *self._size)


def serve(arguments: argparse.Namespace) -> None:
    """Draw at the rate asked for until the parent closes our standard input."""
    block = SharedBlock(arguments.block, tuple(arguments.cameras), tuple(arguments.size))
    twin = Twin(arguments)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        started = time.monotonic()
        twin.pose(block.read_robot(), block.bystander())
        for i, name in enumerate(arguments.cameras):
            block.write_frame(i, twin.draw(name), started)
        time.sleep(max(0.001, 1 / arguments.rate_hz - (time.monotonic() - started)))


if __name__ == "__main__":
    serve(parse())
