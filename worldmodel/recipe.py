"""`armworld recipe`: everything that makes the shipped weights, as one resumable command with a time budget.

Collect five mixes of behaviours in lab1 -> render them again from cameras of their own -> pretrain the encoder in two
stages -> train the predictor on its frozen features -> align the energy -> export. Each stage resumes by itself, so the
same command goes on wherever it stopped. With a GPU the same settings take more steps in the same minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from armworld.datasets.behaviours import Mix
from armworld.datasets.collect import CollectConfig, collect
from armworld.datasets.rerender import RerenderConfig, rerender
from armworld.types import check_numbers
from armworld.worldmodel.align import AlignConfig, align
from armworld.worldmodel.checkpoint import load_checkpoint, save_world_model
from armworld.worldmodel.posttrain import PosttrainConfig, posttrain
from armworld.worldmodel.pretrain import PretrainConfig, pretrain

# How far the second renderings' cameras lie from the rig: degrees, shares of the distance, m.
VIEWS: dict[str, Any] = {
    "vary_azimuth": 60.0,
    "vary_elevation": 8.0,
    "vary_distance": 0.12,
    "vary_fov": 3.0,
    "vary_look_at": 0.05,
}

# What `armworld posttrain` is given for the shipped predictor, beside data, encoder and budget.
PREDICTOR: dict[str, Any] = {
    "frames": 3,
    "rollout": 2,
    "pair_share": 0.7,
    "window": 1,
    "width": 256,
    "depth": 6,
    "heads": 4,
    "merge": 2,
    "batch": 32,
    "optimizer": "muon",
    "learning_rate": 3e-3,
}


@dataclass(frozen=True)
class RecipeConfig:
    """How the shipped weights are made.

    Attributes:
        out: Folder for data, runs and the exported checkpoint; the same command goes on with what it holds.
        pretrain_minutes: Training time of the encoder, first stage: every patch follows the hand.
        sharpen_minutes: Second stage: all patches together tell the hand's depth, yaw and fingers.
        posttrain_minutes: Training time of the predictor.
        align_minutes: Training time of the readout that aligns the energy.
        views: Train on every episode seen from another camera too, as `varied` was; without, on the rig's view alone,
            as `default` was (`--no-views --sharpen-minutes 25 --posttrain-minutes 43 --align-minutes 6`).
        scale: Factor on the number of episodes; 1 is 4,400 episodes, 114,400 frames, and 153,400 of other views.
        workers: Processes that collect.
        control: Also train the same predictor over an untrained encoder of the same size.
        seed: Seed of both trainings; the data's seeds are fixed.
        device: auto, cpu or cuda.
        dtype: bfloat16 (autocast) or float32.
    """

    out: Path
    pretrain_minutes: float = 26.0
    sharpen_minutes: float = 74.0
    posttrain_minutes: float = 90.0
    align_minutes: float = 15.0
    views: bool = True
    scale: float = 1.0
    workers: int = 2
    control: bool = False
    seed: int = 0
    device: str = "auto"
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        check_numbers(self, "scale", "pretrain_minutes", "sharpen_minutes", above=0)
        check_numbers(self, "posttrain_minutes", "align_minutes", above=0)
        data = tuple(stage.out for stage in (*self.mixes(), *self.renderings()))
        _ = self.sharpening(data, "encoder"), self.posttraining(data, "encoder", "predictor")
        _ = self.aligning(data, "model", "predictor")  # built now to be checked now, not hours later

    def mixes(self) -> list[CollectConfig]:
        """Reaching and play; grasping; picking and placing; single motions at objects. Seeds do not overlap."""
        reach = Mix(reach=0.5, play=0.3, objects=0.2)
        grasp = Mix(reach=0, play=0, objects=0.25, expert=0.2, noisy_expert=0.35, recover=0.2)
        place = Mix(reach=0, play=0, objects=0.1, expert=0.25, noisy_expert=0.4, recover=0.25)
        single = Mix(single=1)
        again = Mix(single=0.2, expert=0.25, noisy_expert=0.3, recover=0.25)
        both = ("cup", "box")
        return [
            self._mix("reach", 1500, 0, reach, ("cup",)),
            self._mix("grasp", 900, 100_000, grasp, both),
            self._mix("pick_place", 600, 200_000, place, both),
            self._mix("grasp", 900, 300_000, single, (*both, "bottle"), "single"),
            self._mix("pick_place", 500, 400_000, again, both, "pick_place_again"),
        ]

    def renderings(self) -> list[RerenderConfig]:
        """Every episode from a camera of its own, in about half of them with another look of the scene too."""
        views = [self._again(name, f"{name}_views", 1, "none") for name in ("reach", "single", "pick_place_again")]
        return views + [self._again(name, f"{name}_looks", 2, "full") for name in ("reach", "grasp", "pick_place")]

    def _again(self, source: str, name: str, seed: int, looks: Literal["none", "full"]) -> RerenderConfig:
        data = self.out / "data"
        drawn: dict[str, Any] = {**VIEWS, "view_seed": seed, "looks": looks}
        return RerenderConfig(source=data / source, out=data / name, image_size=128, workers=self.workers, **drawn)

    def _mix(
        self, task: str, episodes: int, seed: int, mix: Mix, objects: tuple[str, ...], name: str | None = None
    ) -> CollectConfig:
        return CollectConfig(
            out=self.out / "data" / (name or task),
            episodes=max(2, round(self.scale * episodes)),
            seed=seed,
            workers=self.workers,
            task=task,
            objects=objects,
            behaviours=mix,
        )

    def pretraining(self, data: tuple[Path, ...]) -> PretrainConfig:
        """The encoder's training, first stage."""
        return PretrainConfig(
            data=data,
            out=self.out / "encoder_first",
            size="tiny",
            depth=6,
            predictor_width=96,
            predictor_depth=4,
            predictor_heads=3,
            state_loss=1.0,
            state_readout="tokens",
            optimizer="muon",
            learning_rate=2e-3,
            minutes=self.pretrain_minutes,
            seed=self.seed,
            device=self.device,
            dtype=self.dtype,
        )

    def sharpening(self, data: tuple[Path, ...], encoder: str) -> PretrainConfig:
        """The encoder's training, second stage, from the first stage's encoder."""
        return replace(
            self.pretraining(data),
            out=self.out / "encoder",
            init=encoder,
            state_readout="hand",
            batch=32,
            state_batch=128,
            minutes=self.sharpen_minutes,
        )

    def aligning(self, data: tuple[Path, ...], model: str, name: str) -> AlignConfig:
        """The readout's training over a world model."""
        return AlignConfig(
            data=data,
            model=model,
            out=self.out / f"{name}_aligned",
            cache=self.out / name / "features",
            minutes=self.align_minutes,
            seed=self.seed,
            device=self.device,
            dtype=self.dtype,
        )

    def posttraining(self, data: tuple[Path, ...], encoder: str, name: str) -> PosttrainConfig:
        """The predictor's training over an encoder's features."""
        return PosttrainConfig(
            data=data,
            encoder=encoder,
            out=self.out / name,
            minutes=self.posttrain_minutes,
            seed=self.seed,
            device=self.device,
            dtype=self.dtype,
            **PREDICTOR,
        )


