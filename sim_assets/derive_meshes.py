"""Derive the low-polygon visual meshes in sim_assets/meshes/ from the public full-resolution ones.

Run once by a maintainer; the small results are committed, so nobody else needs this script or its tools:

    pip download --no-deps gym-hil==0.1.14 && unzip gym_hil-*.whl
    pip install trimesh fast-simplification
    python -m armworld.sim_assets.derive_meshes gym_hil/assets

The source package carries Franka's Panda meshes (Apache-2.0) and Robotiq's 2F-85 meshes (BSD-2-Clause).
Parts of one link that share a colour are joined, interior faces that no ray from outside can reach are
removed, and the rest is decimated by quadric edge collapse.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np

from armworld.types import require

MESHES = Path(__file__).parent / "meshes"
MILLIMETRE = 0.001  # Robotiq's files are in millimetres, Franka's in metres
RAY_DIRECTIONS = 48  # view directions tried per face before it counts as interior


@dataclass(frozen=True)
class Part:
    """One output mesh: the source files joined into it, and how many faces it may keep."""

    name: str
    sources: tuple[str, ...]
    faces: int


def _franka(name: str, numbers: tuple[int | str, ...], faces: int) -> Part:
    link = name.split("_")[0]
    files = tuple(f"{link}.obj" if n == "" else f"{link}_{n}.obj" for n in numbers)
    return Part(name, tuple(f"franka_emika_panda/meshes/{file}" for file in files), faces)


def _robotiq(name: str, faces: int) -> Part:
    return Part(name, (f"robotiq_2f85/meshes/{name}.stl",), faces)


PARTS = (
    _franka("link0_white", (0, 2, 4, 7, 8, 10, 11), 1100),
    _franka("link0_dark", (1, 3, 5, 9), 60),
    _franka("link1_white", ("",), 900),
    _franka("link2_white", ("",), 900),
    _franka("link3_white", (0, 1, 2), 1000),
    _franka("link3_dark", (3,), 400),
    _franka("link4_white", (0, 1, 3), 1000),
    _franka("link4_dark", (2,), 400),
    _franka("link5_white", (1, 2), 1200),
    _franka("link5_dark", (0,), 500),
    _franka("link6_white", (0, 1, 3, 4, 5, 6, 11, 13, 16), 1300),
    _franka("link6_dark", (2, 9, 10, 14, 15), 500),
    _franka("link7_metal", (0, 7), 800),
    _franka("link7_dark", (1, 2, 3, 4, 5, 6), 250),
    _robotiq("base_mount", 300),
    _robotiq("base", 1300),
    _robotiq("driver", 140),
    _robotiq("coupler", 160),
    _robotiq("follower", 160),
    _robotiq("spring_link", 200),
)


def load_part(part: Part, assets: Path):
    """Join a part's source files, in metres, with vertices merged by position (a trimesh.Trimesh)."""
    trimesh = require("trimesh", "dev")
    pieces = [trimesh.load(assets / source, force="mesh", process=False) for source in part.sources]
    vertices, faces, offset = [], [], 0
    for piece in pieces:
        vertices.append(np.asarray(piece.vertices))
        faces.append(np.asarray(piece.faces) + offset)
        offset += len(piece.vertices)
    joined = trimesh.Trimesh(np.concatenate(vertices), np.concatenate(faces), process=False)
    joined.merge_vertices(merge_tex=True, merge_norm=True)
    if "robotiq" in part.sources[0]:
        joined.apply_scale(MILLIMETRE)
    return joined


def decimate(mesh, faces: int):
    """Quadric edge collapse down to at most `faces` faces."""
    simplification = require("fast_simplification", "dev")
    trimesh = require("trimesh", "dev")
    if len(mesh.faces) <= faces:
        return mesh
    vertices, triangles = simplification.simplify(
        np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int32), target_count=faces, agg=3
    )
    return trimesh.Trimesh(vertices, triangles, process=True)


def write_obj(path: Path, vertices: np.ndarray, faces: np.ndarray) -> None:
    """Write a plain OBJ (no normals: MuJoCo computes them), to 0.01 mm."""
    lines = [f"v {x:.5f} {y:.5f} {z:.5f}" for x, y, z in vertices]
    lines += [f"f {a} {b} {c}" for a, b, c in faces + 1]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("\n".join(lines) + "\n")
    os.replace(temporary, path)


def main() -> None:
    """Derive every mesh of PARTS and print what each kept."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("assets", type=Path, help="gym_hil/assets of the unpacked wheel")
    assets = parser.parse_args().assets
    MESHES.mkdir(exist_ok=True)
    for part in PARTS:
        full = load_part(part, assets)
        small = decimate(full, part.faces)
        write_obj(MESHES / f"{part.name}.obj", np.asarray(small.vertices), np.asarray(small.faces))
        print(f"{part.name:12s} {len(full.faces):6d} -> {len(small.faces):5d} faces")


if __name__ == "__main__":
    main()
