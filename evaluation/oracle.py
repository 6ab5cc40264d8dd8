"""Oracle dynamics: the simulator as the world model, under the same encoder and so the same energy.

If a planner fails with it, planner, cost or goal are at fault; if it only fails with the learned predictor, that is.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from armworld.worldmodel.model import Rollout


class OracleModel:
    """A `WorldModel` whose rollouts are executed in the environment's simulator, which is then put back exactly.

    It imagines from where the simulator *is*: the latent context and robot state that it is given are not used, so
    it serves one episode at a time, in the very environment that the agent acts in.

    Args:
        env: An armworld environment (`save_state`, `restore_state`, `simulator`, `observe`).
        model: The world model whose encoder turns the simulator's views into features.
    """

    def __init__(self, env: gymnasium.Env, model: Any) -> None:
        self._env: Any = env.unwrapped
        missing = [name for name in ("save_state", "restore_state", "simulator") if not hasattr(self._env, name)]
        if missing:
            raise ValueError(f"oracle dynamics need an environment with {', '.join(missing)}; {env} has none")
        self._model = model
        self.step_seconds, self.camera, self.image_size = model.step_seconds, model.camera, model.image_size

    def encode(self, images: np.ndarray | Tensor) -> Tensor:
        """The learned model's features of uint8 [B, T, H, W, 3] images."""
        return self._model.encode(images)

    def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
        """Execute actions [1, S, H, 7] from the present moment: features [1, S, H, N, D], true states [1, S, H, 7]."""
        if actions.shape[0] != 1 or actions.ndim != 4 or actions.shape[-1] != 7:
            raise ValueError(f"oracle dynamics plan one episode: actions [1, S, H, 7], got {list(actions.shape)}")
        candidates = actions[0].detach().cpu().numpy().astype(np.float64)
        moment = self._env.save_state()
        try:
            features, states = zip(*(self._execute(plan, moment) for plan in candidates), strict=True)
        finally:
            self._env.restore_state(moment)
        return Rollout(torch.stack(features)[None].to(z), torch.stack(states)[None].to(state))

    def _execute(self, plan: np.ndarray, moment: Any) -> tuple[Tensor, Tensor]:
        """Features [H, N, D] and states [H, 7] that one plan [H, 7] really leads to."""
        simulator, size = self._env.simulator, self.image_size
        simulator.restore(moment.simulator)
        views, states = [], []
        for action in plan:
            simulator.step(action)
            observation = simulator.observe((self.camera,), *size)
            views.append(observation[self.camera])
            states.append(observation["state"])
        features = self._model.encode(np.stack(views)[:, None])[:, 0]
        return features, torch.from_numpy(np.stack(states))
