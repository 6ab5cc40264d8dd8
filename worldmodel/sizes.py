"""Configurations of the encoder and the predictors, and the published sizes by name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from armworld.types import check_name, check_numbers
from armworld.worldmodel.blocks import ROPE_LAYOUTS

PATCH = 16  # pixels per patch side
TUBELET = 2  # frames per token


def _check_common(config: EncoderConfig | MaskPredictorConfig | ACPredictorConfig) -> None:
    check_name("rotary layout", config.rope, ROPE_LAYOUTS)
    check_numbers(config, "width", "depth", "heads", least=1)
    check_numbers(config, "mlp_ratio", above=0)
    if config.width % config.heads:
        raise ValueError(f"heads must divide the width {config.width}, got {config.heads}")


def check_image_size(image_size: tuple[int, int]) -> tuple[int, int]:
    """The patch grid (rows, columns) of an image (height, width) in pixels, which must be multiples of 16."""
    height, width = image_size
    if height % PATCH or width % PATCH or height <= 0 or width <= 0:
        raise ValueError(f"image height and width must be positive multiples of {PATCH}, got {height} x {width}")
    return height // PATCH, width // PATCH


@dataclass(frozen=True)
class EncoderConfig:
    """V-JEPA 2 encoder. `image_size` (height, width) is what it was trained at; others work too."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    image_size: tuple[int, int] = (256, 256)
    rope: str = "tiled"

    def __post_init__(self) -> None:
        _check_common(self)
        check_image_size(self.image_size)


@dataclass(frozen=True)
class MaskPredictorConfig:
    """Pretraining predictor: `features` is the encoder's width."""

    features: int
    width: int = 384
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    mask_tokens: int = 2
    rope: str = "tiled"

    def __post_init__(self) -> None:
        _check_common(self)
        check_numbers(self, "mask_tokens", least=1)


@dataclass(frozen=True)
class ACPredictorConfig:
    """Action-conditioned predictor. The defaults below `max_steps` are the published behaviour.

    Attributes:
        features: The encoder's width D.
        image_size: (height, width) in pixels that it was trained at.
        max_steps: Longest sequence of steps.
        extrinsics: Read camera extrinsics [B, T, 6] as a third conditioning token per step.
        residual: Predict z + delta instead of the next features themselves.
        action_scale: 7 factors on the action before its encoder (e.g. 1 / standard deviation).
        state_offset: 7 values subtracted from the state first; angle differences are wrapped to [-pi, pi).
        state_scale: 7 factors on the state after that.
        merge: Side of the square of neighbouring patches that share one token (1: published).
        state_head: Also predict the step's state change [B, T, 7].
    """

    features: int
    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_ratio: float = 4.0
    image_size: tuple[int, int] = (256, 256)
    max_steps: int = 32
    extrinsics: bool = False
    residual: bool = False
    action_scale: tuple[float, ...] | None = None
    state_offset: tuple[float, ...] | None = None
    state_scale: tuple[float, ...] | None = None
    merge: int = 1
    state_head: bool = False
    rope: str = "tiled"

    def __post_init__(self) -> None:
        _check_common(self)
        for name in ("action_scale", "state_offset", "state_scale"):
            values = getattr(self, name)
            if values is not None and len(values) != 7:
                raise ValueError(f"{name} needs 7 values (one per dimension), got {len(values)}")
        rows, columns = check_image_size(self.image_size)
        if self.merge < 1 or rows % self.merge or columns % self.merge:
            raise ValueError(f"merge {self.merge} does not divide the {rows} x {columns} patch grid")

    @property
    def grid(self) -> tuple[int, int]:
        """Patch grid (rows, columns) of the training images."""
        return check_image_size(self.image_size)


ENCODER_SIZES: dict[str, EncoderConfig] = {
    "debug": EncoderConfig(48, 2, 2, image_size=(64, 64)),
    "tiny": EncoderConfig(192, 12, 3),
    "small": EncoderConfig(384, 12, 6),
    "base": EncoderConfig(768, 12, 12),
    "L": EncoderConfig(1024, 24, 16),
    "H": EncoderConfig(1280, 32, 16),
    "g": EncoderConfig(1408, 40, 22, mlp_ratio=48 / 11),
    "g-384": EncoderConfig(1408, 40, 22, mlp_ratio=48 / 11, image_size=(384, 384)),
}


def encoder_config(size: str, **changes) -> EncoderConfig:
    """The encoder configuration of a named size, with fields changed by keyword (unknown ones are an error)."""
    return replace(ENCODER_SIZES[check_name("encoder size", size, ENCODER_SIZES)], **changes)
