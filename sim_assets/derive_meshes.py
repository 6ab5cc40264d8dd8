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
NEIGHBOUR_RINGS = 2  # rings of unseen neighbours kept around what is seen
SMALLEST_PIECE = 1e-4  # m^2: separate pieces with less surface are left out (screws, logos)
AGGRESSION = 3  # fast_simplification's: low is slow and true to the shape


@dataclass(frozen=True)
class Part:
    """One output mesh: the source files joined into it, and how many faces it may keep."""

    name: str
    sources: tuple[str, ...]
    faces: int

    @property
    def link(self) -> str:
        """Parts of one link hide one another's inside: "link5" of "link5_white"."""
        return self.name.split("_")[0] if self.name.startswith("link") else self.name


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
    _franka("link5_dark", (0,), 900),
    _franka("link6_white", (0, 1, 16), 1300),
    _franka("link6_dark", (2, 9, 10, 14, 15), 900),
    _franka("link7_metal", (0, 7), 800),
    _franka("link7_dark", (1, 2, 3, 4, 5, 6), 250),
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


def outer_faces(mesh, group) -> np.ndarray:
    """Which faces of `mesh` can be seen from outside `group`, the link that it is part of; bool [F].

    Rays are shot at each face's centroid from a sphere around the link; the face is seen when one of them
    arrives, give or take a tenth of a millimetre. Neighbours of seen faces are kept too, so that no gap opens
    where two parts overlap.
    """
    spec = mujoco.MjSpec()
    spec.add_mesh(
        name="group",
        uservert=np.asarray(group.vertices).ravel().tolist(),
        userface=np.asarray(group.faces).ravel().tolist(),
        inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL,
    )
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname="group")
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    radius = float(np.linalg.norm(group.extents))
    hit = np.zeros(1, np.int32)
    directions = _sphere(RAY_DIRECTIONS)
    seen = np.zeros(len(mesh.faces), bool)
    for i, (centroid, normal) in enumerate(zip(mesh.triangles_center, mesh.face_normals, strict=True)):
        for direction in directions[directions @ normal > 0.1]:
            distance = mujoco.mj_ray(model, data, centroid + radius * direction, -direction, None, 1, -1, hit)
            if distance > radius - 1e-4:
                seen[i] = True
                break
    for _ in range(NEIGHBOUR_RINGS):
        touched = np.zeros(len(mesh.vertices), bool)
        touched[mesh.faces[seen]] = True
        seen = np.any(touched[mesh.faces], axis=1)
    return np.asarray(seen)


def _sphere(n: int) -> np.ndarray:
    """`n` unit vectors spread evenly (a Fibonacci lattice), [n, 3]."""
    k = np.arange(n) + 0.5
    z, angle = 1 - 2 * k / n, np.pi * (1 + 5**0.5) * k
    return np.stack([np.cos(angle) * np.sqrt(1 - z * z), np.sin(angle) * np.sqrt(1 - z * z), z], 1)


def simplify(mesh, group, faces: int):
    """Keep what is seen from outside, drop screws and the like, and collapse edges down to `faces` faces."""
    simplification = require("fast_simplification", "dev")
    trimesh = require("trimesh", "dev")
    shell = mesh.submesh([outer_faces(mesh, group)], append=True)
    pieces = [piece for piece in shell.split(only_watertight=False) if piece.area > SMALLEST_PIECE]
    shell = trimesh.util.concatenate(pieces)
    vertices, triangles = np.asarray(shell.vertices, np.float32), np.asarray(shell.faces, np.int32)
    if len(triangles) > faces:
        vertices, triangles = simplification.simplify(vertices, triangles, target_count=faces, agg=AGGRESSION)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assets", type=Path, help="gym_hil/assets of the unpacked wheel")
    assets = parser.parse_args().assets
    trimesh = require("trimesh", "dev")
    MESHES.mkdir(exist_ok=True)
    full = {part.name: load_part(part, assets) for part in PARTS}
    total = 0
    for part in PARTS:
        group = trimesh.util.concatenate([full[p.name] for p in PARTS if p.link == part.link])
        small = simplify(full[part.name], group, part.faces)
        write_obj(MESHES / f"{part.name}.obj", np.asarray(small.vertices), np.asarray(small.faces))
        print(f"{part.name:12s} {len(full[part.name].faces):6d} -> {len(small.faces):5d} faces")
        total += len(small.faces)
    print(f"{total} faces")


if __name__ == "__main__":
    main()