def recipe(config: RecipeConfig, console: Console | None = None) -> Path:
    """Run what is not done yet and return the folder of the exported checkpoint, `out/weights`."""
    console = console or Console()
    mixes, renderings = config.mixes(), config.renderings() if config.views else []
    for mix in mixes:
        console.rule(f"collect: {mix.task}")
        collect(mix)
    for rendering in renderings:
        console.rule(f"render again: {rendering.out.name}")
        rerender(rendering)
    data = tuple(made.out for made in (*mixes, *renderings))
    console.rule("pretrain the encoder")
    pretraining = config.pretraining(data)
    sharpening = config.sharpening(data, str(pretrain(pretraining)))
    encoder = str(pretrain(sharpening))
    console.rule("train the predictor")
    model = posttrain(config.posttraining(data, encoder, "predictor"))
    console.rule("align the energy")
    model = align(config.aligning(data, str(model), "predictor"))
    out = export(model, config.out / "weights", [pretraining, sharpening])
    if config.control:
        console.rule("train the control over an untrained encoder")
        control = f"random:{pretraining.size}:{pretraining.depth}"
        align(config.aligning(data, str(posttrain(config.posttraining(data, control, "control"))), "control"))
    console.print(f"weights: {out}")
    return out


def export(model: Path, out: Path, stages: Sequence[PretrainConfig]) -> Path:
    """The checkpoint in 16 bits, with how its encoder was made."""
    loaded = load_checkpoint(model)
    assert loaded.predictor is not None and loaded.config is not None
    made = [{**stage.identity(), "init": stage.init and Path(stage.init).parent.name} for stage in stages]
    about = {**loaded.about, "pretraining": made}
    parts = (loaded.encoder, loaded.predictor, loaded.config)
    return save_world_model(out, *parts, readout=loaded.readout, about=about, storage="float16")
