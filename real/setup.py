"""From a deployment's settings to limits, devices and framing. Everything is checked before a device is touched."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from armworld.envs.cameras import CAMERAS, IMAGE_SIZES
from armworld.real.cameras import Framing, OpenCVCamera, PolledCamera, RealSenseCamera, RecordedCamera
from armworld.real.cell import Cell
from armworld.real.franky_arm import FrankyArm
from armworld.real.grippers import FrankaHand, Robotiq2F85
from armworld.real.limits import FINGERS, Box, Limits
from armworld.real.protocols import Gripper
from armworld.real.simulated import SimulatedRobot
from armworld.sim_assets.catalog import LABS, OBJECTS
from armworld.types import check_name, check_numbers

BoxText = tuple[float, float, float, float, float, float]
CAMERA_KINDS = ("opencv", "realsense", "recorded")
PLAN_AGE_S, SIM_PLAN_AGE_S = 1.0, 10.0  # a simulated arm may wait for a planner on a busy machine
LIVE_AGES = {"max_frame_age": 0.3, "max_state_age": 0.2}  # a live arm gets no older frames and states than these

# The simulated cell's own boxes: the training scenes' table, 5 mm of air under the fingertips.
SIM_WORKSPACE: BoxText = (0.28, -0.38, 0.12, 0.70, 0.38, 0.60)
SIM_FINGERTIPS: BoxText = (0.15, -0.50, 0.005, 0.85, 0.50, 0.70)


@dataclass(frozen=True)
class CellConfig:
    """The robot cell: devices, workspace, limits.

    Attributes:
        sim: Use the simulated robot (real client, loopback) instead of hardware.
        host: FCI address of the arm.
        hand: The gripper at the flange: franka_hand, robotiq_2f85 or none. The simulated robot's has a 2F-85's shape.
        hand_port: Serial device of the Robotiq gripper.
        activate_hand: Let the Robotiq gripper activate at connect: it opens and closes fully.
        cameras: NAME=KIND:SOURCE each, such as left=opencv:/dev/video0, wrist=realsense:912112070000,
            left=recorded:FOLDER. The first is the one that pictures given as goals belong to.
        image_size: Height and width of the pictures that the agent sees; 0 takes the model's (256 without one).
        crop: Aspect ratio (width / height) of the middle that is kept of a picture; 0 keeps everything.
        workspace: Flange box x0 y0 z0 x1 y1 z1 (m, base frame). Required on hardware.
        fingertips: Fingertip box x0 y0 z0 x1 y1 z1 (m). Required on hardware; its floor is just above the table.
        keep_out: Boxes that flange and fingers must not enter, six numbers each.
        step_seconds: Time of one action; 0 takes the model's (0.25 without one).
        max_speed: m/s, at most 0.25.
        max_rotation_rate: rad/s.
        max_tilt: Largest angle of the tool from straight down, rad.
        max_plan_age: Seconds for which an observation allows a plan; 0 takes 1 on hardware and 10 with --sim. A slow
            planner on a CPU needs more than 1.
        max_frame_age: Seconds; with older frames the arm stands still.
        max_state_age: Seconds; with an older state it does, too.
        force_threshold: Collision reflex, N, set at connect.
        torque_threshold: Collision reflex, Nm, set at connect.
    """

    sim: bool = False
    host: str = ""
    hand: Literal["franka_hand", "robotiq_2f85", "none"] = "franka_hand"
    hand_port: str = ""
    activate_hand: bool = False
    cameras: tuple[str, ...] = ()
    image_size: int = 0
    crop: float = 0.0
    workspace: BoxText | None = None
    fingertips: BoxText | None = None
    keep_out: tuple[BoxText, ...] = field(default=())
    step_seconds: float = 0.0
    max_speed: float = 0.25
    max_rotation_rate: float = 1.0
    max_tilt: float = 0.7
    max_plan_age: float = 0.0
    max_frame_age: float = 0.3
    max_state_age: float = 0.2
    force_threshold: float = 25.0
    torque_threshold: float = 20.0

    def check_cell(self) -> None:
        """Raise ValueError for what is missing or contradictory, before anything is connected."""
        check_numbers(self, "crop", "step_seconds", "max_plan_age", least=0)
        check_numbers(self, "force_threshold", "torque_threshold", above=0)
        if self.image_size:
            check_numbers(self, "image_size", least=IMAGE_SIZES[0], most=IMAGE_SIZES[1])
        if self.sim:
            if self.host or self.cameras:
                raise ValueError("--sim brings its own robot and camera: leave out --host and --cameras")
            return
        if not self.host:
            raise ValueError("give the arm's FCI address with --host, or --sim for the simulated robot")
        if self.workspace is None or self.fingertips is None:
            raise ValueError(
                "give --workspace and --fingertips, six numbers each (x0 y0 z0 x1 y1 z1, metres, base frame): "
                "nobody else knows your table"
            )
        if not self.cameras:
            raise ValueError("give at least one camera: --cameras left=opencv:/dev/video0")
        if self.hand == "robotiq_2f85" and not self.hand_port:
            raise ValueError("the Robotiq gripper needs --hand-port, such as /dev/ttyUSB0")
        for name, largest in LIVE_AGES.items():
            if getattr(self, name) > largest:
                raise ValueError(f"{name} must be at most {largest} s on hardware, got {getattr(self, name)}")
        names = self.camera_names
        if len(set(names)) != len(names):
            raise ValueError(f"--cameras must have names of their own, got {', '.join(names)}")

    @property
    def camera_names(self) -> tuple[str, ...]:
        """What the cell's cameras are called."""
        return CAMERAS if self.sim else tuple(parse_camera(text)[0] for text in self.cameras)

    def limits(self, step_seconds: float) -> Limits:
        """The gate's limits."""
        workspace = SIM_WORKSPACE if self.sim and self.workspace is None else self.workspace
        fingertips = SIM_FINGERTIPS if self.sim and self.fingertips is None else self.fingertips
        assert workspace is not None and fingertips is not None, "check_cell was not called"
        return Limits(
            workspace=to_box(workspace),
            fingertips=to_box(fingertips),
            keep_out=tuple(to_box(numbers) for numbers in self.keep_out),
            fingers=FINGERS["robotiq_2f85" if self.sim else "franka_hand" if self.hand == "none" else self.hand],
            step_seconds=step_seconds,
            max_speed=self.max_speed,
            max_rotation_rate=self.max_rotation_rate,
            max_tilt=self.max_tilt,
            max_plan_age=self.max_plan_age or (SIM_PLAN_AGE_S if self.sim else PLAN_AGE_S),
            max_frame_age=self.max_frame_age,
            max_state_age=self.max_state_age,
        )

    def cell(self, framing: Framing) -> Cell:
        """The hardware's devices, not yet connected."""
        arm = FrankyArm(
            self.host,
            max_speed=self.max_speed,
            force_threshold_n=self.force_threshold,
            torque_threshold_nm=self.torque_threshold,
        )
        cameras = dict(make_camera(text, framing) for text in self.cameras)
        return Cell(arm, self._gripper(), cameras)

    def _gripper(self) -> Gripper | None:
        if self.hand == "franka_hand":
            return FrankaHand(self.host)
        if self.hand == "robotiq_2f85":
            return Robotiq2F85(self.hand_port, activate=self.activate_hand)
        return None


