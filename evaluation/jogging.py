"""Does the model read the arm's motion rightly from this camera? Jogs of 5 cm along each axis tell.

From the pictures before and after a jog, the model's planner infers the action that leads from one to the other; that
should be the displacement that was executed. Needs nothing but pictures and the robot's state, so it works alike in
simulation and on an arm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armworld.evaluation.probing import fit_axes
from armworld.evaluation.statistics import signed
from armworld.planners.calibrating import moves_from
from armworld.planners.objectives import FinalL1, LatentGoal
from armworld.planners.plans import PlanningError
from armworld.planners.registry import make_planner
from armworld.planners.turning import Moves, fit_turn
from armworld.types import Observation

JOG_M = 0.05
AXES = ("x", "y", "z")
GOOD_DEG, WEAK_DEG = 10.0, 25.0  # of yaw error: a planner that looks again every step still arrives within the second
ADAPTED = "model"  # the adapted model's folder, in --out
DEAF = 0.15  # contrast below which the model hardly tells directions apart


@dataclass(frozen=True)
class Jogs:
    """What was seen: from rest out along each axis and back, twelve moves.

    Attributes:
        frames: uint8 [13, H, W, 3].
        states: float32 [13, 7].
    """

    frames: np.ndarray
    states: np.ndarray


@dataclass(frozen=True)
class Reading:
    """What a model makes of jogs, and perhaps what it does after it has learned from random moves.

    Attributes:
        before: `read_jogs` of the model as it came.
        adapted: `read_jogs` of the same jogs after learning; None without.
        moves: From how many moves it learned.
    """

    before: dict[str, Any]
    adapted: dict[str, Any] | None = None
    moves: int = 0

    @property
    def findings(self) -> dict[str, Any]:
        """Of the model that is to be used."""
        return self.before if self.adapted is None else self.adapted

    @property
    def mark(self) -> str:
        """good, weak or bad."""
        return judge(self.findings)[0][0]

    def verdicts(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """(title, marks) of each model, the one to be used first; no title where there is one alone."""
        if self.adapted is None:
            return [("", judge(self.before))]
        return [
            (f"Adapted by {self.moves} random moves", judge(self.adapted, adapted=True)),
            ("Before", judge(self.before)),
        ]


def jog(look: Callable[[], Observation], move: Callable[[np.ndarray], Observation], camera: str) -> Jogs:
    """Jog along +x, -x, +y, -y, +z, -z, each time back to where it began.

    Args:
        look: The present observation.
        move: Execute an action [7] to its end and answer what is seen then.
        camera: The camera looked through.
    """
    seen = [look()]
    home = np.asarray(seen[0]["state"], np.float64)[:3]
    for axis in range(3):
        for sign in (1, -1):
            step = np.zeros(7)
            step[axis] = sign * JOG_M
            seen.append(move(step))
            back = np.zeros(7)
            back[:3] = home - np.asarray(seen[-1]["state"], np.float64)[:3]
            seen.append(move(back))
    return Jogs(np.stack([o[camera] for o in seen]), np.stack([o["state"] for o in seen]).astype(np.float32))


def read_jogs(model: Any, jogs: Jogs, seed: int = 0) -> dict[str, Any]:
    """What the model makes of the jogs.

    Returns:
        jogs: per jog its name, the executed and the read displacement (m). axes: how the read ones relate to the
        executed ones (`probing.Axes`). turn: of the model's axes (`turning.Turn`), the sharper measure of the yaw
        error. copy_energy: mean |z' - z|, to compare `turn.energy` with.
    """
    with torch.no_grad():
        z = model.encode(jogs.frames[:, None])[:, 0]
        moves = moves_from(z, jogs.states)
        turn = fit_turn(model, moves)
        read = infer_moves(model, moves, seed)
    executed = moves.action[:, :3].numpy()
    names = [f"{way}{axis}" for axis in AXES for way in ("+", "−")]
    return {
        "jogs": [
            {"name": name, "executed_m": executed[2 * i].tolist(), "read_m": read[2 * i].tolist()}
            for i, name in enumerate(names)
        ],
        "axes": asdict(fit_axes(executed, read)),
        "turn": asdict(turn),
        "copy_energy": float((moves.after - moves.z).abs().mean()),
    }


def adapted_reading(
    model: Any,
    jogs: Jogs,
    before: dict[str, Any],
    recorded: tuple[np.ndarray, np.ndarray],
    seed: int,
    out: Path,
    name: str,
) -> Reading:
    """What a model makes of the jogs once it has learned from random moves, beside what it did before.

    Args:
        model: A world model.
        jogs: What was seen.
        before: `read_jogs` of it.
        recorded: Frames uint8 [T, H, W, 3] and states [T, 7] of the moves.
        seed: Of the search and of the learning.
        out: Folder for the adapted model.
        name: The model's name or path, for its card.
    """
    from armworld.worldmodel.adapt import adapt_and_save

    adapted = adapt_and_save(model, *recorded, seed, out, name)
    return Reading(before, read_jogs(adapted, jogs, seed), len(recorded[0]) - 1)


def infer_moves(model: Any, moves: Moves, seed: int) -> np.ndarray:
    """The displacement [M, 3] (m) that, to the model, leads from each picture to the next: planned with the
    cross-entropy method to the picture after as the goal."""
    planner = make_planner("cem", samples=64, iterations=4, horizon=1, space={"max_gripper": 0.0})
    generator = torch.Generator().manual_seed(seed)
    plan = planner.plan(
        model,
        FinalL1(),
        moves.z[:, None],
        moves.state[:, None],
        LatentGoal(moves.after),
        generator=generator,
    )
    if bool(plan.lost.any()):
        moved = plan.lost.nonzero().flatten().tolist()
        raise PlanningError(f"moves {moved}: no candidate that the model imagined has a finite energy")
    return plan.actions[:, 0, :3].cpu().numpy()


def judge(findings: dict[str, Any], adapted: bool = False) -> list[tuple[str, str]]:
    """A mark (good, weak, bad) and a sentence per examination, the verdict first; `adapted` changes its advice."""
    turn, axes = findings["turn"], findings["axes"]
    error = abs(turn["yaw_deg"])
    yaw = "good" if error <= GOOD_DEG else "weak" if error <= WEAK_DEG else "bad"
    deaf = turn["contrast"] < DEAF
    lost = turn["energy"] >= findings["copy_energy"]
    marks = [
        (
            "bad" if deaf else yaw,
            f"Yaw error {signed(turn['yaw_deg'], 1)}° ± {turn['spread_deg']:.1f}°: so far the model's axes are turned "
            "about the vertical (good up to 10°, usable up to 25°).",
        ),
        (
            "bad" if deaf else "good" if turn["contrast"] > 0.4 else "weak",
            f"Response {turn['contrast']:.2f}: what the right direction explains better than the average one (above "
            "0.4 in trained views; near 0 the yaw says nothing).",
        ),
        (
            "bad" if lost else "good",
            f"Imagining a jog leaves {turn['energy']:.3f} of error, copying the frame {findings['copy_energy']:.3f}.",
        ),
        (
            "good" if axes["error_m"] < 0.02 else "weak" if axes["error_m"] < 0.035 else "bad",
            f"The displacements that the model reads from the pictures are off by {100 * axes['error_m']:.1f} cm on "
            f"average, {axes['gain']:.2f} times as long as executed.",
        ),
    ]
    worst = max((mark for mark, _ in marks), key=("good", "weak", "bad").index)
    learn = "record more moves" if adapted else "adapt the model (armworld preflight --moves 128)"
    advice = {
        "good": "Go: the camera stands where the model understands it.",
        "weak": f"Usable: expect detours; move the camera towards the reference, or {learn}.",
        "bad": f"Do not deploy from here: move the camera until the live picture lies over the reference, or {learn}.",
    }
    return [(worst, advice[worst]), *marks]
