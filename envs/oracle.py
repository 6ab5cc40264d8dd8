"""Oracle dynamics: the simulator as a `WorldModel`, with a real encoder.

A planner that fails with it fails by its search or its energy, not by the learned dynamics. Each candidate is really
simulated from the simulator's present state, every step is rendered and encoded; afterwards the simulator is exactly
as it was. One episode at a time (B = 1); some 20 ms per candidate and step on a CPU.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from armworld.envs.base import ArmEnv
from armworld.types import check_name
from armworld.worldmodel.model import Rollout, WorldModel


class OracleDynamics:
    """`WorldModel` whose imagination is the simulator of `env`; images go through `encoder_model.encode`."""

    def __init__(self, env: gymnasium.Env[Any, Any], encoder_model: WorldModel, camera: str | None = None) -> None:
        """Bind to an environment.

        Args:
            env: An armworld environment; the candidates start from whatever moment it is in.
            encoder_model: Encodes the images, as in ordinary planning.
            camera: Camera that is encoded; by default the environment's first.

        Raises:
            ValueError: No simulator in `env`, a camera it does not observe, or step lengths that differ.
        """
        arm = env.unwrapped
        if not isinstance(arm, ArmEnv):
            raise ValueError(f"oracle dynamics need an armworld environment, got {type(arm).__name__}")
        self.env, self.encoder_model = arm, encoder_model
        self.camera = check_name("camera", camera or arm.cameras[0], arm.cameras)
        self.readout = getattr(encoder_model, "readout", None)
        self.step_seconds = arm.simulator.step_seconds
        if abs(self.step_seconds - encoder_model.step_seconds) > 1e-9:
            raise ValueError(
                f"the environment steps {self.step_seconds} s and the model {encoder_model.step_seconds} s; "
                "make the environment with the model's step_seconds"
            )

    def encode(self, images: np.ndarray | Tensor) -> Tensor:
        """uint8 [B, T, H, W, 3] RGB -> features [B, T, N, D]."""
        return self.encoder_model.encode(images)

    def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
        """Simulate actions [1, S, H, 7] from the present moment; `z` and `state` only tell shape and device.

        Returns z [1, S, H, N, D] and the measured states [1, S, H, 7] (m, rad, closedness; base frame).
        """
        if len(actions) != 1:
            raise ValueError(f"oracle dynamics simulate one episode at a time, got a batch of {len(actions)}")
        simulator, size = self.env.simulator, self.env.image_size
        present = simulator.save()
        frames, states = [], []
        try:
            for candidate in actions[0].detach().cpu().double().numpy():
                simulator.restore(present)
                for action in candidate:
                    simulator.step(action)
                    seen = simulator.observe((self.camera,), size, size)
                    frames.append(seen[self.camera])
                    states.append(seen["state"])
        finally:
            simulator.restore(present)
        lead = actions.shape[1:3]
        images = np.stack(frames).reshape(*lead, *frames[0].shape)
        measured = torch.from_numpy(np.stack(states)).view(1, *lead, 7)
        return Rollout(z=self.encoder_model.encode(images)[None].to(z), state=measured.to(state))
