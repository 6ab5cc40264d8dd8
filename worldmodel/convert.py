"""`armworld convert`: a checkpoint in another format.

- published: one .pt file as V-JEPA 2's own code writes and reads it: the encoder and, if there is one, a predictor.
- huggingface: a folder for transformers' VJEPA2Model: the encoder and the predictor of its pretraining.
- armworld: a folder of this project's, which holds every part and how to use it.

The result is read back once: whatever the format had no place for is told.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from armworld.datasets.files import check_own_folder
from armworld.worldmodel.checkpoint import PARTS, WEIGHTS_FILE, Checkpoint, load_checkpoint, save_parts
from armworld.worldmodel.huggingface import export_huggingface
from armworld.worldmodel.published import export_published


@dataclass(frozen=True)
class ConvertConfig:
    """Write a checkpoint in another format.

    Attributes:
        model: Name of shipped weights, a checkpoint folder, a published .pt file, a transformers folder or a hub name.
        out: File (published) or folder (huggingface, armworld) to write.
        format: published (V-JEPA 2's .pt), huggingface (transformers; needs a pretraining checkpoint) or armworld.
        storage: Precision on disk of the armworld format; the others are float32.
        encoder_only: Leave predictors and readout out; published files have no place for some of our options.
    """

    model: Annotated[str, tyro.conf.Positional]
    out: Path
    format: Literal["published", "huggingface", "armworld"]
    storage: Literal["float32", "float16", "bfloat16"] = "float32"
    encoder_only: bool = False

    def __post_init__(self) -> None:
        if self.storage != "float32" and self.format != "armworld":
            raise ValueError(f"storage {self.storage} goes with format armworld; {self.format} is written in float32")
        if self.encoder_only and self.format == "huggingface":
            raise ValueError("a transformers folder has a predictor too: encoder_only goes with published and armworld")
        if self.format == "published" and self.out.is_dir():
            raise ValueError(f"{self.out} is a folder; published is one file, e.g. {self.out / 'model.pt'}")
        if self.format != "published":
            check_own_folder(self.out, WEIGHTS_FILE, "checkpoint")


def convert(config: ConvertConfig) -> Path:
    """Write the checkpoint, tell what it does not hold, and return its path.

    Raises:
        ValueError: The model cannot be read, lacks a part that the format needs, or uses an option that it lacks.
    """
    loaded = load_checkpoint(config.model)
    if config.encoder_only:
        loaded = Checkpoint(loaded.encoder, None, None, None, loaded.about)
    if config.format == "published":
        export_published(config.out, loaded.encoder, loaded.predictor or loaded.mask_predictor)
    elif config.format == "armworld":
        parts = {name: getattr(loaded, name) for name in PARTS}
        save_parts(config.out, parts, loaded.config, loaded.about, config.storage)
    else:
        if loaded.mask_predictor is None:
            raise ValueError(
                f"{config.model} holds no mask predictor, which a transformers folder needs; armworld pretrain keeps "
                "it in out/encoder (an earlier version's run does once the same command is run again)"
            )
        export_huggingface(config.out, loaded.encoder, loaded.mask_predictor)
    print(f"{config.out}: {config.format}")
    for difference in differences(loaded, load_checkpoint(config.out.absolute())):
        print(f"  {difference}")
    return config.out


def differences(before: Checkpoint, after: Checkpoint) -> list[str]:
    """Parts of one checkpoint that the other lacks, and settings that it does not share: one line each."""
    told = []
    for name in (*PARTS, "config"):
        old, new = getattr(before, name), getattr(after, name)
        if old is None:
            continue
        name = "usage" if name == "config" else name
        if new is None:
            told.append(f"{name}: has no place in this format")
            continue
        had, has = (asdict(part if name == "usage" else part.config) for part in (old, new))
        told += [f"{name}.{key}: was {had[key]}, is read back as {has[key]}" for key in had if had[key] != has[key]]
    return told
