"""Time of a simulation step with one camera: this project's environment, its bare physics and rendering, and peers.

    python benchmarks/env.py [--sizes 64 128 256] [--processes 1 2] [--steps 30] [--out FILE]

Every case runs in fresh processes with one software-rendering thread, one camera at the stated size, random actions.
The work per step differs and is printed: `armworld 20 Hz` simulates the same 0.05 s (25 physics steps of 2 ms) and
renders the same single frame as robosuite's Lift; `armworld 4 Hz` is the environment's own step, 125 physics steps.
Gymnasium-Robotics' environments return no pixels by themselves: their step is `step()` and one `render()`.

CPU time per step is the process's own (median over the steps), so that other load on the machine counts little; the
throughput with several processes is wall-clock. Peers that are not installed are named, and the rest still runs:
pip install -e '.[robosuite]' gymnasium-robotics
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("LP_NUM_THREADS", "0")  # before any OpenGL context: frames are drawn in the process itself
os.environ.setdefault("OMP_NUM_THREADS", "1")
WARM_UP = 3  # untimed steps
EPISODE = 10  # steps between resets, which are not timed

Step = Callable[[], Any]


@dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        sizes: Pixels per side of the frames.
        processes: Numbers of processes that run a case at once.
        steps: Timed steps of each process.
        cases: Which of `CASES` to run.
        out: JSON file to write.
        worker: A case of the form NAME:SIZE to run in this process, printing JSON; used by the parent.
    """

    sizes: tuple[int, ...] = (64, 128, 256)
    processes: tuple[int, ...] = (1, 2)
    steps: int = 30
    cases: tuple[str, ...] = ("armworld_20hz", "armworld_4hz", "robosuite_lift", "fetch_pick", "franka_kitchen")
    out: Path | None = None
    worker: str = ""


def armworld(size: int, seconds: float) -> tuple[Step, Step]:
    """Reach in lab1 with the left camera: a step, and a reset."""
    from armworld.envs.base import ArmEnv

    env = ArmEnv("reach", image_size=size, step_seconds=seconds, max_steps=10_000)
    env.action_space.seed(0)
    return lambda: env.step(env.action_space.sample()), lambda: env.reset(seed=0)


