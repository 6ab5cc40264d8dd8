"""Check our modules against recorded values of the public implementation (`armworld verify DIR`).

Each .npz holds inputs, `weight/<published name>` arrays, a `config` string and the recorded outputs; its kind is read
from what it holds. Tolerances are maximal absolute errors.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from armworld import pose
from armworld.worldmodel.ac_predictor import ACPredictor
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.mask_predictor import MaskPredictor
from armworld.worldmodel.sizes import PATCH, TUBELET, ACPredictorConfig, EncoderConfig, MaskPredictorConfig

MODEL_TOLERANCE = 1e-4
POSE_TOLERANCE = 1e-6
PLANNER_TOLERANCE = 1e-5

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class VerifyConfig:
    """Check our modules against recorded reference values.

    Attributes:
        directory: Folder with reference .npz files.
    """

    directory: tyro.conf.Positional[Path]


class Check(NamedTuple):
    """One compared array: "file: array", largest absolute difference, tolerance, and whether it holds."""

    name: str
    max_abs_error: float
    tolerance: float
    ok: bool


def verify(config: VerifyConfig) -> int:
    """Print one line per compared array; exit code 1 if one is off."""
    checks = verify_directory(config.directory)
    for check in checks:
        verdict = "ok" if check.ok else "FAILED"
        print(f"{check.name:<48} {check.max_abs_error:9.2e}  (tolerance {check.tolerance:.0e})  {verdict}")
    failed = sum(not check.ok for check in checks)
    print(f"{len(checks) - failed} of {len(checks)} arrays agree")
    return 1 if failed else 0


def verify_directory(directory: str | Path) -> list[Check]:
    """Compare every reference .npz in a folder; recordings that are inputs only (no expected values) are left out.

    Raises:
        ValueError: The folder does not exist, holds no reference, or a file cannot be read or is of no known kind.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder with reference .npz files")
    checks = [check for path in sorted(folder.glob("*.npz")) for check in verify_file(path)]
    if not checks:
        raise ValueError(f"{folder} holds no reference .npz (encoder, mask_predictor, ac_predictor, pose or cem)")
    return checks


def verify_file(path: str | Path) -> list[Check]:
    """The checks of one reference .npz."""
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} is not a readable .npz: {error}") from error
    kind, tolerance = _kind(path, arrays)
    if kind is None:
        return []
    try:
        with torch.inference_mode():
            results = kind(arrays)
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}; it holds {', '.join(sorted(arrays))}") from error
    except (RuntimeError, SyntaxError, TypeError) as error:  # keys, shapes or a configuration that do not fit
        raise ValueError(f"{path} does not fit together: {error}") from error
    return [_compare(f"{path.stem}: {key}", value, arrays[key], tolerance) for key, value in results.items()]


def _kind(path: Path, arrays: Arrays) -> tuple[Callable[[Arrays], dict[str, Tensor]] | None, float]:
    if "weight/patch_embed.proj.weight" in arrays:
        return _encoder, MODEL_TOLERANCE
    if "weight/mask_tokens.0" in arrays:
        return _mask_predictor, MODEL_TOLERANCE
    if "weight/action_encoder.weight" in arrays:
        # Both kinds hold an extrinsics encoder and extrinsics; only the file's name says whether they were read.
        return (_ac_predictor_extrinsics if "extrinsics" in path.stem else _ac_predictor), MODEL_TOLERANCE
    if {"pose", "action", "next_pose"} <= arrays.keys():
        return _pose, POSE_TOLERANCE
    if {"noise", "matrix", "actions"} <= arrays.keys():
        return _cem, PLANNER_TOLERANCE
    if {"observations", "states"} <= arrays.keys():  # a recorded trajectory: input only
        return None, 0.0
    raise ValueError(f"{path} is of no known kind; it holds {', '.join(sorted(arrays)) or 'nothing'}")


