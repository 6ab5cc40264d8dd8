"""Time per planned action: this project's planner against a plain implementation of the published one.

    python benchmarks/planning.py [--model NAME|PATH] [--samples 64] [--iterations 2] [--device cpu] [--out FILE]

Both plan with the same model, samples, iterations, noise and device, in turns in one process; the plans are compared.
The plain one repeats the context over all samples and runs the predictor over the whole sequence for every imagined
step, as the published code does; it uses the same predictor modules, so the ratio shows the planning path alone.
Without `--model` the weights are random (time does not depend on them), in the shape of the shipped default. The plain
one knows no `window`: over more than one step, a model that has one (the shipped ones do) plans something else.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from armworld.planners.cem import CEM
from armworld.planners.objectives import FinalL1, LatentGoal
from armworld.planners.published import published_config
from armworld.planners.registry import make_planner
from armworld.pose import apply_action
from armworld.worldmodel.ac_predictor import ACPredictor
from armworld.worldmodel.blocks import normalize
from armworld.worldmodel.checkpoint import load_world_model
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.model import VJEPA2AC, WorldModelConfig
from armworld.worldmodel.sizes import ACPredictorConfig, EncoderConfig

MAX_POSITION, MAX_GRIPPER, TOP, MOMENTUM = 0.075, 0.75, 10, 0.15


@dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        model: Shipped name or checkpoint folder; empty: random weights of the sizes below.
        width, depth, heads: Predictor's size, for random weights.
        features: Width of the encoder and its features, for random weights; by default the predictor's.
        image_size: Pixels per side, for random weights; a patch is 16 x 16.
        horizons: Steps imagined.
        samples, iterations: Of both implementations.
        repeats: Timed runs of each; the median counts.
        threads: Threads of torch on a CPU.
        device: cpu, cuda ...
        others: Also time these planners at their defaults (horizon 1).
        out: JSON file to write.
    """

    model: str = ""
    width: int = 192
    depth: int = 6
    heads: int = 6
    features: int | None = None
    image_size: int = 128
    horizons: tuple[int, ...] = (1, 4)
    samples: int = 64
    iterations: int = 2
    repeats: int = 3
    threads: int = 1
    device: str = "cpu"
    others: tuple[str, ...] = ("cem", "cem_adam", "icem", "mppi", "gradient", "random_shooting")
    out: Path | None = None


@dataclass(frozen=True)
class Scene:
    """One planning problem: features [1, 1, N, D], state [1, 1, 7], goal features [1, N, D]."""

    z: Tensor
    state: Tensor
    goal: Tensor


@torch.no_grad()
def plain_published(predictor: ACPredictor, scene: Scene, noise: Tensor) -> Tensor:
    """The published planner written out plainly: actions [H, 7] from noise [iterations, H, samples, 4]."""
    _, horizon, samples, _ = noise.shape
    context = scene.z.repeat(samples, 1, 1, 1)
    pose = scene.state.repeat(samples, 1, 1)
    goal = scene.goal.repeat(samples, 1, 1)
    low = noise.new_tensor([-MAX_POSITION] * 3 + [-MAX_GRIPPER])
    mean = noise.new_zeros(horizon, 4)
    std = noise.new_tensor([MAX_POSITION] * 3 + [1.0]).repeat(horizon, 1)
    for draws in noise:
        latents, poses, actions = context, pose, None
        for h in range(horizon):
            sampled = (draws[h] * std[h] + mean[h]).clamp(low, -low)
            zeros = sampled.new_zeros(samples, 3)
            action = torch.cat([sampled[:, :3], zeros, sampled[:, 3:]], -1)[:, None]
            actions = action if actions is None else torch.cat([actions, action], 1)
            imagined = normalize(predictor(latents, actions, poses).z[:, -1:])
            latents = torch.cat([latents, imagined], 1)
            poses = torch.cat([poses, apply_action(poses[:, -1:], action)], 1)
        assert actions is not None
        energy = (latents[:, -1] - goal).abs().mean((1, 2))
        best = actions[energy.topk(TOP, largest=False).indices][..., [0, 1, 2, 6]]
        mean = best.mean(0) * (1 - MOMENTUM) + mean * MOMENTUM
        std = best.std(0) * (1 - MOMENTUM) + std * MOMENTUM
    gripper = torch.where(mean[:, 3:].abs() < 0.25, 0.0, mean[:, 3:])
    return torch.cat([mean[:, :3], mean.new_zeros(horizon, 3), gripper], -1)


