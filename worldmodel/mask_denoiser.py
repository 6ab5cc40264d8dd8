"""The objective of mask-denoising pretraining: student, mask predictor, teacher, losses, signs of collapse.

Shapes: B clips, T frames, H x W pixels, N tokens = (T/2) (H/16) (W/16), D features.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armworld.types import check_name
from armworld.worldmodel.blocks import normalize
from armworld.worldmodel.encoder import Encoder, clip_grid, take_tokens
from armworld.worldmodel.mask_predictor import MaskPredictor
from armworld.worldmodel.masks import Mask
from armworld.worldmodel.readout import HandReadout, ReadoutConfig, reading_loss
from armworld.worldmodel.sizes import check_image_size

READOUT_INDEX = (0, 1, 2, 6)  # x, y, z (m) and closedness
READOUT_SCALE = (5.0, 5.0, 5.0, 2.0)


class MaskDenoiser(nn.Module):
    """Student, mask predictor and the loss; the teacher is held beside them, outside of the parameters.

    Args:
        student: The encoder that is trained.
        predictor: Fills in what it does not see.
        readout: How the robot's state is read: linearly from the "mean" over the patches, linearly from each of the
            "tokens", or from all of them together by the small network that aligns energies ("hand"), with the yaw.
    """

    def __init__(self, student: Encoder, predictor: MaskPredictor, readout: str = "mean") -> None:
        super().__init__()
        self.student, self.predictor = student, predictor
        self.readout = check_name("state_readout", readout, ("mean", "tokens", "hand"))
        width, (rows, columns) = student.config.width, check_image_size(student.config.image_size)
        linear = readout != "hand"
        self.state_readout = (
            nn.Linear(width, len(READOUT_SCALE)) if linear else HandReadout(ReadoutConfig(width, rows * columns))
        )
        self._teacher = [copy.deepcopy(student).requires_grad_(False)]  # in a list: not to be registered

    @property
    def teacher(self) -> Encoder:
        return self._teacher[0]

    @torch.no_grad()
    def targets(self, clip_BCTHW: Tensor) -> Tensor:
        """The teacher's layer-normed features [B, N, D] of whole clips."""
        return normalize(self.teacher(clip_BCTHW).float())

    def forward(
        self, clip_BCTHW: Tensor, masks: Sequence[Mask], stills: tuple[Tensor, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """`denoising`: mean over the mask families of the L1 at the hidden tokens; `state`: error of the readout.

        Args:
            clip_BCTHW: Clips.
            masks: One per family.
            stills: Whole frames [B, 3, 1, H, W] and their states [B, 7], for the readout.
        """
        targets, grid = self.targets(clip_BCTHW), clip_grid(clip_BCTHW)
        losses = []
        for family, mask in enumerate(masks):
            seen = self.student(clip_BCTHW, mask.context)
            filled = self.predictor(seen, mask.context, mask.target, grid, family)
            losses.append(F.l1_loss(filled.float(), take_tokens(targets, mask.target)))
        parts = {"denoising": torch.stack(losses).mean()}
        if stills is not None:
            parts["state"] = self._readout_error(*stills)
        return parts

    def _readout_error(self, stills: Tensor, states: Tensor) -> Tensor:
        """L1 of position and closedness, in units of 20 cm and half a stroke; for "hand" see `reading_loss`."""
        features = normalize(self.student(stills).float())
        if self.readout == "hand":
            return reading_loss(self.state_readout(features), states)
        scale = states.new_tensor(READOUT_SCALE)
        if self.readout == "mean":
            features = features.mean(1, keepdim=True)
        read = self.state_readout(features).float()
        return F.l1_loss(read, (states[:, READOUT_INDEX] * scale)[:, None].expand_as(read))

    @torch.no_grad()
    def update_teacher(self, decay: float) -> None:
        """teacher <- decay * teacher + (1 - decay) * student."""
        for average, current in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            average.lerp_(current, 1 - decay)


def collapse_monitors(features: Tensor) -> dict[str, float]:
    """How far features [..., D] are from collapse.

    `feature_std`: mean over channels of the deviation over tokens. `feature_rank`: effective rank, the exponential
    of the entropy of the normalised singular values, at most D.
    """
    flat = features.float().flatten(0, -2)
    flat = flat - flat.mean(0)
    chosen = torch.linspace(0, len(flat) - 1, min(len(flat), 2048)).long()
    values = torch.linalg.svdvals(flat[chosen.to(flat.device)])
    shares = (values / values.sum().clamp_min(1e-12)).clamp_min(1e-12)
    rank = torch.exp(-(shares * shares.log()).sum())
    return {"feature_std": float(flat.std(0).mean()), "feature_rank": float(rank)}
