"""Checkpoints: a folder with `config.json` (how it was made, how to use it) and `model.safetensors` (the weights).

The weights file carries a copy of the configuration, so that one atomic rename replaces a whole checkpoint. config.json
is the readable copy: it is used as long as it belongs to the same weights, and may then be edited (e.g. the camera's
name). Weights may be stored in 16 bits; they are loaded as float32. Loading is strict.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from armworld.types import check_name
from armworld.worldmodel.ac_predictor import ACPredictor
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.mask_predictor import MaskPredictor
from armworld.worldmodel.model import VJEPA2AC, WorldModelConfig
from armworld.worldmodel.readout import HandReadout, ReadoutConfig
from armworld.worldmodel.sizes import ACPredictorConfig, EncoderConfig, MaskPredictorConfig

FORMAT = "armworld-checkpoint"
VERSION = 1
WEIGHTS_FOLDER = Path(__file__).parent / "weights"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
STORAGE = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PARTS: dict[str, tuple[type, type[nn.Module]]] = {
    "encoder": (EncoderConfig, Encoder),
    "predictor": (ACPredictorConfig, ACPredictor),
    "mask_predictor": (MaskPredictorConfig, MaskPredictor),
    "readout": (ReadoutConfig, HandReadout),
}
_Config = TypeVar("_Config")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds, loaded as float32 on the CPU, in evaluation mode.

    Attributes:
        encoder: Always there.
        predictor: Action-conditioned predictor, in world models.
        mask_predictor: Pretraining predictor, in pretraining checkpoints that kept it.
        config: How to use a world model; None without a predictor.
        about: What data, which commands, scores ...: free JSON.
        readout: Reads the hand from features, in world models that were aligned.
    """

    encoder: Encoder
    predictor: ACPredictor | None
    mask_predictor: MaskPredictor | None
    config: WorldModelConfig | None
    about: dict[str, Any]
    readout: HandReadout | None = None


def save_encoder(
    folder: str | Path,
    encoder: Encoder,
    *,
    mask_predictor: MaskPredictor | None = None,
    about: Mapping[str, Any] | None = None,
    storage: str = "float32",
) -> Path:
    """Write an encoder (and its pretraining predictor) as a checkpoint folder; see `save_world_model`."""
    return save_parts(folder, {"encoder": encoder, "mask_predictor": mask_predictor}, None, about, storage)


def save_world_model(
    folder: str | Path,
    encoder: Encoder,
    predictor: ACPredictor,
    config: WorldModelConfig,
    *,
    readout: HandReadout | None = None,
    about: Mapping[str, Any] | None = None,
    storage: str = "float32",
) -> Path:
    """Write a world model as a checkpoint folder, replacing an earlier one there atomically.

    Args:
        readout: What aligns the energy, if it has been trained (`armworld align`).
        about: JSON-able facts about its making (data, commands, seeds, scores).
        storage: Precision on disk: float32, float16 or bfloat16.
    """
    return save_parts(folder, {"encoder": encoder, "predictor": predictor, "readout": readout}, config, about, storage)


def save_parts(
    folder: str | Path,
    modules: Mapping[str, nn.Module | None],
    config: WorldModelConfig | None,
    about: Mapping[str, Any] | None,
    storage: str = "float32",
) -> Path:
    """Write named modules, each with its dataclass `.config`, as a checkpoint folder; see `save_world_model`."""
    dtype = STORAGE[check_name("storage precision", storage, STORAGE)]
    present = {name: module for name, module in modules.items() if module is not None}
    weights = {
        f"{name}.{key}": value.detach().to("cpu", dtype).contiguous()
        for name, module in present.items()
        for key, value in module.state_dict().items()
    }
    for key, value in weights.items():
        if not value.isfinite().all():
            raise ValueError(f"{key} has NaN or infinite values in {storage}; the checkpoint was not written")
    document = {
        "format": FORMAT,
        "version": VERSION,
        "storage": storage,
        "weights_id": _fingerprint(weights),
        **{name: asdict(module.config) for name, module in present.items()},  # type: ignore[arg-type]
        "world_model": None if config is None else asdict(config),
        "about": dict(about or {}),
    }
    text = json.dumps(document, indent=2, allow_nan=False)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = {name: folder / f".{name}.{os.getpid()}.tmp" for name in (WEIGHTS_FILE, CONFIG_FILE)}
    try:
        save_file(weights, temporary[WEIGHTS_FILE], metadata={"config": text})
        temporary[CONFIG_FILE].write_text(text + "\n")
        shutil.copymode(temporary[CONFIG_FILE], temporary[WEIGHTS_FILE])  # safetensors keeps others from reading
        for name, path in temporary.items():
            os.replace(path, folder / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
    return folder


def load_checkpoint(name_or_path: str | Path) -> Checkpoint:
    """Read weights by path, by the name of shipped ones, or from the Hugging Face hub ("owner/name").

    A path is a checkpoint folder, a published .pt file (`published.py`) or a transformers folder (`huggingface.py`).

    Raises:
        ValueError: Unknown name, no checkpoint, another program's or version's, truncated, or missing or extra keys.
    """
    from armworld.worldmodel import huggingface, published  # imported here: they build on this module

    path = resolve(name_or_path)
    if path.is_file():
        return published.load_published(path)
    return huggingface.load_huggingface(path) if huggingface.is_huggingface(path) else _load_own(path)


def _load_own(folder: Path) -> Checkpoint:
    document, weights = read_parts(folder)
    parts: dict[str, Any] = {}
    for name, (config_type, module_type) in PARTS.items():
        own = {key.removeprefix(f"{name}."): weights.pop(key) for key in list(weights) if key.startswith(f"{name}.")}
        values = document.get(name)
        if values is None and not own:
            parts[name] = None
            continue
        if values is None:
            raise ValueError(f"{folder}: weights of {name} without its configuration in {CONFIG_FILE}")
        with torch.device("meta"):
            module = module_type(config_from_json(config_type, values, f"{folder}: {name}"))
        parts[name] = load_strictly(module, own, f"{folder}: {name}")
    if weights:
        raise ValueError(f"{folder}: unknown weights {_some(weights)}")
    if parts["encoder"] is None:
        raise ValueError(f"{folder} holds no encoder")
    usage = document.get("world_model")
    config = None if usage is None else config_from_json(WorldModelConfig, usage, f"{folder}: world_model")
    return Checkpoint(**parts, config=config, about=document.get("about", {}))


def load_encoder(name_or_path: str | Path) -> Encoder:
    """The encoder of any checkpoint, float32, in evaluation mode."""
    return load_checkpoint(name_or_path).encoder


def load_world_model(
    name_or_path: str | Path = "default",
    *,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    step_seconds: float | None = None,
    memory_mb: float = 1024.0,
    compile: bool = False,
) -> VJEPA2AC:
    """A world model, frozen, by path or by the name of shipped weights.

    Args:
        dtype: Precision of the predictor: float32 or bfloat16.
        step_seconds: Step that the caller will take (s); a checkpoint of another step is refused.
        memory_mb: Bound on the activations of one pass (MiB).
        compile: Run rollouts through torch.compile; worth it for long sessions.
    """
    loaded = load_checkpoint(name_or_path)
    if loaded.predictor is None or loaded.config is None:
        raise ValueError(f"{name_or_path} holds an encoder only; a world model needs a predictor (armworld posttrain)")
    check_step(loaded.config.step_seconds, step_seconds, name_or_path)
    encoder = loaded.encoder.requires_grad_(False).to(device)
    predictor = loaded.predictor.requires_grad_(False).to(device)
    readout = None if loaded.readout is None else loaded.readout.requires_grad_(False).to(device)
    return VJEPA2AC(encoder, predictor, loaded.config, dtype, memory_mb, compile, readout)


def check_step(found: float, wanted: float | None, source: str | Path) -> None:
    """A ValueError unless the step lengths (s) agree."""
    if wanted is not None and abs(found - wanted) > 1e-6:
        raise ValueError(f"{source} was trained on steps of {found} s; steps of {wanted} s were asked for")


def shipped_names() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.parent.name for path in WEIGHTS_FOLDER.glob(f"*/{WEIGHTS_FILE}"))


