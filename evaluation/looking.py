"""What a camera shows, where a world model's axes point in its view, and what it learns there: some random moves."""

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
HELD_OUT = 24  # moves


@dataclass(frozen=True)
class Look:
    """One camera to look through.

    Attributes:
        cell: Environment and model.
        moves: Random moves for the fit of the axes, or for the model to learn from.
        seed: Of the episode and the moves; of the range for choosing settings.
        out: Folder for look.json and view.jpg, and for the adapted model.
        adapt: Adapt the model to the view (`worldmodel.adapt`); the moves then go through the whole workspace.
    """

    cell: Cell
    moves: int
    seed: int
    out: Path
    adapt: bool = False

    @property
    def adapted(self) -> Path:
        """Where the adapted model lies."""
        return self.out / "adapted"

    def question(self) -> dict[str, Any]:
        """What decides the answer."""
        told = self.cell.question()
        keys = ("env_id", "env_kwargs", "model")
        adapt = {"adapt": True} if self.adapt else {}
        return plain({**{key: told[key] for key in keys}, "moves": self.moves, "seed": self.seed, **adapt})

    def stored(self) -> dict[str, Any] | None:
        """What was found in an earlier run.

        Raises:
            ValueError: The folder holds the answer to another question.
        """
        path = self.out / "look.json"
        whole = path.exists() and (self.out / "view.jpg").exists() and (self.adapted.exists() or not self.adapt)
        if not whole:
            return None  # look.json is written last
        record, asked = read_json(path), self.question()
        other = [key for key in {**asked, **record["question"]} if asked.get(key) != record["question"].get(key)]
        if other:
            raise ValueError(f"{self.out} was asked with other {', '.join(other)}; choose another --out or remove it")
        return record


def look(job: Look) -> dict[str, Any]:
    """Look through one camera and store what was found: thumbnail, the turn of the axes where a model imagines, and the
    model adapted to the view with the turn of its axes then. Where it is adapted, both turns are those of `HELD_OUT`
    further moves from which it does not learn."""
    env = open_env(job.cell.env_id, job.cell.env_kwargs)
    try:
        with single_thread():
            model = load_model(job.cell.agent, job.cell.model) if job.cell.model else None
            frames, states = walk(env, job.moves + (HELD_OUT if job.adapt else 0), job.seed, wide=job.adapt)
            told = slice(job.moves if job.adapt else 0, None)
            model = told_camera(model, env, camera_of(env, model)) if model else None
            turn = fit(model, frames[told], states[told]) if hasattr(model, "rollout") else None
            after = None
            if job.adapt:
                adapted = adapt_to(job, model, frames[: job.moves + 1], states[: job.moves + 1])
                after = fit(adapted, frames[told], states[told])
    finally:
        env.close()
    write_bytes(job.out / "view.jpg", jpeg(frames[0]))
    record = {"question": job.question(), "turn": turn, "adapted_turn": after}
    write_json(job.out / "look.json", record)
    return plain(record)


def walk(
    env: gymnasium.Env, moves: int, seed: int, wide: bool = False, hands: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Random moves from a fresh episode: frames uint8 [moves + 1, H, W, 3] of the first camera, states [moves + 1, 7].

    Near where the episode begins, or `wide`: through the whole workspace, and with `hands` down to the table, turning
    and gripping. Truncation is ignored: nothing here is an episode of the task.
    """
    from armworld.planners.calibrating import RandomMoves, WideMoves, roaming_box

    rng = np.random.default_rng([seed, STREAM])
    walker = WideMoves(rng, *roaming_box(hands), hands=hands) if wide else RandomMoves(rng)
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


def adapt_to(job: Look, model: Any, frames: np.ndarray, states: np.ndarray) -> Any:
    """The model that has learned from the moves, stored in `job.adapted`."""
    from armworld.worldmodel.adapt import adapt_and_save
    from armworld.worldmodel.model import VJEPA2AC

    if not isinstance(model, VJEPA2AC):
        raise ValueError(f"adapting needs a world model of features (armworld posttrain), not that of {job.cell.agent}")
    return adapt_and_save(model, frames, states, job.seed, job.adapted, str(job.cell.model))


def jpeg(frame: np.ndarray, size: int = THUMBNAIL) -> bytes:
    """A frame uint8 [H, W, 3] as a square JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(frame).resize((size, size), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
