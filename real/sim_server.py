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

from armworld.real.sim_block import SharedBlock
from armworld.sim_assets.catalog import HOME_QPOS, object_spec
from armworld.types import require

SHARE_EVERY = 10  # physics steps of 1 ms between two writes to the shared block


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
    block = SharedBlock(arguments.block, tuple(arguments.cameras), tuple(arguments.size))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with MujocoSimulator() as world:
        robot = world.add_robot(initial_q=tuple(HOME_QPOS), initial_hand_width=0.08)
        if arguments.object:
            add_object(world, arguments.object, tuple(arguments.object_position))
        ticks = 0

        def share(simulator: Any) -> None:
            nonlocal ticks
            ticks += 1
            if ticks % SHARE_EVERY == 0:
                _share(block, simulator, robot, arguments.object)

        world.register_post_step_callback(share)
        with SimulationServer(world) as server:
            _share(block, world, robot, arguments.object)
            print(json.dumps({"host": robot.hostname, "pid": os.getpid()}), flush=True)
            server.run_forever()


def _share(block: SharedBlock, world: Any, robot: Any, name: str | None) -> None:
    pose = np.zeros(7)
    if name:
        body = world.data.body(name)
        pose = np.concatenate([body.xpos, body.xquat])
    block.write_robot(np.array(robot.inner_state.q), robot.hand_width, pose, float(world.data.time))


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