def resolve(name_or_path: str | Path) -> Path:
    """The folder of shipped weights `name`, an existing folder or file, or the local copy of a hub repository."""
    text = str(name_or_path)
    if text in shipped_names():
        return WEIGHTS_FOLDER / text
    path = Path(text).expanduser()
    if path.exists():
        return path
    if re.fullmatch(r"[\w-]+/vjepa2[\w.-]*", text):
        from armworld.worldmodel.huggingface import download

        return download(text)
    names = ", ".join(shipped_names()) or "(none)"
    raise ValueError(
        f"no checkpoint {text!r}: not an existing path, not a hub name (owner/vjepa2-...), and not shipped; "
        f"shipped: {names}"
    )


def read_parts(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights (as stored) of a checkpoint folder."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ValueError(f"{folder} is not a checkpoint: it has no {WEIGHTS_FILE}")
    try:
        with safe_open(path, framework="pt") as file:
            embedded = (file.metadata() or {}).get("config")
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error
    if embedded is None:
        raise ValueError(f"{path} was not written by armworld: it carries no configuration")
    document = _parse(embedded, path)
    readable = folder / CONFIG_FILE
    if not readable.is_file():
        raise ValueError(f"{folder} is not a complete checkpoint: it has no {CONFIG_FILE}")
    edited = _parse(readable.read_text(), readable)
    return (edited if edited.get("weights_id") == document["weights_id"] else document), weights


def _parse(text: str, source: Path) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{source} holds no valid JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"{source} is not an armworld checkpoint (format {FORMAT!r} expected)")
    if document.get("version") != VERSION:
        raise ValueError(f"{source} has checkpoint version {document.get('version')}; this armworld reads {VERSION}")
    return document


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> nn.Module:
    """Give a module (on the meta device or not) exactly these weights as float32, or say which do not fit."""
    expected = module.state_dict()
    missing, extra = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    if missing or extra:
        raise ValueError(f"{source}: missing keys {_some(missing)}; extra keys {_some(extra)}")
    for key, value in expected.items():
        if value.shape != weights[key].shape:
            raise ValueError(f"{source}: {key} must be {list(value.shape)}, got {list(weights[key].shape)}")
    module.load_state_dict({key: value.float() for key, value in weights.items()}, strict=True, assign=True)
    return module.eval()


def config_from_json(config_type: type[_Config], values: Any, source: str) -> _Config:
    """A configuration dataclass from its JSON form (lists become tuples).

    Raises:
        ValueError: Unknown or missing fields, or values that the dataclass refuses.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{source}: expected an object, got {values!r}")
    known = {field.name: field for field in fields(config_type)}  # type: ignore[arg-type]
    required = {name for name, field in known.items() if field.default is MISSING}
    unknown, missing = values.keys() - known.keys(), required - values.keys()
    if unknown or missing:
        raise ValueError(f"{source}: unknown fields {_some(unknown)}; missing fields {_some(missing)}")
    try:
        return config_type(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source}: {error}") from error


def _fingerprint(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(key.encode())
        digest.update(weights[key].flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _some(keys: Any) -> str:
    """Up to four keys, for a message."""
    keys = sorted(keys)
    return (", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")) or "none"
