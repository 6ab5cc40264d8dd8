"""`armworld pixels`: train the pixel-space world model.

Beside the weights, `out/model/imagined.png` shows held-out episodes as they were and as the model imagines them from
their first frame; `armworld evaluate --suite table3` takes it over into its page.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armworld.baselines.compute import core_seconds, parameters, training_flop
from armworld.baselines.pixels import PixelModelConfig, PixelNetwork, to_unit
from armworld.baselines.pixels_picture import CLIPS, PICTURE, STEPS, held_out_figure
from armworld.datasets.clips import check_clips, load_frames
from armworld.datasets.features import stride_for
from armworld.datasets.store import Store, split_recordings
from armworld.evaluation.files import write_bytes
from armworld.evaluation.picture import figure_png
from armworld.pose import action_between
from armworld.types import check_numbers
from armworld.worldmodel.checkpoint import save_parts
from armworld.worldmodel.model import WorldModelConfig
from armworld.worldmodel.sizes import check_image_size
from armworld.worldmodel.training import (
    Processes,
    TrainingConfig,
    TrainingRun,
    make_optimizer,
    pick_device,
    plot_metrics,
    precision,
    read_metrics,
)


@dataclass(frozen=True, kw_only=True)
class PixelTrainConfig(TrainingConfig):
    """Training of the pixel-space world model, on the same data as the latent one.

    Attributes:
        camera: The camera whose frames are used.
        image_size: Frame height and width in pixels; a multiple of 16.
        step_seconds: Seconds per step; must be what the data was recorded at or a multiple.
        frames: Frames per clip; the rollout loss spans all of them.
        channels: Of the latent map.
        blocks: Residual blocks of the predictor.
        batch: Clips per optimiser step, over all processes.
        learning_rate: Peak of the cosine schedule.
        warmup: Steps of linear warmup, at most a tenth of the budget.
        weight_decay: AdamW's decay of matrices.
        held_out: Share of the episodes kept for validation.
        validate_every: Steps between validations.
    """

    camera: str = "left"
    image_size: int = 128
    step_seconds: float = 0.25
    frames: int = 3
    channels: int = 64
    blocks: int = 6
    batch: int = 32
    learning_rate: float = 1e-3
    warmup: int = 500
    weight_decay: float = 0.01
    held_out: float = 0.03
    validate_every: int = 250
    dtype: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_image_size((self.image_size, self.image_size))
        check_numbers(self, "frames", least=2)
        check_numbers(self, "batch", "validate_every", least=1)
        check_numbers(self, "step_seconds", "learning_rate", above=0)
        check_numbers(self, "warmup", "weight_decay", least=0)
        check_numbers(self, "held_out", above=0, below=1)
        PixelModelConfig(channels=self.channels, blocks=self.blocks)


class PixelClips:
    """Draws clips of frames, states and actions from packed stores."""

    def __init__(self, stores: list[Store], keep: list[np.ndarray], step_seconds: float, frames: int) -> None:
        self.stores, self.episodes, self.frames = stores, keep, frames
        self.strides = [stride_for(store.step_seconds, step_seconds) for store in stores]
        parts = zip(stores, keep, self.strides, strict=True)
        starts = [store.starts(frames, stride, episodes) for store, episodes, stride in parts]
        owner = [np.full(len(part), index) for index, part in enumerate(starts)]
        self._starts, self._owner = np.concatenate(starts), np.concatenate(owner)
        if not len(self._starts):
            raise ValueError(f"no episode holds {frames} frames {step_seconds} s apart")

    def __len__(self) -> int:
        """Clips, overlapping ones counted each."""
        return len(self._starts)

    def sample(self, rng: np.random.Generator, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Frames uint8 [B, T, H, W, 3], states [B, T, 7], actions [B, T-1, 7]."""
        drawn = rng.integers(0, len(self._starts), batch)
        images, states = [], []
        for number in drawn:
            index = self._owner[number]
            windows = self.stores[index].windows(self._starts[number : number + 1], self.frames, self.strides[index])
            images.append(windows.items[0])
            states.append(windows.states[0])
        state = torch.from_numpy(np.stack(states))
        return torch.from_numpy(np.stack(images)), state, action_between(state[:, :-1], state[:, 1:])


