"""Fine-tuning a predictor from a checkpoint: all of it, its last blocks, or low-rank adapters (LoRA, by peft).

Adapters are merged into the weights before they are saved: the checkpoint is an ordinary one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from armworld.types import require
from armworld.worldmodel.ac_predictor import ACPredictor
from armworld.worldmodel.encoder import Encoder

LORA_TARGETS = ("qkv", "proj", "fc1", "fc2")  # every matrix of the blocks


def fit_predictor(
    loaded: ACPredictor, name: str, encoder: Encoder, state_head: bool, extrinsics: bool = False
) -> ACPredictor:
    """A copy of a checkpoint's predictor, ready for training on this encoder's features.

    Args:
        loaded: The predictor; it stays as it is.
        name: Of its checkpoint, for errors.
        encoder: Whose features it will see.
        state_head: It must have a state head; a new one is drawn if the checkpoint has none.
        extrinsics: It must read camera extrinsics; where the checkpoint's did not, it has to learn that now.

    Raises:
        ValueError: It does not fit the encoder, or it reads extrinsics that it is not to get.
    """
    config = loaded.config
    if config.features != encoder.config.width:
        raise ValueError(
            f"{name}: its predictor reads features of width {config.features}, the encoder's have "
            f"{encoder.config.width}"
        )
    if config.extrinsics and not extrinsics:
        raise ValueError(
            f"{name}: its predictor reads camera extrinsics, which this training gives with --extrinsics alone"
        )
    config = replace(config, extrinsics=extrinsics)
    if config.image_size != encoder.config.image_size:
        config = replace(config, image_size=encoder.config.image_size)
    predictor = ACPredictor(replace(config, state_head=config.state_head or state_head))
    fresh = {key: value for key, value in predictor.state_dict().items() if key.startswith("state_head.")}
    predictor.load_state_dict({**fresh, **loaded.state_dict()})
    return predictor


def train_last_blocks(predictor: ACPredictor, blocks: int) -> None:
    """Freeze everything but the last `blocks` blocks and the output layers.

    Raises:
        ValueError: More blocks than there are.
    """
    depth = len(predictor.predictor_blocks)
    if not 0 <= blocks <= depth:
        raise ValueError(f"trainable_blocks must lie in 0 ... {depth}, got {blocks}")
    predictor.requires_grad_(False)
    trained: list[nn.Module | None] = [predictor.predictor_norm, predictor.predictor_proj, predictor.state_head]
    for part in (*predictor.predictor_blocks[depth - blocks :], *trained):
        if part is not None:
            part.requires_grad_(True)


def add_lora(predictor: ACPredictor, rank: int) -> None:
    """Put adapters of that rank beside every matrix of the blocks, in place, and freeze all else.

    An adapter's output is doubled (alpha = 2 rank), as is usual; at first it is zero.

    Raises:
        ValueError: A rank above the matrices' own.
    """
    if not 1 <= rank <= predictor.config.width:
        raise ValueError(f"lora_rank must lie in 1 ... {predictor.config.width}, the predictor's width, got {rank}")
    peft = require("peft", "lora")
    settings = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=list(LORA_TARGETS))
    peft.inject_adapter_in_model(settings, predictor)
    if predictor.state_head is not None:
        predictor.state_head.requires_grad_(True)


def merge_lora(predictor: ACPredictor) -> None:
    """Add the adapters to the matrices beside them and take them away, in place; nothing where there are none."""
    for parent in list(predictor.modules()):
        for name, child in list(parent.named_children()):
            base: Any = getattr(child, "base_layer", None)
            if base is not None:
                merge: Any = child.merge
                merge()
                setattr(parent, name, base)
    predictor.requires_grad_(True)
