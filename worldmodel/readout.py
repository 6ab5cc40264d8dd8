"""A readout of the hand from features: what makes the planning energy fall with the distance that is meant.

The L1 of feature maps weighs every patch alike, so near the goal it orders poses by whatever fills most of the picture,
and far from it it has holes. A small network, trained on the arm's own recorded states (which every DROID episode has)
over the frozen features, reads the hand's position, its yaw and the gripper's closedness from a feature map. The
distance between what it reads in the imagined frame and in the goal's frame is added to the energy
(`planners.objectives.AlignedL1`). No state of the goal is used: both sides are read from images.

This is not in the V-JEPA 2 paper; it is the "cost-aligned pooling" of the ablations around it.

Shapes: N patches, D features per patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POSITION_UNIT, CLOSEDNESS_UNIT = 0.10, 0.5  # m and share of the stroke that become 1 inside the network
UNITS = (0.1, 0.1, 0.1, 0.5, 0.5, 0.5)  # what an error of 1 in the loss is: 10 cm, 0.5 rad, half a stroke
YAW_METRES = 0.10  # what a radian of yaw counts for in distances of hands, unless told otherwise
READ = 6  # x, y, z (m, base frame), cos and sin of the yaw, closedness


@dataclass(frozen=True)
class ReadoutConfig:
    """Shape of a readout.

    Attributes:
        features: D.
        patches: N.
        channels: What each patch is compressed to.
        hidden: Width of the two hidden layers.
        centre: Mean hand position of the training data (m, base frame).
    """

    features: int
    patches: int
    channels: int = 32
    hidden: int = 256
    centre: tuple[float, ...] = (0.5, 0.0, 0.3)

    def __post_init__(self) -> None:
        if min(self.features, self.patches, self.channels, self.hidden) < 1 or len(self.centre) != 3:
            raise ValueError(f"a readout needs positive sizes and a centre of 3 coordinates, got {self}")


class HandReadout(nn.Module):
    """Features of one frame [..., N, D] -> x, y, z (m), cos yaw, sin yaw, closedness: [..., 6]."""

    def __init__(self, config: ReadoutConfig) -> None:
        super().__init__()
        self.config = config
        self.compress = nn.Linear(config.features, config.channels)
        self.hidden = nn.Linear(config.patches * config.channels, config.hidden)
        self.hidden2 = nn.Linear(config.hidden, config.hidden)
        self.out = nn.Linear(config.hidden, READ)

    def forward(self, z: Tensor) -> Tensor:
        """See the class; a ValueError where the features have another shape."""
        if z.shape[-2:] != (self.config.patches, self.config.features):
            wanted = f"[..., {self.config.patches}, {self.config.features}]"
            raise ValueError(f"the readout needs features {wanted}, got {list(z.shape)}")
        x = F.gelu(self.compress(z.to(self.compress.weight.dtype)))
        x = F.gelu(self.hidden2(F.gelu(self.hidden(x.flatten(-2)))))
        position, yaw, closedness = self.out(x).float().split((3, 2, 1), -1)
        position = POSITION_UNIT * position + position.new_tensor(self.config.centre)
        return torch.cat([position, yaw, 0.5 + CLOSEDNESS_UNIT * closedness], -1)


def hand_targets(states: Tensor) -> Tensor:
    """What a perfect readout reads, [..., 6], of robot states [..., 7] (m, extrinsic-xyz Euler rad, closedness)."""
    yaw = states[..., 5:6]
    return torch.cat([states[..., :3], yaw.cos(), yaw.sin(), states[..., 6:]], -1)


def reading_loss(read: Tensor, states: Tensor) -> Tensor:
    """Smooth L1 of readings [..., 6] against states [..., 7], in `UNITS`."""
    unit = read.new_tensor(UNITS)
    return F.smooth_l1_loss(read / unit, hand_targets(states) / unit, beta=0.05)


def hand_distance(
    first: Tensor, second: Tensor, yaw_metres: float, grip_metres: float, straight: bool = False
) -> Tensor:
    """Distance [...] in metres between readings [..., 6].

    Args:
        yaw_metres: Metres that one radian of yaw counts for (a chord, so at most two of them).
        grip_metres: Metres that a whole stroke of the gripper counts for.
        straight: Add what is missing sideways and in height, rather than take the length of both: from far above, a
            centimetre sideways then counts as much as it does near by.
    """
    gap = first - second
    if straight:
        position = torch.linalg.vector_norm(gap[..., :2], dim=-1) + gap[..., 2].abs()
    else:
        position = torch.linalg.vector_norm(gap[..., :3], dim=-1)
    yaw = torch.linalg.vector_norm(gap[..., 3:5], dim=-1)
    return position + yaw_metres * yaw + grip_metres * gap[..., 5].abs()


def reading_errors(read: Tensor, states: Tensor) -> dict[str, float]:
    """Mean errors of readings [B, 6] against states [B, 7]: position (m), yaw (rad), closedness."""
    targets = hand_targets(states)
    yaw = torch.atan2(read[:, 4], read[:, 3]) - states[:, 5]
    return {
        "position_m": float(torch.linalg.vector_norm(read[:, :3] - targets[:, :3], dim=-1).mean()),
        "yaw_rad": float(torch.atan2(yaw.sin(), yaw.cos()).abs().mean()),
        "closedness": float((read[:, 5] - targets[:, 5]).abs().mean()),
    }
