"""The agent in a process of its own: planning loads every core, and may hang or die, without touching the control.

The child answers requests over a pipe, leaves Ctrl-C to the parent, and ends when the pipe closes, also when the
parent was killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np

from armworld.types import Agent, Goal, Observation

AgentFactory = Callable[[], Agent]  # picklable: a function of a module, or functools.partial of one


@dataclass(frozen=True)
class Reply:
    """What came back: the request's tag, an action or an error, the agent's own record, and the seconds it took."""

    tag: int
    action: np.ndarray | None
    error: str | None
    seconds: float
    info: dict[str, Any] = field(default_factory=dict)


class AgentGone(RuntimeError):
    """The agent's process ended or could not begin."""


class AgentLink(Protocol):
    """What the loop needs of an agent, wherever it runs."""

    def request(self, observation: Observation, tag: int) -> None: ...

    def poll(self) -> Reply | None: ...


class InlineAgent:
    """An agent that answers at once, in the loop's own process: for moves that need no planning."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._reply: Reply | None = None

    def request(self, observation: Observation, tag: int) -> None:
        self._reply = Reply(tag, np.asarray(self._agent.act(observation)), None, 0.0)

    def poll(self) -> Reply | None:
        reply, self._reply = self._reply, None
        return reply


class AgentProcess:
    """Starts the process; `reset`, `request` and `poll` never block for longer than they say."""

    def __init__(self, factory: AgentFactory, threads: int = 1) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, child = context.Pipe()
        self.process = context.Process(target=_run, args=(child, factory, threads), name="agent", daemon=True)
        self.process.start()
        child.close()

    def __enter__(self) -> AgentProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def reset(self, goal: Goal, timeout_s: float = 300.0) -> None:
        """Begin an episode; loading a model and encoding the goal takes its time.

        Raises:
            AgentGone: It died, refused the goal, or took longer.
        """
        self._send(("reset", goal))
        reply = self._wait(timeout_s)
        if reply is None:
            raise AgentGone(f"the agent did not begin within {timeout_s:.0f} s")
        if reply.error is not None:
            raise AgentGone(f"the agent refused to begin: {reply.error}")

    def request(self, observation: Observation, tag: int) -> None:
        """Ask for an action; the answer carries the tag."""
        self._send(("act", observation, tag))

    def poll(self) -> Reply | None:
        """The next answer, or None while there is none. Raises AgentGone when the process has ended."""
        try:
            if self._pipe.poll(0):
                return self._pipe.recv()
        except (EOFError, OSError) as error:
            raise AgentGone(f"the agent's process ended (exit code {self.process.exitcode})") from error
        if not self.alive:
            raise AgentGone(f"the agent's process ended (exit code {self.process.exitcode})")
        return None

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self.process.join(0.2)
        if self.process.is_alive():
            self.process.kill()  # it may be stopped, or deep inside a plan
            self.process.join()

    def _send(self, message: tuple) -> None:
        try:
            self._pipe.send(message)
        except OSError as error:
            raise AgentGone(f"the agent's process ended (exit code {self.process.exitcode})") from error

    def _wait(self, timeout_s: float) -> Reply | None:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if (reply := self.poll()) is not None:
                return reply
            time.sleep(0.005)
        return None


def _run(pipe: Connection, factory: AgentFactory, threads: int) -> None:
    """The child's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # never inherit a robot client's real-time priority
    os.nice(5)  # the control loop goes first
    import torch

    torch.set_num_threads(threads)
    agent: Agent | None = None
    while True:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            return
        started = time.monotonic()
        tag, action, error, info = -1, None, None, {}
        try:
            if message[0] == "reset":
                agent = factory() if agent is None else agent
                agent.reset(message[1])
            else:
                tag = message[2]
                assert agent is not None, "an action was asked for before reset"
                action = np.asarray(agent.act(message[1]))
                info = _record(agent)
        except Exception as failure:  # whatever the agent raises, the control must hear of it
            error = f"{type(failure).__name__}: {failure}"
        try:
            pipe.send(Reply(tag, action, error, time.monotonic() - started, info))
        except OSError:
            return


def _record(agent: Agent) -> dict[str, Any]:
    """What a planning agent says of its last step: energy now, energy imagined, time."""
    step = getattr(agent, "last_step", None)
    return step.to_json() if step is not None else {}