def check_table(table: str, lab: str) -> None:
    """Raise ValueError unless the simulated robot can have that object on its table (or none), and look like that lab.

    Its cameras run in a process of their own, which could only end.
    """
    check_name("object", table, (*OBJECTS, "none"))
    check_name("lab", lab, LABS)


def to_box(numbers: BoxText) -> Box:
    """x0 y0 z0 x1 y1 z1 as a box."""
    return Box(numbers[:3], numbers[3:])


def parse_camera(text: str) -> tuple[str, str, str]:
    """NAME=KIND:SOURCE -> its three parts."""
    name, _, rest = text.partition("=")
    kind, _, source = rest.partition(":")
    if not name or not source:
        raise ValueError(f"a camera is NAME=KIND:SOURCE, such as left=opencv:/dev/video0, got {text!r}")
    check_name("camera kind", kind, CAMERA_KINDS)
    return name, kind, source


def make_camera(text: str, framing: Framing) -> tuple[str, PolledCamera]:
    """The camera that NAME=KIND:SOURCE means, with its name."""
    name, kind, source = parse_camera(text)
    if kind == "opencv":
        return name, OpenCVCamera(int(source) if source.isdigit() else source, framing=framing)
    if kind == "realsense":
        return name, RealSenseCamera(source, framing=framing)
    return name, RecordedCamera(Path(source), framing=framing)


def sim_cell(robot: SimulatedRobot) -> Cell:
    """The simulated robot's devices."""
    cameras = {name: robot.camera(name) for name in robot.config.cameras}
    return Cell(robot.arm(), robot.gripper(), cameras, robot)
