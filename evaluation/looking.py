"""What a camera shows and where a world model's axes point in its view: some random moves, recorded and fitted."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from PIL import Image

from armworld.evaluation.agents import camera_of, load_model, told_camera
from armworld.evaluation.cells import Cell, open_env, single_thread
from armworld.evaluation.files import plain, read_json, write_bytes, write_json

STREAM = 0x4C4F4F4B  # keeps the moves' draws apart from the environment's, which has the same seed
THUMBNAIL = 224  # pixels


@dataclass(frozen=True)
class Look:
    """One camera to look through.

    Attributes:
        cell: Environment and model.
        moves: Random moves for the fit of the axes, or of what readings mean.
        seed: Of the episode and the moves; of the range for choosing settings.
        out: Folder for look.json and view.jpg.
    """

    cell: Cell
    moves: int
    seed: int
    out: Path

    @property
    def reads(self) -> bool:
        """Whether the agent goes by readings alone, so that their map is fitted too."""
        return self.cell.agent == "servo"

    def question(self) -> dict[str, Any]:
        """What decides the answer."""
        told = self.cell.question()
        keys = ("env_id", "env_kwargs", "model")
        reads = {"reads": True} if self.reads else {}
        return plain({**{key: told[key] for key in keys}, "moves": self.moves, "seed": self.seed, **reads})

    def stored(self) -> dict[str, Any] | None:
        """What was found in an earlier run.

        Raises:
            ValueError: The folder holds the answer to another question.
        """
        path = self.out / "look.json"
        if not path.exists() or not (self.out / "view.jpg").exists():
            return None
        record = read_json(path)
        if record["question"] != self.question():
            raise ValueError(f"{self.out} holds another camera or model; choose another --out or remove it")
        return record


def look(job: Look) -> dict[str, Any]:
    """Look through one camera and store what was found: thumbnail, the turn of the axes where a model imagines, and the
    map of its readings where an agent goes by those."""
    env = open_env(job.cell.env_id, job.cell.env_kwargs)
    try:
        with single_thread():
            model = load_model(job.cell.agent, job.cell.model) if job.cell.model else None
            frames, states = walk(env, job.moves, job.seed, wide=job.reads)
            model = told_camera(model, env, camera_of(env, model)) if model else None
            turn = fit(model, frames, states) if hasattr(model, "rollout") else None
            reading_map = map_of(model, frames, states) if job.reads else None
    finally:
        env.close()
    write_bytes(job.out / "view.jpg", jpeg(frames[0]))
    record = {"question": job.question(), "turn": turn, "reading_map": reading_map}
    write_json(job.out / "look.json", record)
    return plain(record)


def walk(env: gymnasium.Env, moves: int, seed: int, wide: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Random moves from a fresh episode: frames uint8 [moves + 1, H, W, 3] of the first camera, states [moves + 1, 7].

    Near where the episode begins, or `wide`: through the whole workspace. Truncation is ignored: nothing here is an
    episode of the task.
    """
    from armworld.planners.calibrating import RandomMoves, WideMoves

    walker = (WideMoves if wide else RandomMoves)(np.random.default_rng([seed, STREAM]))
    observation, _ = env.reset(seed=seed)
    camera = next(name for name in observation if name != "state")
    seen = [observation]
    for _ in range(moves):
        observation, *_ = env.step(walker.next(observation["state"]))
        seen.append(observation)
    return np.stack([o[camera] for o in seen]), np.stack([o["state"] for o in seen])


def fit(model: Any, frames: np.ndarray, states: np.ndarray) -> dict[str, Any]:
    """The turn of the model's axes, and how its one-step error compares with copying the frame."""
    import torch

    from armworld.planners.calibrating import moves_from
    from armworld.planners.turning import fit_turn

    with torch.no_grad():
        z = model.encode(frames[:, None])[:, 0]
        turn = fit_turn(model, moves_from(z, states))
        return {**asdict(turn), "copy_energy": float((z[1:] - z[:-1]).abs().mean())}


def map_of(model: Any, frames: np.ndarray, states: np.ndarray) -> tuple[float, ...]:
    """The map from the readings of frames [T, H, W, 3] to the arm's own states [T, 7], see `servo.fit_reading`."""
    import torch

    from armworld.planners.servo import fit_reading

    if getattr(model, "readout", None) is None:
        raise ValueError("agent 'servo' needs a world model with a readout (armworld align); this one has none")
    with torch.no_grad():
        return fit_reading(model.readout(model.encode(frames[:, None])[:, 0]), states)


def jpeg(frame: np.ndarray, size: int = THUMBNAIL) -> bytes:
    """A frame uint8 [H, W, 3] as a square JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(frame).resize((size, size), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
