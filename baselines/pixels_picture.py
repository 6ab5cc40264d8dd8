"""What the pixel-space world model imagines, drawn beside what happened: its worth is seen at a glance."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from armworld.baselines.pixels import PixelNetwork, PixelWorldModel, to_frames
from armworld.evaluation.picture import INK, MUTED
from armworld.worldmodel.model import WorldModelConfig

PICTURE = "imagined.png"  # in the checkpoint's folder
STEPS = 6  # imagined ahead
CLIPS = 2


def imagine(model: PixelWorldModel, images: Tensor, states: Tensor, actions: Tensor) -> Tensor:
    """Frames uint8 [B, T-1, H, W, 3] imagined from the first of each clip in one rollout, none seen in between.

    Args:
        images: uint8 [B, T, H, W, 3].
        states, actions: [B, T, 7] and [B, T-1, 7], as recorded.
    """
    z = model.encode(images[:, :1])
    rollout = model.rollout(z, states[:, :1], actions[:, None])
    return to_frames(rollout.z[:, 0], *model.image_size).cpu()


def imagined_figure(true: np.ndarray, imagined: np.ndarray, step_seconds: float) -> Figure:
    """Per clip three rows over time: truth, imagined, and how far a pixel is off (0 ... 255, mean over colours).

    Args:
        true: uint8 [B, T, H, W, 3]; the first frame is what the model saw.
        imagined: uint8 [B, T-1, H, W, 3].
        step_seconds: Time between frames.
    """
    clips, steps = true.shape[:2]
    figure = Figure(figsize=(1.5 * steps + 0.7, 4.6 * clips + 0.4), layout="constrained")
    axes = figure.subplots(3 * clips, steps, squeeze=False)
    for panel in axes.flat:
        panel.set_xticks([])
        panel.set_yticks([])
        panel.spines[:].set_visible(False)
    for clip in range(clips):
        rows = axes[3 * clip : 3 * clip + 3]
        for row, name in zip(rows, ("truth", "imagined", "off by"), strict=True):
            row[0].set_ylabel(name, fontsize=9, color=INK)
        for step in range(steps):
            rows[0, step].imshow(true[clip, step])
            rows[0, step].set_title(f"{step * step_seconds:g} s" if step else "seen", fontsize=9, color=MUTED)
            if step:
                off = np.abs(imagined[clip, step - 1].astype(float) - true[clip, step]).mean(-1)
                rows[1, step].imshow(imagined[clip, step - 1])
                rows[2, step].imshow(off, cmap="magma", vmin=0, vmax=128)
                rows[2, step].set_xlabel(f"{off.mean():.1f}", fontsize=8, color=MUTED)
    return figure


def held_out_figure(network: PixelNetwork, usage: WorldModelConfig, clips: tuple[Tensor, Tensor, Tensor]) -> Figure:
    """The figure of some clips, frames uint8 [B, T, H, W, 3] with their states and actions."""
    model, (images, states, actions) = PixelWorldModel(network, usage), clips
    with torch.no_grad():
        imagined = imagine(model, images, states, actions)
    return imagined_figure(images.cpu().numpy(), imagined.numpy(), usage.step_seconds)
