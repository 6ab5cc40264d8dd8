"""Variation between episodes: camera, light, textures, objects, written into the compiled model's arrays.

`Randomizer.draw` draws numbers, ready for JSON; `Randomizer.apply` brings the scene to them. The draws alone, with
the physics state, give an image again. Levels: "none" is the scene as compiled, "jitter" what differs between two
days in one laboratory, "full" what differs between laboratories.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from armworld.envs.cameras import Placement, place_camera
from armworld.envs.simulator import Simulator
from armworld.sim_assets import textures

Range = tuple[float, float]
Draws = dict[str, Any]


@dataclass(frozen=True)
class Level:
    """How far each quantity varies: +- around the compiled scene, or a (low, high) factor.

    Attributes:
        azimuth, elevation, fovy: +- degrees of the exterior cameras; `fovy` of the wrist camera too.
        distance: Factor of the exterior cameras' distance.
        look_at: +- m, per axis; the wrist camera moves by a tenth of it.
        light: Factor of each light's colour, drawn per light, and +-10 % of that per channel.
        light_shift: +- m of each light's position.
        tint: Factor per channel of every lab material's colour.
        surfaces: Draw new textures for table, walls and floor.
        colour: +- of an object's hue (1 = the whole circle) and, as a fraction, of its saturation and value.
        size, mass, friction: Factors per object; a larger object is also heavier by its volume.
        start_yaw: +- rad of the arm's yaw at the start.
        absent: Probability that a bystander is left out.
    """

    azimuth: float
    elevation: float
    fovy: float
    distance: Range
    look_at: float
    light: Range
    light_shift: float
    tint: Range
    surfaces: bool
    colour: float
    size: Range
    mass: Range
    friction: Range
    start_yaw: float
    absent: float


LEVELS: dict[str, Level | None] = {
    "none": None,
    "jitter": Level(
        azimuth=3, elevation=2, fovy=1.5, distance=(0.97, 1.03), look_at=0.015, light=(0.9, 1.1), light_shift=0.1,
        tint=(0.95, 1.05), surfaces=False, colour=0.02, size=(0.97, 1.03), mass=(0.9, 1.1), friction=(0.9, 1.1),
        start_yaw=0.1, absent=0.0,
    ),
    "full": Level(
        azimuth=15, elevation=7, fovy=3, distance=(0.95, 1.2), look_at=0.04, light=(0.55, 1.25), light_shift=0.4,
        tint=(0.7, 1.1), surfaces=True, colour=0.5, size=(0.92, 1.06), mass=(0.6, 1.5), friction=(0.8, 1.2),
        start_yaw=0.4, absent=0.3,
    ),
}  # fmt: skip
SURFACES = ("lab_table", "lab_wall", "lab_floor")
# pattern -> the image from (generator, colour, other colour, size in pixels)
SURFACE_PATTERNS = {
    "wood": lambda rng, colour, other, size: textures.wood(rng, colour, size=size),
    "plaster": lambda rng, colour, other, size: textures.plaster(rng, colour, size=size),
    "carpet": lambda rng, colour, other, size: textures.carpet(rng, colour, size=size),
    "bricks": lambda rng, colour, other, size: textures.bricks(rng, colour, size=size),
    "checker": lambda rng, colour, other, size: textures.checker(colour, other, size=size),
    "stripes": lambda rng, colour, other, size: textures.stripes(colour, other, size=size),
    "perforated": lambda rng, colour, other, size: textures.perforated(colour, size=size),
}
# Arrays that `apply` writes to; each draw starts from their compiled values.
_WRITTEN = (
    "cam_pos", "cam_quat", "cam_fovy", "light_pos", "light_diffuse", "mat_rgba", "tex_data", "mesh_vert",
    "geom_size", "geom_pos", "geom_aabb", "geom_rbound", "geom_friction", "geom_group", "bvh_aabb",
    "body_mass", "body_subtreemass", "body_inertia", "body_ipos", "body_invweight0", "dof_invweight0",
    "body_gravcomp",
)  # fmt: skip
_HIDDEN_GROUP = 5  # a geom group that the renderer leaves out


def _factor(rng: np.random.Generator, bounds: Range, size: int | None = None) -> Any:
    drawn = rng.uniform(*bounds, size=size)
    return float(drawn) if size is None else drawn.tolist()


class Randomizer:
    """Varies one simulator's scene.

    Args:
        sim: The scene.
        level: A key of `LEVELS`.
        bystanders: Objects that the task does not need and a level may leave out.

    Attributes:
        rigs: Placement of each exterior camera before variation; entries may be replaced.
    """

    def __init__(self, sim: Simulator, level: str, bystanders: tuple[str, ...]):
        self._sim, self._model = sim, sim.model
        self.level = LEVELS[level]
        self._name, self._bystanders = level, bystanders
        self.rigs: dict[str, Placement] = dict(sim.rigs)
        self._compiled = {name: getattr(self._model, name).copy() for name in _WRITTEN}
        self._lights = [self._model.light(i).name for i in range(self._model.nlight)]
        names = [self._model.mat(i).name for i in range(self._model.nmat)]
        self._lab_materials = [name for name in names if name.startswith("lab_")]
        self._textured: dict[str, Any] = {}

    def draw(self, rng: np.random.Generator, level: Level | None = None) -> Draws:
        """The numbers of a new episode, at this or its own level; nothing is written yet. At "none": as compiled."""
        level, objects = level or self.level, self._sim.config.objects
        if level is None:
            cameras = {name: placement.as_dict() for name, placement in self.rigs.items()}
            return {"level": self._name, "present": list(objects), "start_yaw": 0.0, "cameras": cameras}
        present = [name for name in objects if name not in self._bystanders or rng.random() >= level.absent]
        return {
            "level": self._name,
            "present": present,
            "start_yaw": float(rng.uniform(-level.start_yaw, level.start_yaw)),
            "cameras": {name: self._camera(rng, level, rig).as_dict() for name, rig in self.rigs.items()},
            "wrist": {
                "shift": rng.uniform(-level.look_at / 10, level.look_at / 10, 3).tolist(),
                "fovy": float(rng.uniform(-level.fovy, level.fovy)),
            },
            "lights": {name: self._light(rng, level) for name in self._lights},
            "tints": {name: _factor(rng, level.tint, 3) for name in self._lab_materials},
            "surfaces": {name: self._surface(rng) for name in SURFACES} if level.surfaces else {},
            "objects": {name: self._object(rng, level) for name in present},
        }

    @staticmethod
    def _camera(rng: np.random.Generator, level: Level, rig: Placement) -> Placement:
        return Placement(
            rig.azimuth + rng.uniform(-level.azimuth, level.azimuth),
            rig.elevation + rng.uniform(-level.elevation, level.elevation),
            rig.distance * rng.uniform(*level.distance),
            tuple(np.asarray(rig.look_at) + rng.uniform(-level.look_at, level.look_at, 3)),
            rig.fovy + rng.uniform(-level.fovy, level.fovy),
        )

    @staticmethod
    def _light(rng: np.random.Generator, level: Level) -> Draws:
        gain = rng.uniform(*level.light) * rng.uniform(0.9, 1.1, 3)
        shift = rng.uniform(-level.light_shift, level.light_shift, 3)
        return {"gain": gain.tolist(), "shift": shift.tolist()}

    @staticmethod
    def _surface(rng: np.random.Generator) -> Draws:
        return {
            "pattern": str(rng.choice(list(SURFACE_PATTERNS))),
            "seed": int(rng.integers(2**31)),
            "colours": (rng.uniform(0.35, 0.9, (2, 1)) + rng.uniform(-0.15, 0.15, (2, 3))).clip(0, 1).tolist(),
        }

    @staticmethod
    def _object(rng: np.random.Generator, level: Level) -> Draws:
        return {
            "hue": float(rng.uniform(-level.colour, level.colour)),
            "saturation": float(rng.uniform(1 - 0.5 * level.colour, 1)),
            "value": float(rng.uniform(1 - 0.5 * level.colour, 1)),
            "size": _factor(rng, level.size),
            "mass": _factor(rng, level.mass),
            "friction": _factor(rng, level.friction),
        }

    def apply(self, draws: Draws) -> None:
        """Bring the scene to these draws; takes effect at the next kinematics update."""
        for name in _WRITTEN:
            if name not in ("tex_data", "mesh_vert"):
                getattr(self._model, name)[:] = self._compiled[name]
        for name, placement in draws["cameras"].items():
            place_camera(self._model, name, Placement(**placement))
        self._apply_wrist(draws.get("wrist"))
        for name, light in draws.get("lights", {}).items():
            index = self._model.light(name).id
            self._model.light_diffuse[index] *= light["gain"]
            self._model.light_pos[index] += light["shift"]
        for name, tint in draws.get("tints", {}).items():
            rgba = self._model.mat(name).rgba
            rgba[:3] = np.clip(rgba[:3] * tint, 0, 1)
        self._apply_surfaces(draws.get("surfaces", {}))
        for name in self._sim.config.objects:
            self._apply_object(name, draws.get("objects", {}).get(name))
        self._sim.set_present(tuple(draws["present"]))
        for name in set(self._sim.config.objects) - set(draws["present"]):
            self._model.geom_group[self._sim.object_geoms(name)] = _HIDDEN_GROUP
            self._model.body_gravcomp[self._model.body(name).id] = 1.0  # floats where it was compiled, out of reach

    def _apply_wrist(self, draws: Draws | None) -> None:
        if draws:
            camera = self._model.camera("wrist").id
            self._model.cam_pos[camera] += draws["shift"]
            self._model.cam_fovy[camera] += draws["fovy"]

    def _apply_surfaces(self, draws: Draws) -> None:
        """Draw textures where they differ from what is there; back to the compiled ones where none is drawn."""
        changed = []
        for name in SURFACES:
            wanted = draws.get(name)
            if wanted == self._textured.get(name):
                continue
            texture = self._model.tex(name)
            start, side = int(texture.adr[0]), int(texture.height[0])
            pixels = slice(start, start + side * side * 3)
            if wanted is None:
                self._model.tex_data[pixels] = self._compiled["tex_data"][pixels]
            else:
                paint = SURFACE_PATTERNS[wanted["pattern"]]
                colour, other = (tuple(colour) for colour in wanted["colours"])
                image = paint(np.random.default_rng(wanted["seed"]), colour, other, side)
                self._model.tex_data[pixels] = image.ravel()
            self._textured[name] = wanted
            changed.append(texture.id)
        self._sim.upload(textures=changed)

    def _apply_object(self, name: str, draws: Draws | None) -> None:
        model, body = self._model, self._model.body(name).id
        size, mass, friction = (draws[key] if draws else 1.0 for key in ("size", "mass", "friction"))
        geoms = self._sim.object_geoms(name)
        for array in ("geom_size", "geom_pos", "geom_aabb", "geom_rbound"):
            getattr(model, array)[geoms] *= size
        tree = slice(model.body_bvhadr[body], model.body_bvhadr[body] + model.body_bvhnum[body])
        model.bvh_aabb[tree] *= size
        model.body_ipos[body] *= size
        model.geom_friction[geoms] *= friction
        heavier = mass * size**3
        model.body_mass[body] *= heavier
        model.body_subtreemass[body] *= heavier
        model.body_inertia[body] *= heavier * size**2
        dofs = model.joint(name).dofadr[0] + np.arange(6)
        model.body_invweight0[body] /= [heavier, heavier * size**2]
        model.dof_invweight0[dofs] /= np.repeat([heavier, heavier * size**2], 3)
        if draws:
            rgba = model.mat(name).rgba
            rgba[:3] = recolour(rgba[:3], draws["hue"], draws["saturation"], draws["value"])
        self._scale_meshes(geoms, size)

    def _scale_meshes(self, geoms: np.ndarray, size: float) -> None:
        changed = []
        for mesh in {int(i) for g, i in zip(geoms, self._model.geom_dataid[geoms], strict=True) if self._is_mesh(g)}:
            start, count = self._model.mesh_vertadr[mesh], self._model.mesh_vertnum[mesh]
            wanted = self._compiled["mesh_vert"][start : start + count] * np.float32(size)
            if not np.array_equal(self._model.mesh_vert[start : start + count], wanted):
                self._model.mesh_vert[start : start + count] = wanted
                changed.append(mesh)
        self._sim.upload(meshes=changed)

    def _is_mesh(self, geom: int) -> bool:
        return self._model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH


def recolour(rgb: np.ndarray, hue: float, saturation: float, value: float) -> np.ndarray:
    """Turn a colour [3] in [0, 1] by `hue` (1 = the whole circle) and scale its saturation and value."""
    h, s, v = colorsys.rgb_to_hsv(*(float(channel) for channel in rgb))
    return np.array(colorsys.hsv_to_rgb((h + hue) % 1.0, s * saturation, v * value))
