"""Two laboratories around the robot: table, room, furniture and light, each with its own look.

Everything is static. Only table and floor collide; the rest is background that an arm cannot reach in normal use.
Names begin with "lab_": materials lab_table, lab_floor, lab_wall, lab_poster0 …, lights lab_key, lab_fill, lab_back,
geoms likewise, so that they can be changed after compilation (`model.mat_rgba`, `model.light_pos` …).
Textures come from `textures.py` with a fixed seed per lab.
"""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np

from armworld.sim_assets import textures
from armworld.sim_assets.physics import apply_options
from armworld.sim_assets.textures import add_textured_material
from armworld.types import check_name

# The room, m, in the base frame: low and high x, y, z. The table's top is z = 0.
ROOM = ((-1.7, 2.5), (-2.0, 2.0), (-0.75, 1.9))
TABLE = ((-0.30, 0.98), (-0.72, 0.72))
LABS = ("lab1", "lab2")
TEST_LABS = ("lab2",)  # never in training data: what is learned in lab1 is tried there


def lab_spec(name: str) -> mujoco.MjSpec:
    """Everything around the robot: lab1 (a workshop, wood and blue-green walls) or lab2 (a bay, bricks and steel).

    Raises:
        ValueError: Unknown lab.
    """
    check_name("lab", name, LABS)
    spec = mujoco.MjSpec()
    spec.modelname = name
    apply_options(spec)
    spec.visual.headlight.ambient = [0.30, 0.30, 0.30]
    spec.visual.headlight.diffuse = [0.15, 0.15, 0.15]
    spec.visual.headlight.specular = [0, 0, 0]
    spec.visual.map.znear = 0.02
    spec.visual.map.zfar = 20
    spec.stat.extent = 1.0
    spec.stat.center = [0.4, 0, 0.2]
    {"lab1": _workshop, "lab2": _bay}[name](spec)
    return spec


def _workshop(spec: mujoco.MjSpec) -> None:
    rng = np.random.default_rng(101)
    add_textured_material(spec, "lab_table", textures.wood(rng, (0.86, 0.68, 0.47), planks=6), repeat=(1, 1))
    add_textured_material(spec, "lab_floor", textures.carpet(rng, (0.36, 0.33, 0.32)), repeat=(4, 4), specular=0)
    add_textured_material(spec, "lab_wall", textures.plaster(rng, (0.36, 0.53, 0.56)), repeat=(3, 2), specular=0)
    add_textured_material(spec, "lab_shelf", textures.shelf_goods(rng, (0.45, 0.30, 0.18)), specular=0)
    add_textured_material(spec, "lab_cabinet", textures.wood(rng, (0.47, 0.30, 0.19), planks=3), specular=0.1)
    add_textured_material(spec, "lab_crate", textures.cardboard(rng), rgba=(0.72, 0.52, 0.33, 1), cube=True)
    add_textured_material(spec, "lab_screen", textures.poster(rng), rgba=(0.6, 0.75, 1, 1))
    _plain(spec, "lab_metal", (0.20, 0.28, 0.42, 1))
    _plain(spec, "lab_plastic", (0.75, 0.62, 0.15, 1))
    _room(spec)
    _posters(spec, rng, ((-1.69, -0.55, 0.75, "+x"), (-1.69, 1.05, 0.9, "+x"), (0.1, -1.99, 0.8, "+y"),
                         (1.2, 1.99, 0.9, "-y"), (2.49, 0.8, 0.8, "-x")))  # fmt: skip
    _panel(spec, "lab_shelf0", "lab_shelf", (-1.45, 0.3, 0.05), (1.2, 1.6), "+x")
    _block(spec, "lab_shelf_back", "lab_cabinet", (-1.575, 0.3, 0.05), (0.12, 0.6, 0.8))
    _panel(spec, "lab_shelf1", "lab_shelf", (2.3, -0.6, 0.1), (1.3, 1.7), "-x")
    _block(spec, "lab_cabinet0", "lab_cabinet", (-0.9, -1.7, -0.3), (0.5, 0.25, 0.45))
    _block(spec, "lab_cabinet1", "lab_cabinet", (-0.6, 1.75, -0.35), (0.7, 0.2, 0.4))
    _block(spec, "lab_crate0", "lab_crate", (-1.25, -1.1, -0.5), (0.25, 0.25, 0.25))
    _block(spec, "lab_crate1", "lab_crate", (-1.28, -1.05, -0.1), (0.2, 0.2, 0.15))
    _block(spec, "lab_crate2", "lab_crate", (0.9, 1.6, -0.45), (0.3, 0.25, 0.3))
    _block(spec, "lab_crate3", "lab_crate", (-0.75, -1.65, 0.29), (0.16, 0.16, 0.14))
    _panel(spec, "lab_monitor", "lab_screen", (-0.75, 1.62, 0.3), (0.55, 0.34), "-y")
    _block(spec, "lab_monitor_back", "lab_metal", (-0.75, 1.645, 0.25), (0.29, 0.02, 0.22))
    for i, y in enumerate((-1.3, 1.35)):
        _block(spec, f"lab_post{i}", "lab_metal", (-1.3, y, 0.5), (0.04, 0.04, 1.25))
    _block(spec, "lab_toolbox", "lab_plastic", (-0.19, 0.58, 0.05), (0.08, 0.11, 0.05))
    _light(spec, "lab_key", (1.3, 0.9, 2.0), (0.35, 0, 0.0), (0.62, 0.60, 0.55), shadow=True)
    _light(spec, "lab_fill", (0.4, -1.6, 1.7), (0.3, 0, 0.1), (0.30, 0.32, 0.36))
    _light(spec, "lab_back", (-1.0, 0.6, 1.8), (0.2, 0, 0.2), (0.22, 0.22, 0.22))


