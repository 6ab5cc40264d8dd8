"""The gripper of goals that are images alone: open or closed, understood from a whole sequence.

A readout (`worldmodel.readout`) tells closedness from one image to about 0.1, worse where an object on a table hides
the fingers. That decides neither how firmly to grip nor, in every image, whether to grip at all; the sequence does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from armworld.planners.objectives import LatentGoal
from armworld.planners.plans import GRIPPER
from armworld.worldmodel.readout import HandReadout

LOOKS_CLOSED = 0.08  # closedness that is read: above it fingers are taken for closed
FIRM = 0.2  # the closedness at least meant by closed fingers in an image
LOWERED = 0.03  # m: a hand that has come down so far from the image before sets down what it holds


def understood(read: Sequence[float], heights: Sequence[float]) -> list[float]:
    """What closednesses that were read from a sequence of images mean: 0 for open, at least `FIRM` for closed.

    Fingers around an object on a table are hard to see, fingers that hold one in the air are not. So the gripper is
    closed at an image where it looks closed, or in the next one, in which the object could not be otherwise. It is open
    at a last image where it looks less closed than before, or has come down with what it held. Images in a row at which
    it is closed show one grasp, of one width: the mean of what is read.

    Args:
        read: Closedness read from each image.
        heights: Of the hand in each image (m).
    """
    last = len(read) - 1
    closed = [read[k] > LOOKS_CLOSED or (k < last and read[k + 1] > LOOKS_CLOSED) for k in range(last + 1)]
    if last and (read[last] < read[last - 1] - LOOKS_CLOSED or heights[last] < heights[last - 1] - LOWERED):
        closed[last] = False
    means: list[float] = []
    for grips, images in groupby(range(last + 1), closed.__getitem__):
        held = [read[k] for k in images]
        means += [max(FIRM, sum(held) / len(held)) if grips else 0.0] * len(held)
    return means


@torch.no_grad()
def with_gripper_understood(goals: Sequence[LatentGoal], readout: HandReadout) -> tuple[LatentGoal, ...]:
    """Goals, in their order, with the closedness that their images mean; what was recorded is left aside."""
    hands = [readout(goal.z)[0].tolist() for goal in goals]
    means = understood([hand[5] for hand in hands], [hand[2] for hand in hands])
    return tuple(at_closedness(goal, closedness) for goal, closedness in zip(goals, means, strict=True))


def at_closedness(goal: LatentGoal, closedness: float) -> LatentGoal:
    """A goal whose robot state [1, 7] has another closedness; without a state, one whose pose is not a number."""
    state: Tensor = goal.z.new_full((1, GRIPPER + 1), torch.nan) if goal.state is None else goal.state.clone()
    state[:, GRIPPER] = closedness
    return replace(goal, state=state)