def _compare(name: str, value: Tensor, expected: np.ndarray, tolerance: float) -> Check:
    found = value.double().numpy()
    if found.shape != expected.shape:
        raise ValueError(f"{name}: expected shape {expected.shape}, computed {found.shape}")
    error = float(np.abs(found - expected).max())
    return Check(name, error, tolerance, error <= tolerance)


def _config(arrays: Arrays) -> dict:
    return ast.literal_eval(str(arrays["config"]))


def _image_size(config: dict) -> tuple[int, int]:
    size = config["img_size"]
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _loaded(module: nn.Module, arrays: Arrays) -> nn.Module:
    weights = {k.removeprefix("weight/"): torch.from_numpy(v) for k, v in arrays.items() if k.startswith("weight/")}
    weights.pop("pos_embed", None)  # published files carry it; it is unused with rotary positions
    module.load_state_dict(weights, strict=True)
    return module.eval()


def _torch(arrays: Arrays, *keys: str) -> list[Tensor]:
    return [torch.from_numpy(arrays[key]) for key in keys]


def _encoder(arrays: Arrays) -> dict[str, Tensor]:
    config = _config(arrays)
    encoder = _loaded(
        Encoder(
            EncoderConfig(
                config["embed_dim"],
                config["depth"],
                config["num_heads"],
                config["mlp_ratio"],
                _image_size(config),
            )
        ),
        arrays,
    )
    clip, context = _torch(arrays, "clip", "context_index")
    return {
        "features": encoder(clip),
        "features_masked": encoder(clip, context),
        "features_single_frame": encoder(clip[:, :, :1]),
    }


def _mask_predictor(arrays: Arrays) -> dict[str, Tensor]:
    config = _config(arrays)
    predictor = _loaded(
        MaskPredictor(
            MaskPredictorConfig(
                config["embed_dim"],
                config["predictor_embed_dim"],
                config["depth"],
                config["num_heads"],
                mlp_ratio=config.get("mlp_ratio", 4.0),
                mask_tokens=config["num_mask_tokens"],
            )
        ),
        arrays,
    )
    height, width = _image_size(config)
    grid = (config["num_frames"] // TUBELET, height // PATCH, width // PATCH)
    features, context, target = _torch(arrays, "context_features", "context_index", "target_index")
    return {"prediction": predictor(features, context, target, grid, mask_index=int(arrays["mask_index"]))}


def _ac_predictor(arrays: Arrays, extrinsics: bool = False) -> dict[str, Tensor]:
    config = _config(arrays)
    predictor = _loaded(
        ACPredictor(
            ACPredictorConfig(
                config["embed_dim"],
                config["predictor_embed_dim"],
                config["depth"],
                config["num_heads"],
                mlp_ratio=config.get("mlp_ratio", 4.0),
                image_size=_image_size(config),
                max_steps=config["max_timesteps"],
                extrinsics=extrinsics,
            )
        ),
        arrays,
    )
    features, actions, states, camera = _torch(arrays, "features", "actions", "states", "extrinsics")
    z = features.unflatten(1, (actions.shape[1], -1))

    def predict(steps: int) -> Tensor:
        inputs = (x[:, :steps] for x in (z, actions, states))
        return predictor(*inputs, camera[:, :steps] if extrinsics else None).z.flatten(1, 2)

    return {"prediction": predict(actions.shape[1]), "prediction_one_step": predict(1)}


def _ac_predictor_extrinsics(arrays: Arrays) -> dict[str, Tensor]:
    return _ac_predictor(arrays, extrinsics=True)


def _pose(arrays: Arrays) -> dict[str, Tensor]:
    state, action, following = _torch(arrays, "pose", "action", "next_pose")
    return {"next_pose": pose.apply_action(state, action), "pose_diff": pose.action_between(state, following)}


def _cem(arrays: Arrays) -> dict[str, Tensor]:
    from armworld.planners.published import replay_reference  # imported here: planners build on this folder

    return {"actions": torch.from_numpy(replay_reference(arrays))}
