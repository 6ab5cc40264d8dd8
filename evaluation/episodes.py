"""Run one episode and judge it strictly: success counts only if it holds when the episode *ends*.

The runner never stops because the environment reports success: an agent that arrives and drifts off has failed.
The environment decides what "held" means (`info["success"]`: solved now and over the dwell before); here only its
last value counts. An agent or environment that raises marks the episode as failed, with the reason.

Reasons:

| reason | meaning |
| --- | --- |
| `success` | solved at the end and held for the dwell |
| `timed_out` | solved at the very end but not held yet, or still coming closer when the steps ran out |
| `drifted` | solved at an earlier step, not at the end |
| `missed` | never solved |
| `slipped`, `dropped`, `wrong_place`, `toppled` | what became of the object: see `contact.ContactWatcher` |
| another word | what `info["failure"]` says at the last step, for environments that tell |
| `planning_failed: ...` | the agent raised, or returned something that is not a finite float [7] |
| `environment_failed: ...` | the environment raised, or ended the episode by itself |
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import gymnasium
import numpy as np

from armworld.evaluation.contact import ContactWatcher
from armworld.pose import apply_action, euler_to_matrix
from armworld.types import Agent, Goal, Observation

APPROACH_STEPS = 3  # the last steps over which "still coming closer" is judged
APPROACH_M = 0.01  # and by how much; the jitter of a planner near its goal is of this size


@dataclass(frozen=True)
class EpisodeResult:
    """What one episode came to.

    Attributes:
        seed: The environment's seed.
        success: Held at the end.
        final_distance_m: The task's distance to its goal at the last observed step; None if there was none, or where
            none is measured (NaN, as with goals that are images alone).
        steps: Actions executed.
        seconds_per_action: Mean wall-clock time of `agent.act`.
        cpu_seconds_per_action: Mean CPU time of this process during `agent.act` (all its threads).
        reason: See the module's table.
        distances_m: Distance after the reset and after every step, `steps + 1` values; None where none is measured.
        solved_steps: Steps after which the predicate held.
        draws: The environment's record of its random draws.
        off_m, off_rad: Largest distance and angle, over the steps, between the flange's pose that an action asked for
            (from the pose seen before it) and the one that it led to; None without a step.
        commit: Of the code that ran it, as `files.commit` tells; "unknown" in records from before it was kept.
    """

    seed: int
    success: bool
    final_distance_m: float | None
    steps: int
    seconds_per_action: float
    cpu_seconds_per_action: float
    reason: str
    distances_m: tuple[float | None, ...] = ()
    solved_steps: tuple[int, ...] = ()
    draws: dict[str, Any] = field(default_factory=dict)
    off_m: float | None = None
    off_rad: float | None = None
    commit: str = "unknown"

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; `from_json` inverts it."""
        return asdict(self)

    @staticmethod
    def from_json(record: dict[str, Any]) -> EpisodeResult:
        """The result that `to_json` wrote; a ValueError names missing or unknown keys."""
        try:
            values = dict(record)
            values["distances_m"] = tuple(values["distances_m"])
            values["solved_steps"] = tuple(values["solved_steps"])
            return EpisodeResult(**values)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not an episode's record ({error}): keys {sorted(record)}") from error


class Recorder(Protocol):
    """Watches an episode, for a video or a log. It must not change what it is shown."""

    def start(self, observation: Observation, goal: Goal, info: dict[str, Any]) -> None:
        """After the reset."""
        ...

    def step(self, observation: Observation, action: np.ndarray, info: dict[str, Any], agent: Agent) -> None:
        """After every step, with the observation that the action led to."""
        ...

    def finish(self, result: EpisodeResult) -> None:
        """When the episode is judged."""
        ...


