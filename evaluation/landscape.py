"""`armworld landscape PATH`: the planner's energy over one action, in the planes (Δx,Δy), (Δx,Δz) and (Δy,Δz).

    E(a) = mean |P(z, s, a) - z_goal|, or any other objective of `planners.objectives`

The start and the goal are one step apart; the displacement that really leads there is marked. Where the minimum lies
on the mark, planning can work; a flat or shifted valley says why it does not.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any
from zipfile import BadZipFile

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from rich.console import Console

from armworld.evaluation.agents import camera_pose, reads_camera
from armworld.evaluation.cells import env_id_of, open_env, single_thread
from armworld.evaluation.files import commit, plain, versions, write_bytes, write_json
from armworld.evaluation.folders import check_out
from armworld.evaluation.picture import figure_png, tidy
from armworld.evaluation.planner_picture import collapse_figure, energy_slice
from armworld.evaluation.report import Page, provenance
from armworld.evaluation.setup import Setup, check_scene
from armworld.planners.objectives import OBJECTIVE_NAMES, FinalL1, LatentGoal, Objective, make_objective
from armworld.planners.plans import ActionSpace
from armworld.planners.registry import PLANNERS, make_planner
from armworld.pose import action_between
from armworld.types import check_name, check_numbers

PLANES = {"xy": (0, 1), "xz": (0, 2), "yz": (1, 2)}
STREAM = 0x4C414E
CHUNK = 128  # actions per call of the model


@dataclass(frozen=True)
class LandscapeConfig:
    """Draw a world model's energy over single actions.

    Attributes:
        model: Name of a shipped world model, or a checkpoint folder.
        data: An .npz with observations uint8 [1, 2, H, W, 3] and states [1, 2, 7] (m, rad, closedness), e.g. of a
            real arm; by default start and goal are simulated.
        seed: Of the simulated start and the action to the goal.
        task: Task whose scene is simulated.
        object: cup, box or bottle.
        lab: lab1 or lab2.
        camera: Camera; by default the model's.
        objective: Name of an energy; by default the aligned one where the model has a readout, else the published one.
        reach_m: Half width of the planes (m); by default a quarter more than the true displacement, at least 7.5 cm.
        points: Grid points per axis.
        planner: Also let this planner search the step, and draw its samples collapsing over the energy; none does not.
        out: Folder for landscape.json, landscape.png, collapse.png and index.html.
    """

    model: Annotated[str, tyro.conf.Positional]
    data: Path | None = None
    seed: int = 2_000_000
    task: str = "reach"
    object: str = "cup"
    lab: str = "lab1"
    camera: str | None = None
    objective: str | None = None
    reach_m: float | None = None
    points: int = 25
    planner: str | None = "cem"
    out: Path = Path("runs/landscape")

    def __post_init__(self) -> None:
        check_numbers(self, "points", least=3)
        check_numbers(self, "reach_m", above=0)
        check_numbers(self, "seed", least=0)
        check_scene(Setup(camera=self.camera), (self.task, self.object, self.lab))
        if self.objective is not None:
            check_name("objective", self.objective, OBJECTIVE_NAMES)
        if self.planner is not None:
            check_name("planner that samples", self.planner, [name for name in PLANNERS if name != "servo"])


@dataclass(frozen=True)
class Step:
    """One true step.

    Attributes:
        images: uint8 [2, H, W, 3], before and after.
        states: float32 [2, 7].
        camera: float64 [6], where the camera stood (m, rad; base frame); None where nothing tells.
    """

    images: np.ndarray
    states: np.ndarray
    camera: np.ndarray | None = None

    @property
    def action(self) -> np.ndarray:
        """The action [7] between the two states."""
        return action_between(self.states[0].astype(np.float64), self.states[1].astype(np.float64))


def landscape(config: LandscapeConfig, console: Console | None = None) -> dict[str, Any]:
    """Evaluate the planes, write landscape.json, landscape.png and index.html; returns what landscape.json holds.

    Raises:
        ValueError: No such model or data, or data of another form.
    """
    from armworld.worldmodel.checkpoint import load_world_model

    console = console or Console()
    check_out(config.out, "landscape")
    recorded = load_step(config.data) if config.data else None
    model = load_world_model(config.model)
    step = recorded or simulate_step(config, model)
    if step.camera is not None and reads_camera(model):
        model = model.seen_from(step.camera)
    with single_thread():
        energy = make_objective(config.objective, getattr(model, "readout", None))
        findings = energy_planes(model, step, config.points, config.reach_m, energy)
        search = None if config.planner is None else search_figure(model, step, energy, findings, config)
    record = {
        "model": config.model,
        "source": str(config.data) if config.data else f"{config.task}, {config.lab}, seed {config.seed}",
        "verdict": [verdict(findings)],
        **plain(findings),
        "config": plain(asdict(config)),
        "commit": commit(),
        "versions": versions(),
    }
    png = figure_png(landscape_figure(findings, step))
    page = Page(f"landscape: {config.model}", f"Energy over one action; {record['source']}.")
    page.text(record["verdict"][0]).picture(png, "energy over pairs of axes, with the true displacement")
    if search is not None:
        png_of_search = figure_png(search)
        page.picture(png_of_search, f"the samples of {config.planner}, iteration by iteration")
        write_bytes(config.out / "collapse.png", png_of_search)
    provenance(page, record)
    write_bytes(config.out / "landscape.png", png)
    page.write(config.out / "index.html")
    write_json(config.out / "landscape.json", record)
    console.print(record["verdict"][0], highlight=False, soft_wrap=True)
    console.print(f"Page: {config.out / 'index.html'}", soft_wrap=True)
    return record


def load_step(path: Path) -> Step:
    """The first and last frame of an .npz in the format of `LandscapeConfig.data`."""
    try:
        with np.load(path) as file:
            images, states = file["observations"], file["states"]
    except (OSError, KeyError) as error:
        raise ValueError(f"{path} is no .npz with observations and states: {error}") from error
    except (ValueError, EOFError, TypeError, BadZipFile, zlib.error) as error:  # whose texts are for programmers
        raise ValueError(f"{path} is no .npz with observations and states: it cannot be read as one") from error
    if images.dtype != np.uint8 or images.ndim != 5 or images.shape[-1] != 3 or states.shape != (*images.shape[:2], 7):
        raise ValueError(
            f"{path}: expected observations uint8 [1,T,H,W,3] and states [1,T,7], got "
            f"{images.dtype} {list(images.shape)} and {list(states.shape)}"
        )
    if images.shape[1] < 2 or not np.isfinite(states).all():
        raise ValueError(f"{path}: expected at least two frames and finite states, got {images.shape[1]} frames")
    return Step(images[0, [0, -1]], states[0, [0, -1]].astype(np.float32))


def simulate_step(config: LandscapeConfig, model: Any) -> Step:
    """One action of 4 to 7 cm per axis from the start of the episode `config.seed`."""
    camera = config.camera or model.camera
    kwargs = {"object": config.object, "lab": config.lab, "cameras": (camera,), "image_size": model.image_size[0]}
    env = open_env(env_id_of(config.task), {**kwargs, "step_seconds": model.step_seconds})
    try:
        rng = np.random.default_rng([config.seed, STREAM])
        before, _ = env.reset(seed=config.seed)
        move = rng.uniform(0.04, 0.07, 3) * rng.choice([-1, 1], 3)
        after, *_ = env.step(np.append(move, np.zeros(4)))
        pose = camera_pose(env, camera)
    finally:
        env.close()
    return Step(np.stack([before[camera], after[camera]]), np.stack([before["state"], after["state"]]), pose)


def energy_planes(
    model: Any, step: Step, points: int, reach_m: float | None = None, objective: Objective | None = None
) -> dict[str, Any]:
    """Energies over the three planes; the third axis, rotation and gripper are held at their true values.

    Returns:
        axis_m [points], true_m [3], energy {plane: [points, points]} (first axis along the columns), minimum_m
        {plane: [2]}, error_m {plane: distance of the minimum from the truth}, and the energies of the true action
        and of no action.
    """
    action = step.action
    reach = reach_m or max(0.075, 1.25 * float(np.abs(action[:3]).max()))
    axis = np.linspace(-reach, reach, points)
    z, after = (_encode(model, image) for image in step.images)
    goal = LatentGoal(after[:, 0], torch.from_numpy(step.states[1:]).to(after))
    objective = objective or FinalL1()
    across, down = np.meshgrid(axis, axis)  # across: first axis of the plane, down: second
    energy, minimum, error = {}, {}, {}
    for name, (first, second) in PLANES.items():
        actions = np.tile(action, (points * points, 1))
        actions[:, first], actions[:, second] = across.reshape(-1), down.reshape(-1)
        grid = _energies(model, objective, z, step.states[0], actions, goal).reshape(points, points)
        best = np.unravel_index(int(np.argmin(grid)), grid.shape)
        energy[name], minimum[name] = grid, np.array([across[best], down[best]])
        error[name] = float(np.linalg.norm(minimum[name] - action[[first, second]]))
    true, none = _energies(model, objective, z, step.states[0], np.stack([action, np.zeros(7)]), goal)
    return {
        "axis_m": axis,
        "true_m": action[:3],
        "energy": energy,
        "minimum_m": minimum,
        "error_m": error,
        "energy_of_truth": float(true),
        "energy_of_holding": float(none),
    }


def search_figure(
    model: Any, step: Step, objective: Objective, findings: Mapping[str, Any], config: LandscapeConfig
) -> Figure:
    """The planner's samples of (Δx, Δy) over the energy around the plan that it chose (`planner_picture`)."""
    space = ActionSpace(max_position=float(findings["axis_m"][-1]), max_gripper=0.0)
    planner = make_planner(str(config.planner), space=space, record=True)
    z, after = (_encode(model, image) for image in step.images)
    goal = LatentGoal(after[:, 0], torch.from_numpy(step.states[1:]).to(after))
    state = torch.from_numpy(step.states[:1]).to(z)[None]
    plan = planner.plan(model, objective, z, state, goal, generator=torch.Generator().manual_seed(config.seed))
    found = energy_slice(model, objective, z, state, goal, plan, space, points=config.points)
    off = float(np.linalg.norm(plan.actions[0, 0, :3].cpu().numpy() - step.action[:3]))
    return collapse_figure(plan, found, title=f"{config.planner}: {100 * off:.1f} cm from the true displacement")


