"""Graspable objects: a cup, a box and a bottle, each a body with a free joint and its origin under its centre.

Shapes that show (group 0, generated meshes) and shapes that collide (group 3) are apart. What collides is made of
boxes only: box against box has MuJoCo's most stable contacts. A round outline becomes a polygon of boxes, and the
object stands on two crossed squares (8 contacts) instead of on its whole rim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import mujoco
import numpy as np

from armworld.sim_assets.physics import apply_options
from armworld.sim_assets.textures import add_textured_material, pattern
from armworld.types import check_name

FRICTION = (0.8, 0.005, 0.0001)  # ceramic or cardboard on wood: sliding; torsional, rolling (m)
LIFT = 0.001  # what collides above the feet starts this high (m), so that only the feet touch the table


@dataclass(frozen=True)
class Shape:
    """A round object at size 1, as a profile to be turned about z.

    Attributes:
        outline: (radius, height) points of the profile, m, from the axis below, outside, back to the axis.
        mass: kg.
        inertia: About the centre of mass, diagonal, kg m².
        centre: Height of the centre of mass, m.
    """

    outline: tuple[tuple[float, float], ...]
    mass: float
    inertia: tuple[float, float, float]
    centre: float


CUP_RADIUS, CUP_HEIGHT, CUP_WALL, CUP_FLOOR = 0.035, 0.090, 0.004, 0.006
BOTTLE_RADIUS, BOTTLE_BODY, BOTTLE_NECK, BOTTLE_HEIGHT = 0.031, 0.115, 0.013, 0.185
BOX_SIDE = 0.05
# lab -> object -> (tint, pattern): each lab has its own crockery; shapes and masses are the same
LOOKS = {
    "lab1": {
        "cup": ((0.86, 0.22, 0.16, 1), "bands"),
        "box": ((0.16, 0.36, 0.80, 1), "cardboard"),
        "bottle": ((0.15, 0.55, 0.30, 1), "bands"),
    },
    "lab2": {
        "cup": ((0.95, 0.84, 0.55, 1), "speckle"),
        "box": ((0.74, 0.25, 0.50, 1), "checker"),
        "bottle": ((0.80, 0.42, 0.08, 1), "checker"),
    },
}
OBJECTS = tuple(LOOKS["lab1"])
GRASP_HEIGHT = {"cup": 0.060, "box": 0.030, "bottle": 0.168}
"""Height (m, at size 1) of the "tip" site above the object's origin for a grasp from above. The bottle goes by its
neck: its body cannot be reached from above, because its neck would meet the gripper's palm."""


def _tube_inertia(mass: float, radius: float, height: float) -> tuple[float, float, float]:
    """Thin-walled open cylinder: I_z = m r², I_x = m (r²/2 + h²/12)."""
    across = mass * (radius**2 / 2 + height**2 / 12)
    return across, across, mass * radius**2


def _cylinder_inertia(mass: float, radius: float, height: float) -> tuple[float, float, float]:
    """Solid cylinder: I_z = m r²/2, I_x = m (3 r² + h²)/12."""
    across = mass * (3 * radius**2 + height**2) / 12
    return across, across, mass * radius**2 / 2


CUP = Shape(
    outline=(
        (0.0, 0.0),
        (0.032, 0.0),
        (CUP_RADIUS, 0.004),
        (CUP_RADIUS, CUP_HEIGHT),
        (CUP_RADIUS - CUP_WALL, CUP_HEIGHT),
        (CUP_RADIUS - CUP_WALL, CUP_FLOOR),
        (0.0, CUP_FLOOR),
    ),
    mass=0.12,
    inertia=_tube_inertia(0.12, CUP_RADIUS, CUP_HEIGHT),
    centre=0.04,
)
BOTTLE = Shape(
    outline=(
        (0.0, 0.0),
        (BOTTLE_RADIUS, 0.0),
        (BOTTLE_RADIUS, BOTTLE_BODY),
        (0.026, 0.130),
        (BOTTLE_NECK, 0.150),
        (BOTTLE_NECK, BOTTLE_HEIGHT),
        (0.0, BOTTLE_HEIGHT),
    ),
    mass=0.20,
    inertia=_cylinder_inertia(0.20, BOTTLE_RADIUS, BOTTLE_BODY),
    centre=0.06,
)


def object_spec(
    name: str,
    size: float = 1.0,
    rgba: Sequence[float] | None = None,
    surface: str | None = None,
    seed: int = 0,
    lab: str = "lab1",
) -> mujoco.MjSpec:
    """One object: body, free joint, visible geom, material and texture all named `name`.

    Args:
        name: cup, box or bottle.
        size: Scale of every length, > 0; mass goes with its cube, inertia with its fifth power. The 2F-85 opens
            85 mm: cup and bottle fit up to about size 1.15, the box up to 1.6.
        rgba: Tint of the material; by default the lab's for that object.
        surface: One of `textures.PATTERNS`; by default the lab's for that object.
        seed: Of the texture.
        lab: Whose object it is: a key of `LOOKS`.

    Raises:
        ValueError: Unknown object, pattern or lab, or a size that is not positive.
    """
    check_name("object", name, OBJECTS)
    if not size > 0:
        raise ValueError(f"object size must be positive (1.0 is the nominal size), got {size}")
    rng = np.random.default_rng(seed)
    spec = mujoco.MjSpec()
    apply_options(spec)
    body = spec.worldbody.add_body(name=name)
    body.add_freejoint(name=name)
    own_tint, own_surface = LOOKS[check_name("lab", lab, LOOKS)][name]
    image = pattern(surface or own_surface, rng)
    tint = own_tint if rgba is None else tuple(float(c) for c in rgba)
    add_textured_material(spec, name, image, tint, cube=name == "box")
    {"cup": _cup, "box": _box, "bottle": _bottle}[name](spec, body, size)
    return spec