def _bay(spec: mujoco.MjSpec) -> None:
    rng = np.random.default_rng(202)
    add_textured_material(spec, "lab_table", textures.perforated((0.56, 0.60, 0.64), holes=8), repeat=(4, 4.5))
    add_textured_material(spec, "lab_floor", textures.checker((0.34, 0.36, 0.35), (0.24, 0.26, 0.25)), repeat=(2, 2))
    add_textured_material(spec, "lab_wall", textures.bricks(rng, (0.58, 0.33, 0.24)), repeat=(5, 3.3), specular=0)
    add_textured_material(spec, "lab_shelf", textures.shelf_goods(rng, (0.62, 0.64, 0.66), shelves=3), specular=0)
    add_textured_material(spec, "lab_cabinet", textures.plaster(rng, (0.25, 0.36, 0.30)), specular=0.3)
    add_textured_material(spec, "lab_crate", textures.cardboard(rng), rgba=(0.62, 0.47, 0.32, 1), cube=True)
    add_textured_material(spec, "lab_hazard", textures.stripes((0.90, 0.72, 0.10), (0.10, 0.10, 0.10)), repeat=(4, 0.5))
    add_textured_material(spec, "lab_screen", textures.poster(rng), rgba=(0.8, 1, 0.8, 1))
    _plain(spec, "lab_metal", (0.42, 0.18, 0.13, 1))
    _plain(spec, "lab_plastic", (0.16, 0.30, 0.55, 1))
    _room(spec)
    _posters(spec, rng, ((-1.69, 0.9, 0.85, "+x"), (0.9, -1.99, 0.7, "+y"), (-0.5, 1.99, 1.0, "-y"),
                         (2.49, -0.9, 0.9, "-x")))  # fmt: skip
    _panel(spec, "lab_shelf0", "lab_shelf", (-1.4, -0.55, 0.05), (1.4, 1.6), "+x")
    _block(spec, "lab_shelf_back", "lab_metal", (-1.55, -0.55, 0.05), (0.14, 0.7, 0.8))
    _panel(spec, "lab_shelf1", "lab_shelf", (0.2, 1.75, 0.05), (1.3, 1.6), "-y")
    _panel(spec, "lab_hazard0", "lab_hazard", (0.4, -1.98, -0.25), (4.1, 0.2), "+y")
    _panel(spec, "lab_hazard1", "lab_hazard", (-1.68, 0.0, -0.25), (3.9, 0.2), "+x")
    for i, (x, y, half) in enumerate(((-1.2, 0.95, 0.28), (-1.15, 1.5, 0.22), (-0.3, -1.6, 0.3), (0.4, -1.65, 0.22))):
        _block(spec, f"lab_crate{i}", "lab_crate", (x, y, -0.75 + half), (half, half, half))
    _block(spec, "lab_crate4", "lab_crate", (-1.18, 1.0, -0.02), (0.19, 0.19, 0.17))
    _block(spec, "lab_cabinet0", "lab_cabinet", (-0.9, -1.75, -0.15), (0.3, 0.22, 0.6))
    _block(spec, "lab_cabinet1", "lab_cabinet", (2.2, 0.7, -0.1), (0.25, 0.6, 0.65))
    _block(spec, "lab_barrel", "lab_plastic", (-0.9, 1.65, -0.4), (0.25, 0.35, 0.0), mujoco.mjtGeom.mjGEOM_CYLINDER)
    _panel(spec, "lab_monitor", "lab_screen", (1.4, -1.9, 0.4), (0.6, 0.36), "+y")
    _block(spec, "lab_pipe", "lab_metal", (-1.55, 0.35, 0.55), (0.06, 1.3, 0.0), mujoco.mjtGeom.mjGEOM_CYLINDER)
    _block(spec, "lab_toolbox", "lab_plastic", (-0.18, -0.57, 0.045), (0.09, 0.1, 0.045))
    _light(spec, "lab_key", (0.6, -1.3, 2.0), (0.35, 0, 0.0), (0.66, 0.60, 0.50), shadow=True)
    _light(spec, "lab_fill", (1.5, 1.2, 1.6), (0.3, 0, 0.1), (0.30, 0.30, 0.34))
    _light(spec, "lab_back", (-1.0, 0.0, 1.9), (0.2, 0, 0.2), (0.20, 0.22, 0.24))


