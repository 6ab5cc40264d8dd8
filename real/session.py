"""The control loop: look, ask the agent, pass the gate, move, write down. Every fault ends in a standing arm.

The loop waits for nothing but the clock: devices are read from threads, the agent answers from its own process, a
watchdog stops the arm if the loop itself hangs. What went wrong decides between three reactions: **hold** (stand
still this step, look again), **end** (stand still, close the log), and **ask** (stand still until the operator
confirms a reconnection or a recovery; without an operator, end).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from armworld.pose import action_between
from armworld.real.agent_process import AgentGone, AgentLink, Reply
from armworld.real.cell import Cell, Outcome, SessionConfig, StopRequest
from armworld.real.gate import Decision, SafetyGate, Situation, Watchdog
from armworld.real.journal import Journal
from armworld.real.protocols import ArmReading, DeviceError, DeviceLost, Reflex
from armworld.real.senses import TICK_S, Seen, Senses
from armworld.types import EXECUTED

ENDED_WELL = ("steps", "arrived")
FAULTS = ("device_lost", "reflex", "device_error", "agent_gone", "ended")  # reasons of holds that are not the gate's
REST_S = 2.0  # one step's motion ends long before
REST_RAD = 5e-4  # less than this in 0.1 s is rest; measured velocities jitter too much to tell
PACE = 0.9  # share of a step that must have passed on the robot's clock before it is looked at again


class _End(Exception):
    """Leaves the loop with a reason."""


class Session:
    """One episode. `run` returns how it ended; the arm stands still then, whatever happened."""

    def __init__(
        self,
        cell: Cell,
        gate: SafetyGate,
        agent: AgentLink,
        journal: Journal,
        config: SessionConfig,
        stop: StopRequest | None = None,
        confirm: Callable[[str], bool] = lambda question: False,
        publish: Callable[[dict[str, Any], Mapping[str, np.ndarray]], None] = lambda row, images: None,
        goal_state: np.ndarray | None = None,
    ) -> None:
        self.cell, self.gate, self.agent, self.journal, self.config = cell, gate, agent, journal, config
        self.stop = stop or StopRequest()
        self._confirm, self._publish, self._goal_state = confirm, publish, goal_state
        self._senses = Senses(cell)
        self._beat = time.monotonic()
        self._holds: dict[str, int] = {}
        self._held_in_row = 0
        self._slow_left = config.slow_steps
        self._commanded: np.ndarray | None = None
        self._executed = np.zeros(7)  # since the agent was last asked
        self._waiting_tag: int | None = None
        self._standing = False  # nothing was commanded since the arm was stopped
        self._sent_s = -np.inf  # when the last command was sent, and the robot's clock then (NaN after a stop)
        self._sent_clock_s = np.nan

    # ------------------------------------------------------------------ the loop

    def run(self) -> Outcome:
        """Run until done, stopped or failed."""
        started, steps, reason = time.monotonic(), 0, "interrupted"
        ended = threading.Event()
        watchdog = threading.Thread(target=self._watch, args=(ended,), name="watchdog", daemon=True)
        self._beat = time.monotonic()
        watchdog.start()
        try:
            for steps in range(self.config.steps):
                self._step(steps)
            steps, reason = self.config.steps, "steps"
        except _End as end:
            reason = str(end)
        finally:
            ended.set()
            if reason in ENDED_WELL:
                self._come_to_rest()
            self._halt()
            reason = self._close_journal() or reason
        watchdog.join()
        return Outcome(reason, steps, dict(self._holds), self._distance(), time.monotonic() - started)

    def _step(self, number: int) -> None:
        tick = time.monotonic()
        row: dict[str, Any] = _empty_row(number, tick)
        images: dict[str, np.ndarray] = {}
        try:
            seen = self._look(row)
            images = {name: frame.image for name, frame in seen.frames.items()}
            self._decide(number, seen, row)
        except DeviceLost as error:
            self._fault("device_lost", str(error), row)
            self._note(row, images)
            self._ask_reconnect(str(error))
        except Reflex as error:
            self._fault("reflex", str(error), row)
            self._note(row, images)
            self._ask_recover(str(error))
        except DeviceError as error:
            self._fault("device_error", str(error), row)
            self._note(row, images)
        except AgentGone as error:
            self._fault("agent_gone", str(error), row)
            self._note(row, images)
            raise _End(f"agent_gone: {error}") from error
        except _End as end:
            self._fault("ended", str(end), row)
            self._note(row, images)
            raise
        else:
            self._note(row, images)
        self._after(row)
        # A step's time runs from its command: a slow planner's next look must not catch the arm under way.
        self._pause(max(tick, self._sent_s) + self.gate.limits.step_seconds)

    def _after(self, row: Mapping[str, Any]) -> None:
        """Whether to go on: too many holds in a row end the episode, and so does arrival."""
        if row["verdict"] == "hold":
            self._held_in_row += 1
            if self._held_in_row >= self.config.max_holds:
                raise _End(f"held: {','.join(code for code, _ in row['reasons'])}")
        else:
            self._held_in_row = 0
        if self._arrived():
            raise _End("arrived")

    # ------------------------------------------------------------------ looking

    def _look(self, row: dict[str, Any]) -> Seen:
        """Read every device; wait a moment for frames that were not seen before."""
        while self._behind(self.cell.arm.read()):
            self._alive()
            time.sleep(TICK_S)
        frames = self._senses.frames(self.config.frame_wait_s, self._alive)
        seen = self._senses.robot(frames, self._commanded)
        row["latency"]["look"] = time.monotonic() - row["time_s"]
        row["frames"] = {name: {"id": frame.id, "time_s": frame.time_s} for name, frame in frames.items()}
        row["state"], row["joints"] = seen.state, seen.arm.joints
        row["velocities"] = seen.arm.velocities
        if seen.arm.error is not None:
            raise Reflex(seen.arm.error)
        if seen.gripper is not None and seen.gripper.error is not None:
            raise DeviceError(f"gripper: {seen.gripper.error}")
        return seen

    def _behind(self, arm: ArmReading) -> bool:
        """Whether a step is not yet over on the robot's own clock: targets faster than that would add up their speed.

        The robot's clock is ours, but for a simulated one on a busy machine. One that stands still is for the gate.
        """
        stale = time.monotonic() - arm.time_s > self.gate.limits.max_state_age
        return not stale and arm.clock_s - self._sent_clock_s < PACE * self.gate.limits.step_seconds

    # ------------------------------------------------------------------ deciding

    def _decide(self, number: int, seen: Seen, row: dict[str, Any]) -> None:
        now = time.monotonic()
        width = seen.gripper.width_m if seen.gripper is not None else None
        admission = self.gate.admit(now, seen.state, seen.time_s, self._senses.views(seen.frames), width)
        row["admitted"] = admission.verdict == "pass"
        if not row["admitted"]:
            return self._hold(admission, row)
        observation = {"state": seen.state.astype(np.float32), EXECUTED: self._executed.astype(np.float32)}
        observation |= {name: frame.image for name, frame in seen.frames.items()}
        reply = self._ask_agent(observation, number, row)
        if reply is None:
            return None
        if reply.error is not None or reply.action is None:
            raise AgentGone(f"the agent failed: {reply.error}")
        row["proposed"], row["agent"] = reply.action, reply.info
        fresh = self._senses.robot(seen.frames, self._commanded)
        if fresh.arm.error is not None:
            raise Reflex(fresh.arm.error)
        situation = Situation(
            now_s=time.monotonic(),
            state=fresh.state,
            state_time_s=fresh.time_s,
            observed_state=seen.state,
            observed_time_s=min(seen.time_s, *(frame.time_s for frame in seen.frames.values()), np.inf),
            commanded=self._commanded,
            gripper_moved_s=self._senses.gripper_moved_s,
            object_held=fresh.gripper is not None and fresh.gripper.object_held,
            speed_scale=self.config.slow_scale if self._slow_left > 0 else 1.0,
        )
        decision = self.gate.check(reply.action, situation)
        row["situation"] = asdict(situation)
        row["latency"]["gate"] = time.monotonic() - situation.now_s
        if decision.verdict == "hold":
            return self._hold(decision, row)
        row |= {"verdict": decision.verdict, "reasons": decision.reasons, "allowed": decision.action}
        row["target"] = decision.target
        return self._command(decision, fresh, row)

    def _ask_agent(self, observation: dict[str, np.ndarray], number: int, row: dict[str, Any]) -> Reply | None:
        """The agent's answer, or None (held) where it does not come in the time that its observation allows."""
        asked = time.monotonic()
        if self._waiting_tag is None:
            self.agent.request(observation, number)
            self._executed = np.zeros(7)
            self._waiting_tag = number
            self._asked_s = asked
        while True:
            self._alive()
            reply = self.agent.poll()
            now = time.monotonic()
            if reply is not None:
                self._waiting_tag = None
                row["latency"]["agent"] = now - asked
                if reply.tag == number:
                    return reply
                text = f"an answer to step {reply.tag} came in step {number}"
                self._hold_for("stale_plan", f"{text} and was discarded", row)
                return None
            self.cell.arm.read()  # a lost arm ends the waiting
            if now - self._asked_s > self.config.agent_timeout_s:
                raise AgentGone(f"no answer within {self.config.agent_timeout_s:.0f} s")
            if now - asked > self.gate.limits.max_plan_age:
                row["latency"]["agent"] = now - asked
                self._hold_for("agent_slow", f"no action within {self.gate.limits.max_plan_age} s", row)
                return None
            time.sleep(TICK_S)

    def _command(self, decision: Decision, seen: Seen, row: dict[str, Any]) -> None:
        if not self.config.live:
            return
        started = time.monotonic()
        if self.stop.event.is_set():
            raise _End(self.stop.reason)
        sent = np.array(decision.target)
        self._standing = False
        sent[:6] = self.cell.arm.command(decision.target[:6])
        if self.cell.gripper is not None:
            sent[6] = self.cell.gripper.command(float(decision.target[6]))
        before, self._commanded = self._commanded, sent.copy()
        if before is not None and "gripper_stall" in decision.codes:
            self._commanded[6] = before[6]  # it stays stalled until it moves or is told to back off
        self._slow_left = max(0, self._slow_left - 1)
        self._sent_s, self._sent_clock_s = time.monotonic(), seen.arm.clock_s
        self._executed = row["executed"] = action_between(seen.state, sent)
        row["latency"]["command"] = time.monotonic() - started

    # ------------------------------------------------------------------ holding

    def _hold(self, decision: Decision, row: dict[str, Any]) -> None:
        row["latency"]["decided"] = time.monotonic() - row["time_s"]
        self._halt()
        row |= {"verdict": "hold", "reasons": decision.reasons}
        row["latency"]["hold"] = time.monotonic() - row["time_s"]
        for code in decision.codes:
            self._holds[code] = self._holds.get(code, 0) + 1

    def _hold_for(self, code: str, text: str, row: dict[str, Any]) -> None:
        self._hold(Decision("hold", ((code, text),), np.zeros(7), np.zeros(7)), row)

    def _fault(self, code: str, text: str, row: dict[str, Any]) -> None:
        self._hold_for(code, text, row)

    def _halt(self) -> None:
        """Stop the arm; a gripper keeps what it holds, and a dry run has nothing to stop."""
        if not self.config.live or self._standing:
            return
        self._commanded, self._sent_clock_s = None, np.nan
        self._beat = np.inf  # stopping has its own time limits; the watchdog could only do the same
        with contextlib.suppress(DeviceError):  # a lost arm has stopped by itself
            self.cell.arm.stop()
            self._standing = True
        self._beat = time.monotonic()

    def _come_to_rest(self) -> None:
        """Let the last, bounded motion end, and see where the arm stands."""
        end, last = time.monotonic() + REST_S, np.full(7, np.inf)
        with contextlib.suppress(DeviceError):
            while time.monotonic() < end and not self.stop.event.is_set():
                arm = self._senses.robot({}, self._commanded).arm
                if not arm.moving and np.abs(arm.joints - last).max() < REST_RAD:
                    return
                last = arm.joints
                time.sleep(0.1)

    def _ask_reconnect(self, error: str) -> None:
        if not self._asked(f"{error}. Reconnect and go on, slowly?"):
            raise _End(f"device_lost: {error}")
        try:
            self.cell.close()
            self.cell.connect()
        except DeviceError as again:
            raise _End(f"device_lost: {again}") from again
        self._senses.forget_frames()
        self._slow_left = self.config.slow_steps

    def _ask_recover(self, error: str) -> None:
        if not self._asked(f"The robot stopped itself: {error}. Is the way free; recover and go on, slowly?"):
            raise _End(f"reflex: {error}")
        try:
            self.cell.arm.recover()
        except DeviceError as again:
            raise _End(f"reflex: {error}; not recovered: {again}") from again
        self._slow_left = self.config.slow_steps

    def _asked(self, question: str) -> bool:
        """The operator's answer; the watchdog waits meanwhile, the arm stands."""
        self._beat = np.inf
        try:
            return self._confirm(question)
        finally:
            self._beat = time.monotonic()

    # ------------------------------------------------------------------ time, log, watchdog

    def _alive(self) -> None:
        """A sign of life; leaves the loop when asked to stop."""
        self._beat = time.monotonic()
        if self.stop.event.is_set():
            raise _End(self.stop.reason)

    def _pause(self, until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            self._alive()
            self.stop.event.wait(min(left, 0.05))
        self._alive()

    def _note(self, row: dict[str, Any], images: Mapping[str, np.ndarray]) -> None:
        row["latency"]["step"] = time.monotonic() - row["time_s"]
        try:
            self.journal.write(row, images)
        except OSError as error:
            self._halt()
            raise _End(f"log: {error}") from error
        self._publish(row, images)

    def _close_journal(self) -> str | None:
        try:
            self.journal.close()
        except OSError as error:
            return f"log: {error}"
        return None

    def _watch(self, ended: threading.Event) -> None:
        """The watchdog's thread: stops the arm when the loop gives no sign of life."""
        rule = Watchdog(self.config.watchdog_s)
        while not ended.wait(0.05):
            beat = self._beat
            if np.isfinite(beat) and rule.expired(time.monotonic(), beat):
                if self.config.live:
                    with contextlib.suppress(DeviceError):
                        self.cell.arm.stop()
                self.stop.set("watchdog: the loop gave no sign of life")
                return

    def _arrived(self) -> bool:
        """Whether the flange is where the episode is to end; and turned so, the gripper at rest, where these count."""
        config, distance = self.config, self._distance()
        if config.done_m is None or distance is None or distance > config.done_m:
            return False
        state, goal = self._senses.state, self._goal_state
        assert state is not None and goal is not None, "there was a distance between them"
        if config.done_rad is None:
            return True
        turned = float(np.linalg.norm(action_between(state, goal)[3:6])) <= config.done_rad
        return turned and self._senses.gripper_rests(float(goal[6]), self.gate.limits.gripper_stall)

    def _distance(self) -> float | None:
        state = self._senses.state
        if self._goal_state is None or state is None:
            return None
        return float(np.linalg.norm(state[:3] - self._goal_state[:3]))


def _empty_row(number: int, time_s: float) -> dict[str, Any]:
    """A row of the journal before anything has happened."""
    nothing = ("state", "joints", "velocities", "proposed", "allowed", "executed", "target")
    row: dict[str, Any] = {"step": number, "time_s": time_s, "wall_s": time.time(), "admitted": False}
    return (
        row
        | {"verdict": "pass", "reasons": (), "latency": {}, "frames": {}, "agent": {}, "situation": None}
        | dict.fromkeys(nothing)
    )
