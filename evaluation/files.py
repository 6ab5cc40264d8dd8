"""Small atomic files and where a result came from: commit, versions, machine."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("armworld", "mujoco", "gymnasium", "numpy", "scipy", "torch", "mink", "av")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: a temporary neighbour, then `os.replace`.

    Results are many and can be computed again, so they are not flushed to the disk as data are (`datasets.files`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, text.encode())


def plain(value: Any) -> Any:
    """`value` with tuples, NumPy scalars and arrays, paths turned into JSON types; non-finite floats into None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f"cannot write {type(value).__name__} as JSON: {value!r}")


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN) atomically."""
    write_text(path, json.dumps(plain(value), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a ValueError names the file that is missing or broken."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); remove it to have it made again") from error


def commit() -> str:
    """The commit of the source tree, with `+` when files differ from it; `"unknown"` outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        _git(["ls-files", "--error-unmatch", Path(__file__).name], folder)  # not some other project's repository
        head = _git(["rev-parse", "HEAD"], folder)
        return head + ("+" if _git(["status", "--porcelain", "--untracked-files=no"], folder) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(arguments: Sequence[str], folder: Path) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def versions() -> dict[str, str]:
    """Versions of Python, the machine's architecture and the packages that results depend on."""
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
