"""Process of the simulated robot: franky-sim's FCI server on loopback, its MuJoCo world with our table and object.

    python -m armworld.real.sim_server --block FILE --cameras left --size 256 256 --object cup

prints one line of JSON with the address to connect to, and serves until its standard input closes.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import socket
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from armworld.real.sim_block import RobotSample, SharedBlock
from armworld.sim_assets.catalog import HOME_QPOS, object_spec
from armworld.types import require

SHARE_EVERY = 10  # physics steps of 1 ms between two writes to the shared block
FINGER_M = 0.0425  # travel of one finger: the 2F-85's opening of 85 mm, where the Franka Hand's is 80
LONGER_M = 0.05  # by which the 2F-85's pads are farther from the flange than the Franka Hand's


class LoopbackSockets:
    """Stands for the `socket` module inside franky-sim, whose UDP socket would listen on every interface."""

    def __getattr__(self, name: str) -> Any:
        return getattr(socket, name)

    class socket(socket.socket):  # named as in the module that it stands for
        def bind(self, address: Any) -> None:
            super().bind(("127.0.0.1", *address[1:]) if address[0] in ("", "0.0.0.0") else address)


def answer_broken_off_motions() -> None:
    """Make franky-sim's hand answer a motion that a stop or a newer motion breaks off, as a real hand does.

    It forgets it otherwise, and the client waits for ever.
    """
    from franky_sim import franka_gripper_server as hand
    from franky_sim.franka_gripper_protocol import GripperCommandStatus
    from franky_sim.franka_server import BaseCommand

    def first_answer(method: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(method)
        def answered(self: Any, *arguments: Any) -> None:
            number, client = self._pending_command_id, self._pending_tcp_socket
            if number is not None and client is not None:
                kind, aborted = self._pending_command_type, GripperCommandStatus.kAborted
                BaseCommand.send_response(
                    client, kind, number, aborted, command_type_struct="H", status_type_struct="H"
                )
            method(self, *arguments)

        return answered

    for name in ("start_move", "start_grasp", "start_homing", "stop"):
        setattr(hand.FrankaGripperServer, name, first_answer(getattr(hand.FrankaGripperServer, name)))


def measure_poses() -> None:
    """Make franky-sim's robot report the pose that its joints have, as libfranka's O_T_EE is: measured.

    Its forward kinematics hands out one and the same matrix again and again. The pose of the measured joints became
    that of the desired ones, computed next, which runs some 30 mm ahead of an arm in motion.
    """
    from franky_sim.base_simulator import BaseRobot

    shared: Callable[..., Any] = BaseRobot.kinematics

    @functools.wraps(shared)
    def kinematics(self: Any, q: np.ndarray) -> Any:
        return shared(self, q).copy()

    BaseRobot.kinematics = kinematics


def shape_hand(world: Any) -> None:
    """Give franky-sim's Franka Hand the reach, the mounting and the opening of a Robotiq 2F-85, before it starts.

    The cameras show a 2F-85, which the models know, and its fingers must be where the pictures show them: parallel
    fingers stay, along the flange's y, their pads as far out as the 2F-85's when it is half closed. What is left is
    the arc that a 2F-85's pads move on (13 mm along the flange's z) and their height.
    """
    (hand,) = world.worldbody.findall(".//body[@name='robot0_hand']")
    x, y, z = map(float, hand.get("pos").split())
    hand.set("pos", _text((x, y, z + LONGER_M)))
    hand.set("quat", "1 0 0 0")
    for joint in hand.iter("joint"):
        joint.set("range", _text((0.0, FINGER_M)))
    world.scene.find("option").attrib.update(cone="elliptic", impratio="10")  # held objects creep otherwise


def add_object(world: Any, name: str, position: tuple[float, float, float]) -> None:
    """Put an object of the catalogue, upright on the table, into franky-sim's scene before it starts.

    Its collision shapes and its mass; what it looks like is the cameras' business.
    """
    model = object_spec(name).compile()
    index = model.body(name).id
    body = ET.SubElement(world.worldbody, "body", name=name, pos=_text(position))
    ET.SubElement(body, "freejoint", name=name)
    mass, inertia = _text([model.body_mass[index]]), _text(model.body_inertia[index])
    pos, quat = _text(model.body_ipos[index]), _text(model.body_iquat[index])
    ET.SubElement(body, "inertial", pos=pos, quat=quat, mass=mass, diaginertia=inertia)
    for geom in range(model.ngeom):
        if not model.geom_contype[geom]:
            continue
        assert model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_BOX, f"{name} collides with more than boxes"
        pos, quat = _text(model.geom_pos[geom]), _text(model.geom_quat[geom])
        size, friction = _text(model.geom_size[geom]), _text(model.geom_friction[geom])
        ET.SubElement(body, "geom", type="box", pos=pos, quat=quat, size=size, friction=friction)


def _text(numbers: Iterable[float]) -> str:
    return " ".join(repr(float(number)) for number in numbers)


def serve(arguments: argparse.Namespace) -> None:
    """Run until the parent closes our standard input."""
    require("franky_sim", "sim")
    import franky_sim.franka_server as transport
    from franky_sim import SimulationServer
    from franky_sim.mujoco_simulator import MujocoSimulator

    transport.socket = LoopbackSockets()
    answer_broken_off_motions()
    measure_poses()
    block = SharedBlock(arguments.block, tuple(arguments.cameras), tuple(arguments.size))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with MujocoSimulator() as world:
        shaped = arguments.robot == "robotiq_2f85"
        robot = world.add_robot(initial_q=tuple(HOME_QPOS), initial_hand_width=2 * FINGER_M if shaped else 0.08)
        if shaped:
            shape_hand(world)
        if arguments.object:
            add_object(world, arguments.object, tuple(arguments.object_position))
        ticks = placed = 0

        def share(simulator: Any) -> None:
            nonlocal ticks, placed
            ticks += 1
            if ticks % SHARE_EVERY == 0:
                placed = _place(block, simulator, arguments.object, placed)
                _share(block, simulator, robot, arguments.object, placed)

        world.register_post_step_callback(share)
        with SimulationServer(world) as server:
            _share(block, world, robot, arguments.object, placed)
            print(json.dumps({"host": robot.hostname, "pid": os.getpid()}), flush=True)
            server.run_forever()


def _place(block: SharedBlock, world: Any, name: str | None, placed: int) -> int:
    """Put the object where it was asked to stand, if that is news; answers the latest placement's number."""
    asked, pose = block.placement()
    if name and asked != placed:
        joint = world.data.joint(name)
        joint.qpos[:], joint.qvel[:] = pose, 0
    return asked


