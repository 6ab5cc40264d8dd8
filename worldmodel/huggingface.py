"""Hugging Face's V-JEPA 2 folders (`facebook/vjepa2-*`, transformers' VJEPA2Model): load and export.

A folder holds config.json (model_type "vjepa2") and model.safetensors, possibly in shards with an index. Names are
mapped one to one; query, key and value are separate there and one matrix here. Of a video classifier's folder
(VJEPA2ForVideoClassification) the backbone is taken; its pooler and classifier are left.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from armworld.types import require
from armworld.worldmodel.checkpoint import Checkpoint, load_strictly
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.mask_predictor import MaskPredictor
from armworld.worldmodel.published import check_exportable
from armworld.worldmodel.sizes import PATCH, TUBELET, EncoderConfig, MaskPredictorConfig

_QKV = ("query", "key", "value")
_MASK_TOKENS = "predictor.embeddings.mask_tokens"
_ENCODER = (
    (r"patch_embed\.proj", "encoder.embeddings.patch_embeddings.proj"),
    (r"blocks\.(\d+)\.attn\.proj", r"encoder.layer.\1.attention.proj"),
    (r"blocks\.(\d+)", r"encoder.layer.\1"),
    (r"norm", "encoder.layernorm"),
)
_PREDICTOR = (
    (r"predictor_embed", "predictor.embeddings.predictor_embeddings"),
    (r"predictor_blocks\.(\d+)\.attn\.proj", r"predictor.layer.\1.attention.proj"),
    (r"predictor_blocks\.(\d+)", r"predictor.layer.\1"),
    (r"predictor_norm", "predictor.layernorm"),
    (r"predictor_proj", "predictor.proj"),
)
# Values that our architecture fixes, by their name in config.json.
_FIXED = {
    "patch_size": PATCH,
    "tubelet_size": TUBELET,
    "in_chans": 3,
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "hidden_act": "gelu",
}


def is_huggingface(folder: Path) -> bool:
    """Whether a folder holds a transformers V-JEPA 2 model."""
    try:
        document = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document.get("model_type") == "vjepa2"


def download(name: str) -> Path:
    """The local copy of a hub repository such as "facebook/vjepa2-vitl-fpc64-256"."""
    hub = require("huggingface_hub", "hf")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=["config.json", "*.safetensors", "*.index.json"]))
    except Exception as error:  # the hub raises a dozen types, all of which mean the same here
        raise ValueError(f"cannot get {name!r} from the Hugging Face hub: {error}") from error


def load_huggingface(folder: str | Path) -> Checkpoint:
    """Encoder and mask predictor of a transformers folder.

    Raises:
        ValueError: Not such a folder, an architecture that differs, truncated files, missing or extra keys.
    """
    folder = Path(folder)
    if not is_huggingface(folder):
        raise ValueError(f"{folder} is not a transformers V-JEPA 2 folder (config.json with model_type 'vjepa2')")
    config = json.loads((folder / "config.json").read_text())
    encoder_config, predictor_config = _configs(config, folder)
    weights = _backbone(_read_weights(folder))
    with torch.device("meta"):
        encoder, predictor = Encoder(encoder_config), MaskPredictor(predictor_config)
    unknown = [key for key in weights if not key.startswith(("encoder.", "predictor."))]
    if unknown:
        names = ", ".join(sorted(unknown)[:4])
        raise ValueError(f"{folder}: unknown weights {names}; expected a VJEPA2Model or VJEPA2ForVideoClassification")
    load_strictly(encoder, _from_huggingface(encoder, weights, _ENCODER, "encoder."), f"{folder}: encoder")
    load_strictly(predictor, _from_huggingface(predictor, weights, _PREDICTOR, "predictor."), f"{folder}: predictor")
    return Checkpoint(encoder, None, predictor, None, {"source": str(folder)})


def export_huggingface(
    folder: str | Path, encoder: Encoder, predictor: MaskPredictor, frames_per_clip: int = 16
) -> Path:
    """Write a folder that `transformers.VJEPA2Model.from_pretrained` loads without missing or unexpected keys."""
    check_exportable(encoder, predictor)
    height, width = encoder.config.image_size
    if height != width:
        raise ValueError(f"transformers' V-JEPA 2 is square; this encoder was trained at {height} x {width}")
    weights = _to_huggingface(encoder.state_dict(), _ENCODER) | _to_huggingface(predictor.state_dict(), _PREDICTOR)
    weights[_MASK_TOKENS] = torch.stack([token.detach().cpu() for token in predictor.mask_tokens])
    document = {
        "architectures": ["VJEPA2Model"],
        "model_type": "vjepa2",
        **_FIXED,
        "crop_size": height,
        "frames_per_clip": frames_per_clip,
        "hidden_size": encoder.config.width,
        "num_attention_heads": encoder.config.heads,
        "num_hidden_layers": encoder.config.depth,
        "mlp_ratio": encoder.config.mlp_ratio,
        "pred_hidden_size": predictor.config.width,
        "pred_num_attention_heads": predictor.config.heads,
        "pred_num_hidden_layers": predictor.config.depth,
        "pred_num_mask_tokens": predictor.config.mask_tokens,
        "pred_mlp_ratio": predictor.config.mlp_ratio,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = {name: folder / f".{name}.{os.getpid()}.tmp" for name in ("model.safetensors", "config.json")}
    try:
        save_file(weights, temporary["model.safetensors"], metadata={"format": "pt"})
        temporary["config.json"].write_text(json.dumps(document, indent=2) + "\n")
        for name, path in temporary.items():
            os.replace(path, folder / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
    return folder


def _configs(config: Mapping[str, Any], folder: Path) -> tuple[EncoderConfig, MaskPredictorConfig]:
    for name, value in _FIXED.items():
        if config.get(name, value) != value:
            raise ValueError(f"{folder}: {name} is {config[name]}; only {value} is supported")
    try:
        size = int(config["crop_size"])
        encoder = EncoderConfig(
            config["hidden_size"],
            config["num_hidden_layers"],
            config["num_attention_heads"],
            config.get("mlp_ratio", 4.0),
            (size, size),
        )
        predictor = MaskPredictorConfig(
            encoder.width,
            config["pred_hidden_size"],
            config["pred_num_hidden_layers"],
            config["pred_num_attention_heads"],
            config.get("pred_mlp_ratio", 4.0),
            config["pred_num_mask_tokens"],
        )
    except KeyError as error:
        raise ValueError(f"{folder}: config.json has no {error}") from error
    return encoder, predictor


def _read_weights(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    weights: dict[str, Tensor] = {}
    for name in _shards(index) if index.is_file() else ["model.safetensors"]:
        try:
            weights |= load_file(folder / name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{folder / name} is missing, truncated or not a safetensors file: {error}") from error
    return weights


def _backbone(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the VJEPA2Model inside of a video classifier; those of anything else as they are."""
    inner = {key.removeprefix("vjepa2."): value for key, value in weights.items() if key.startswith("vjepa2.")}
    left = [key for key in weights if not key.startswith(("vjepa2.", "pooler.", "classifier."))]
    return weights if left or not inner else inner