@dataclass
class _Trace:
    """What is gathered while an episode runs."""

    distances: list[float] = field(default_factory=list)
    solved: list[bool] = field(default_factory=list)
    off: list[tuple[float, float]] = field(default_factory=list)
    wall: float = 0.0
    cpu: float = 0.0
    actions: int = 0
    info: dict[str, Any] = field(default_factory=dict)
    draws: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    watcher: ContactWatcher | None = None

    def see(self, info: dict[str, Any]) -> None:
        if self.watcher is not None:
            self.watcher.see()
        self.distances.append(float(info["distance_m"]))
        self.solved.append(bool(info["solved"]))
        self.info = info

    def compare(self, asked: np.ndarray, reached: np.ndarray) -> None:
        """Note how far apart two states [7] are: the flange's positions (m) and rotations (rad)."""
        turn = euler_to_matrix(asked[3:6]).T @ euler_to_matrix(reached[3:6])
        angle = float(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
        self.off.append((float(np.linalg.norm(asked[:3] - reached[:3])), angle))


def run_episode(env: gymnasium.Env, agent: Agent, seed: int, recorder: Recorder | None = None) -> EpisodeResult:
    """One episode from `env.reset(seed=seed)` to its truncation, judged at the end.

    Args:
        env: An environment of armworld's interface (`info` holds `goal`, `distance_m`, `solved`, `success`).
        agent: Fresh for this episode, so that results do not depend on which episodes ran before.
        seed: Seed of the environment.
        recorder: Shown every step.
    """
    trace = _Trace(watcher=ContactWatcher(env))
    try:
        _play(env, agent, seed, recorder, trace)
    except _Failure as failure:
        trace.error = str(failure)
    result = _judge(seed, trace)
    if recorder is not None:
        recorder.finish(result)
    return result


def try_reset(env: gymnasium.Env, seed: int) -> EpisodeResult | None:
    """Reset the environment ahead of an episode; where that raises, the episode as it has failed, else None."""
    try:
        _guard("environment_failed", env.reset, seed=seed)
    except _Failure as failure:
        return _judge(seed, _Trace(error=str(failure)))
    return None


class _Failure(Exception):
    """Ends an episode as failed; its text is the reason."""


def _play(env: gymnasium.Env, agent: Agent, seed: int, recorder: Recorder | None, trace: _Trace) -> None:
    observation, info = _guard("environment_failed", env.reset, seed=seed)
    goal = info["goal"]
    trace.draws = info.get("draws", {})
    trace.see(info)
    if recorder is not None:
        recorder.start(observation, goal, info)
    _guard("planning_failed", agent.reset, goal)
    truncated = False
    while not truncated:
        action = _timed_action(agent, observation, trace)
        before = np.asarray(observation["state"], float)
        observation, _, terminated, truncated, info = _guard("environment_failed", env.step, action)
        asked = apply_action(before, np.asarray(info.get("applied_action", action), float))
        trace.compare(asked, np.asarray(observation["state"], float))
        trace.see(info)
        if recorder is not None:
            recorder.step(observation, action, info, agent)
        if terminated and not truncated:
            raise _Failure(f"environment_failed: terminated by itself at step {trace.actions}")


def _guard(reason: str, call: Any, *arguments: Any, **keywords: Any) -> Any:
    """Call, turning any exception into a failed episode, but for interrupts and a lack of memory."""
    try:
        return call(*arguments, **keywords)
    except Exception as error:
        if _out_of_memory(error) or _out_of_memory(error.__cause__):
            raise
        text = " ".join(str(error).split())[:300]
        raise _Failure(f"{reason}: {type(error).__name__}: {text}") from error


def _out_of_memory(error: BaseException | None) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # the latter is torch's


def _timed_action(agent: Agent, observation: Observation, trace: _Trace) -> np.ndarray:
    wall, cpu = time.perf_counter(), time.process_time()
    action = _guard("planning_failed", agent.act, observation)
    trace.wall += time.perf_counter() - wall
    trace.cpu += time.process_time() - cpu
    trace.actions += 1
    action = np.asarray(action)
    if action.shape != (7,) or not np.issubdtype(action.dtype, np.floating):
        raise _Failure(f"planning_failed: the agent returned {action.dtype} {list(action.shape)}, not float [7]")
    if not np.isfinite(action).all():
        raise _Failure(f"planning_failed: the agent returned a non-finite action {action.tolist()}")
    return action


def _judge(seed: int, trace: _Trace) -> EpisodeResult:
    steps = max(len(trace.distances) - 1, 0)
    success = trace.error is None and bool(trace.info.get("success", False))
    reason = "success" if success else trace.error or _failure_reason(trace)
    per_action = max(trace.actions, 1)
    distances = tuple(distance if math.isfinite(distance) else None for distance in trace.distances)
    off = [max(values) for values in zip(*trace.off, strict=True)] or [None, None]
    return EpisodeResult(
        seed=seed,
        success=success,
        final_distance_m=distances[-1] if distances else None,
        steps=steps,
        seconds_per_action=trace.wall / per_action,
        cpu_seconds_per_action=trace.cpu / per_action,
        reason=reason,
        distances_m=distances,
        solved_steps=tuple(i for i, solved in enumerate(trace.solved) if solved),
        draws=trace.draws,
        off_m=off[0],
        off_rad=off[1],
    )


def _failure_reason(trace: _Trace) -> str:
    told = trace.info.get("failure")
    if told:
        return str(told)
    if trace.solved[-1]:
        return "timed_out"
    lost = trace.watcher.failure() if trace.watcher is not None else None
    if lost:
        return lost
    if any(trace.solved):
        return "drifted"
    recent = trace.distances[-APPROACH_STEPS - 1 :]
    falling = all(b < a for a, b in itertools.pairwise(recent))
    if len(recent) > APPROACH_STEPS and falling and recent[0] - recent[-1] > APPROACH_M:
        return "timed_out"
    return "missed"


def reason_counts(results: Sequence[EpisodeResult]) -> dict[str, int]:
    """How often each reason occurred, commonest first; texts after a colon are folded into their class."""
    counts: dict[str, int] = {}
    for result in results:
        word = result.reason.split(":")[0]
        counts[word] = counts.get(word, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
