"""`armworld preflight`: is the camera where the model understands it? Overlay, jogs, yaw error, a verdict, a page.

armworld preflight --azimuth 30                          # a camera of the simulated cell
armworld preflight --azimuth 30 --moves 128              # ... and a model that has learned to see from there
armworld preflight --lab lab2 --moves 512 --hands        # ... and to grasp there
armworld preflight --sim                                 # the simulated robot, through the real client
armworld preflight --host ... --cameras ... --live       # an arm, after a typed confirmation
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from rich.console import Console

from armworld.envs.cameras import EXTERIOR, RIGS, intrinsics, project
from armworld.evaluation.agents import told_camera
from armworld.evaluation.cells import env_id_of, open_env, single_thread
from armworld.evaluation.folders import check_out
from armworld.evaluation.jogging import ADAPTED, Jogs, Reading, adapted_reading, jog, read_jogs
from armworld.evaluation.looking import walk
from armworld.evaluation.preflight_page import Live, preflight_record, print_marks, read_picture, write_page
from armworld.evaluation.views import AXES, View, Views, make_views, parse_axis
from armworld.planners.calibrating import FEWEST_MOVES
from armworld.real.setup import CellConfig
from armworld.sim_assets.catalog import LABS
from armworld.types import check_name, check_numbers

AXIS_M = 0.12


@dataclass(frozen=True)
class Watch:
    """What is looked at.

    Attributes:
        model: Name of a shipped world model, or a checkpoint folder.
        lab: lab1 or lab2.
        camera: left or right; by default the model's.
        reference: The picture that the camera should see, e.g. a frame of the training data; by default the scene
            rendered from the rig that the shipped models were trained on.
        moves: Random moves through the workspace after the jogs, from which the model learns to see from this camera
            (`worldmodel.adapt`); the adapted model is out/model, and the verdict is its. 0: none; 64 to 256 do.
        hands: The moves also turn the hand, move the fingers and go down to the table: to grasp here. 512 do.
        seed: Of the scene, the search and the moves (of the range for choosing settings).
        live: With --host: jog the arm, after a typed confirmation. Otherwise an arm is only looked at.
        out: Folder for preflight.json, preflight.png and index.html.
    """

    model: str = "default"
    lab: str = "lab1"
    camera: str | None = None
    reference: Path | None = None
    moves: int = 0
    hands: bool = False
    seed: int = 1_000_000
    live: bool = False
    out: Path = Path("runs/preflight")


@dataclass(frozen=True)
class PreflightConfig(Views, Watch, CellConfig):
    """Look through a camera, jog the arm by 5 cm along each axis, and say how the model reads it.

    With --moves, adapt the model to the camera.

    Without --host and --sim the camera is one of the simulated cell, given by its offsets from the lab's own place,
    one value each. With them it is the robot cell's, and every jog passes the safety gate.
    """

    azimuth: str = "0"

    def __post_init__(self) -> None:
        check_name("lab", self.lab, LABS)
        check_numbers(self, "seed", "moves", least=0)
        if self.moves and self.moves < FEWEST_MOVES:
            raise ValueError(f"moves must be 0 or at least {FEWEST_MOVES}, got {self.moves}")
        if self.hands and not self.moves:
            raise ValueError("--hands is about random moves: say how many with --moves")
        if not self.moves and (self.out / ADAPTED).exists():
            raise ValueError(f"{self.out / ADAPTED} was adapted in an earlier run; choose another --out")
        if self.reference is not None:
            read_picture(self.reference)
        if self.on_arm:
            self.check_cell()
            if self.camera is not None:
                check_name("camera of the cell", self.camera, self.camera_names)
            self._refuse(Views, "is for the simulated cell; leave it out with --host and --sim", {"azimuth": "0"})
        else:
            if self.camera is not None:
                check_name("camera to place", self.camera, EXTERIOR)
            self._views()
            self._refuse(CellConfig, "is for a robot cell: give --host, or --sim for the simulated robot", {})
        if self.live and not self.host:
            raise ValueError("--live is for an arm: give --host")

    def _views(self) -> None:
        """Raise ValueError unless there is one camera, and it can be placed."""
        if any(len(parse_axis(axis, getattr(self, axis))) > 1 for axis in AXES):
            raise ValueError("preflight looks through one camera: give one value per axis (armworld sweep takes many)")
        make_views(self, RIGS[self.lab][self.camera or "left"])

    @property
    def on_arm(self) -> bool:
        """Whether a robot cell is looked at, real or simulated, and not a Gymnasium scene."""
        return self.sim or bool(self.host)

    def _refuse(self, settings: type, why: str, other_defaults: dict[str, Any]) -> None:
        """Name a setting that would be ignored."""
        for field in fields(settings):
            if getattr(self, field.name) != other_defaults.get(field.name, field.default):
                raise ValueError(f"--{field.name.replace('_', '-')} {why}")


def preflight(config: PreflightConfig, console: Console | None = None, ask: Callable[[str], str] = input) -> int:
    """Look, jog, judge, write the page. Answers 0; 1 where the verdict is bad.

    Raises:
        ValueError: No such model, camera or reference picture; more than one camera asked for; on an arm also no
            confirmation, a failed check, or a jog that was stopped.
        DeviceLost: A device did not connect.
    """
    check_out(config.out, "preflight")
    if config.on_arm:
        from armworld.real.jogs import preflight_arm

        return preflight_arm(config, console, ask)
    return preflight_scene(config, console)


def preflight_scene(config: PreflightConfig, console: Console | None = None) -> int:
    """`preflight` of a camera of the simulated cell."""
    from armworld.worldmodel.checkpoint import load_world_model

    console = console or Console()
    model = load_world_model(config.model)
    camera = check_name("camera to place", config.camera or model.camera, EXTERIOR)
    view = make_views(config, RIGS[config.lab][camera])[-1]
    env = _open(model, config.lab, camera, view)
    try:
        with single_thread():
            seen, live = jog_env(env, camera, config.seed)
            model = told_camera(model, env, camera)
            reading = Reading(read_jogs(model, seen, config.seed))
            if config.moves:
                recorded = walk(env, config.moves, config.seed, wide=True, hands=config.hands)
                console.print(f"Learning from {config.moves} moves ...")
                out, name = config.out / ADAPTED, config.model
                reading = adapted_reading(model, seen, reading.before, recorded, config.seed, out, name)
            reference = _reference(config, env, camera)  # which puts the camera elsewhere
    finally:
        env.close()
    place = view.placement
    where = f"camera at azimuth {place.azimuth:.0f}°, elevation {place.elevation:.0f}°, {place.distance:.2f} m away, "
    record = preflight_record(reading, f"{where}field of view {place.fovy:.0f}°", asdict(config))
    write_page(config.out, {**record, "view": view.to_json()}, live, reference)
    return tell(reading, config.out, console)


def tell(reading: Reading, out: Path, console: Console) -> int:
    """Print the verdict and where to find what; answers the exit code."""
    for title, marks in reading.verdicts():
        if title:
            console.print(title, highlight=False)
        print_marks(marks, console)
    if reading.adapted is not None:
        console.print(f"Adapted model: {out / ADAPTED}", soft_wrap=True)
    console.print(f"Page: {out / 'index.html'}", soft_wrap=True)
    return 1 if reading.mark == "bad" else 0


def jog_env(env: gymnasium.Env, camera: str, seed: int) -> tuple[Jogs, Live]:
    """Jog in a simulated scene, from the middle of what the arm can reach."""
    observation, _ = env.reset(seed=seed)
    arm: Any = env.unwrapped
    flange = observation["state"][:3].astype(np.float64)
    points = flange + np.concatenate([np.zeros((1, 3)), AXIS_M * np.eye(3)])
    size = arm.image_size
    pixels = project(points, arm.extrinsics(camera), intrinsics(arm.simulator.model, camera, size, size))
    live = Live(observation[camera], pixels)
    return jog(lambda: observation, lambda action: env.step(action.astype(np.float32))[0], camera), live


def training_view(model: Any, camera: str, seed: int) -> np.ndarray:
    """uint8 [H, W, 3]: a scene's start, drawn from where the model's training camera stood."""
    env = _open(model, "lab1", camera)
    try:
        return env.reset(seed=seed)[0][camera]
    finally:
        env.close()


def _open(model: Any, lab: str, camera: str, view: View | None = None) -> gymnasium.Env:
    kwargs = {"lab": lab, "cameras": (camera,), "image_size": model.image_size[0]}
    kwargs |= {"step_seconds": model.step_seconds}
    if view is not None:
        kwargs |= {"placements": {camera: view.placement.as_dict()}}
    return open_env(env_id_of("reach"), kwargs)


def _reference(config: PreflightConfig, env: gymnasium.Env, camera: str) -> np.ndarray:
    """The picture that the model's training camera would show of the scene at its start."""
    arm: Any = env.unwrapped
    if config.reference is not None:
        return read_picture(config.reference, (arm.image_size, arm.image_size))
    arm.place_camera(camera, RIGS["lab1"][camera])
    return env.reset(seed=config.seed)[0][camera]
