"""Mask-denoising pretraining of the encoder in feature space (V-JEPA 2, arXiv 2506.09985, section 2).

A student sees the unmasked patches of a clip; a predictor fills in the features of the masked ones; the target is
the layer-normed output of an exponential moving average of the student, which saw the whole clip. The loss is L1.
Masks come in two families (many small blocks, few large ones), each kept for the clip's full duration.

On few frames of one scene this alone lets features drift towards what is easiest to predict, the still background.
`state_loss` (off by default; not in the paper) adds a linear readout of the hand's position and closedness from the
mean of the normalised features of whole stills, which holds the arm's motion in them.

Shapes: B clips, T frames, H x W pixels, N tokens = (T/2) (H/16) (W/16), D features.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from armworld.datasets.features import encoder_hash
from armworld.types import check_numbers, require
from armworld.worldmodel.checkpoint import load_encoder, load_strictly, save_encoder
from armworld.worldmodel.clip_sources import NO_STATES, ClipSource, StateClipSource, check_weights, open_sources
from armworld.worldmodel.encoder import Encoder, pixels_to_clip
from armworld.worldmodel.mask_denoiser import MaskDenoiser, collapse_monitors
from armworld.worldmodel.mask_predictor import MaskPredictor
from armworld.worldmodel.masks import (
    LARGE_BLOCKS,
    PUBLISHED_FAMILIES,
    SMALL_BLOCKS,
    Mask,
    MaskFamily,
    check_masks,
    sample_masks,
)
from armworld.worldmodel.processes import unsharded
from armworld.worldmodel.sizes import (
    PATCH,
    TUBELET,
    EncoderConfig,
    MaskPredictorConfig,
    check_image_size,
    encoder_config,
)
from armworld.worldmodel.training import (
    DECAY_SHARE,
    Processes,
    TrainingConfig,
    TrainingRun,
    check_optimizer,
    make_optimizer,
    pick_device,
    plot_metrics,
    precision,
)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainingConfig):
    """Mask-denoising pretraining.

    Attributes:
        data: Dataset folders, as `armworld collect` writes them; together they are one source.
        videos: Folders of videos, each a source of its own.
        images: Folders of images, each a source of still clips.
        weights: How often each source is drawn: first --data (if any), then each of --videos, then each of --images;
            by default all alike.
        init: Encoder to start from (name, folder, published file); it must have the shape asked for, but may have been
            trained on frames of another size.
        size: Encoder size: tiny, small, base, L, H, g, g-384 or debug.
        depth: Blocks, if not the size's own number.
        image_size: Frame height and width in pixels; a multiple of 16.
        frames: Frames per clip; a multiple of 2.
        cooldown: Share of the budget, at its end, over which the learning rate falls to 0 (0.05 in the paper).
        cooldown_frames: Frames per clip in the cooldown (64 after 16 in the paper).
        cooldown_image_size: Frame size in the cooldown (384 after 256 in the paper); frames are read at this size and
            shrunk until then.
        step_seconds: Seconds between the frames of a clip.
        still_share: Share of the clips that is a still (one frame twice), as planning shows them to the encoder.
        mask_scales: Area of one of the eight small blocks that are hidden, and of one of the two large ones, as shares
            of the frame; the paper's by default.
        mask_duration: Share of the clip for which a block is hidden (1 in the paper). Below 1, what lies still can be
            filled in from the block's own place at other times, and so is worth knowing.
        batch: Clips per optimiser step, over all processes.
        state_loss: Weight of the readout of the robot's state from whole stills; 0 is the paper's objective.
        state_readout: What it is read from: the mean over the patches, or every patch by itself, which makes the whole
            feature map follow the hand and the energy of planning fall with its distance from afar, or by a small
            network over all of them (hand), which also reads the yaw and sharpens depth; it has one number of patches,
            so its stills have the cooldown's size throughout.
        state_batch: Stills per optimiser step for that readout, over all processes.
        optimizer: adamw (as published), or muon for the blocks' matrices.
        learning_rate: Peak of the warmup-constant-decay schedule.
        weight_decay: AdamW's decay of matrices.
        ema: Decay of the teacher's moving average. The paper's 0.99925 is for 250k steps; short runs need less.
        predictor_width: Width of the mask predictor.
        predictor_depth: Its blocks.
        predictor_heads: Its heads.
        log_every: Steps between rows of the log.
        recompute: Recompute activations in the backward pass: less memory, about a third more time.
        fsdp: Spread parameters and optimiser states over the processes of `torchrun`.
        tensorboard: Also log to out/tensorboard (needs the extra of that name).
    """

    FREE = TrainingConfig.FREE | {"videos", "images", "log_every", "recompute", "fsdp", "tensorboard"}

    data: tuple[Path, ...] = ()
    videos: tuple[Path, ...] = ()
    images: tuple[Path, ...] = ()
    weights: tuple[float, ...] = ()
    init: str | None = None
    size: str = "tiny"
    depth: int | None = None
    image_size: int = 128
    frames: int = 4
    cooldown: float = DECAY_SHARE
    cooldown_frames: int | None = None
    cooldown_image_size: int | None = None
    step_seconds: float = 0.25
    still_share: float = 0.25
    mask_scales: tuple[float, float] = (SMALL_BLOCKS.scale, LARGE_BLOCKS.scale)
    mask_duration: float = 1.0
    batch: int = 64
    state_loss: float = 0.0
    state_readout: Literal["mean", "tokens", "hand"] = "mean"
    state_batch: int = 32
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.04
    ema: float = 0.998
    predictor_width: int = 192
    predictor_depth: int = 4
    predictor_heads: int = 6
    log_every: int = 20
    recompute: bool = False
    fsdp: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "image_size", "cooldown_image_size", "frames", "cooldown_frames", least=1)
        check_numbers(self, "predictor_width", "predictor_depth", "predictor_heads", least=1)
        check_numbers(self, "batch", "state_batch", "log_every", least=1)
        check_numbers(self, "step_seconds", "learning_rate", above=0)
        check_numbers(self, "weight_decay", "state_loss", least=0)
        check_numbers(self, "still_share", least=0, most=1)
        check_numbers(self, "cooldown", above=0, most=1)
        check_numbers(self, "ema", least=0, below=1)
        check_optimizer(self.optimizer)
        if self.tensorboard:
            require("tensorboard", "tensorboard")
        self._check_sources()
        if self.last_image_size < self.image_size:
            raise ValueError(
                f"cooldown_image_size {self.cooldown_image_size} must not be below image_size {self.image_size}"
            )
        for frames in (self.frames, self.cooldown_frames or self.frames):
            if frames < 1 or (frames > 1 and frames % TUBELET):
                raise ValueError(f"clips need 1 frame or a multiple of {TUBELET}, got {frames}")
        if not all(0 < scale < 1 for scale in self.mask_scales):
            raise ValueError(f"mask_scales must lie in (0, 1), got {self.mask_scales}")
        if not 0 < self.mask_duration <= 1:
            raise ValueError(f"mask_duration must lie in (0, 1], got {self.mask_duration}")
        _ = self.predictor  # refuses shapes, the encoder's too
        for size in {self.image_size, self.last_image_size}:
            check_masks(check_image_size((size, size)), self.mask_families)

    def _check_sources(self) -> None:
        folders = bool(self.data) + len(self.videos) + len(self.images)
        if not folders:  # `pretrain` may be given another source
            return
        if self.weights:
            check_weights(self.weights, folders)
        if self.state_loss and not self.data:
            raise ValueError(NO_STATES)

    @property
    def mask_families(self) -> list[MaskFamily]:
        """The paper's two, with the scales and the duration asked for."""
        scales = zip(PUBLISHED_FAMILIES, self.mask_scales, strict=True)
        return [replace(family, scale=scale, duration=self.mask_duration) for family, scale in scales]

    @property
    def last_image_size(self) -> int:
        """The size of the frames at the end of training, at which they are read and the encoder is used."""
        return self.cooldown_image_size or self.image_size

    def clip_shape(self, progress: float) -> tuple[int, int]:
        """Frames per clip and their size in pixels at `progress` in [0, 1] of the budget."""
        if progress <= 1 - self.cooldown:
            return self.frames, self.image_size
        return self.cooldown_frames or self.frames, self.last_image_size

    def still_size(self, progress: float) -> int:
        """Size in pixels of the readout's stills at `progress`: that of the clips, for "hand" always the last."""
        return self.last_image_size if self.state_readout == "hand" else self.clip_shape(progress)[1]

    @property
    def encoder(self) -> EncoderConfig:
        """The encoder's configuration."""
        changes = {} if self.depth is None else {"depth": self.depth}
        return encoder_config(self.size, image_size=(self.last_image_size, self.last_image_size), **changes)

    @property
    def predictor(self) -> MaskPredictorConfig:
        """The mask predictor's configuration."""
        return MaskPredictorConfig(self.encoder.width, self.predictor_width, self.predictor_depth, self.predictor_heads)