def _box(spec: mujoco.MjSpec, body: mujoco.MjsBody, size: float) -> None:
    half = BOX_SIDE / 2 * size
    mass = 0.10 * size**3
    _set_inertia(body, mass, (mass * (2 * half) ** 2 / 6,) * 3, half)
    body.add_geom(
        name="box", type=mujoco.mjtGeom.mjGEOM_BOX, size=[half] * 3, pos=[0, 0, half], material="box",
        mass=0, friction=FRICTION,
    )  # fmt: skip


def _cup(spec: mujoco.MjSpec, body: mujoco.MjsBody, size: float) -> None:
    _turned(spec, body, "cup", CUP, size)
    _feet(body, "cup", CUP_RADIUS * size, CUP_FLOOR * size)
    middle = (LIFT + CUP_HEIGHT * size) / 2
    radius, half_height = (CUP_RADIUS - CUP_WALL / 2) * size, (CUP_HEIGHT * size - LIFT) / 2
    sides = 16
    half_width = CUP_RADIUS * size * np.tan(np.pi / sides)
    for i in range(sides):
        angle = 2 * np.pi * i / sides
        _solid(
            body,
            f"cup_wall{i}",
            (radius * np.cos(angle), radius * np.sin(angle), middle),
            (CUP_WALL / 2 * size, half_width, half_height),
            angle,
        )


def _bottle(spec: mujoco.MjSpec, body: mujoco.MjsBody, size: float) -> None:
    _turned(spec, body, "bottle", BOTTLE, size)
    _feet(body, "bottle", BOTTLE_RADIUS * size, 0.01 * size)
    _prism(body, "bottle_body", BOTTLE_RADIUS * size, LIFT, BOTTLE_BODY * size)
    _prism(body, "bottle_neck", BOTTLE_NECK * size, BOTTLE_BODY * size, BOTTLE_HEIGHT * size)


def _solid(body: mujoco.MjsBody, name: str, pos: Sequence[float], half: Sequence[float], yaw: float = 0.0) -> None:
    """A colliding, hidden box turned by `yaw` (rad) about z."""
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=list(pos),
        size=list(half),
        quat=[np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)],
        mass=0,
        friction=FRICTION,
        group=3,
        rgba=[0.9, 0.6, 0.3, 0.4],
    )


def _feet(body: mujoco.MjsBody, name: str, radius: float, height: float) -> None:
    """Two crossed squares under the object, corners at `radius`: eight points of support."""
    half = radius / np.sqrt(2)
    for i in range(2):
        _solid(body, f"{name}_foot{i}", (0, 0, height / 2), (half, half, height / 2), i * np.pi / 4)


def _prism(body: mujoco.MjsBody, name: str, radius: float, low: float, high: float, sides: int = 12) -> None:
    """A solid regular prism between two heights, as sides/2 boxes through the axis."""
    half_width = radius * np.tan(np.pi / sides)
    for i in range(sides // 2):
        half = (radius, half_width, (high - low) / 2)
        _solid(body, f"{name}{i}", (0, 0, (high + low) / 2), half, 2 * np.pi * i / sides)


def _turned(spec: mujoco.MjSpec, body: mujoco.MjsBody, name: str, shape: Shape, size: float) -> None:
    """The visible surface of revolution, and the body's mass."""
    vertices, faces, coordinates = lathe(np.asarray(shape.outline) * size)
    mesh = spec.add_mesh(name=name, inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL)
    mesh.uservert, mesh.userface = vertices.ravel().tolist(), faces.ravel().tolist()
    mesh.usertexcoord, mesh.userfacetexcoord = coordinates.ravel().tolist(), faces.ravel().tolist()
    body.add_geom(
        name=name, type=mujoco.mjtGeom.mjGEOM_MESH, meshname=name, material=name, mass=0, contype=0, conaffinity=0
    )
    _set_inertia(body, shape.mass * size**3, tuple(i * size**5 for i in shape.inertia), shape.centre * size)


def _set_inertia(body: mujoco.MjsBody, mass: float, inertia: Sequence[float], centre: float) -> None:
    body.explicitinertial = True
    body.mass, body.inertia, body.ipos = mass, list(inertia), [0, 0, centre]


def lathe(outline: np.ndarray, segments: int = 24) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turn a profile [P, 2] of (radius, height) about z.

    Every stretch of the profile gets vertices of its own, so that its edges stay sharp under smooth shading.

    Returns:
        vertices [V, 3], faces [F, 3] (outward for an outline that runs counter-clockwise), texture coordinates [V, 2]:
        (turn, height) in 0 … 1.
    """
    angle = 2 * np.pi * np.arange(segments + 1) / segments
    top = outline[:, 1].max()
    vertices, faces, coordinates = [], [], []
    for start, end in pairwise(outline):
        base = len(vertices) * 2 * (segments + 1)
        ring = [np.stack([r * np.cos(angle), r * np.sin(angle), np.full_like(angle, h)], 1) for r, h in (start, end)]
        vertices.append(np.concatenate(ring))
        coordinates.append(
            np.concatenate([np.stack([angle / (2 * np.pi), np.full_like(angle, h / top)], 1) for _, h in (start, end)])
        )
        low = base + np.arange(segments)
        high = low + segments + 1
        if start[0] > 0:
            faces.append(np.stack([low, low + 1, high], 1))
        if end[0] > 0:
            faces.append(np.stack([low + 1, high + 1, high], 1))
    return np.concatenate(vertices), np.concatenate(faces), np.concatenate(coordinates)