def _share(block: SharedBlock, world: Any, robot: Any, name: str | None, placed: int) -> None:
    pose, touched, supported = np.zeros(7), False, False
    if name:
        body = world.data.body(name)
        pose = np.concatenate([body.xpos, body.xquat])
        touched, supported = _contacts(world, body.id)
    joints, time_s = np.array(robot.inner_state.q), float(world.data.time)
    block.write_robot(RobotSample(joints, robot.hand_width, pose, time_s, touched, supported, placed))


def _contacts(world: Any, body: int) -> tuple[bool, bool]:
    """Whether the robot, and whether anything else touches a body."""
    owners = world.model.geom_bodyid[world.data.contact.geom]  # [C, 2]
    others = owners[(owners == body).any(1)].sum(1) - body
    return bool((others > 0).any()), bool((others == 0).any())  # the ground is the world's, body 0


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options that both of the simulated robot's processes take."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--block", type=Path, required=True)
    parser.add_argument("--cameras", nargs="+", default=["left"])
    parser.add_argument("--size", type=int, nargs=2, default=[256, 256])
    parser.add_argument("--object", default=None)
    parser.add_argument("--object-position", type=float, nargs=3, default=[0.5, 0.0, 0.001])
    parser.add_argument("--robot", default="robotiq_2f85")
    parser.add_argument("--lab", default="lab1")
    parser.add_argument("--rate-hz", type=float, default=15.0)
    return parser.parse_args(argv)


if __name__ == "__main__":
    serve(parse())