def pretrain(config: PretrainConfig, source: ClipSource | None = None) -> Path:
    """Train an encoder and return its checkpoint folder, `out/encoder`.

    The moving-average teacher is what is kept, as in the paper, and the mask predictor beside it. `source` replaces the
    folders of the configuration; its frames have the size `config.last_image_size`.

    Raises:
        ValueError: Bad settings or data, a run folder of other settings, or a loss that is not a number.
    """
    device = pick_device(config.device)
    processes = Processes.from_environment(device, config.fsdp)
    for batch in (config.batch, config.state_batch if config.state_loss else 0):
        processes.share(batch)  # refuses what does not divide, before the data are read
    denoiser = _build(config).to(device)
    if source is None:
        source = processes.in_turn(lambda: _open(config))
    told: dict[str, Any] = {"sources": source.content()}
    if config.init is not None:
        told["initial"] = encoder_hash(denoiser.teacher)
    denoiser.teacher.to(device)
    processes.shard(denoiser.teacher)
    model = processes.wrap(denoiser, denoiser.student, denoiser.predictor)
    blocks = [*denoiser.student.blocks, *denoiser.predictor.predictor_blocks]
    optimizer = make_optimizer(config.optimizer, denoiser, blocks, config.learning_rate, config.weight_decay)
    generators = np.random.default_rng(config.seed), torch.Generator().manual_seed(config.seed)
    modules = {"denoiser": denoiser, "teacher": denoiser.teacher}
    run = TrainingRun(config, modules, optimizer, generators, processes, told, tensorboard=config.tensorboard)
    budget = run.budget
    for step in run.steps():
        run.set_learning_rate(config.learning_rate / 5, config.learning_rate, config.cooldown)
        with run.memory_advice():
            shape = config.clip_shape(budget.progress)
            clip, masks = _draw(config, source, shape, generators, processes, device)
            size = config.still_size(budget.progress)
            stills = _draw_stills(config, source, size, generators[0], processes, device)
            with precision(device, config.dtype):
                parts = model(clip, masks, stills)
                loss = parts["denoising"] + config.state_loss * parts.get("state", 0.0)
            run.optimise(loss)
            denoiser.update_teacher(config.ema)
            if step % config.log_every == 0:
                with torch.no_grad(), precision(device, config.dtype):
                    run.log({**{k: float(v) for k, v in parts.items()}, **collapse_monitors(denoiser.teacher(clip))})
    out, encoder, predictor = config.out / "encoder", unsharded(denoiser.teacher), unsharded(denoiser.predictor)
    if processes.is_main:
        assert isinstance(encoder, Encoder) and isinstance(predictor, MaskPredictor)
        about = {"training": "mask denoising", **config.identity(), **told, "steps": budget.step}
        save_encoder(out, encoder, mask_predictor=predictor, about={**about, "seconds": round(budget.elapsed)})
        plot_metrics(run.metrics_path, config.out / "curves.png", ("denoising", "state", "feature_std", "feature_rank"))
    return out


