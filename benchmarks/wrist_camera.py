"""What a wrist camera would tell: the object's place read from the exterior camera, from the wrist's, and from both.

    python benchmarks/wrist_camera.py --out DIR [--encoders default varied random:tiny:6] [--episodes 400]

Frames of scripted grasps with noise, from one camera outside and the one on the hand. Linear probes read where the
object lies, in the base frame and as seen from the hand (its offset in the hand's own heading), in episodes of lab1
that no probe has learned from, and again in lab2, which none has. The encoders are frozen, and the shipped ones have
learned from the exterior camera alone: for the wrist this is what can be had for nothing, not what training would give.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from armworld.envs.base import ArmEnv
from armworld.envs.experts import make_expert
from armworld.evaluation.cells import env_id_of, open_env, single_thread
from armworld.evaluation.files import write_json
from armworld.evaluation.probing import fit_probe
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.frozen import open_encoder

LABS = ("lab1", "lab2")
CAMERAS = ("left", "wrist")
VIEWS = {"left": [0], "wrist": [1], "both": [0, 1]}
FIRST_SEED = 600_000  # of the training range, used by no collection of the recipe
STREAM = 0x575249
NOISE_M, TURN_RAD = 0.02, 0.1  # standard deviation of what is added to the expert's motion per axis, and to its turn
NEAR_M = 0.15  # frames with the object within this of the fingertips' plane are scored apart


@dataclass(frozen=True)
class Config:
    """What to compare.

    Attributes:
        out: Folder of `wrist.json`.
        encoders: Shipped names, checkpoint folders or `random:SIZE[:DEPTH]`.
        episodes: Per lab; a quarter of lab1's are held out.
        every: Every so many steps one frame is taken.
        image_size: Pixels per side.
        object: The task's object.
    """

    out: Path
    encoders: tuple[str, ...] = ("default", "varied", "random:tiny:6")
    episodes: int = 400
    every: int = 4
    image_size: int = 128
    object: str = "cup"

    def __post_init__(self) -> None:
        if self.episodes < 8 or self.every < 1:
            raise ValueError(f"needs at least 8 episodes and every >= 1, got {self.episodes} and {self.every}")


@dataclass(frozen=True)
class Frames:
    """Frames of one lab: images uint8 [F, 2, H, W, 3], episodes int [F], states [F, 7], objects [F, 3] (m, base)."""

    images: np.ndarray
    episodes: np.ndarray
    states: np.ndarray
    objects: np.ndarray

    def targets(self) -> np.ndarray:
        """float64 [F, 4]: the object's x and y in the base frame, and its offset from the hand in its heading (m)."""
        offset = self.objects[:, :2] - self.states[:, :2]
        heading = np.exp(-1j * self.states[:, 5]) * (offset[:, 0] + 1j * offset[:, 1])
        return np.column_stack([self.objects[:, :2], heading.real, heading.imag])

    def near(self) -> np.ndarray:
        """bool [F]: the object lies within `NEAR_M` of the hand, horizontally."""
        return np.linalg.norm(self.objects[:, :2] - self.states[:, :2], axis=-1) < NEAR_M


def take(config: Config, lab: str) -> Frames:
    """Play noisy grasps in a lab and keep every so many frames."""
    kwargs = {"cameras": CAMERAS, "image_size": config.image_size, "lab": lab, "object": config.object}
    env = open_env(env_id_of("grasp"), {**kwargs, "step_seconds": 0.25})
    arm = env.unwrapped
    space = env.action_space
    assert isinstance(arm, ArmEnv) and isinstance(space, gymnasium.spaces.Box)
    rows = []
    try:
        for seed in range(FIRST_SEED, FIRST_SEED + config.episodes):
            rng = np.random.default_rng([seed, STREAM])
            observation, info = env.reset(seed=seed)
            expert, over, step = make_expert(env), False, int(rng.integers(config.every))
            expert.reset(info["goal"])
            while not over:
                if step % config.every == 0:
                    frame = np.stack([observation[name] for name in CAMERAS])
                    rows.append((frame, seed, observation["state"], arm.simulator.object_pose(arm.task.object)[0]))
                noise = np.array([*rng.normal(0, NOISE_M, 3), 0.0, 0.0, rng.normal(0, TURN_RAD), 0.0])
                action = np.clip(expert.act(observation) + noise, space.low, space.high)
                observation, _, ended, cut, _ = env.step(action)
                over, step = ended or cut, step + 1
    finally:
        env.close()
    images, episodes, states, objects = zip(*rows, strict=True)
    return Frames(np.stack(images), np.array(episodes), np.stack(states).astype(np.float64), np.stack(objects))


@torch.no_grad()
def features_of(encoder: Encoder, images: np.ndarray) -> Tensor:
    """uint8 [F, 2, H, W, 3] -> [F, 2, N, D], each image on its own."""
    flat = images.reshape(-1, 1, *images.shape[2:])
    z = torch.cat([encoder.encode_frames(flat[i : i + 64])[:, 0] for i in range(0, len(flat), 64)])
    return z.unflatten(0, (len(images), 2))


def errors_of(found: np.ndarray, frames: Frames, chosen: np.ndarray) -> dict[str, float]:
    """Mean distances (m) between read and true places of the chosen frames, and of those with the object near."""
    off = np.linalg.norm((found - frames.targets()[chosen]).reshape(-1, 2, 2), axis=-1)
    near = frames.near()[chosen]
    return {"base_m": off[:, 0].mean(), "hand_m": off[:, 1].mean(), "near_hand_m": off[near, 1].mean()}


def main(config: Config) -> None:
    """Take frames, fit, print and write wrist.json."""
    console = Console()
    with single_thread():
        labs = {lab: take(config, lab) for lab in LABS}
        home = labs["lab1"]
        names = np.unique(home.episodes)
        held_out = np.isin(home.episodes, names[np.random.default_rng(0).permutation(len(names))[: len(names) // 4]])
        train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        rows = []
        for name in config.encoders:
            encoder = open_encoder(name, config.image_size, 0).eval()
            z = {lab: features_of(encoder, frames.images) for lab, frames in labs.items()}
            for view, columns in VIEWS.items():
                seen = {lab: found[:, columns].flatten(1, 2) for lab, found in z.items()}
                learned, groups = home.targets()[train], home.episodes[train]
                probe = fit_probe(seen["lab1"][train], learned, groups, np.random.default_rng(1))
                for lab, frames in labs.items():
                    chosen = test if lab == "lab1" else np.arange(len(frames.episodes))
                    found = probe(seen[lab][chosen])
                    rows.append({"encoder": name, "camera": view, "lab": lab, **errors_of(found, frames, chosen)})
        for lab, frames in labs.items():
            chosen = test if lab == "lab1" else np.arange(len(frames.episodes))
            guess = np.tile(home.targets()[train].mean(0), (len(chosen), 1))
            rows.append({"encoder": "-", "camera": "guessing", "lab": lab, **errors_of(guess, frames, chosen)})
    title = f"object, {len(train)} frames to learn from, {len(test)} and {len(labs['lab2'].episodes)} to judge by"
    table = Table("encoder", "camera", "lab", "base frame, cm", "from the hand, cm", "near the hand, cm", title=title)
    for row in rows:
        lengths = (f"{100 * row[key]:.2f}" for key in ("base_m", "hand_m", "near_hand_m"))
        table.add_row(row["encoder"], row["camera"], row["lab"], *lengths)
    console.print(table)
    config.out.mkdir(parents=True, exist_ok=True)
    write_json(config.out / "wrist.json", {"frames": len(home.episodes), "rows": rows})


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