def _plain(spec: mujoco.MjSpec, name: str, rgba: Sequence[float]) -> None:
    spec.add_material(name=name, rgba=list(rgba), specular=0.3, shininess=0.3)


def _block(
    spec: mujoco.MjSpec,
    name: str,
    material: str,
    centre: Sequence[float],
    half: Sequence[float],
    shape: mujoco.mjtGeom = mujoco.mjtGeom.mjGEOM_BOX,
    collides: bool = False,
) -> None:
    """A static box (half sizes) or upright cylinder (radius, half height), m."""
    spec.worldbody.add_geom(
        name=name, type=shape, pos=list(centre), size=list(half), material=material,
        contype=int(collides), conaffinity=int(collides), mass=0,
    )  # fmt: skip


def _panel(
    spec: mujoco.MjSpec, name: str, material: str, centre: Sequence[float], size: tuple[float, float], facing: str
) -> None:
    """A thin upright panel of (width, height) m whose texture faces one of "+x", "-x", "+y", "-y"."""
    normal = np.zeros(3)
    normal["xyz".index(facing[1])] = 1.0 if facing[0] == "+" else -1.0
    up = np.array([0.0, 0.0, 1.0])
    rotation = np.stack([np.cross(up, normal), up, normal], axis=1)
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, rotation.ravel())
    spec.worldbody.add_geom(
        name=name, type=mujoco.mjtGeom.mjGEOM_BOX, pos=list(centre), quat=quat, material=material,
        size=[size[0] / 2, size[1] / 2, 0.005], contype=0, conaffinity=0, mass=0,
    )  # fmt: skip


def _room(spec: mujoco.MjSpec) -> None:
    """Floor, four walls and the table with its legs."""
    (x0, x1), (y0, y1), (z0, z1) = ROOM
    x, y, z = (x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2
    _block(spec, "lab_floor", "lab_floor", (x, y, z0 - 0.05), ((x1 - x0) / 2, (y1 - y0) / 2, 0.05), collides=True)
    _panel(spec, "lab_wall_west", "lab_wall", (x0, y, z), (y1 - y0, z1 - z0), "+x")
    _panel(spec, "lab_wall_east", "lab_wall", (x1, y, z), (y1 - y0, z1 - z0), "-x")
    _panel(spec, "lab_wall_south", "lab_wall", (x, y0, z), (x1 - x0, z1 - z0), "+y")
    _panel(spec, "lab_wall_north", "lab_wall", (x, y1, z), (x1 - x0, z1 - z0), "-y")
    (x0, x1), (y0, y1) = TABLE
    half = ((x1 - x0) / 2, (y1 - y0) / 2, 0.02)
    _block(spec, "lab_table", "lab_table", ((x0 + x1) / 2, (y0 + y1) / 2, -0.02), half, collides=True)
    for i, (leg_x, leg_y) in enumerate(((x0, y0), (x0, y1), (x1, y0), (x1, y1))):
        inward = (leg_x - np.sign(leg_x) * 0.05, leg_y - np.sign(leg_y) * 0.05, (z0 - 0.04) / 2)
        _block(spec, f"lab_leg{i}", "lab_metal", inward, (0.03, 0.03, (-0.04 - z0) / 2))


def _posters(spec: mujoco.MjSpec, rng: np.random.Generator, places: Sequence[tuple[float, float, float, str]]) -> None:
    """One poster of its own at each (x, y, z, facing)."""
    for i, (x, y, z, facing) in enumerate(places):
        add_textured_material(spec, f"lab_poster{i}", textures.poster(rng), specular=0)
        _panel(spec, f"lab_poster{i}", f"lab_poster{i}", (x, y, z), (0.5, 0.65), facing)


def _light(
    spec: mujoco.MjSpec,
    name: str,
    position: Sequence[float],
    target: Sequence[float],
    diffuse: Sequence[float],
    shadow: bool = False,
) -> None:
    """A lamp at `position` shining at `target` (m)."""
    direction = np.subtract(target, position)
    spec.worldbody.add_light(
        name=name, pos=list(position), dir=direction / np.linalg.norm(direction), diffuse=list(diffuse),
        specular=[0.2 * c for c in diffuse], ambient=[0, 0, 0], cutoff=80, exponent=1, castshadow=shadow,
    )  # fmt: skip