def _open(config: PretrainConfig) -> ClipSource:
    size, step = config.last_image_size, config.step_seconds
    frames = max(config.frames, config.cooldown_frames or 0)
    return open_sources(config.data, config.videos, config.images, config.weights, size, step, frames)


def _build(config: PretrainConfig) -> MaskDenoiser:
    """Student, predictor and teacher, drawn from the seed."""
    torch.manual_seed(config.seed)
    encoder = Encoder(config.encoder) if config.init is None else _load_initial(config)
    denoiser = MaskDenoiser(encoder, MaskPredictor(config.predictor), config.state_readout)
    denoiser.student.recompute = denoiser.predictor.recompute = config.recompute
    if not config.state_loss:  # parameters without gradients would stop DDP
        denoiser.state_readout.requires_grad_(False)
    return denoiser


def _load_initial(config: PretrainConfig) -> Encoder:
    """The encoder of `config.init`, ready to be trained; a ValueError where its shape is not the one asked for."""
    loaded = load_encoder(str(config.init))
    there, asked = asdict(loaded.config), asdict(config.encoder)
    differing = [name for name in there if there[name] != asked[name] and name != "image_size"]
    if differing:
        told = "; ".join(f"{name}: {there[name]} there, {asked[name]} asked" for name in differing)
        raise ValueError(f"--init {config.init} holds an encoder of another shape ({told})")
    with torch.device("meta"):  # draws nothing: the predictor's first weights stay those of the seed
        encoder = Encoder(config.encoder)
    load_strictly(encoder, loaded.state_dict(), str(config.init))
    return encoder.train()


