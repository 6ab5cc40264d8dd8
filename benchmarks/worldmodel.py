"""Samples per second and use of the processor: training steps and candidate scoring, against the published step.

    python benchmarks/worldmodel.py [--samples 800] [--horizons 4 1] [--dtype bfloat16] [--device cuda] [--out FILE]

The peer is a plain implementation of what is published, over the same modules and weights, in turns in one process:

- post-training: teacher forcing and a two-step rollout over clips, with the block-causal mask as a matrix over all
  pairs of tokens and rotary tables computed in every layer; then clipping and AdamW.
- pretraining: the whole clip is embedded by the convolution and the visible tokens taken out; one forward per mask
  family; then AdamW and the teacher's average, parameter by parameter.
- scoring: `benchmarks/planning.py`'s plain planner, one iteration over all candidates.

Utilisation is the arithmetic that our step needs (matrix products as counted by torch; nothing masked or recomputed)
per second, over the best rate of one large matrix product in the same run. On a CPU with one thread, times are this
process's CPU time, so that neighbours on the machine do not count.
"""

from __future__ import annotations

import copy
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from planning import Config as PlanningConfig
from planning import build, make_scene, our_published, plain_published
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from armworld.worldmodel.ac_predictor import ACPredictor
from armworld.worldmodel.blocks import Block, grid_positions, normalize, rotary_from_positions, rotate
from armworld.worldmodel.encoder import Encoder, clip_grid, take_tokens
from armworld.worldmodel.linear import ONEDNN_LINEAR, linear
from armworld.worldmodel.mask_denoiser import MaskDenoiser
from armworld.worldmodel.mask_predictor import MaskPredictor
from armworld.worldmodel.masks import Mask, sample_masks
from armworld.worldmodel.prediction_loss import PredictionLoss
from armworld.worldmodel.sizes import PATCH, TUBELET, ACPredictorConfig, EncoderConfig, MaskPredictorConfig
from armworld.worldmodel.training import make_optimizer, precision

# Arithmetic of operators that torch's counter does not know.
_UNCOUNTED = {} if ONEDNN_LINEAR is None else {ONEDNN_LINEAR: lambda x, w, *_, out_shape=None: 2 * math.prod(x) * w[0]}
WEIGHT_DECAY, RATE, EMA = 0.04, 1e-4, 0.99925
PEAK_SIZES = (1024, 2048, 4096)  # of the products that give the processor's best rate


@dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        width, depth, heads: Of the predictor (by default the small size's width); in pretraining, of the encoder.
        features: Width of the features that the predictor reads and imagines; by default its own width. The published
            predictor has 1408, at a width of 1024.
        image_size: Pixels per side; a patch is 16 x 16.
        batch: Clips per training step.
        frames: Frames per clip in both trainings (8 at 4 fps in post-training as published).
        samples: Candidates scored.
        horizons: Steps imagined when scoring.
        repeats: Timed runs of each; the median counts.
        threads: Threads of torch on a CPU.
        device: cpu, cuda ...
        dtype: float32 or bfloat16 (autocast) in training; scoring is in this precision too.
        parts: Which measurements: posttrain, pretrain, score.
        out: JSON file to write.
    """

    width: int = 384
    depth: int = 6
    heads: int = 6
    features: int | None = None
    image_size: int = 128
    batch: int = 8
    frames: int = 8
    samples: int = 800
    horizons: tuple[int, ...] = (4, 1)
    repeats: int = 3
    threads: int = 1
    device: str = "cpu"
    dtype: str = "float32"
    parts: tuple[str, ...] = ("posttrain", "pretrain", "score")
    out: Path | None = None


# The published post-training step, plainly.


def plain_block(block: Block, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    """A transformer block whose attention masks a matrix over all pairs and computes its own rotary tables."""
    attention = block.attn
    q, k, v = attention.qkv(block.norm1(x)).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    rotary = rotary_from_positions(positions, q.shape[-1]).to(q.device, q.dtype)
    attended = F.scaled_dot_product_attention(rotate(q, rotary), rotate(k, rotary), v, attn_mask=mask)
    x = x + attention.proj(attended.transpose(1, 2).flatten(2))
    return x + block.mlp(block.norm2(x))


def plain_predict(predictor: ACPredictor, z_BTND: Tensor, actions_BTA: Tensor, states_BTA: Tensor) -> Tensor:
    """Next features [B, T, N, D] of every step."""
    steps, (rows, columns) = z_BTND.shape[1], predictor.config.grid
    conditioning = torch.stack([predictor.action_encoder(actions_BTA), predictor.state_encoder(states_BTA)], 2)
    patches = predictor.predictor_embed(z_BTND)
    x = torch.cat([conditioning.to(patches.dtype), patches], 2)
    tokens = x.shape[2]
    step = torch.arange(steps, device=x.device).repeat_interleave(tokens)
    places = grid_positions(steps, rows, columns).unflatten(0, (steps, -1))
    times = torch.arange(steps).float()[:, None, None].expand(-1, 2, 1)
    positions = torch.cat([F.pad(times, (0, 2)), places], 1).flatten(0, 1).to(x.device)
    x = x.flatten(1, 2)
    for block in predictor.predictor_blocks:
        assert isinstance(block, Block)
        x = plain_block(block, x, positions, step[:, None] >= step[None, :])
    return predictor.predictor_proj(predictor.predictor_norm(x.unflatten(1, (steps, -1))[:, :, 2:]))


def plain_posttrain_loss(predictor: ACPredictor, z: Tensor, states: Tensor, actions: Tensor) -> Tensor:
    """Teacher forcing over the clip, and the rollout of two steps from the first frame."""
    forced = normalize(plain_predict(predictor, z[:, :-1], actions, states[:, :-1]).float())
    context = torch.cat([z[:, :1], forced[:, :1]], 1)
    second = normalize(plain_predict(predictor, context, actions[:, :2], states[:, :2])[:, -1:].float())
    return F.l1_loss(forced, z[:, 1:]) + F.l1_loss(second, z[:, 2:3])


# The published pretraining step, plainly.


def plain_encode(encoder: Encoder, clip: Tensor, index: Tensor | None) -> Tensor:
    """Features of the tokens at `index` [B, K] (all: None); everything is embedded first."""
    x = encoder.patch_embed.proj(clip).flatten(2).transpose(1, 2)
    head_dim = encoder.config.width // encoder.config.heads
    positions = grid_positions(*clip_grid(clip)).to(x.device)
    if index is not None:
        x = take_tokens(x, index)
    for block in encoder.blocks:
        rotary = rotary_from_positions(positions, head_dim).to(x.device, x.dtype)
        x = block(x, rotary if index is None else rotary.take(index))
    return encoder.norm(x)


def plain_pretrain_loss(denoiser: MaskDenoiser, clip: Tensor, masks: list[Mask]) -> Tensor:
    """L1 at the hidden tokens, mean over the mask families."""
    with torch.no_grad():
        targets = normalize(plain_encode(denoiser.teacher, clip, None).float())
    losses = []
    for family, mask in enumerate(masks):
        seen = plain_encode(denoiser.student, clip, mask.context)
        filled = denoiser.predictor(seen, mask.context, mask.target, clip_grid(clip), family)
        losses.append(F.l1_loss(filled.float(), take_tokens(targets, mask.target)))
    return torch.stack(losses).mean()


# Measuring.


class Trainer:
    """A module, its loss and its optimiser: one call is one training step and answers the loss."""

    def __init__(self, config: Config, module: nn.Module, loss: Callable[[], Tensor], plain: bool) -> None:
        self.config, self.module, self.loss = config, module, loss
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.plain = plain
        if plain:
            self.optimizer = torch.optim.AdamW(self.parameters, lr=RATE, weight_decay=WEIGHT_DECAY, foreach=False)
        else:
            self.optimizer = make_optimizer("adamw", module, (), RATE, WEIGHT_DECAY)

    def __call__(self) -> Tensor:
        with precision(torch.device(self.config.device), self.config.dtype):
            loss = self.loss()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        if isinstance(self.module, MaskDenoiser):
            self.module.update_teacher(EMA)
        return loss.detach()


def posttrain_steps(config: Config) -> dict[str, Callable[[], Tensor]]:
    """Both implementations of the post-training step, over equal weights and the same clips."""
    torch.manual_seed(0)
    size, features = (config.image_size, config.image_size), config.features or config.width
    shape = ACPredictorConfig(features, config.width, config.depth, config.heads, image_size=size)
    predictor = ACPredictor(shape).to(config.device)
    patches = shape.grid[0] * shape.grid[1]
    z = normalize(torch.randn(config.batch, config.frames, patches, features)).to(config.device)
    states = torch.rand(config.batch, config.frames, 7).to(config.device)
    actions = 0.1 * torch.randn(config.batch, config.frames - 1, 7).to(config.device)
    ours, theirs = PredictionLoss(predictor, 2), copy.deepcopy(predictor)
    return {
        "plain": Trainer(config, theirs, lambda: plain_posttrain_loss(theirs, z, states, actions), True),
        "ours": Trainer(config, ours, lambda: ours(z, states, actions)["loss"], False),
    }


def pretrain_steps(config: Config) -> dict[str, Callable[[], Tensor]]:
    """Both implementations of the pretraining step, over equal weights, the same clips and masks."""
    torch.manual_seed(0)
    size = (config.image_size, config.image_size)
    encoder = Encoder(EncoderConfig(config.width, config.depth, config.heads, image_size=size))
    predictor = MaskPredictor(MaskPredictorConfig(config.width, config.width // 2, 4, config.heads))
    ours = MaskDenoiser(encoder, predictor).to(config.device)
    ours.state_readout.requires_grad_(False)
    ours.teacher.to(config.device)
    theirs = copy.deepcopy(ours)
    clip = torch.randn(config.batch, 3, config.frames, *size).to(config.device)
    grid = (config.frames // TUBELET, size[0] // PATCH, size[1] // PATCH)
    masks = [m.to(config.device) for m in sample_masks(grid, config.batch, torch.Generator().manual_seed(0))]
    return {
        "plain": Trainer(config, theirs, lambda: plain_pretrain_loss(theirs, clip, masks), True),
        "ours": Trainer(config, ours, lambda: ours(clip, masks)["denoising"], False),
    }


def score_runs(config: Config, horizon: int) -> dict[str, Callable[[], Tensor]]:
    """Both implementations of scoring all candidates once; what they answer is the plan fitted to the best."""
    model = build(PlanningConfig(width=config.width, depth=config.depth, heads=config.heads, features=config.features,
                                 device=config.device, image_size=config.image_size))  # fmt: skip
    scene = make_scene(model, config.device)
    if config.dtype == "bfloat16":
        model.predictor.to(torch.bfloat16)
    shape = (1, horizon, config.samples, 4)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(horizon)).to(config.device)

    def plain() -> Tensor:
        with precision(torch.device(config.device), config.dtype):
            return plain_published(model.predictor, scene, noise)

    return {"plain": plain, "ours": lambda: our_published(model, scene, noise)}


def seconds_of(config: Config, run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Seconds of one run, and its result."""
    cuda = config.device.startswith("cuda")
    clock = time.process_time if not cuda and config.threads == 1 else time.perf_counter
    started = clock()
    result = run()
    if cuda:
        torch.cuda.synchronize()
    return clock() - started, result


def compare(config: Config, runs: dict[str, Callable[[], Tensor]], samples: int, peak: float) -> dict[str, float]:
    """Both in turns: the first run of each counts its arithmetic and compares results, the others are timed."""
    flop, results = {}, {}
    for name, run in runs.items():
        with FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter, sdpa_kernel(SDPBackend.MATH):
            results[name] = run().float().cpu()
        flop[name] = counter.get_total_flops()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(config.repeats):
        for name, run in runs.items():
            seconds[name].append(seconds_of(config, run)[0])
    median = {name: statistics.median(values) for name, values in seconds.items()}
    needed = min(flop.values())
    return {
        "plain_per_second": samples / median["plain"],
        "our_per_second": samples / median["ours"],
        "ratio": median["plain"] / median["ours"],
        "plain_flop": flop["plain"],
        "our_flop": flop["ours"],
        "plain_utilisation": needed / median["plain"] / peak,
        "our_utilisation": needed / median["ours"] / peak,
        "largest_difference": float((results["plain"] - results["ours"]).abs().max()),
    }


def peak_rate(config: Config) -> float:
    """FLOP per second of the best square matrix product, by the better of torch's libraries."""
    dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    best = 0.0
    for size in PEAK_SIZES if config.device.startswith("cuda") else PEAK_SIZES[:1]:
        a = torch.randn(size, size, device=config.device, dtype=dtype)
        bias = a.new_zeros(size)
        for product in (lambda a=a: a @ a, lambda a=a, bias=bias: linear(a, a, bias)):
            product()
            taken = min(seconds_of(config, product)[0] for _ in range(5))
            best = max(best, 2 * size**3 / taken)
    return best


def measure(config: Config) -> dict[str, dict[str, float]]:
    """All asked-for measurements by name."""
    peak, found = peak_rate(config), {}
    if "posttrain" in config.parts:
        found["posttrain"] = compare(config, posttrain_steps(config), config.batch, peak)
    if "pretrain" in config.parts:
        found["pretrain"] = compare(config, pretrain_steps(config), config.batch, peak)
    if "score" in config.parts:
        for horizon in config.horizons:
            name = f"score, horizon {horizon}"
            with torch.no_grad():
                found[name] = compare(config, score_runs(config, horizon), config.samples, peak)
    found["peak"] = {"flop_per_second": peak}
    return found


def main(config: Config) -> None:
    """Measure, print, and write JSON if asked to."""
    torch.set_num_threads(config.threads)
    found = measure(config)
    peak = found["peak"]["flop_per_second"] / 1e9
    read = f" over {config.features}" if config.features else ""
    shape = f"{config.width} x {config.depth}{read}, {config.image_size} px, {config.dtype}"
    title = f"{shape}, {config.samples} candidates; peak {peak:.0f} GFLOP/s"
    heads = ("", "plain /s", "ours /s", "ratio", "plain used", "ours used", "flop", "difference")
    table = Table(*heads, title=title)
    for name, row in found.items():
        if name != "peak":
            table.add_row(
                name,
                f"{row['plain_per_second']:.2f}",
                f"{row['our_per_second']:.2f}",
                f"{row['ratio']:.2f}",
                f"{row['plain_utilisation']:.0%}",
                f"{row['our_utilisation']:.0%}",
                f"{row['plain_flop'] / row['our_flop']:.2f} x",
                f"{row['largest_difference']:.0e}",
            )
    Console().print(table)
    if config.out is not None:
        record = {"config": {**asdict(config), "out": str(config.out)}, "torch": torch.__version__, **found}
        temporary = config.out.with_suffix(".tmp")
        temporary.write_text(json.dumps(record, indent=1))
        os.replace(temporary, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
