"""The published V-JEPA 2 files (`vitl.pt`, `vith.pt`, `vitg.pt`, `vitg-384.pt`, `vjepa2-ac-vitg.pt`): load and export.

A file is a dict of state dicts: `encoder`, `target_encoder` (pretraining files) and `predictor`, with names prefixed by
`module.` and `backbone.`. Our parameter names are the published ones, so only the prefixes and the unused position
tables come off; everything else is loaded strictly. Head counts and image sizes are not in the published files: they
follow from the size. Ours say them in a part of their own (`armworld`), which the public code passes over.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from armworld.types import check_name
from armworld.worldmodel.ac_predictor import ACPredictor
from armworld.worldmodel.checkpoint import Checkpoint, config_from_json, load_strictly
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.mask_predictor import MaskPredictor
from armworld.worldmodel.model import WorldModelConfig
from armworld.worldmodel.sizes import ENCODER_SIZES, ACPredictorConfig, EncoderConfig, MaskPredictorConfig

# DROID's video headers claim 60 fps for frames taken at 15 Hz, so the published "4 fps" was about 1 s per step.
PUBLISHED_USAGE = WorldModelConfig(step_seconds=1.0, image_size=(256, 256))
ENCODER_KEYS = ("target_encoder", "encoder")
CONFIGURATIONS = "armworld"  # the part of a file of ours that holds its modules' configurations
_UNUSED = ("pos_embed", "predictor_pos_embed")  # tables that files carry but models with rotary positions never read


def load_published(
    path: str | Path,
    *,
    encoder_key: str | None = None,
    encoder_size: str | None = None,
    predictor_heads: int | None = None,
    usage: WorldModelConfig = PUBLISHED_USAGE,
) -> Checkpoint:
    """Read a published .pt file: an encoder with its mask predictor, or with an action-conditioned predictor.

    Args:
        encoder_key: "target_encoder" or "encoder"; by default the first of them that the file has.
        encoder_size: Name of the encoder's size, which tells its heads and image size; its depth is the file's. By
            default what a file of ours says, or the size of the same width, among several that of the same depth and of
            the image size that the file's name states, as in vitg-384.pt (256 where it states none).
        predictor_heads: Attention heads of the predictor; by default what a file of ours says, or the published 12
            (mask) or 16 (action).
        usage: How to use a world model; the step length and camera are not in the file. Its image size gives way to
            what a file of ours says.

    Raises:
        ValueError: Unreadable or foreign file, unknown size, missing or extra keys.
    """
    content = _read(Path(path))
    key = encoder_key or next((key for key in ENCODER_KEYS if key in content), "encoder")
    check_name("part of the file", key, content)
    weights = _bare(content[key], f"{path}: {key}")
    stated = _stated(content, str(path))
    encoder_config = stated.get("encoder") if encoder_size is None else None
    if not isinstance(encoder_config, EncoderConfig):
        encoder_config = _encoder_config(weights, encoder_size, f"{path}: {key}", Path(path).stem)
    with torch.device("meta"):
        encoder = Encoder(encoder_config)
    encoder = load_strictly(encoder, weights, f"{path}: {key}")
    assert isinstance(encoder, Encoder)
    if "predictor" not in content:
        return Checkpoint(encoder, None, None, None, {"source": str(path)})
    told = stated.get("predictor")
    predictor = _predictor(content["predictor"], encoder_config, predictor_heads, usage, f"{path}: predictor", told)
    about = {"source": str(path)}
    if isinstance(predictor, ACPredictor):
        return Checkpoint(encoder, predictor, None, replace(usage, image_size=predictor.config.image_size), about)
    return Checkpoint(encoder, None, predictor, None, about)


def export_published(path: str | Path, encoder: Encoder, predictor: MaskPredictor | ACPredictor | None = None) -> Path:
    """Write modules as a published-style .pt file, atomically; `load_published` and the public code read it.

    Raises:
        ValueError: The modules use an option that published models do not have.
    """
    check_exportable(encoder, predictor)
    state = {f"module.backbone.{key}": value.detach().cpu() for key, value in encoder.state_dict().items()}
    content: dict[str, dict[str, Any]] = {"encoder": state}
    if isinstance(predictor, ACPredictor):
        content["predictor"] = {f"module.{key}": v.detach().cpu() for key, v in predictor.state_dict().items()}
    else:
        content["target_encoder"] = state
    if isinstance(predictor, MaskPredictor):
        names = predictor.state_dict().items()
        content["predictor"] = {f"module.backbone.{key}": value.detach().cpu() for key, value in names}
    modules = {"encoder": encoder, "predictor": predictor}
    stated = {name: asdict(module.config) for name, module in modules.items() if module is not None}
    content[CONFIGURATIONS] = stated
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        torch.save(content, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def file_id(path: Path) -> str:
    """Fingerprint of a file: of its size and its last MiB, where PyTorch's archives list each tensor's checksum."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2**20))
        return hashlib.sha256(f"{size} ".encode() + file.read()).hexdigest()[:16]