def _encode(model: Any, image: np.ndarray) -> torch.Tensor:
    """Features [1, 1, N, D] of an image, resized (bicubic) to what the model sees if it has another size."""
    height, width = model.image_size
    if image.shape[:2] != (height, width):
        image = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    return model.encode(image[None, None])


@torch.no_grad()
def _energies(
    model: Any, objective: Objective, z: torch.Tensor, state: np.ndarray, actions: np.ndarray, goal: LatentGoal
) -> np.ndarray:
    """Energies [n] of actions [n, 7], one step each."""
    start = torch.from_numpy(state).to(z)[None, None]
    costs = []
    for chunk in torch.from_numpy(actions).to(z).split(CHUNK):
        costs.append(objective(model.rollout(z, start, chunk[None, :, None]), goal)[0].cpu())
    return torch.cat(costs).numpy()


def verdict(findings: Mapping[str, Any]) -> str:
    """One sentence on where the minima lie."""
    errors = findings["error_m"]
    told = ", ".join(f"{name} {100 * errors[name]:.1f} cm" for name in PLANES)
    drop = 1 - findings["energy_of_truth"] / max(findings["energy_of_holding"], 1e-12)
    return (
        f"The minima lie {told} from the true displacement; the true action's energy is "
        f"{100 * abs(drop):.0f} % {'below' if drop > 0 else 'above'} that of holding still."
    )


