"""A `dm_env` view of an environment, for agents and viewers of the dm_control ecosystem. Needs the extra `dm`.

    view = as_dm_env(ArmEnv("grasp"), seed=0)
    view.physics.named.data.site_xpos["tip"]        # dm_control's Physics on the very same simulation
    dm_control.viewer.launch(view, policy)          # its viewer, where there is a display

composer's variations are not used: ours (`armworld.envs.randomization`) are plain numbers that a recorded episode
carries, from which its images are drawn again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from armworld.envs.base import ArmEnv
from armworld.types import require


def as_dm_env(env: ArmEnv, seed: int | None = None) -> Any:
    """The same environment as a `dm_env.Environment`.

    Observations and actions are unchanged. `physics` is the scene as `dm_control.mujoco.Physics`, sharing its data,
    for named indexing, `render` and dm_control's viewer; step through the view, not through it. `reward` is minus the
    distance to the goal (m); an episode ends by time only, so its last step keeps discount 1.

    Args:
        env: The environment; the view owns it and closes it.
        seed: Seed of the first episode; later ones follow from it.

    Raises:
        ImportError: dm_env is not installed; the message says how to install it.
    """
    dm_env = require("dm_env", "dm")
    specs = require("dm_env.specs", "dm")

    class DmView(dm_env.Environment):
        """The view; see `as_dm_env`."""

        def __init__(self) -> None:
            self._seed = seed
            self._running = False
            self._physics: Any = None

        @property
        def physics(self) -> Any:
            if self._physics is None:
                engine = require("dm_control.mujoco", "dm")
                saved = env.simulator.save()
                self._physics = engine.Physics(engine.wrapper.MjData(env.simulator.data))
                env.simulator.restore(saved)  # making it computes forces without the motors
            return self._physics

        def reset(self) -> Any:
            observation, _ = env.reset(seed=self._seed)
            self._seed, self._running = None, True
            return dm_env.restart(observation)

        def step(self, action: np.ndarray) -> Any:
            if not self._running:
                return self.reset()
            observation, reward, _, truncated, _ = env.step(action)
            self._running = not truncated
            if truncated:
                return dm_env.truncation(reward, observation)
            return dm_env.transition(reward, observation)

        def observation_spec(self) -> dict[str, Any]:
            assert isinstance(env.observation_space, spaces.Dict)
            return {name: _spec(specs, name, space) for name, space in env.observation_space.spaces.items()}

        def action_spec(self) -> Any:
            return _spec(specs, "action", env.action_space)

        def close(self) -> None:
            env.close()

    return DmView()


def _spec(specs: Any, name: str, space: spaces.Space) -> Any:
    assert isinstance(space, spaces.Box)
    return specs.BoundedArray(space.shape, space.dtype, space.low, space.high, name)