def check_exportable(encoder: Encoder, predictor: MaskPredictor | ACPredictor | None) -> None:
    """A ValueError if a module differs from the published architecture."""
    wanted = {"rope": "tiled"}
    if isinstance(predictor, ACPredictor):
        default = ACPredictorConfig(features=predictor.config.features)
        options = ("residual", "action_scale", "state_offset", "state_scale", "merge", "state_head")
        wanted |= {name: getattr(default, name) for name in options}
    for module in (encoder, predictor):
        for name, value in wanted.items():
            found = getattr(module.config, name, value) if module is not None else value
            if found != value:
                raise ValueError(f"published models have {name}={value}; this {type(module).__name__} has {found}")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = "no archive as torch.save writes it" if reason.startswith("mmap can only be used") else reason
        raise ValueError(f"{path} is truncated or not a file of tensors: {reason}") from error
    if not isinstance(content, dict) or not any(isinstance(content.get(key), Mapping) for key in ENCODER_KEYS):
        raise ValueError(f"{path} is not a V-JEPA 2 file: it needs a state dict under one of {', '.join(ENCODER_KEYS)}")
    return {key: value for key, value in content.items() if isinstance(value, Mapping)}


def _bare(state: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """A state dict without prefixes and unused tables."""
    bare: dict[str, Tensor] = {}
    for key, value in state.items():
        name = str(key)
        while name.startswith(("module.", "backbone.")):
            name = name.split(".", 1)[1]
        if name in _UNUSED:
            continue
        if not isinstance(value, Tensor) or name in bare:
            raise ValueError(f"{source}: {key} is not a tensor or appears twice")
        bare[name] = value
    return bare


def _shape(weights: Mapping[str, Tensor], key: str, source: str, dimensions: int) -> torch.Size:
    if key not in weights:
        raise ValueError(f"{source} has no {key}: not the weights of such a model")
    if weights[key].ndim != dimensions:
        raise ValueError(f"{source}: {key} must have {dimensions} dimensions, got {list(weights[key].shape)}")
    return weights[key].shape


def _depth(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.split(".")[1] for key in weights if key.startswith(f"{prefix}.")})


def _encoder_config(weights: Mapping[str, Tensor], size: str | None, source: str, stem: str = "") -> EncoderConfig:
    width = _shape(weights, "blocks.0.norm1.weight", source, 1)[0]
    depth = _depth(weights, "blocks")
    if size is not None:
        return replace(ENCODER_SIZES[check_name("encoder size", size, ENCODER_SIZES)], depth=depth)
    fitting = [config for config in ENCODER_SIZES.values() if config.width == width]
    if not fitting:
        known = ", ".join(f"{name} ({config.width})" for name, config in ENCODER_SIZES.items())
        raise ValueError(f"{source}: no known encoder size is {width} wide; known: {known}")
    named = stem.split("-")
    best = max(fitting, key=lambda config: (config.depth == depth, str(config.image_size[0]) in named))
    return replace(best, depth=depth)


def _stated(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The configurations that a file of ours holds, by the name of the module."""
    found = content.get(CONFIGURATIONS, {})
    is_acting = "action_scale" in (found.get("predictor") or ())
    kinds = {"encoder": EncoderConfig, "predictor": ACPredictorConfig if is_acting else MaskPredictorConfig}
    return {
        name: config_from_json(kind, found[name], f"{source}: {CONFIGURATIONS}: {name}")
        for name, kind in kinds.items()
        if name in found
    }


def _predictor(
    state: Mapping[str, Any],
    encoder: EncoderConfig,
    heads: int | None,
    usage: WorldModelConfig,
    source: str,
    stated: ACPredictorConfig | MaskPredictorConfig | None = None,
) -> MaskPredictor | ACPredictor:
    weights = _bare(state, source)
    width, features = _shape(weights, "predictor_embed.weight", source, 2)
    if features != encoder.width:
        raise ValueError(f"{source} reads features of width {features}; the file's encoder gives {encoder.width}")
    depth = _depth(weights, "predictor_blocks")
    ratio = _shape(weights, "predictor_blocks.0.mlp.fc1.weight", source, 2)[0] / width
    if stated is not None:
        heads = heads or stated.heads
    with torch.device("meta"):
        if "action_encoder.weight" in weights:
            config = ACPredictorConfig(features, width, depth, heads or 16, ratio, usage.image_size)
            if isinstance(stated, ACPredictorConfig):
                config = replace(config, image_size=stated.image_size, max_steps=stated.max_steps)
            extrinsics = usage.extrinsics is not None
            module: MaskPredictor | ACPredictor = ACPredictor(replace(config, extrinsics=extrinsics))
        else:
            tokens = sum(key.startswith("mask_tokens.") for key in weights)
            module = MaskPredictor(MaskPredictorConfig(features, width, depth, heads or 12, ratio, max(tokens, 1)))
    load_strictly(module, weights, source)
    return module