def landscape_figure(findings: Mapping[str, Any], step: Step) -> Figure:
    """Start and goal image beside the three planes, truth and minimum marked."""
    figure = Figure(figsize=(14.4, 3.9), layout="constrained")
    panels = figure.subplots(1, 4, width_ratios=(0.55, 1, 1, 1))
    panels[0].imshow(np.concatenate(list(step.images)))
    panels[0].set_title("start, goal", loc="left", fontsize=10.5, fontweight="bold")
    panels[0].axis("off")
    axis, true = 100 * findings["axis_m"], 100 * findings["true_m"]
    for panel, (name, (first, second)) in zip(panels[1:], PLANES.items(), strict=True):
        tidy(panel, f"energy over Δ{name[0]}, Δ{name[1]}")
        drawn = panel.contourf(axis, axis, findings["energy"][name], levels=24, cmap="viridis")
        figure.colorbar(drawn, ax=panel, shrink=0.85, ticks=MaxNLocator(4), format="%.4g")
        low = 100 * findings["minimum_m"][name]
        panel.plot(
            true[first], true[second], "+", ms=15, mew=2.5, color="white", clip_on=False, label="true displacement"
        )
        panel.plot(low[0], low[1], "o", ms=9, mew=2, mfc="none", color="#f43f5e", clip_on=False, label="lowest energy")
        panel.set_aspect("equal")
        panel.set_xlabel(f"Δ{name[0]} (cm)", fontsize=9)
        panel.set_ylabel(f"Δ{name[1]} (cm)", fontsize=9)
    corner = "upper left" if true[1] < 0 else "lower left"  # away from the truth, which is what one looks for
    panels[1].legend(fontsize=8, loc=corner, facecolor="#1f2937", labelcolor="white", framealpha=0.8)
    return figure
