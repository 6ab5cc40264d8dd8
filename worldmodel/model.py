"""The world model that planners see: images to features, features and actions to imagined features.

Shapes: B episodes, T context steps, S candidates, H imagined steps, N patches, D feature width.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from armworld.types import check_name
from armworld.worldmodel.ac_predictor import ACPredictor
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.processes import memory_advice
from armworld.worldmodel.readout import HandReadout
from armworld.worldmodel.rollout import check_compiler, imagine
from armworld.worldmodel.sizes import check_image_size

CPU_TOKENS = 1152  # per pass: at small widths activations stay in the second-level cache (measured: 64 x 18 is best)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Rollout:
    """Imagined futures: layer-normed features `z` [B, S, H, N, D] and robot states `state` [B, S, H, 7].

    `z` is in the model's precision; features from `encode` are float32, and so is what is computed from both.
    """

    z: Tensor
    state: Tensor


class WorldModel(Protocol):
    """What a planner needs. States and actions as in `armworld.pose` (m, rad, closedness; base frame)."""

    step_seconds: float

    def encode(self, images: np.ndarray | Tensor) -> Tensor:
        """uint8 [B, T, H, W, 3] RGB -> features [B, T, N, D]."""
        ...

    def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
        """Features [B, T, N, D], states [B, T, 7], actions [B, S, H, 7] -> what each candidate leads to."""
        ...


@dataclass(frozen=True)
class WorldModelConfig:
    """How a world model is to be used.

    Attributes:
        step_seconds: Duration of one action (s).
        image_size: (height, width) of the camera images in pixels.
        camera: Name of the camera in observations.
        layers: Encoder blocks used; None means all.
        window: Steps that an imagined step attends to, itself included; None means all. A predictor trained on short
            clips falls apart when its context outgrows them.
        extrinsics: Camera pose (x, y, z m; Euler rad; base frame) for predictors that read it.
        camera_frame: The model's states and actions are in its camera's frame, turned about the vertical so that a
            camera at this azimuth (degrees) has the base frame; None: in the base frame, wherever the camera stands.
    """

    step_seconds: float = 0.25
    image_size: tuple[int, int] = (256, 256)
    camera: str = "left"
    layers: int | None = None
    window: int | None = None
    extrinsics: tuple[float, ...] | None = None
    camera_frame: float | None = None

    def __post_init__(self) -> None:
        if not self.step_seconds > 0:
            raise ValueError(f"step_seconds must be positive, got {self.step_seconds}")
        check_image_size(self.image_size)
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1 step or None, got {self.window}")
        if self.extrinsics is not None and len(self.extrinsics) != 6:
            raise ValueError(f"extrinsics need 6 values, got {len(self.extrinsics)}")


class VJEPA2AC:
    """A frozen encoder and an action-conditioned predictor as a `WorldModel`.

    Rollouts leave out what the published computation repeats (`rollout.py`). The result is the same but for rounding,
    as tests/test_worldmodel_rollout.py asserts: in float32 no layer-normed feature, of deviation 1, is off by more than
    2e-5 (1e-4 compiled) and no state by more than 1e-6; in bfloat16 features are off by less than 0.03 on average, and
    states are those of float32.

    Attributes:
        memory_mb: Bound on the activations of one pass through the predictor (MiB, estimate); candidates beyond it
            go in several passes.
        compile: Rollouts run through torch.compile: 7 % quicker on one CPU core, after a minute of compiling.
        readout: Reads the hand from features, for the aligned energy; None where it was not trained.
    """

    def __init__(
        self,
        encoder: Encoder,
        predictor: ACPredictor,
        config: WorldModelConfig,
        dtype: str = "float32",
        memory_mb: float = 1024.0,
        compile: bool = False,
        readout: HandReadout | None = None,
    ) -> None:
        """Put both modules in evaluation mode; the predictor is converted to `dtype` ("float32", "bfloat16") in place.

        The encoder keeps its precision: it runs once per image, and its features are what energies compare.
        """
        if encoder.config.width != predictor.config.features:
            raise ValueError(
                f"the predictor expects features of width {predictor.config.features}, "
                f"the encoder's have {encoder.config.width}"
            )
        if predictor.config.extrinsics != (config.extrinsics is not None):
            raise ValueError(
                f"predictor.extrinsics is {predictor.config.extrinsics}, so config.extrinsics must "
                f"{'hold the camera pose' if predictor.config.extrinsics else 'be None'}, got {config.extrinsics}"
            )
        self.config, self.memory_mb, self.compile = config, memory_mb, compile
        self.readout = None if readout is None else readout.eval()
        self.encoder = encoder.eval()
        self.predictor = predictor.to(DTYPES[check_name("dtype", dtype, DTYPES)]).eval()
        self.step_seconds = config.step_seconds
        self.image_size = config.image_size
        self.camera = config.camera
        self.grid = check_image_size(config.image_size)
        if compile:
            check_compiler(self.device)

    def seen_from(self, extrinsics: np.ndarray) -> VJEPA2AC:
        """The same model, sharing its weights, with its camera standing there: pose [6] (m, rad; base frame).

        Raises:
            ValueError: Its predictor reads no extrinsics.
        """
        if self.config.extrinsics is None:
            raise ValueError("this model reads no camera extrinsics: it cannot be told where it looks from")
        moved = copy.copy(self)
        moved.config = replace(self.config, extrinsics=tuple(float(value) for value in extrinsics))
        return moved

    @property
    def turns_states(self) -> bool:
        """Whether seen from elsewhere the robot's states have to be turned like its actions (`planners.turning`)."""
        return self.config.camera_frame is not None

    @property
    def device(self) -> torch.device:
        """Where the predictor lives."""
        return self.predictor.predictor_embed.weight.device

    @torch.no_grad()
    def encode(self, images: np.ndarray | Tensor) -> Tensor:
        """uint8 [B, T, H, W, 3] RGB of the configured size -> layer-normed features [B, T, N, D]."""
        if tuple(images.shape[2:4]) != self.image_size:
            raise ValueError(f"images must be {self.image_size} pixels, got {tuple(images.shape[2:4])}")
        return self.encoder.encode_frames(images, self.config.layers)

    def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
        """What each candidate leads to; see `WorldModel.rollout`. Differentiable with respect to the actions.

        Gradients are recorded only if `actions` asks for them.
        """
        self._check(z, state, actions)
        z, state, actions = (x.to(self.device) for x in (z, state, actions))
        extrinsics = self.config.extrinsics
        camera = None if extrinsics is None else state.new_tensor(extrinsics).expand(len(state), -1)
        chunk, window = self._chunk(z, actions), self.config.window
        advice = f"Load the model with a smaller memory_mb than {self.memory_mb:g}, or in bfloat16"
        recorded = torch.is_grad_enabled() and actions.requires_grad
        with memory_advice(advice), torch.set_grad_enabled(recorded):
            return Rollout(*imagine(self.predictor, z, state, actions, camera, self.grid, chunk, self.compile, window))

    def _chunk(self, z: Tensor, actions: Tensor) -> int:
        """Candidates per episode whose activations fit `memory_mb` and, on a CPU, stay near its caches."""
        config = self.predictor.config
        tokens = self.predictor.conditioning + z.shape[2] // config.merge**2
        horizon = actions.shape[2]
        kept = 2 * config.depth * (z.shape[1] + horizon - 1) if horizon > 1 or z.shape[1] > 1 else 0
        working = 6 + 2 * config.mlp_ratio  # residual, norm, q, k, v, attended; MLP's hidden before and after GELU
        size = self.predictor.predictor_embed.weight.element_size()
        per_candidate = size * (tokens * config.width * (kept + working) + 3 * z.shape[2] * z.shape[3])
        fitting = int(self.memory_mb * 2**20 / (per_candidate * len(z)))
        if z.device.type == "cpu":
            fitting = min(fitting, CPU_TOKENS // (tokens * len(z)))
        return max(fitting, 1)

    def _check(self, z: Tensor, state: Tensor, actions: Tensor) -> None:
        self.predictor.check_features(z, self.grid)
        if tuple(state.shape) != (*z.shape[:2], 7):
            raise ValueError(f"state must be {[*z.shape[:2], 7]} beside these features, got {list(state.shape)}")
        if actions.ndim != 4 or actions.shape[0] != len(z) or actions.shape[3] != 7 or 0 in actions.shape:
            raise ValueError(f"actions must be [{len(z)}, S, H, 7] with S, H >= 1, got {list(actions.shape)}")