def our_published(model: VJEPA2AC, scene: Scene, noise: Tensor) -> Tensor:
    """The same plan by this project's planner."""
    iterations, horizon, samples, _ = noise.shape
    config = published_config(horizon, samples, iterations, TOP, MAX_POSITION, *[MOMENTUM] * 4)
    planner = CEM(config, noise=lambda iteration, shape, _: noise[iteration].transpose(0, 1).reshape(shape))
    plan = planner.plan(model, FinalL1(), scene.z, scene.state, LatentGoal(scene.goal), generator=torch.Generator())
    return plan.actions[0]


def timed(run: Callable[[], Tensor], device: str) -> tuple[float, Tensor]:
    """Wall-clock seconds of one run, and its result."""
    started = time.perf_counter()
    result = run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def compare(config: Config, model: VJEPA2AC, scene: Scene, horizon: int) -> dict[str, float]:
    """Median seconds per action of both, in turns; one untimed run of each comes first."""
    shape = (config.iterations, horizon, config.samples, 4)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(horizon)).to(config.device)
    runs = {
        "plain": lambda: plain_published(model.predictor, scene, noise),
        "ours": lambda: our_published(model, scene, noise),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    plans: dict[str, Tensor] = {}
    for repeat in range(config.repeats + 1):
        for name, run in runs.items():
            taken, plans[name] = timed(run, config.device)
            if repeat:
                seconds[name].append(taken)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "horizon": horizon,
        "plain_seconds": median["plain"],
        "our_seconds": median["ours"],
        "ratio": median["plain"] / median["ours"],
        "largest_difference": float((plans["plain"] - plans["ours"]).abs().max()),
    }


def time_planner(config: Config, model: VJEPA2AC, scene: Scene, name: str) -> dict[str, float | str]:
    """Median seconds per action of a planner at its defaults, and its candidate rollouts."""
    planner, seconds, evaluated = make_planner(name), [], 0
    for _ in range(config.repeats):
        started = time.perf_counter()
        plan = planner.plan(
            model,
            FinalL1(),
            scene.z,
            scene.state,
            LatentGoal(scene.goal),
            generator=torch.Generator().manual_seed(0),
        )
        seconds.append(time.perf_counter() - started)
        evaluated = plan.statistics.evaluated
    return {"planner": name, "seconds": statistics.median(seconds), "candidates": evaluated}


def build(config: Config) -> VJEPA2AC:
    """The model to plan with."""
    if config.model:
        return load_world_model(config.model, device=config.device)
    torch.manual_seed(0)
    size, features = (config.image_size, config.image_size), config.features or config.width
    encoder = Encoder(EncoderConfig(features, 1, config.heads, image_size=size))
    predictor = ACPredictor(ACPredictorConfig(features, config.width, config.depth, config.heads, image_size=size))
    return VJEPA2AC(
        encoder.requires_grad_(False).to(config.device),
        predictor.requires_grad_(False).to(config.device),
        WorldModelConfig(image_size=size),
    )


def make_scene(model: VJEPA2AC, device: str) -> Scene:
    """Features of random frames; the goal is what a random plan leads to, so that energies differ."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (1, 1, *model.image_size, 3), generator=generator, dtype=torch.uint8)
    z = model.encode(frames).to(device)
    state = torch.tensor([[[0.5, 0.0, 0.3, 3.1, 0.0, 0.0, 0.2]]]).to(device)
    action = torch.tensor([0.05, -0.03, 0.02, 0, 0, 0, 0.5]).expand(1, 1, 1, 7).to(device)
    with torch.no_grad():
        return Scene(z, state, model.rollout(z, state, action).z[:, 0, -1])


def main(config: Config) -> None:
    """Measure, print, and write JSON if asked to."""
    torch.set_num_threads(config.threads)
    model = build(config)
    scene = make_scene(model, config.device)
    pairs = [compare(config, model, scene, horizon) for horizon in config.horizons]
    others = [time_planner(config, model, scene, name) for name in config.others]
    console = Console()
    table = Table("horizon", "plain s", "ours s", "ratio", "largest difference of the plans", title="published planner")
    for row in pairs:
        table.add_row(
            f"{row['horizon']:.0f}",
            f"{row['plain_seconds']:.3f}",
            f"{row['our_seconds']:.3f}",
            f"{row['ratio']:.2f}",
            f"{row['largest_difference']:.1e}",
        )
    console.print(table)
    table = Table("planner", "s per action", "candidates", title="all planners at their defaults, horizon 1")
    for row in others:
        table.add_row(str(row["planner"]), f"{row['seconds']:.3f}", str(row["candidates"]))
    console.print(table)
    if config.out is not None:
        record = {
            "config": {**asdict(config), "out": str(config.out)},
            "torch": torch.__version__,
            "published": pairs,
            "others": others,
        }
        temporary = config.out.with_suffix(".tmp")
        temporary.write_text(json.dumps(record, indent=1))
        os.replace(temporary, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
