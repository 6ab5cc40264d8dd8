"""`armworld probe`: what a frozen encoder's features of whole videos tell, by an attentive probe (V-JEPA 2, section 4).

Each video becomes one clip of frames spread evenly over it; the encoder sees the clip once; the probe is trained on the
tokens of the training videos and scored once, after the last epoch, on those of the test.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from armworld.evaluation.files import plain, write_json
from armworld.evaluation.statistics import wilson_interval
from armworld.types import check_folder, check_name, check_numbers
from armworld.worldmodel.attentive_probe import AttentiveProbe
from armworld.worldmodel.clip_sources import frames_at, open_video
from armworld.worldmodel.encoder import Encoder, pixels_to_clip
from armworld.worldmodel.frozen import open_encoder
from armworld.worldmodel.labelled_videos import (
    EPISODE_TARGETS,
    LabelledVideo,
    episode_videos,
    something_videos,
    thin_out,
)
from armworld.worldmodel.processes import check_device, check_dtype, pick_device, precision
from armworld.worldmodel.sizes import TUBELET, check_image_size
from armworld.worldmodel.training import LAST_SEED, parameter_groups, warmup_cosine

ENCODE_BATCH = 8  # videos


@dataclass(frozen=True)
class ProbeConfig:
    """Classify videos from a frozen encoder's features.

    Attributes:
        out: Folder for `probe.json` and the cached features.
        encoder: Checkpoint (name, folder, published file), or `random:SIZE[:DEPTH]` for the untrained control.
        data: Dataset folders of recorded episodes.
        test_data: Dataset folders that are the test (`armworld collect --for-tests`: a lab that no training shows),
            scored together and each alone; by default a share of `data` is.
        split: How they are split: by episode, or by scene (in our data a lab), which all of its episodes share.
        target: What to tell of an episode: behaviour, object, direction (of the hand), task, lab or success.
        something: A folder laid out as Something-Something v2, in place of `data`; it brings its own split.
        camera: Whose videos of the episodes.
        frames: Frames per clip, spread evenly over the video (16 in the paper).
        image_size: Frame height and width in pixels; by default the encoder's.
        max_videos: Use at most this many videos.
        held_out: Share of each class's episodes, or scenes, for the test.
        depth: Layers of the probe (4 in the paper).
        epochs: Passes over the training videos (20 in the paper).
        batch: Videos per step.
        learning_rate: Peak of the warmup-cosine schedule.
        weight_decay: AdamW's decay of matrices.
        seed: Seed of split, probe and order.
        device: auto, cpu or cuda.
        dtype: bfloat16 (autocast) or float32.
    """

    out: Path
    encoder: str = "default"
    data: tuple[Path, ...] = ()
    test_data: tuple[Path, ...] = ()
    split: Literal["episode", "scene"] = "episode"
    target: str = "behaviour"
    something: Path | None = None
    camera: str = "left"
    frames: int = 8
    image_size: int | None = None
    max_videos: int | None = None
    held_out: float = 0.25
    depth: int = 4
    epochs: int = 20
    batch: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.04
    seed: int = 0
    device: str = "auto"
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if bool(self.data) == (self.something is not None):
            raise ValueError("probe needs either --data (recorded episodes) or --something (a folder), not both")
        if self.test_data and self.something:
            raise ValueError("--test-data goes with --data: --something brings its own test")
        if self.frames < TUBELET or self.frames % TUBELET:
            raise ValueError(f"frames must be a positive multiple of {TUBELET}, got {self.frames}")
        check_name("probe target", self.target, EPISODE_TARGETS)
        check_numbers(self, "epochs", "batch", "depth", least=1)
        check_numbers(self, "max_videos", least=2)
        check_numbers(self, "learning_rate", above=0)
        check_numbers(self, "weight_decay", least=0)
        check_numbers(self, "held_out", above=0, below=1)
        check_numbers(self, "seed", least=0, most=LAST_SEED)
        check_device(self.device)
        check_dtype(self.dtype)
        check_folder("out", self.out)
        if self.image_size is not None:
            check_image_size((self.image_size, self.image_size))


def probe(config: ProbeConfig, console: Console | None = None) -> dict[str, Any]:
    """Encode, train, score; print a table and write `probe.json`; answers what it holds.

    Raises:
        ValueError: Bad settings, labels or videos; fewer than two classes.
    """
    console = console or Console()
    device = pick_device(config.device)
    encoder = open_encoder(config.encoder, config.image_size or 128, config.seed)
    rng = np.random.default_rng(config.seed)
    videos = thin_out(_videos(config, rng), config.max_videos, rng)
    classes = sorted({video.label for video in videos if not video.test})
    _check(videos, classes)
    encoder = encoder.to(device).eval()
    features = encode_videos(config, encoder, videos)
    labels = torch.tensor([classes.index(video.label) for video in videos])
    test = torch.tensor([video.test for video in videos])
    model = train_probe(config, features, labels, (~test).nonzero()[:, 0], encoder.config.heads, len(classes), rng)
    record = _record(config, videos, classes, labels, test, predict(config, model, features))
    write_json(config.out / "probe.json", record)
    console.print(_table(record))
    return record


def _videos(config: ProbeConfig, rng: np.random.Generator) -> list[LabelledVideo]:
    if config.something is not None:
        return something_videos(config.something)
    where = (config.data, config.target, config.camera, config.held_out)
    return episode_videos(*where, rng, config.split, config.test_data)


def _check(videos: list[LabelledVideo], classes: list[str]) -> None:
    tested = {video.label for video in videos if video.test}
    if len(classes) < 2 or not tested:
        raise ValueError(f"a probe needs 2 classes in training and a test, got {classes} and {sorted(tested)}")
    unseen = sorted(tested - set(classes))
    if unseen:
        raise ValueError(f"classes of the test that training lacks: {', '.join(unseen)}; use more videos")


@torch.no_grad()
def encode_videos(config: ProbeConfig, encoder: Encoder, videos: list[LabelledVideo]) -> np.ndarray:
    """Features float16 [V, N, D] of all videos, mapped from `out/features.npy`, which is made anew."""
    device, size = next(encoder.parameters()).device, config.image_size or encoder.config.image_size[0]
    config.out.mkdir(parents=True, exist_ok=True)
    path, temporary = config.out / "features.npy", config.out / "features.npy.tmp"
    stored: np.ndarray | None = None
    for start in track(range(0, len(videos), ENCODE_BATCH), "encode videos"):
        clips = np.stack([_clip(video.path, config.frames, size) for video in videos[start : start + ENCODE_BATCH]])
        with precision(device, config.dtype):
            features = encoder(pixels_to_clip(torch.from_numpy(clips).to(device))).float().cpu().numpy()
        if stored is None:
            stored = np.lib.format.open_memmap(temporary, "w+", np.float16, (len(videos), *features.shape[1:]))
        stored[start : start + len(features)] = features
    assert stored is not None
    os.replace(temporary, path)
    return stored


def _clip(path: Path, frames: int, size: int) -> np.ndarray:
    """Frames uint8 [T, size, size, 3] from the middles of equal parts of the video."""
    seconds = open_video(path).seconds
    return frames_at(path, (np.arange(frames) + 0.5) * seconds / frames, size)


def train_probe(
    config: ProbeConfig,
    features: np.ndarray,
    labels: Tensor,
    train: Tensor,
    heads: int,
    classes: int,
    rng: np.random.Generator,
) -> AttentiveProbe:
    """The probe after `config.epochs` over the videos numbered `train` [n], by cross-entropy."""
    torch.manual_seed(config.seed)
    device = pick_device(config.device)
    model = AttentiveProbe(features.shape[-1], classes, heads, config.depth).to(device)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), lr=config.learning_rate)
    steps = config.epochs * math.ceil(len(train) / config.batch)
    step = 0
    for _ in track(range(config.epochs), "train the probe"):
        for chosen in torch.from_numpy(rng.permutation(train.numpy())).split(config.batch):
            for group in optimizer.param_groups:
                group["lr"] = warmup_cosine(step / steps, step, config.learning_rate, steps // 10)
            with precision(device, config.dtype):
                loss = F.cross_entropy(model(_take(features, chosen, device)).float(), labels[chosen].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
    return model.eval()


@torch.no_grad()
def predict(config: ProbeConfig, model: AttentiveProbe, features: np.ndarray) -> Tensor:
    """Class numbers [V] of all videos."""
    device = next(model.parameters()).device
    with precision(device, config.dtype):
        parts = torch.arange(len(features)).split(config.batch)
        return torch.cat([model(_take(features, part, device)).float().argmax(-1).cpu() for part in parts])


def _take(features: np.ndarray, index: Tensor, device: torch.device) -> Tensor:
    return torch.from_numpy(features[index.numpy()].astype(np.float32)).to(device)


def _record(
    config: ProbeConfig,
    videos: list[LabelledVideo],
    classes: list[str],
    labels: Tensor,
    test: Tensor,
    predicted: Tensor,
) -> dict[str, Any]:
    right = predicted == labels
    hits, trials = int(right[test].sum()), int(test.sum())
    counts = Counter(video.label for video in videos if not video.test)
    commonest = counts.most_common(1)[0][0]
    per_class = {}
    for number, name in enumerate(classes):
        own = test & (labels == number)
        per_class[name] = {"train": counts[name], "test": int(own.sum()), "right": int(right[own].sum())}
    return {
        "classes": per_class,
        "accuracy": hits / trials,
        "wilson_95": list(wilson_interval(hits, trials)),
        "test_data": {str(folder): _score(right[_below(folder, videos)]) for folder in config.test_data},
        "train_accuracy": float(right[~test].float().mean()),
        "commonest_class": float((labels[test] == classes.index(commonest)).float().mean()),
        "config": plain(asdict(config)),
    }


def _below(folder: Path, videos: list[LabelledVideo]) -> Tensor:
    return torch.tensor([folder in video.path.parents for video in videos])


def _score(right: Tensor) -> dict[str, Any]:
    """Accuracy and its interval of right and wrong answers, bool [n]."""
    hits, trials = int(right.sum()), len(right)
    return {"right": hits, "test": trials, "wilson_95": list(wilson_interval(hits, trials)) if trials else None}


def _table(record: dict[str, Any]) -> Table:
    low, high = record["wilson_95"]
    title = (
        f"accuracy {record['accuracy']:.1%} ({low:.1%} to {high:.1%}) on the test, "
        f"{record['train_accuracy']:.1%} in training, {record['commonest_class']:.1%} by the commonest class"
    )
    table = Table("class", "train", "test", "right", title=title)
    for name, row in record["classes"].items():
        table.add_row(name, str(row["train"]), str(row["test"]), str(row["right"]))
    for folder, row in record["test_data"].items():
        table.add_row(f"all of {folder}", "", str(row["test"]), str(row["right"]))
    return table
