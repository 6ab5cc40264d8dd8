"""How an episode with an object went wrong, read from the simulator's contacts; used for the reason only."""

from __future__ import annotations

from typing import Any

import gymnasium

LIFTED_M = 0.02  # the lowest point of a lifted object is at least this high above the table
SET_DOWN_M = 0.03  # released from lower than this counts as set down, from higher as dropped


class ContactWatcher:
    """Follows the task's object through an episode.

    | word | meaning |
    | --- | --- |
    | `slipped` | both fingers touched the object, but it never left the table in their grip |
    | `dropped` | it was lifted and is out of the grip at the end; let go of in the air, or only lifting was asked |
    | `wrong_place` | it was lifted, set down, and rests elsewhere than the goal shows |
    | `toppled` | it was set down at its place and does not stand upright or at rest there |
    """

    def __init__(self, env: gymnasium.Env) -> None:
        """Watch an environment; one without objects to move, or of another project, yields no word."""
        arm: Any = env.unwrapped
        task = getattr(arm, "task", None)
        self._simulator: Any = getattr(arm, "simulator", None)
        self._task = task if self._simulator is not None and getattr(task, "name", "reach") != "reach" else None
        self._pinched = self._lifted = self._held = False
        self._height = 0.0

    def see(self) -> None:
        """After the reset and every step."""
        if self._task is None:
            return
        name, simulator = self._task.object, self._simulator
        contact = simulator.contact_report()[name]
        pinched = contact["left"] and contact["right"]
        height = simulator.underside(name) - simulator.table_height
        self._pinched |= pinched
        self._held = pinched and height > LIFTED_M
        self._lifted |= self._held
        if pinched:
            self._height = height

    def failure(self) -> str | None:
        """The word for an episode that has just failed, or None where contact does not explain it."""
        if self._task is None or not self._pinched or self._held:
            return None
        if not self._lifted:
            return "slipped"
        if self._task.name != "pick_place" or self._height > SET_DOWN_M:
            return "dropped"
        return "wrong_place" if self._task.distance(self._simulator) >= self._task.tolerance else "toppled"
