"""`armworld deploy`: one agent, one goal, a real or simulated arm. `armworld goal`: drive there and take the picture.

    armworld deploy --sim --agent expert --episodes 5
    armworld deploy --host 172.16.0.2 --cameras left=opencv:/dev/video0 --workspace ... --goal goals/cup --agent cem
    armworld deploy ... --live        # after a typed confirmation

A dry run does everything but send commands. Each run is one folder: journal, frames, outcome, DROID-raw episode.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from armworld.datasets.episode import EpisodeError
from armworld.evaluation.agents import USUAL, AgentSettings, load_model
from armworld.evaluation.configuring import check_agent
from armworld.evaluation.files import commit, plain, write_json
from armworld.evaluation.preflight_page import print_marks, read_picture
from armworld.real import drawn
from armworld.real.agent_process import AgentLink, AgentProcess
from armworld.real.agents import agent_names, agent_settings, build_agent, imagines
from armworld.real.cameras import Framing
from armworld.real.cell import Cell, Outcome, SessionConfig, StopRequest
from armworld.real.drawn import Drawn, draw_reach, draw_task, judge, set_up
from armworld.real.driving import Driver
from armworld.real.gate import ACTION_UNITS, SafetyGate
from armworld.real.goals import load_goal, save_goal
from armworld.real.journal import Journal, JournalError, finish
from armworld.real.opening import ModelFacts, confirm_live, model_facts, open_cell, signals, told
from armworld.real.page import LAST_PORT, LivePage, check_address
from armworld.real.preflight import Preflight, preflight
from armworld.real.session import ENDED_WELL, Session
from armworld.real.setup import CellConfig, check_table, parse_camera
from armworld.types import Goal, check_folder, check_name, check_numbers

PATIENCE_S = 10.0  # beyond the age that a plan may have, before an agent counts as hung
REACHED_M = 0.05  # a reach that ends so near its goal's state is logged as a success


@dataclass(frozen=True)
class DeployConfig(AgentSettings, CellConfig):
    """Run an agent on a Franka arm, or on the simulated robot that speaks its protocol. Dry unless --live.

    Attributes:
        agent: hold, expert (goes to the goal's state), or a planner: cem, cem_published, cem_adam, icem, mppi,
            gradient, random_shooting, or servo, which only reads the hand.
        model: World model for planners: a shipped name or a checkpoint's folder.
        task: reach, reach_with_object, grasp or pick_place: planners take its usual settings, as in `armworld plan`.
            With --sim and no --goal it is also what is drawn (all but reach_with_object).
        goal: One path per sub-goal: a picture, or a folder made by `armworld goal`. With --sim, left out, a task is
            drawn: the arm drives to a drawn pose, takes the picture and drives back; grasp and pick_place are those of
            `armworld plan` with the same seed.
        budgets: Steps per sub-goal; left out, `steps` for each.
        steps: At most so many steps.
        done_m: End when the flange is so near the goal's state, where it has one; 0 runs all steps. For reaching.
        episodes: Goals one after another (only with --sim).
        seed: Of the drawn goals and the agent's draws.
        object: Object on the simulated table: cup, box, bottle or none.
        lab: What the simulated cameras show: lab1 or lab2; on hardware, a name for the log.
        words: What is being done, in words, for the log.
        live: Send commands. Asks for a typed confirmation.
        slow_steps: First moves that keep a fifth of the speed limit.
        jog: Before the first episode, jog the arm by 5 cm along each axis and end where the world model misreads what
            the camera then shows: live (where an agent plans on a world model, on hardware), always (with --sim as
            well) or never. A dry run moves nothing, so it never jogs.
        reference: A picture of what the model was trained to see, to lay over the live one in the jogs' page.
        agent_threads: Threads of the agent's process.
        page: Serve the live page.
        page_host: Address that it is served at.
        page_port: Its port; 0 takes a free one.
        out: Folder for this and other runs.
    """

    agent: str = "expert"
    model: str = "default"
    task: str = "reach"
    goal: tuple[Path, ...] = ()
    budgets: tuple[int, ...] = ()
    steps: int = 40
    done_m: float = 0.0
    episodes: int = 1
    seed: int = 2_000_000
    object: str = "cup"
    lab: str = "lab1"
    words: str = ""
    live: bool = False
    slow_steps: int = 4
    jog: Literal["live", "always", "never"] = "live"
    reference: Path | None = None
    agent_threads: int = 1
    page: bool = True
    page_host: str = "127.0.0.1"
    page_port: int = 0
    out: Path = Path("runs/deploy")

    def __post_init__(self) -> None:
        AgentSettings.__post_init__(self)
        check_name("agent", self.agent, agent_names())
        check_name("task", self.task, USUAL)
        self.check_cell()
        check_numbers(self, "steps", "episodes", "agent_threads", least=1)
        check_numbers(self, "slow_steps", "seed", "done_m", least=0)
        check_numbers(self, "page_port", least=0, most=LAST_PORT)
        check_agent(self.agent, self.task, self)
        if self.sim:
            check_table(self.object, self.lab)
        if not self.sim and not self.goal:
            raise ValueError("give --goal: a picture, or a folder made by `armworld goal`")
        if self.episodes != 1 and not (self.sim and not self.goal):
            raise ValueError("--episodes above 1 is for drawn goals, with --sim")
        if self.done_m and (self.task != "reach" or len(self.goal) > 1):
            raise ValueError("--done-m ends an episode by where the flange is: it is for reach, with one goal")
        if self.sim and not self.goal and self.task != "reach":
            check_name("task that --sim draws", self.task, drawn.TASKS)
            if self.object == "none":
                raise ValueError(f"{self.task} needs an --object")
        if self.reference is not None:
            read_picture(self.reference)
        if self.jog == "always" and not imagines(self.agent):
            raise ValueError(f"--jog always asks what a world model reads, and agent {self.agent!r} plans on none")
        if self.budgets and len(self.budgets) != len(self.goal):
            raise ValueError(f"give one budget per sub-goal: {len(self.goal)} goals, {len(self.budgets)} budgets")
        if any(budget < 1 for budget in self.budgets):
            raise ValueError(f"budgets must be at least 1 step each, got {self.budgets}")

    @property
    def moves(self) -> bool:
        """Whether commands are sent: with --live, and always to the simulated robot."""
        return self.live or self.sim

    @property
    def jogs(self) -> bool:
        """Whether the arm is jogged before the first episode: never in a dry run."""
        asked = self.jog == "always" or (self.jog == "live" and not self.sim)
        return asked and self.moves and imagines(self.agent)


@told
def deploy(config: DeployConfig, console: Console | None = None, ask: Callable[[str], str] = input) -> int:
    """Run it. Answers the exit code: 0 ended as meant, 1 ended by a fault, 130 interrupted.

    Args:
        config: What to do.
        console: Where to print.
        ask: Puts a question to the operator (typed confirmation, reconnection, recovery).

    Raises:
        ValueError: Pre-flight failed, the confirmation was not given, a setting is wrong, a device did not connect, or
            the agent did not begin.
    """
    console = console or Console()
    check_folder("out", config.out)
    if config.page:
        check_address(config.page_host, config.page_port)
    facts = model_facts(config, config.agent, config.model)
    goal = given_goal(config, facts)
    settings = agent_settings(config.agent, config.task, config, goal)
    gate = SafetyGate(config.limits(facts.step_seconds), max_identical=None if config.sim else 3)
    stop = StopRequest()
    with contextlib.ExitStack() as stack:
        stack.enter_context(signals(stop))
        cell = open_cell(config, facts.size, facts.camera, config.object, config.lab, stack)
        factory = partial(build_agent, config.agent, config.model, config.seed, settings)
        agent = stack.enter_context(AgentProcess(factory, config.agent_threads))
        run = _Run(config, facts, cell, gate, agent, stop, console, ask, goal, settings)
        outcomes = [run.episode(number) for number in _episodes(config, stop)]
    return _summary(config, outcomes, stop, console)


def given_goal(config: DeployConfig, facts: ModelFacts) -> Goal | None:
    """The goal that --goal names, None where one is to be drawn. ValueError: it cannot be read."""
    if not config.goal:
        return None
    budgets = config.budgets or (config.steps,) * len(config.goal)
    names = (facts.camera,) if config.sim else tuple(parse_camera(text)[0] for text in config.cameras)
    return load_goal(config.goal, budgets, dict.fromkeys(names, Framing(facts.size, config.crop or None)))


def _episodes(config: DeployConfig, stop: StopRequest) -> Iterator[int]:
    for number in range(config.episodes):
        if not stop.event.is_set():
            yield number


class _Run:
    """The episodes of one call of `deploy`."""

    def __init__(
        self,
        config: DeployConfig,
        facts: ModelFacts,
        cell: Cell,
        gate: SafetyGate,
        agent: AgentProcess,
        stop: StopRequest,
        console: Console,
        ask: Callable[[str], str],
        given: Goal | None = None,
        settings: AgentSettings | None = None,
    ) -> None:
        self.config, self.facts, self.cell, self.gate, self.agent = config, facts, cell, gate, agent
        self.stop, self.console, self.ask, self.given = stop, console, ask, given
        self.settings = settings or AgentSettings()
        started = datetime.now(UTC)
        self.folder = config.out / f"{started:%Y-%m-%d_%Hh%Mm%Ss}"
        self.rng = np.random.default_rng(config.seed)
        slow = not config.sim
        self.driver = Driver(cell, gate, self.folder / "drives", stop, self._header, slow)

    def episode(self, number: int) -> Outcome:
        """Goal, pre-flight, confirmation, jogs before the first, loop, log."""
        checked = self._preflight()
        task = self._draw(number) if self.given is None else Drawn(self.given)
        if self.stop.event.is_set():
            return Outcome(self.stop.reason, 0, {}, None, 0.0)
        self.agent.reset(task.goal)
        if self.config.live and not self.config.sim:
            self._confirm_live(checked)
        if number == 0 and self.config.jogs:
            self._jog()
            if self.stop.event.is_set():
                return Outcome(self.stop.reason, 0, {}, None, 0.0)
        return self._run(self.folder / f"episode{number:02d}", task)

    def _preflight(self) -> Preflight:
        result = preflight(self.cell, self.gate, self.config.out)
        for line in result.lines():
            self.console.print(line, highlight=False, soft_wrap=True)
        if not result.ok:
            failed = "; ".join(f"{check.name}: {check.text}" for check in result.checks if not check.ok)
            raise ValueError(f"pre-flight failed: {failed}")
        return result

    def _confirm_live(self, checked: Preflight) -> None:
        """The operator types the arm's address. A pre-flight that has aged meanwhile is repeated."""
        jogs = "jogged by 5 cm along each axis, then " if self.config.jogs else ""
        what = f"the arm at {self.config.host} will be {jogs}moved by {self.config.agent} for {self.config.steps} steps"
        confirm_live(self.config.host, what, self.gate.limits, self.ask, self.console)
        if not checked.fresh(time.monotonic()):
            self._preflight()

    def _jog(self) -> None:
        """Whether the model understands what this camera shows of the arm's motion; a bad verdict ends it here."""
        from armworld.evaluation.jogging import judge
        from armworld.real.jogs import examine

        model = load_model(self.config.agent, self.config.model)
        reference = self.config.reference
        picture = None if reference is None else read_picture(reference, self.facts.size)
        examined = examine(
            model,
            self.driver,
            self.facts.camera,
            picture,
            self.folder / "preflight",
            asdict(self.config),
            self.config.seed,
        )
        if examined is None:  # the operator stopped it
            return
        marks = judge(examined[1].findings)
        print_marks(marks, self.console)
        self.console.print(f"jogs {self.folder / 'preflight' / 'index.html'}", highlight=False, soft_wrap=True)
        if marks[0][0] == "bad":
            raise ValueError(f"pre-flight failed: {marks[0][1]} ({marks[1][1]})")
        self._preflight()  # the earlier one has aged

    def _confirm(self, question: str) -> bool:
        """Reconnection or recovery: the operator types yes. Nobody answers for the simulated robot."""
        if self.config.sim:
            return False
        return self.ask(f"{question} Type yes: ").strip().lower() == "yes"

    def _draw(self, number: int) -> Drawn:
        """A task of the simulated robot's, set up; in an object's task the arm then stands above the object."""
        config, name, robot = self.config, f"{number:02d}", self.cell.simulated
        assert robot is not None, "tasks are drawn for the simulated robot only"
        if config.task == "reach":
            return draw_reach(self.driver, self.rng, self.folder, name, config.steps)
        task = draw_task(
            config.task, config.object, config.lab, self.facts.camera, self.facts.size[0], self.facts.step_seconds,
            config.seed + number, subgoals=config.agent == "expert",
        )  # fmt: skip
        for index, observation in enumerate(task.goal.observations):
            save_goal(self.folder / f"goal{name}" / f"{index}", observation)
        set_up(task, self.driver, robot, name)
        return task

    def _run(self, folder: Path, task: Drawn) -> Outcome:
        config = SessionConfig(
            steps=self.config.steps,
            live=self.config.moves,
            slow_steps=0 if self.config.sim else self.config.slow_steps,
            done_m=self.config.done_m or None,
            agent_timeout_s=max(SessionConfig.agent_timeout_s, self.gate.limits.max_plan_age + PATIENCE_S),
        )
        with contextlib.ExitStack() as stack:
            publish = self._page(task.goal, stack)
            outcome = self._session(folder, task.goal, config, self.agent, publish).run()
        if self.cell.simulated is not None and task.target is not None and task.object_at is not None:
            verdict = judge(self.config.task, task.target, float(task.object_at[2]), self.cell.simulated)
            outcome = replace(outcome, solved=verdict.solved, object_m=verdict.object_m)
        write_json(folder / "outcome.json", plain(asdict(outcome)))
        try:
            episode = finish(folder, self.config.out / "droid", self._succeeded(outcome))
            self.console.print(f"episode {episode}", highlight=False, soft_wrap=True)
        except (JournalError, EpisodeError) as error:
            self.console.print(f"no episode: {error}", highlight=False, soft_wrap=True)
        return outcome

    def _succeeded(self, outcome: Outcome) -> bool:
        """What the log says: reaches by the flange's way left, objects by what the simulation saw; else unknown."""
        if self.config.task == "reach":
            return outcome.distance_m is not None and outcome.distance_m < REACHED_M
        return bool(outcome.solved)

    def _page(
        self, goal: Goal, stack: contextlib.ExitStack
    ) -> Callable[[dict[str, Any], Mapping[str, np.ndarray]], None]:
        if not self.config.page:
            return lambda row, images: None
        pictures = [{name: image for name, image in seen.items() if name != "state"} for seen in goal.observations]
        page = LivePage(self.stop.set, self.config.moves, pictures, self.config.page_host, self.config.page_port)
        stack.callback(page.close)
        self.console.print(f"live page {page.address}", highlight=False)
        return page.publish

    def _session(
        self,
        folder: Path,
        goal: Goal,
        config: SessionConfig,
        agent: AgentLink,
        publish: Callable[[dict[str, Any], Mapping[str, np.ndarray]], None] = lambda row, images: None,
    ) -> Session:
        state = goal.observations[-1].get("state")
        journal = Journal(folder, self._header(goal, config))
        return Session(
            self.cell, self.gate, agent, journal, config, self.stop, self._confirm, publish,
            None if state is None else np.asarray(state, float),
        )  # fmt: skip

    def _header(self, goal: Goal, config: SessionConfig) -> dict[str, Any]:
        """What the log says of the whole episode."""
        shapes = {name: list(camera.features["image"].shape[:2]) for name, camera in self.cell.cameras.items()}
        return {
            "version": 1,
            "started": datetime.now(UTC).isoformat(),
            "commit": commit(),
            "robot": f"simulated FR3 at {self.config.host or 'loopback'}" if self.config.sim else self.config.host,
            "lab": self.config.lab,
            "task": self.config.words or f"{self.config.task.replace('_', ' ')}: {self.config.object}",
            "units": ACTION_UNITS,
            "step_seconds": self.gate.limits.step_seconds,
            "cameras": shapes,
            "goal_states": [observation.get("state") for observation in goal.observations],
            "limits": asdict(self.gate.limits),
            "session": asdict(config),
            "settings": asdict(self.config),
            "agent_settings": asdict(self.settings),
        }


def _summary(config: DeployConfig, outcomes: list[Outcome], stop: StopRequest, console: Console) -> int:
    for number, outcome in enumerate(outcomes):
        distance = "" if outcome.distance_m is None else f", {1000 * outcome.distance_m:.1f} mm from the goal"
        if outcome.solved is not None:
            off = 100 * (outcome.object_m or 0.0)
            distance = f", {'solved' if outcome.solved else 'not solved'}, the object {off:.1f} cm off"
        holds = ", ".join(f"{code} {count}" for code, count in outcome.holds.items()) or "none"
        text = f"episode {number}: {outcome.reason} after {outcome.steps} steps{distance}; holds: {holds}"
        console.print(text, highlight=False, soft_wrap=True)
    if stop.event.is_set() and stop.reason in ("interrupted", "terminated"):
        return 130
    return 0 if all(outcome.reason in ENDED_WELL for outcome in outcomes) else 1
