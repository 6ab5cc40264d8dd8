"""The mathematics of the doctor: linear probes, action axes, ranking, correlation. No simulator, no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from armworld.planners.objectives import AlignedL1
from armworld.worldmodel.readout import hand_distance

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # in units of the kernel's mean diagonal


@dataclass(frozen=True)
class Probe:
    """A linear map from features to targets, fitted by ridge regression in its dual form.

    Attributes:
        inputs: Centred training features [n, F].
        weights: Dual weights [n, K].
        centre, offset: Means of features [F] and targets [K].
        ridge: The penalty, relative to the kernel's mean diagonal.
    """

    inputs: Tensor
    weights: Tensor
    centre: Tensor
    offset: Tensor
    ridge: float

    def __call__(self, features: Tensor) -> np.ndarray:
        """Targets float64 [..., K] of features [..., N, D]."""
        flat = features.flatten(-2)
        kernel = (flat.float() - self.centre) @ self.inputs.T
        return (kernel.double() @ self.weights + self.offset).numpy()


def fit_probe(features: Tensor, targets: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> Probe:
    """Ridge regression of targets [n, K] on features [n, N, D]; the penalty is chosen on held-out groups.

    Args:
        groups: int [n]; frames of one group (an episode) never stand on both sides of a split.
    """
    names = rng.permutation(np.unique(groups))
    if len(names) < 2:
        raise ValueError(f"a probe needs frames of at least 2 episodes, got {len(names)}")
    held_out = np.isin(groups, names[: max(1, len(names) // 4)])
    train, check = np.flatnonzero(~held_out), np.flatnonzero(held_out)

    fold = _Ridge(features[train], targets[train])
    kernel = fold.kernel_with(features[check])

    def error(ridge: float) -> float:
        found = kernel @ fold.weights(ridge) + fold.offset
        return float(np.square(found.numpy() - targets[check]).mean())

    ridge = min(RIDGES, key=error)
    whole = _Ridge(features, targets)
    return Probe(whole.inputs, whole.weights(ridge), whole.centre, whole.offset, ridge)


class _Ridge:
    """Ridge regressions of the same targets on the same features: the kernel is computed once for all penalties."""

    def __init__(self, features: Tensor, targets: np.ndarray) -> None:
        flat, wanted = features.flatten(-2).float(), torch.from_numpy(np.asarray(targets, np.float64))
        self.centre, self.offset = flat.mean(0), wanted.mean(0)
        self.inputs, self._targets = flat - self.centre, wanted - self.offset
        self._kernel = (self.inputs @ self.inputs.T).double()

    def kernel_with(self, features: Tensor) -> Tensor:
        """float64 [m, n]: of features [m, N, D] with the n that were learned from."""
        return ((features.flatten(-2).float() - self.centre) @ self.inputs.T).double()

    def weights(self, ridge: float) -> Tensor:
        """Dual weights [n, K] at a penalty in units of the kernel's mean diagonal."""
        kernel = self._kernel.clone()
        kernel.diagonal().add_(ridge * kernel.diagonal().mean() + 1e-12)
        return torch.linalg.solve(kernel, self._targets)


@dataclass(frozen=True)
class Axes:
    """How predicted displacements relate to commanded ones, in the horizontal plane and as a whole.

    Attributes:
        yaw_deg: Rotation about the vertical that best turns commanded into predicted displacements (degrees).
        gain: Scale that goes with it; 1 is right, 0 means that actions do nothing.
        gain_z: Scale of vertical displacements.
        error_m: Mean length of the difference between predicted and commanded displacements (m).
    """

    yaw_deg: float
    gain: float
    gain_z: float
    error_m: float


def fit_axes(commanded: np.ndarray, predicted: np.ndarray) -> Axes:
    """Least-squares fit of predicted = gain · Rz(yaw) · commanded over the horizontal parts of displacements [n, 3].

    With c, p as complex numbers x + iy: gain · e^{i yaw} = Σ conj(c) p / Σ |c|².
    """
    commanded, predicted = np.asarray(commanded, np.float64), np.asarray(predicted, np.float64)
    if commanded.shape != predicted.shape or commanded.ndim != 2 or commanded.shape[1] != 3:
        raise ValueError(f"displacements must be two arrays [n, 3], got {commanded.shape} and {predicted.shape}")
    c, p = (d[:, 0] + 1j * d[:, 1] for d in (commanded, predicted))
    energy, vertical = np.square(np.abs(c)).sum(), np.square(commanded[:, 2]).sum()
    if energy == 0:
        raise ValueError("the axes cannot be fitted without horizontal displacements")
    turn = np.sum(np.conj(c) * p) / energy
    gain_z = float(np.sum(commanded[:, 2] * predicted[:, 2]) / vertical) if vertical else float("nan")
    error = float(np.linalg.norm(predicted - commanded, axis=1).mean())
    return Axes(float(np.degrees(np.angle(turn))), float(np.abs(turn)), gain_z, error)


def ranking(predicted: Tensor, outcomes: Tensor) -> np.ndarray:
    """Ranks int [C, K] (1 is best): where each outcome's own action stands among K, judged by mean |ẑ - z|.

    Of equals the own action is the last, and so it is where energies are NaN: who cannot tell actions apart ranks none.

    Args:
        predicted: Imagined features [C, K, N, D] of K actions from each of C moments.
        outcomes: Features [C, K, N, D] that the same actions really led to.
    """
    ranks = []
    for imagined, real in zip(predicted.flatten(2).float(), outcomes.flatten(2).float(), strict=True):
        energy = torch.cdist(imagined, real, p=1)  # [action, outcome]
        own = energy.diagonal()
        ranks.append((~(energy > own)).sum(0).numpy())  # energy[j, k] of action j against outcome k
    return np.stack(ranks)


def latent_and_true_distances(
    features: Sequence[Tensor], positions: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of frames within each episode: mean |z_i - z_j| and ‖p_i - p_j‖ (m), both [pairs]."""
    latent, true = [], []
    for z, p in zip(features, positions, strict=True):
        i, j = np.triu_indices(len(p), 1)
        flat = z.flatten(1).float()
        latent.append((torch.cdist(flat, flat, p=1) / flat.shape[1]).numpy()[i, j])
        true.append(np.linalg.norm(p[i] - p[j], axis=-1))
    return np.concatenate(latent), np.concatenate(true)


def aligned_distances(energy: AlignedL1, features: Sequence[Tensor]) -> np.ndarray:
    """What an aligned energy adds to `latent_and_true_distances` for the same pairs, [pairs]."""
    found = []
    for z in features:
        i, j = np.triu_indices(len(z), 1)
        read = energy.readout(z.float())
        found.append(energy.weight * hand_distance(read[i], read[j], energy.yaw_metres, energy.grip_metres).numpy())
    return np.concatenate(found)


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation in [-1, 1]; 0 where one side does not vary or there are fewer than 3 values."""
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    ranks = np.stack([stats.rankdata(first), stats.rankdata(second)])
    return float(np.corrcoef(ranks)[0, 1])
