"""Read an export of ours with LeRobot's own reader, and compare every frame with the source; not part of CI.

    python tests/conformance/lerobot_reader.py EXPORT SOURCE

EXPORT is what `armworld export SOURCE --format lerobot --out EXPORT` wrote. LeRobot 0.4.4, the last for Python 3.11,
pins a torch older than armworld's, so it needs an environment of its own, in which nothing else of ours is tested:

    python -m venv /tmp/lerobot && . /tmp/lerobot/bin/activate
    pip install -e . pyarrow -c constraints.txt            # armworld, with torch for CPUs
    pip install --no-deps lerobot==0.4.4 "datasets>=4,<5" "huggingface-hub<0.36"
    pip install pandas jsonlines deepdiff einops termcolor dill multiprocess xxhash fsspec pyyaml requests tqdm
    pip install draccus==0.10.0 pyserial aiohttp "httpx<1"

torchvision from PyPI is built for CUDA and does not load beside torch for CPUs, so `stub_torchvision` stands in: the
reader of videos does not need it. Video is decoded by torchcodec where it works (`pip install --no-deps
torchcodec==0.12.0` and FFmpeg's shared libraries); otherwise by PyAV in place of LeRobot's own call, and the report
says which.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import tyro

from armworld.datasets.droid import find_episodes
from armworld.datasets.trajectory import read_episode
from armworld.datasets.video import read_video

CLOSE = 3.0  # mean grey levels by which two decoders' colour conversions may differ


@dataclass(frozen=True)
class Config:
    """What to compare.

    Attributes:
        export: The LeRobot dataset.
        source: The DROID-raw dataset that it was made from.
    """

    export: tyro.conf.Positional[Path]
    source: tyro.conf.Positional[Path]


def stub_torchvision() -> None:
    """Put an empty torchvision in place: LeRobot imports it, and its reader needs it for single images only."""
    for name in ("torchvision", "torchvision.transforms"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        sys.modules[name] = module
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]  # type: ignore[attr-defined]


def use_pyav(module: Any) -> str:
    """Answer which decoder LeRobot has; where none works, give it PyAV's."""
    try:
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        module.decode_video_frames = _decode
        return "PyAV in place of LeRobot's decoder (torchcodec does not load)"
    return "torchcodec"


def _decode(path: Path | str, timestamps: list[float], tolerance: float, backend: str | None = None) -> torch.Tensor:
    """As LeRobot's function of that name: float32 [T, 3, H, W] in [0, 1] at `timestamps` (s)."""
    import av

    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
    assert rate is not None
    rows = [round(time * float(rate)) for time in timestamps]
    errors = [abs(row / float(rate) - time) for row, time in zip(rows, timestamps, strict=True)]
    if max(errors) > tolerance:
        raise ValueError(f"{path}: no frame within {tolerance} s of {timestamps}")
    return torch.from_numpy(read_video(Path(path), rows)).permute(0, 3, 1, 2) / 255


def compare(config: Config) -> str:
    """Read every row through LeRobot; the report of what agreed.

    Raises:
        AssertionError: Something differs.
    """
    stub_torchvision()
    from lerobot.datasets import lerobot_dataset  # pyright: ignore[reportMissingImports]

    decoder = use_pyav(lerobot_dataset)
    dataset = lerobot_dataset.LeRobotDataset("armworld/export", root=config.export)
    folders = find_episodes(config.source)
    assert dataset.num_episodes == len(folders), f"{dataset.num_episodes} episodes, {len(folders)} in the source"
    row, worst = 0, 0.0
    for number, folder in enumerate(folders):
        episode = read_episode(folder)
        for step in range(len(episode)):
            item = dataset[row]
            assert int(item["episode_index"]) == number and int(item["frame_index"]) == step
            assert abs(float(item["timestamp"]) - step * episode.step_seconds) < 1e-6 and item["task"] == episode.task
            np.testing.assert_allclose(item["observation.state"].numpy(), episode.states[step], atol=1e-6)
            np.testing.assert_allclose(item["action"].numpy(), episode.actions[step], atol=1e-6)
            for name, frames in episode.frames.items():
                image = 255 * item[f"observation.images.{name}"].permute(1, 2, 0).numpy()
                worst = max(worst, float(np.abs(image - frames[step]).mean()))
            row += 1
    assert len(dataset) == row and worst < CLOSE, f"{len(dataset)} rows of {row}, images differ by {worst:.2f}"
    return (
        f"LeRobot {lerobot_dataset.CODEBASE_VERSION} read {len(folders)} episodes, {row} rows: states, actions, times "
        f"and tasks agree; images to {worst:.3f} grey levels. Video: {decoder}."
    )


if __name__ == "__main__":
    print(compare(tyro.cli(Config, description=__doc__)))