def train(config: PixelTrainConfig) -> Path:
    """Train a pixel-space world model and return its checkpoint folder, `out/model`.

    Raises:
        ValueError: Bad settings or data, a run folder of other settings, or a loss that is not a number.
    """
    device = pick_device(config.device)
    processes = Processes.from_environment(device)
    share = processes.share(config.batch)
    check_clips(config.data, config.frames, config.step_seconds, config.camera)
    stores = processes.in_turn(lambda: [load_frames(root, config.camera, config.image_size) for root in config.data])
    split = split_recordings(stores, config.held_out, np.random.default_rng(config.seed))
    clips, held_out = (PixelClips(stores, part, config.step_seconds, config.frames) for part in split)
    places = np.concatenate([store.states[:, :3] for store in stores])
    mean, std = (tuple(round(float(v), 6) for v in x) for x in (places.mean(0), places.std(0).clip(1e-3)))
    torch.manual_seed(config.seed)
    sizes = PixelModelConfig(channels=config.channels, blocks=config.blocks, state_mean=mean, state_std=std)
    network = PixelNetwork(sizes).to(device)
    model = processes.wrap(network)
    optimizer = make_optimizer("adamw", network, (), config.learning_rate, config.weight_decay)
    generators = np.random.default_rng(config.seed), torch.Generator().manual_seed(config.seed)
    modules: dict[str, nn.Module] = {"network": network}
    told = {"data": [store.content() for store in stores], "views": [store.views() for store in stores]}
    run = TrainingRun(config, modules, optimizer, generators, processes, told)
    began = time.process_time()
    for step in run.steps():
        run.set_cosine_rate(config.learning_rate, config.warmup)
        images, states, actions = (part[share].to(device) for part in clips.sample(run.numpy_rng, config.batch))
        with precision(device, config.dtype):
            parts = model(to_unit(images), states, actions)
        run.optimise(parts["loss"])
        if step % 20 == 0:
            spent = {"core_seconds": round(time.process_time() - began, 1)}
            run.log({name: float(value.detach()) for name, value in parts.items()} | spent)
        if step and step % config.validate_every == 0:
            run.log(validate(network, held_out, config, device))
    if processes.is_main:
        _export(config, run, network, clips, held_out, device)
    return config.out / "model"


@torch.no_grad()
def validate(
    network: PixelNetwork, clips: PixelClips, config: PixelTrainConfig, device: torch.device, batches: int = 4
) -> dict[str, float]:
    """Held-out L1 of the next frame, beside copying the frame and beside another sample's action.

    `gain` is 1 - one_step / copy, as in post-training.
    """
    rng = np.random.default_rng(config.seed)
    sums = dict.fromkeys(("one_step", "copy", "shuffled_actions"), 0.0)
    for _ in range(batches):
        images, states, actions = (part.to(device) for part in clips.sample(rng, config.batch))
        frames = to_unit(images)
        latent = network.encode(frames[:, 0])
        own = network.decode(network.step(latent, states[:, 0], actions[:, 0]))
        other = network.decode(network.step(latent, states[:, 0], actions[:, 0].roll(1, 0)))
        sums["one_step"] += float(F.l1_loss(own, frames[:, 1]))
        sums["copy"] += float(F.l1_loss(frames[:, 0], frames[:, 1]))
        sums["shuffled_actions"] += float(F.l1_loss(other, frames[:, 1]))
    scores = {name: value / batches for name, value in sums.items()}
    return {**scores, "gain": 1 - scores["one_step"] / max(scores["copy"], 1e-9)}


def _export(
    config: PixelTrainConfig,
    run: TrainingRun,
    network: PixelNetwork,
    clips: PixelClips,
    held_out: PixelClips,
    device: torch.device,
) -> None:
    images, states, actions = (part.to(device) for part in clips.sample(np.random.default_rng(0), 1))
    frames = to_unit(images)
    about = {
        "method": "pixel-space world model",
        "training": config.identity(),
        "steps": run.budget.step,
        "seconds": round(run.budget.elapsed),
        "core_seconds": round(core_seconds(read_metrics(run.metrics_path))),
        "device": device.type,
        "parameters": parameters(network),
        "training_flop": training_flop(lambda: network(frames, states, actions), config.batch * run.budget.step),
        "data": {"folders": [p.name for p in config.data], "samples": len(clips)},
        "validation": validate(network, held_out, config, device),
    }
    usage = WorldModelConfig(config.step_seconds, (config.image_size, config.image_size), config.camera)
    save_parts(config.out / "model", {"pixels": network}, usage, about)
    _draw(config, network, usage, held_out, device)
    plot_metrics(run.metrics_path, config.out / "curves.png", ("copied", "forced", "rollout", "one_step", "gain"))


def _draw(
    config: PixelTrainConfig, network: PixelNetwork, usage: WorldModelConfig, held_out: PixelClips, device: torch.device
) -> None:
    """The picture of imagined frames beside the truth; none where no held-out episode is long enough."""
    try:
        longer = PixelClips(held_out.stores, held_out.episodes, config.step_seconds, STEPS + 1)
    except ValueError:
        return
    images, states, actions = (part.to(device) for part in longer.sample(np.random.default_rng(0), CLIPS))
    figure = held_out_figure(network, usage, (images, states, actions))
    write_bytes(config.out / "model" / PICTURE, figure_png(figure))
