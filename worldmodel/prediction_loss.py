"""The objective of post-training: teacher forcing plus rollout, and two optional terms.

Shapes: B clips, T frames, N patches, D features; T - 1 actions lie between T states.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armworld.pose import action_between
from armworld.worldmodel.ac_predictor import ACTION_DIM, ACPredictor
from armworld.worldmodel.blocks import normalize

ACTION_SCALE = (20.0, 20.0, 20.0, 5.0, 5.0, 5.0, 2.0)  # 5 cm, 0.2 rad and half a gripper stroke become 1
PATCH_CHANNELS, HIDDEN = 16, 256  # of the inverse-dynamics head


class InverseDynamics(nn.Module):
    """The action (times ACTION_SCALE) that leads from one step's features to the next one's.

    Each patch's two feature vectors become a few channels; what all patches say goes through one hidden layer.
    """

    def __init__(self, features: int, patches: int) -> None:
        super().__init__()
        self.compress = nn.Linear(2 * features, PATCH_CHANNELS)
        self.hidden = nn.Linear(patches * PATCH_CHANNELS, HIDDEN)
        self.out = nn.Linear(HIDDEN, ACTION_DIM)

    def forward(self, before_BTND: Tensor, after_BTND: Tensor) -> Tensor:
        """Scaled actions [B, T, 7]."""
        channels = F.gelu(self.compress(torch.cat([before_BTND, after_BTND], -1)))
        return self.out(F.gelu(self.hidden(channels.flatten(-2))))


class PredictionLoss(nn.Module):
    """Teacher forcing plus rollout (paper, equations 2 to 4), as one forward that DDP can wrap.

    Two terms that are not in the paper, off at weight 0:

    - state: L1 of the predictor's state head against the state's change over the step. Where actions are the
      differences of recorded states, as in DROID's convention, the action token nearly tells it already.
    - inverse dynamics: L1 of the action read from (zₜ, zₜ₊₁) and from (zₜ, ẑₜ₊₁). The first trains the head; the second
      asks predictions to differ by action in the same way as real features do.
    """

    def __init__(
        self, predictor: ACPredictor, rollout: int, state_weight: float = 0.0, inverse_weight: float = 0.0
    ) -> None:
        super().__init__()
        if state_weight and predictor.state_head is None:
            raise ValueError("a loss on the robot's state needs a predictor with a state head (config.state_head)")
        self.predictor, self.rollout = predictor, rollout
        self.state_weight, self.inverse_weight = state_weight, inverse_weight
        rows, columns = predictor.config.grid
        self.inverse = InverseDynamics(predictor.config.features, rows * columns) if inverse_weight else None

    def forward(
        self, z_BTND: Tensor, states_BTA: Tensor, actions_BTA: Tensor, cameras_BTE: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The parts of the loss and their weighted sum, `loss`; `actions` has T - 1 steps.

        Short clips have no rollout part. `cameras`: extrinsics [B, T, 6] for a predictor that reads them.
        """
        cameras = None if cameras_BTE is None else cameras_BTE[:, :-1]
        forced = self.predictor(z_BTND[:, :-1], actions_BTA, states_BTA[:, :-1], cameras)
        z_hat = normalize(forced.z.float())
        parts = {"teacher_forcing": F.l1_loss(z_hat, z_BTND[:, 1:].float())}
        if self.rollout > 1 and z_BTND.shape[1] > self.rollout:
            parts["rollout"] = self._rollout(z_BTND, states_BTA, actions_BTA, cameras, z_hat[:, :1])
        loss = torch.stack(list(parts.values())).sum()
        if self.state_weight:
            parts["state"] = self._state(forced.state_delta, states_BTA)
            loss = loss + self.state_weight * parts["state"]
        if self.inverse is not None:
            parts["inverse"] = self._inverse(self.inverse, z_BTND, z_hat, actions_BTA)
            loss = loss + self.inverse_weight * parts["inverse"]
        return {"loss": loss, **parts}

    def _rollout(
        self, z_BTND: Tensor, states_BTA: Tensor, actions_BTA: Tensor, cameras: Tensor | None, first_B1ND: Tensor
    ) -> Tensor:
        """L1 of the frame reached by feeding on own predictions; the first one is teacher forcing's own."""
        context = torch.cat([z_BTND[:, :1].float(), first_B1ND], 1)
        for step in range(2, self.rollout + 1):
            seen_from = None if cameras is None else cameras[:, :step]
            prediction = self.predictor(context, actions_BTA[:, :step], states_BTA[:, :step], seen_from)
            context = torch.cat([context, normalize(prediction.z[:, -1:].float())], 1)
        return F.l1_loss(context[:, -1], z_BTND[:, self.rollout].float())

    def _state(self, delta_BTA: Tensor | None, states_BTA: Tensor) -> Tensor:
        """L1 of the state's change, in units of ACTION_SCALE."""
        assert delta_BTA is not None
        change = action_between(states_BTA[:, :-1], states_BTA[:, 1:])
        return F.l1_loss(delta_BTA * _scale(change), change * _scale(change))

    def _inverse(self, head: InverseDynamics, z_BTND: Tensor, z_hat: Tensor, actions_BTA: Tensor) -> Tensor:
        """Mean L1 of the actions read from real and from predicted features, in units of ACTION_SCALE."""
        before, wanted = z_BTND[:, :-1].float(), actions_BTA * _scale(actions_BTA)
        real, imagined = (head(before, after).float() for after in (z_BTND[:, 1:].float(), z_hat))
        return 0.5 * (F.l1_loss(real, wanted) + F.l1_loss(imagined, wanted))


def _scale(like: Tensor) -> Tensor:
    return like.new_tensor(ACTION_SCALE)
