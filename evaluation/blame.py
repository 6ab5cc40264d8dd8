"""Which part of the planner's chain fails an episode: controller, goal, cost, planner, or the learned model.

Each failed episode is repeated with one part after another replaced by something better:

| fails too | but not | to blame |
| --- | --- | --- |
| the scripted expert, its arm being somewhere else than it was sent to | | controller |
| the scripted expert, though its arm went where it was sent to | | goal (or what the environment began with) |
| the simulator as the model | the same with `WIDER` times the samples | planner |
| the simulator as the model, even so | the expert | cost (the energy, or the encoder behind it) |
| only the learned model | the simulator as the model | model |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from armworld.envs.controller import POSE_SLIP
from armworld.evaluation.agents import AgentSettings
from armworld.evaluation.cells import Cell
from armworld.evaluation.episodes import EpisodeResult
from armworld.evaluation.setup import Setup, make_cell, run_with_progress

WIDER = 4
BLAMABLE = ("cem", "icem", "mppi", "servo")  # the simulator has no gradient, and the published settings are one's own
UNTOLD = "goal or controller"  # the expert's stored episode is from before `EpisodeResult.off_m` was kept
PARTS = ("controller", "goal", UNTOLD, "cost", "planner", "model")
# What the learned model needs or has to answer for: the simulator's axes are right, and it is no matter how slow it is.
OF_THE_MODEL = {"axes_yaw": None, "calibrate": None, "seconds_per_action": None}


def blame_cells(
    setup: Setup, settings: AgentSettings, where: tuple[str, str, str], agent: str, out: Path
) -> dict[str, Cell]:
    """The cells that `blame` runs: those of the agent, the expert, the oracle and the wide oracle.

    Args:
        setup: Resolved (`setup.resolve`).
        settings: How `agent` plans.
        where: (task, object, lab).
        agent: One of `BLAMABLE`.
        out: Folder of the cells.
    """
    return {
        name: _cell(setup, settings, where, agent, name, out) for name in ("agent", "expert", "oracle", "wide oracle")
    }


def blame(cells: Mapping[str, Cell], seeds: Sequence[int], workers: int = 1) -> dict[str, Any]:
    """Run the episodes, then repeat the failures; resumable like every run.

    Args:
        cells: Those of `blame_cells`.
        seeds: Episodes.
        workers: Processes.

    Returns:
        "counts" per part (failed episodes only), "episodes" [{seed, reason, blame}], and "solved".
    """
    own = run_with_progress([cells["agent"]], seeds, workers)[0]
    failed = [result.seed for result in own if not result.success]
    again: dict[str, dict[int, EpisodeResult]] = {}  # the failures, by each better chain
    left = failed
    for name in ("expert", "oracle", "wide oracle"):
        results = run_with_progress([cells[name]], left, workers)[0] if left else []
        again[name] = {result.seed: result for result in results}
        left = [result.seed for result in results if result.success == (name == "expert")]
    episodes = [{"seed": r.seed, "reason": r.reason, "blame": _part(r, again)} for r in own]
    counts = {part: sum(episode["blame"] == part for episode in episodes) for part in PARTS}
    return {"agent": cells["agent"].agent, "solved": len(own) - len(failed), "counts": counts, "episodes": episodes}


def _part(result: EpisodeResult, again: Mapping[str, Mapping[int, EpisodeResult]]) -> str | None:
    if result.success:
        return None
    expert = again["expert"][result.seed]
    if not expert.success:
        return _goal_or_controller(expert)
    if again["oracle"][result.seed].success:
        return "model"
    return "planner" if again["wide oracle"][result.seed].success else "cost"


def _goal_or_controller(expert: EpisodeResult) -> str:
    """Which of the two fails the expert: were the poses reached that it commanded, as near as the controller asks?"""
    if not expert.steps:
        return "goal"
    if expert.off_m is None or expert.off_rad is None:
        return UNTOLD
    return "controller" if expert.off_m > POSE_SLIP[0] or expert.off_rad > POSE_SLIP[1] else "goal"


def _cell(setup: Setup, settings: AgentSettings, where: tuple[str, str, str], agent: str, role: str, out: Path) -> Cell:
    """The cell of one link's replacement."""
    from armworld.planners.registry import PLANNERS

    name = {"agent": agent, "expert": "expert"}.get(role, "oracle")
    if role.endswith("oracle"):
        settings = replace(settings, oracle_planner=agent, **OF_THE_MODEL)
    if role == "wide oracle":
        samples = settings.samples or getattr(PLANNERS[agent].defaults, "samples", 64)
        settings = replace(settings, samples=WIDER * samples)
    return make_cell(setup, settings, where, name, out / role.replace(" ", "_"))


def blame_sentence(found: dict[str, Any]) -> str:
    """The finding in words."""
    failed = sum(found["counts"].values())
    told = ", ".join(f"{part} {count}" for part, count in found["counts"].items() if count)
    if not failed:
        return f"Planning: {found['agent']} solved all {found['solved']} episodes."
    return f"Planning: {found['agent']} failed {failed} of {failed + found['solved']} episodes; to blame: {told}."