def _draw(
    config: PretrainConfig,
    source: ClipSource,
    shape: tuple[int, int],
    generators: tuple[np.random.Generator, torch.Generator],
    processes: Processes,
    device: torch.device,
) -> tuple[Tensor, list[Mask]]:
    """This rank's clips [B, 3, T, H, W] and masks. Every rank draws the whole batch, and reads only its own share.

    Args:
        shape: Frames per clip and their size, as of now.
    """
    numpy_rng, torch_rng = generators
    frames = 1 if numpy_rng.random() < config.still_share else shape[0]
    side, share = shape[1] // PATCH, processes.share(config.batch)
    batch = source.sample(numpy_rng, config.batch, frames, share)
    masks = sample_masks((max(frames // TUBELET, 1), side, side), config.batch, torch_rng, config.mask_families)
    return _to_clip(batch, shape[1], device), [Mask(m.context[share], m.target[share]).to(device) for m in masks]


def _draw_stills(
    config: PretrainConfig,
    source: ClipSource,
    image_size: int,
    numpy_rng: np.random.Generator,
    processes: Processes,
    device: torch.device,
) -> tuple[Tensor, Tensor] | None:
    """This rank's stills [B, 3, 1, H, W] and states [B, 7], or None where the readout is off."""
    if not config.state_loss:
        return None
    if not isinstance(source, StateClipSource):
        raise ValueError(NO_STATES)
    share = processes.share(config.state_batch)
    frames, states = source.sample_with_states(numpy_rng, config.state_batch, 1, share)
    return _to_clip(frames, image_size, device), torch.from_numpy(states[:, 0]).to(device)


def _to_clip(frames: np.ndarray, image_size: int, device: torch.device) -> Tensor:
    """uint8 [B, T, H, W, 3] -> normalised [B, 3, T, image_size, image_size], averaged down where frames are larger."""
    clip = pixels_to_clip(torch.from_numpy(frames).to(device))
    if clip.shape[-1] == image_size:
        return clip
    images = clip.transpose(1, 2)
    small = F.interpolate(images.flatten(0, 1), (image_size, image_size), mode="bilinear", antialias=True)
    return small.unflatten(0, images.shape[:2]).transpose(1, 2)
