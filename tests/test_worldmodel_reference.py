"""Recorded values of the public implementation, and the command that checks them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from armworld.worldmodel.verify import VerifyConfig, verify, verify_directory, verify_file

REFERENCE = Path(__file__).parent / "reference"
FILES = sorted(REFERENCE.glob("*.npz"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_reference_values_are_reproduced(path: Path) -> None:
    checks = verify_file(path)
    assert checks
    for check in checks:
        assert check.ok, check


def test_every_kind_of_reference_is_there() -> None:
    kinds = {path.stem.rsplit("_", 1)[0] for path in FILES}
    assert kinds == {"encoder", "mask_predictor", "ac_predictor", "ac_predictor_extrinsics", "pose", "cem"}


def _altered(path: Path, target: Path, **changes: np.ndarray) -> None:
    with np.load(path) as file:
        arrays: dict[str, Any] = {key: file[key] for key in file.files}
    np.savez(target, allow_pickle=False, **(arrays | changes))


def test_a_deviation_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = REFERENCE / "pose_11.npz"
    with np.load(source) as file:
        wrong = file["pose_diff"].copy()
    wrong[3, 1] += 1e-5
    _altered(source, tmp_path / "pose_11.npz", pose_diff=wrong)
    checks = {check.name: check for check in verify_directory(tmp_path)}
    assert not checks["pose_11: pose_diff"].ok and checks["pose_11: next_pose"].ok
    assert checks["pose_11: pose_diff"].max_abs_error == pytest.approx(1e-5)
    assert verify(VerifyConfig(tmp_path)) == 1
    assert "FAILED" in capsys.readouterr().out


def test_nan_is_a_deviation(tmp_path: Path) -> None:
    with np.load(REFERENCE / "pose_11.npz") as file:
        action = file["action"].copy()
    action[0] = np.nan
    _altered(REFERENCE / "pose_11.npz", tmp_path / "pose_11.npz", action=action)
    assert not verify_file(tmp_path / "pose_11.npz")[0].ok


def test_the_command_succeeds_on_good_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(REFERENCE / "pose_12.npz", tmp_path)
    assert verify(VerifyConfig(tmp_path)) == 0
    assert "2 of 2 arrays agree" in capsys.readouterr().out


def test_input_only_recordings_are_left_out(tmp_path: Path) -> None:
    shutil.copy(REFERENCE / "pose_12.npz", tmp_path)
    np.savez(tmp_path / "trajectory.npz", observations=np.zeros((1, 2)), states=np.zeros((1, 2, 7)))
    assert len(verify_directory(tmp_path)) == 2


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a folder"):
        verify_directory(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"holds no reference \.npz"):
        verify_directory(tmp_path)
    np.savez(tmp_path / "other.npz", something=np.zeros(2))
    weight = {"weight/patch_embed.proj.weight": np.zeros(2)}
    np.savez(tmp_path / "lacking.npz", **weight)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"lacking\.npz lacks 'config'; it holds weight/patch_embed"):
        verify_directory(tmp_path)
    (tmp_path / "lacking.npz").unlink()
    settings = "{'embed_dim': 48, 'depth': 1, 'num_heads': 2, 'mlp_ratio': 4.0, 'img_size': 64}"
    np.savez(tmp_path / "misfit.npz", config=settings, **weight)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"misfit\.npz does not fit together: "):
        verify_directory(tmp_path)
    (tmp_path / "misfit.npz").unlink()
    with pytest.raises(ValueError, match="no known kind; it holds something"):
        verify_directory(tmp_path)
    (tmp_path / "other.npz").write_bytes((REFERENCE / "pose_11.npz").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"other\.npz is not a readable \.npz"):
        verify_directory(tmp_path)