def _shards(index: Path) -> list[str]:
    """Names of the files over which an index says that the weights are spread."""
    try:
        document = json.loads(index.read_text())
    except ValueError as error:
        raise ValueError(f"{index} is truncated or holds no valid JSON: {error}") from error
    names = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{index} is not an index of weights: it needs a weight_map from parameters to files")
    return sorted(set(names.values()))


def _rename(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        renamed, count = re.subn(f"^{pattern}(?=\\.)", replacement, key)
        if count:
            return renamed
    raise ValueError(f"no Hugging Face name for {key!r}")


def _to_huggingface(state: Mapping[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """Our parameters under their names, mask tokens left out."""
    weights: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith("mask_tokens."):
            continue
        value = value.detach().cpu()
        name = _rename(key, rules)
        if ".attn.qkv." in name:
            for part, piece in zip(_QKV, value.chunk(3), strict=True):
                weights[name.replace(".attn.qkv.", f".attention.{part}.")] = piece.contiguous()
        else:
            weights[name] = value.contiguous()
    return weights


def _from_huggingface(
    module: torch.nn.Module, weights: Mapping[str, Tensor], rules: tuple[tuple[str, str], ...], prefix: str
) -> dict[str, Tensor]:
    """Their parameters under our names; unknown ones keep their name, for the strict loader to report."""
    left = {key: value for key, value in weights.items() if key.startswith(prefix)}
    ours: dict[str, Tensor] = {}
    for key in module.state_dict():
        if key.startswith("mask_tokens."):
            continue
        name = _rename(key, rules)
        sources = [name]
        if ".attn.qkv." in name:
            sources = [name.replace(".attn.qkv.", f".attention.{part}.") for part in _QKV]
        if all(source in left for source in sources):
            ours[key] = torch.cat([left.pop(source) for source in sources])
    if _MASK_TOKENS in left:
        ours |= {f"mask_tokens.{i}": token for i, token in enumerate(left.pop(_MASK_TOKENS))}
    return ours | left
