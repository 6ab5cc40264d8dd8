"""`armworld replay`: look at a logged deployment again. Every decision is judged anew; the gate is pure, so it agrees.

With --sim the executed actions are sent to the simulated robot, from the logged start, through the same gate.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from armworld.real.agent_process import InlineAgent
from armworld.real.agents import ReplayAgent, ServoAgent
from armworld.real.cell import SessionConfig
from armworld.real.gate import ACTION_UNITS, SafetyGate, Situation, check_units
from armworld.real.journal import Journal, JournalError, read_journal
from armworld.real.limits import Box, Fingers, Limits
from armworld.real.opening import told
from armworld.real.session import FAULTS, Session
from armworld.real.setup import sim_cell
from armworld.real.simulated import SimulatedConfig, SimulatedRobot
from armworld.types import Goal, check_folder

AGREE = 1e-9  # metres, radians, closedness


@dataclass(frozen=True)
class ReplayConfig:
    """Judge a log again, and repeat it in simulation.

    Attributes:
        log: A deployment's episode folder (the one that holds journal.jsonl).
        sim: Send the executed actions to the simulated robot.
        out: Where the repetition is logged; beside the log by default.
    """

    log: Path
    sim: bool = False
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.out is not None and not self.sim:
            raise ValueError("--out is for the repetition on the simulated robot: give --sim too, or leave it out")
        if self.out is not None and self.out.is_dir() and any(self.out.iterdir()):
            raise ValueError(f"--out {self.out} holds files already; give another folder")


def limits_of(header: dict[str, Any]) -> Limits:
    """The limits that a log was made under. ValueError where its actions are in other units than the gate's."""
    check_units(header.get("units", ACTION_UNITS))
    try:
        values: dict[str, Any] = dict(header["limits"])
        for name in ("workspace", "fingertips"):
            values[name] = _box(values[name])
        values["keep_out"] = tuple(_box(box) for box in values["keep_out"])
        values["fingers"] = Fingers(**values["fingers"])
        return Limits(**values)
    except (KeyError, TypeError) as error:
        raise JournalError(f"the log's header does not say the limits that it was made under: {error!r}") from error


def _box(corners: dict[str, Any]) -> Box:
    return Box(tuple(corners["low"]), tuple(corners["high"]))


def judge_again(folder: Path) -> list[str]:
    """Every logged proposal through the gate again; answers what differs, a line each."""
    header, rows = read_journal(folder)
    gate = SafetyGate(limits_of(header))
    differences = []
    for row in rows:
        if row.get("situation") is None or not _judged(row):
            continue
        decision = gate.check(np.array(row["proposed"], float), _situation(row["situation"]))
        same = decision.verdict == row["verdict"]
        if same and decision.verdict != "hold":
            same = bool(np.abs(decision.target - np.array(row["target"], float)).max() < AGREE)
        if not same:
            differences.append(f"step {row['step']}: logged {row['verdict']}, now {decision.verdict}")
    return differences


def _judged(row: dict[str, Any]) -> bool:
    """Whether the row's verdict is the gate's, of a proposal that JSON could carry.

    A fault while commanding holds what the gate had let pass.
    """
    if any(code in FAULTS for code, _ in row["reasons"]):
        return False
    proposed = row["proposed"]
    return isinstance(proposed, list) and len(proposed) == 7 and all(isinstance(v, float | int) for v in proposed)


def _situation(values: dict[str, Any]) -> Situation:
    arrays = ("state", "observed_state", "commanded")
    found = {f.name: values[f.name] for f in fields(Situation)}
    found |= {name: None if found[name] is None else np.array(found[name], float) for name in arrays}
    if found["gripper_moved_s"] is None:  # -inf: never moved
        found["gripper_moved_s"] = -np.inf
    return Situation(**found)


@told
def replay(config: ReplayConfig, console: Console | None = None) -> int:
    """Judge the log again, and repeat it if asked. Exit code 1 if a decision differs."""
    console = console or Console()
    if config.out is not None:
        check_folder("out", config.out)
    rows = read_journal(config.log)[1]
    differences = judge_again(config.log)
    for line in differences:
        console.print(line, highlight=False)
    console.print(f"{len(rows)} steps, {len(differences)} decisions differ", highlight=False)
    if config.sim:
        error = repeat(config.log, config.out or config.log.with_name(f"{config.log.name}-replay-{int(time.time())}"))
        console.print(f"repeated in simulation: flange ends {1000 * error:.1f} mm from the logged end", highlight=False)
    return 1 if differences else 0


def repeat(folder: Path, out: Path) -> float:
    """Send a log's executed actions to the simulated robot; answers how far the flange ends from the logged end, m."""
    header, rows = read_journal(folder)
    done = [row for row in rows if row["executed"] is not None]
    states = [row["state"] for row in rows if row["state"] is not None]
    if not done:
        raise JournalError(f"{folder} executed nothing (a dry run?); there is nothing to repeat")
    gate = SafetyGate(limits_of(header), max_identical=None)
    with SimulatedRobot(SimulatedConfig(object=None)) as robot, contextlib.ExitStack() as stack:
        cell = sim_cell(robot)
        cell.connect()
        stack.callback(cell.close)
        goal = Goal(({"state": np.array(states[0])},), (60,))
        servo = ServoAgent()
        servo.reset(goal)
        there = SessionConfig(steps=60, live=True, slow_steps=0, done_m=0.001)
        start = np.array(states[0], float)
        Session(cell, gate, InlineAgent(servo), Journal(out / "start", header), there, goal_state=start).run()
        agent = InlineAgent(ReplayAgent(np.array([row["executed"] for row in done], float)))
        config = SessionConfig(steps=len(done), live=True, slow_steps=0)
        end = np.array(states[-1], float)
        outcome = Session(cell, gate, agent, Journal(out / "replay", header), config, goal_state=end).run()
    assert outcome.distance_m is not None, "a goal state was given"
    return outcome.distance_m