def robosuite_lift(size: int) -> tuple[Step, Step]:
    """robosuite's Lift with a Panda, its default controller and agentview, at 20 Hz."""
    import numpy as np
    import robosuite  # pyright: ignore[reportMissingImports]

    env: Any = robosuite.make(  # type: ignore[attr-defined]
        "Lift", robots="Panda", has_renderer=False, has_offscreen_renderer=True, use_camera_obs=True, hard_reset=False,
        camera_names="agentview", camera_heights=size, camera_widths=size, control_freq=20, ignore_done=True,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    return lambda: env.step(rng.uniform(-1, 1, env.action_dim)), env.reset


def gymnasium_robotics(name: str, size: int) -> tuple[Step, Step]:
    """An environment of Gymnasium-Robotics and one rendered frame per step."""
    import gymnasium
    import gymnasium_robotics  # pyright: ignore[reportMissingImports]

    gymnasium.register_envs(gymnasium_robotics)
    env = gymnasium.make(name, render_mode="rgb_array", width=size, height=size, max_episode_steps=10_000)
    env.action_space.seed(0)
    return lambda: (env.step(env.action_space.sample()), env.render()), lambda: env.reset(seed=0)


@dataclass(frozen=True)
class Case:
    """A case: its title, the module it needs, the work of one step, and what builds it for a frame size."""

    title: str
    module: str
    work: str
    build: Callable[[int], tuple[Step, Step]]


CASES = {
    "armworld_20hz": Case("armworld 20 Hz", "armworld", "25 x 2 ms", lambda size: armworld(size, 0.05)),
    "armworld_4hz": Case("armworld 4 Hz", "armworld", "125 x 2 ms", lambda size: armworld(size, 0.25)),
    "robosuite_lift": Case("robosuite Lift 20 Hz", "robosuite", "25 x 2 ms", robosuite_lift),
    "fetch_pick": Case(
        "FetchPickAndPlace 25 Hz", "gymnasium_robotics", "20 x 2 ms",
        lambda size: gymnasium_robotics("FetchPickAndPlace-v4", size),
    ),
    "franka_kitchen": Case(
        "FrankaKitchen 12.5 Hz", "gymnasium_robotics", "40 x 2 ms",
        lambda size: gymnasium_robotics("FrankaKitchen-v1", size),
    ),
}  # fmt: skip


def cpu_seconds(run: Step) -> float:
    """CPU time of this process during a call, s."""
    started = time.process_time()
    run()
    return time.process_time() - started


def run_case(name: str, size: int, steps: int) -> dict[str, float]:
    """Median CPU time and the wall-clock time of steps in this process."""
    step, reset = CASES[name].build(size)
    taken, wall = [], 0.0
    for index in range(WARM_UP + steps):
        if index % EPISODE == 0:
            reset()
        started = time.perf_counter()
        seconds = cpu_seconds(step)
        if index >= WARM_UP:
            taken.append(seconds)
            wall += time.perf_counter() - started
    return {"cpu_seconds": statistics.median(taken), "wall_seconds": wall / steps}


def run_overhead(size: int, steps: int) -> dict[str, float]:
    """CPU time of `env.step` against the same physics steps and one frame by bare calls, from the same states.

    The bare side repeats, from each saved state, the same physics: `mj_step` 125 times with the controls that the
    environment's own steps had, and renders the camera once: no inverse kinematics, no observation, predicate or info.
    """
    from unittest.mock import patch

    import numpy as np
    from mujoco import mj_step

    from armworld.envs import controller
    from armworld.envs.base import ArmEnv

    env = ArmEnv("reach", image_size=size, max_steps=10_000)
    sim = env.simulator
    env.action_space.seed(0)
    controls: list[np.ndarray] = []

    def noted(model: Any, data: Any) -> None:
        controls.append(data.ctrl.copy())
        mj_step(model, data)

    def bare() -> None:
        model, data, ctrl = sim.model, sim.data, sim.data.ctrl
        for control in controls:
            ctrl[:] = control
            mj_step(model, data)
        sim.renderer.render(data, "left", size, size)

    ours, floor = [], []
    for index in range(WARM_UP + steps):
        if index % EPISODE == 0:
            env.reset(seed=index)
        saved, action = sim.save(), env.action_space.sample()
        controls.clear()
        with patch.object(controller.mujoco, "mj_step", noted):  # untimed: to see the controls
            sim.step(action)
        sim.restore(saved)
        taken, ends = {}, []
        sides = {"own": lambda action=action: env.step(action), "bare": bare}
        for side in list(sides)[:: 1 if index % 2 else -1]:  # in turns: the second one finds warmer caches
            sim.restore(saved)
            taken[side] = cpu_seconds(sides[side])
            ends.append(sim.data.qpos.tobytes())
        assert ends[0] == ends[1], "the same physics"
        if index % 2:  # bare came last; the episode goes on from the environment's own step
            sim.restore(saved)
            env.step(action)
        if index >= WARM_UP:
            ours.append(taken["own"])
            floor.append(taken["bare"])
    own, without = statistics.median(ours), statistics.median(floor)
    return {"env_seconds": own, "bare_seconds": without, "overhead": own / without - 1}


def launch(name: str, size: int, steps: int, processes: int) -> list[dict[str, float]] | str:
    """Run a case in that many processes at once; their results, or the last line of what went wrong."""
    command = [sys.executable, __file__, "--worker", f"{name}:{size}", "--steps", str(steps)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    finished = [process.communicate() for process in running]
    for process, (_, errors) in zip(running, finished, strict=True):
        if process.returncode:
            return (errors.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    return [json.loads(output.strip().splitlines()[-1]) for output, _ in finished]


def measure(config: Config) -> dict[str, Any]:
    """All cases, one after another; prints each line as it is known."""
    rows, failures = [], {}
    for name in config.cases:
        if find_spec(CASES[name].module) is None:
            failures[name] = f"{CASES[name].module} is not installed"
            print(f"{CASES[name].title}: left out, {failures[name]}", flush=True)
    for size in config.sizes:
        for processes in config.processes:
            for name in config.cases:
                if name in failures:
                    continue
                results = launch(name, size, config.steps, processes)
                if isinstance(results, str):
                    failures[name] = results
                    print(f"{CASES[name].title}: failed, {results}")
                    continue
                row = {
                    "case": name,
                    "work": CASES[name].work,
                    "size": size,
                    "processes": processes,
                    "cpu_ms": 1e3 * statistics.mean(result["cpu_seconds"] for result in results),
                    "steps_per_second": sum(1 / result["wall_seconds"] for result in results),
                }
                rows.append(row)
                print(line(row, rows), flush=True)
    overhead = []
    for size in config.sizes:
        results = launch("overhead", size, config.steps, 1)
        if isinstance(results, str):
            failures["overhead"] = results
            print(f"overhead: failed, {results}")
            break
        overhead.append({"size": size, **results[0]})
        print(
            f"{size:3d} px  4 Hz step {1e3 * results[0]['env_seconds']:.1f} ms, bare mj_step and render "
            f"{1e3 * results[0]['bare_seconds']:.1f} ms: overhead {100 * results[0]['overhead']:.0f} %"
        )
    return {"rows": rows, "overhead": overhead, "failures": failures}


def line(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """A row as text, with its CPU time relative to our 20 Hz step of the same size and number of processes."""
    same = {r["case"]: r for r in rows if (r["size"], r["processes"]) == (row["size"], row["processes"])}
    ratio = f"{row['cpu_ms'] / same['armworld_20hz']['cpu_ms']:5.1f} x" if "armworld_20hz" in same else ""
    return (
        f"{row['size']:3d} px  {row['processes']} process{'es' if row['processes'] > 1 else '  '}  "
        f"{CASES[row['case']].title:<24} {row['work']:>10}  {row['cpu_ms']:7.1f} ms CPU per step  "
        f"{row['steps_per_second']:6.1f} steps/s  {ratio}"
    )


def work(config: Config) -> None:
    """The worker's job: one case in this process, its result as a line of JSON."""
    name, size = config.worker.split(":")
    result = run_overhead(int(size), config.steps) if name == "overhead" else run_case(name, int(size), config.steps)
    print(json.dumps(result), flush=True)


def main(config: Config) -> None:
    """Measure, print, and write JSON if asked to."""
    unknown = set(config.cases) - set(CASES)
    if unknown:
        raise ValueError(f"unknown cases {', '.join(sorted(unknown))}; valid: {', '.join(CASES)}")
    if config.worker:
        return work(config)
    from armworld.envs.rendering import choose_backend

    print(f"OpenGL backend of all cases: {choose_backend()}")  # exported, and so the workers' as well
    record = {"config": {**asdict(config), "out": str(config.out)}, **measure(config)}
    if config.out is not None:
        temporary = config.out.with_suffix(".tmp")
        temporary.write_text(json.dumps(record, indent=1))
        os.replace(temporary, config.out)
    return None


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
