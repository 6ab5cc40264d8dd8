"""`armworld bc`: train the Octo-style policy from scratch, or a small policy on a frozen encoder's features.

The recipe is Octo's (arXiv 2405.12213) with V-JEPA 2's hindsight goals: see `demonstrations.py` for goals and masks,
`policy.py` and `diffusion.py` for the network, `augment.py` for the images. The moving average of the weights is what
is saved as `out/model`; the weights of the last step lie beside it in `out/model_last`.

On frozen features (`--encoder`: what the encoder gives, without planning) a linear map of (frame, goal) per patch
takes the place of the convolutional stem; they are cached in the form that post-training uses too.

Minutes on one core were enough for demonstrations of reaching, with Muon (docs/log.md):

    armworld collect --task reach --episodes 1200 --steps 12 --behaviours.expert 1 --seed 500000 --out data/expert
    armworld bc --data data/expert --out runs/octo --optimizer muon --learning-rate 2e-3 --warmup 200 --steps 600 \
        --noise-draws 4
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from armworld.baselines.augment import Draws, augment, draw_augmentation
from armworld.baselines.compute import core_seconds, parameters, training_flop
from armworld.baselines.demonstrations import (
    PAST_GOAL,
    Demonstrations,
    Relabelling,
    choose_episodes,
    measure_scales,
    succeeded,
)
from armworld.baselines.policy import SIZES, Batch, Policy, PolicyConfig, policy_config
from armworld.datasets.clips import check_clips, load_frames
from armworld.datasets.droid import find_episodes
from armworld.datasets.store import PRELOAD_SHARE, Store, split_recordings
from armworld.types import check_folder, check_name, check_numbers
from armworld.worldmodel.checkpoint import save_parts
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.frozen import open_encoder, open_features
from armworld.worldmodel.model import WorldModelConfig
from armworld.worldmodel.sizes import check_image_size
from armworld.worldmodel.training import (
    Processes,
    TrainingConfig,
    TrainingRun,
    check_optimizer,
    make_optimizer,
    pick_device,
    plot_metrics,
    precision,
    read_metrics,
)


@dataclass(frozen=True, kw_only=True)
class BCTrainConfig(TrainingConfig):
    """Goal-conditioned behaviour cloning with a diffusion head.

    Attributes:
        size: Network size: debug, cpu, octo-small (Octo's small one) or octo-base.
        encoder: Read this frozen encoder's features instead of pixels: a checkpoint, or random:SIZE[:DEPTH].
        layers: Use the features after this many encoder blocks; none for all.
        cache: Folder of cached features; by default in the run's folder. May be shared with `armworld posttrain`.
        camera: The camera whose frames are used.
        image_size: Frame height and width in pixels; a trained encoder brings its own.
        step_seconds: Seconds per step; must be what the data was recorded at or a multiple.
        proprioception: Also read the arm's state and the goal's.
        window: Observations seen.
        chunk: Actions predicted.
        goal_cap: Hindsight goals lie at most this many steps ahead; none: anywhere in the rest of the episode.
        past_goal: mask (actions past the goal do not count, as in Octo) or hold (they are zeros and count).
        successes_only: Use successful episodes only.
        augment: Crop and recolour the frames.
        ema: Decay of the moving average of the weights; 0 for none.
        batch: Samples per optimiser step, over all processes (256 in Octo).
        noise_draws: Diffusion steps and noises drawn per readout and optimiser step: the head costs little.
        optimizer: adamw, as in Octo, or muon for the matrices of the transformer's and the head's blocks.
        learning_rate: Peak of the cosine schedule.
        warmup: Steps of linear warmup, at most a tenth of the budget.
        weight_decay: Decay of matrices.
        held_out: Share of the episodes kept for validation.
        validate_every: Steps between validations.
    """

    FREE = TrainingConfig.FREE | {"cache"}

    size: str = "cpu"
    encoder: str | None = None
    layers: int | None = None
    cache: Path | None = None
    camera: str = "left"
    image_size: int = 128
    step_seconds: float = 0.25
    proprioception: bool = True
    window: int = 2
    chunk: int = 4
    goal_cap: int | None = 20
    past_goal: str = "mask"
    successes_only: bool = False
    augment: bool = True
    ema: float = 0.999
    batch: int = 64
    noise_draws: int = 8
    optimizer: str = "adamw"
    learning_rate: float = 3e-4
    warmup: int = 2000
    weight_decay: float = 0.01
    held_out: float = 0.03
    validate_every: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("policy size", self.size, SIZES)
        check_optimizer(self.optimizer)
        check_image_size((self.image_size, self.image_size))
        check_numbers(self, "layers", "window", "chunk", "goal_cap", "batch", "noise_draws", "validate_every", least=1)
        check_numbers(self, "step_seconds", "learning_rate", above=0)
        check_numbers(self, "warmup", "weight_decay", least=0)
        check_numbers(self, "ema", least=0, below=1)
        check_numbers(self, "held_out", above=0, below=1)
        check_name("treatment of actions past the goal", self.past_goal, PAST_GOAL)
        if self.cache is not None:
            check_folder("cache", self.cache, written=False)
        if self.encoder is None and (self.layers, self.cache) != (None, None):
            raise ValueError("layers and cache are about features: name the encoder with --encoder")

    @property
    def rule(self) -> Relabelling:
        """How goals and chunks are made."""
        return Relabelling(self.window, self.chunk, self.goal_cap, self.past_goal)


@dataclass(frozen=True)
class Sources:
    """Opened data: training and held-out samples, and the frozen encoder if there is one."""

    train: Demonstrations
    held_out: Demonstrations
    encoder: Encoder | None
    patches: int
    image_size: tuple[int, int]


def open_sources(config: BCTrainConfig, device: torch.device, share: float = PRELOAD_SHARE) -> Sources:
    """Pack frames or cache features, and split the episodes; features are kept in up to `share` of the memory."""
    encoder, size = None, (config.image_size, config.image_size)
    if config.encoder is not None:
        encoder = open_encoder(config.encoder, config.image_size, config.seed)
        encoder.check_layers(config.layers)
        size = encoder.config.image_size
    check_clips(config.data, 2, config.step_seconds, config.camera)
    if config.successes_only and not any(succeeded(folder) for root in config.data for folder in find_episodes(root)):
        raise ValueError(f"none of the episodes is a success: {', '.join(map(str, config.data))}")
    if encoder is None:
        stores: Sequence[Store] = [load_frames(root, config.camera, config.image_size) for root in config.data]
    else:
        folder = config.cache or config.out / "features"
        cache = open_features(encoder, config.data, folder, config.camera, config.layers, config.dtype, device)
        stores = [cache.preload(share)]
    kept = [(store, choose_episodes(store, config.successes_only)) for store in stores]
    kept = [(store, numbers) for store, numbers in kept if len(numbers)]  # play alone has no successes
    stores, chosen = [store for store, _ in kept], [numbers for _, numbers in kept]
    train, held_out = chosen, chosen  # of a single episode
    if sum(map(len, chosen)) > 1:
        train, held_out = split_recordings(stores, config.held_out, np.random.default_rng(config.seed), chosen)
    rows, columns = check_image_size(size)
    return Sources(
        Demonstrations(stores, config.step_seconds, config.rule, train),
        Demonstrations(stores, config.step_seconds, config.rule, held_out),
        encoder,
        rows * columns,
        size,
    )


def network_config(config: BCTrainConfig, sources: Sources) -> PolicyConfig:
    """The network's configuration, with the training data's scales."""
    features = 0 if sources.encoder is None else sources.encoder.config.width
    base = policy_config(config.size, sources.patches, features)
    scales = measure_scales(*sources.train.transitions())
    usage = {"proprioception": config.proprioception, "window": config.window, "chunk": config.chunk}
    return replace(base, **usage, **scales._asdict())


@torch.no_grad()
def update_average(average: nn.Module, current: nn.Module, decay: float, step: int) -> None:
    """average <- d average + (1 - d) current, d = min(decay, (1 + step) / (10 + step)): early weights fade sooner."""
    share = min(decay, (1 + step) / (10 + step))
    for kept, new in zip(average.parameters(), current.parameters(), strict=True):
        kept.lerp_(new, 1 - share)


def train(config: BCTrainConfig) -> Path:
    """Train a policy and return its checkpoint folder, `out/model`.

    Raises:
        ValueError: Bad settings or data, a run folder of other settings, or a loss that is not a number.
    """
    device = pick_device(config.device)
    processes = Processes.from_environment(device)
    share = processes.share(config.batch)
    sources = processes.in_turn(lambda: open_sources(config, device, PRELOAD_SHARE / processes.world_size))
    torch.manual_seed(config.seed)
    policy = Policy(network_config(config, sources)).to(device)
    average = copy.deepcopy(policy).requires_grad_(False)
    model = processes.wrap(policy)
    blocks = (*policy.blocks, *policy.head.blocks)
    optimizer = make_optimizer(config.optimizer, policy, blocks, config.learning_rate, config.weight_decay)
    generators = np.random.default_rng(config.seed), torch.Generator().manual_seed(config.seed)
    modules: dict[str, nn.Module] = {"policy": policy, "average": average}
    stores = sources.train.stores
    told: dict[str, Any] = {"data": [s.content() for s in stores], "views": [s.views() for s in stores]}
    if sources.encoder is not None:
        told["features"] = stores[0].key["encoder"]
    run = TrainingRun(config, modules, optimizer, generators, processes, told)
    began = time.process_time()
    for step in run.steps():
        run.set_cosine_rate(config.learning_rate, config.warmup)
        batch, noise = _draw(config, sources.train, policy, generators, share, device)
        with precision(device, config.dtype):
            loss = model(batch, *noise)
        run.optimise(loss)
        update_average(average, policy, config.ema, step)
        if step % 20 == 0:
            run.log({"loss": float(loss.detach()), "core_seconds": round(time.process_time() - began, 1)})
        if step and step % config.validate_every == 0:
            run.log(validate(average, sources.held_out, config, device))
    if processes.is_main:
        _export(config, run, sources, policy, average, device)
    return config.out / "model"


def _draw(
    config: BCTrainConfig,
    samples: Demonstrations,
    policy: Policy,
    generators: tuple[np.random.Generator, torch.Generator],
    share: slice,
    device: torch.device,
) -> tuple[Batch, tuple[Tensor, Tensor]]:
    """This rank's samples and noise. Every rank draws the whole batch, so all see the same draws."""
    numpy_rng, torch_rng = generators
    batch = samples.sample(numpy_rng, config.batch)[share].to(device)
    step, noise = policy.head.draw((config.batch, config.window, config.noise_draws), torch_rng)
    if config.augment and config.encoder is None:
        draws = Draws(*(part[share] for part in draw_augmentation(config.batch, torch_rng)))
        dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
        images = augment(torch.cat([batch.frames, batch.goal[:, None]], 1), draws, dtype)
        batch = replace(batch, frames=images[:, :-1], goal=images[:, -1])
    return batch, (step[share].to(device), noise[share].to(device))


@torch.no_grad()
def validate(
    policy: Policy, samples: Demonstrations, config: BCTrainConfig, device: torch.device, batches: int = 4
) -> dict[str, float]:
    """Held-out loss, and how far a drawn first action is from the recorded one.

    Returns:
        `held_out`: the diffusion loss. `error_mm`: mean distance of the translation (mm). `still_mm`: the same for
        an action of zeros, which a useful policy must undercut.
    """
    rng, generator = np.random.default_rng(config.seed), torch.Generator().manual_seed(config.seed)
    sums = dict.fromkeys(("held_out", "error_mm", "still_mm"), 0.0)
    for _ in range(batches):
        batch = samples.sample(rng, min(config.batch, 64)).to(device)
        noise = (part.to(device) for part in policy.head.draw((*batch.valid.shape, config.noise_draws), generator))
        with precision(device, config.dtype):
            sums["held_out"] += float(policy(batch, *noise))
            drawn = policy.act(batch, generator).float()
        counted = batch.mask[:, -1, 0]
        true = batch.actions[counted, -1, 0, :3]
        sums["error_mm"] += 1000 * float((drawn[counted, 0, :3] - true).norm(dim=-1).mean())
        sums["still_mm"] += 1000 * float(true.norm(dim=-1).mean())
    return {name: value / batches for name, value in sums.items()}


def _export(
    config: BCTrainConfig, run: TrainingRun, sources: Sources, policy: Policy, average: Policy, device: torch.device
) -> None:
    """Both checkpoints and the curves."""
    usage = WorldModelConfig(config.step_seconds, sources.image_size, config.camera, config.layers)
    one = sources.train.sample(np.random.default_rng(0), 1).to(device)
    noise = [part.to(device) for part in policy.head.draw((*one.valid.shape, config.noise_draws), torch.Generator())]
    flop = training_flop(lambda: average(one, *noise), config.batch * run.budget.step)
    about = {
        "method": "behaviour cloning on frozen features" if config.encoder else "Octo-style, from scratch",
        "training": config.identity(),
        "steps": run.budget.step,
        "seconds": round(run.budget.elapsed),
        "core_seconds": round(core_seconds(read_metrics(run.metrics_path))),
        "device": device.type,
        "parameters": parameters(policy),
        "training_flop": flop,
        "data": {
            "folders": [path.name for path in config.data],
            "episodes": sources.train.episodes,
            "samples": len(sources.train),
        },
    }
    for name, network in (("model", average), ("model_last", policy)):
        scores = validate(network, sources.held_out, config, device)
        parts = {"encoder": sources.encoder, "policy": network}
        save_parts(config.out / name, parts, usage, {**about, "validation": scores})
    plot_metrics(run.metrics_path, config.out / "curves.png", ("loss", "held_out", "error_mm", "learning_rate"))
