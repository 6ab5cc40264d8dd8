"""How an episode is judged from what its steps came to: success is what holds at the end; failures have reasons."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from armworld.evaluation.episodes import EpisodeResult, run_episode
from armworld.pose import apply_action
from armworld.types import Goal

START = np.array([0.5, 0.0, 0.3, np.pi, 0.0, 0.0, 0.2])


class Told(gymnasium.Env):
    """Steps that come to the given distances (m); solved where marked, held where marked twice.

    The arm goes half the way that is asked for, and `applied` (a factor) is what the environment says it did.
    """

    def __init__(self, distances: list[float], marks: str = "", applied: float | None = None) -> None:
        self.distances, self.marks, self.applied = distances, marks.ljust(len(distances), "."), applied

    def _info(self) -> dict[str, Any]:
        mark = self.marks[self.steps]
        told = {"solved": mark in "sh", "success": mark == "h"}
        return {"distance_m": self.distances[self.steps], **told, "goal": Goal(({"state": START},), (5,))}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        self.steps, self.state = 0, START
        return {"state": self.state}, self._info()

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self.steps += 1
        self.state = apply_action(self.state, 0.5 * action)
        info = self._info()
        if self.applied is not None:
            info["applied_action"] = self.applied * action
        return {"state": self.state}, 0.0, False, self.steps == len(self.distances) - 1, info


class Going:
    """Moves by 4 cm along x and turns by 0.2 rad, and less in later steps."""

    def reset(self, goal: Goal) -> None:
        self.size = 1.0

    def act(self, observation: Any) -> np.ndarray:
        action = self.size * np.array([0.04, 0, 0, 0, 0, 0.2, 0])
        self.size /= 2
        return action


def judged(distances: list[float], marks: str = "", applied: float | None = None) -> EpisodeResult:
    return run_episode(Told(distances, marks, applied), Going(), 0)


@pytest.mark.parametrize(
    ("distances", "marks", "reason"),
    [
        ([0.3, 0.2, 0.1, 0.02], "...s", "timed_out"),  # at the very end, not held
        ([0.3, 0.02, 0.02, 0.02], ".ssh", "success"),
        ([0.3, 0.02, 0.02, 0.2], ".sh.", "drifted"),  # held before, not at the end
        ([0.3, 0.30, 0.25, 0.20, 0.15], "", "timed_out"),  # still coming closer
        ([0.3, 0.10, 0.20, 0.15, 0.09], "", "missed"),  # once further off within the last three steps
        ([0.1, 0.20, 0.15, 0.12, 0.09], "", "timed_out"),  # what was before does not count
        ([0.3, 0.100, 0.098, 0.096, 0.094], "", "missed"),  # by no more than a planner's jitter
        ([0.3, 0.100, 0.096, 0.092, 0.088], "", "timed_out"),
        ([0.3, 0.2, 0.1], "", "missed"),  # too few steps to tell
        ([0.3, 0.2, 0.2, 0.1, 0.05], "", "missed"),  # stood still once
        ([0.3, np.nan, np.nan, np.nan, np.nan], "", "missed"),
    ],
)
def test_the_reason_follows_from_the_last_steps(distances: list[float], marks: str, reason: str) -> None:
    result = judged(distances, marks)
    assert result.reason == reason and result.success == (reason == "success")
    assert result.steps == len(distances) - 1
    assert result.solved_steps == tuple(i for i, mark in enumerate(marks) if mark in "sh")
    expected = [None if np.isnan(d) else d for d in distances]
    assert list(result.distances_m) == expected and result.final_distance_m == expected[-1]


@pytest.mark.parametrize(("applied", "off"), [(None, 0.5), (0.5, 0.0), (1.0, 0.5), (0.25, 0.25)])
def test_how_far_off_the_arm_was_is_told_of_the_worst_step(applied: float | None, off: float) -> None:
    """From what the environment says that it applied, where it says so; the first of these steps is the longest."""
    result = judged([0.3, 0.2, 0.1, 0.05], applied=applied)
    assert (result.off_m, result.off_rad) == pytest.approx((0.04 * off, 0.2 * off), abs=1e-6)


def test_an_agent_that_fails_at_the_end_has_failed_however_it_stands() -> None:
    class Stuck(Going):
        def act(self, observation: Any) -> np.ndarray:
            if self.size < 0.3:
                raise RuntimeError("no plan")
            return super().act(observation)

    result = run_episode(Told([0.02] * 5, "shhhh"), Stuck(), 0)
    assert not result.success and result.reason == "planning_failed: RuntimeError: no plan" and result.steps == 2
