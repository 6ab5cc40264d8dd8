"""The cameras of a sweep: a grid or a Sobol sequence of offsets from the lab's own rig."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import qmc

from armworld.envs.cameras import Placement
from armworld.types import check_name

MOST_VIEWS = 2000


@dataclass(frozen=True)
class Views:
    """Where the camera goes, as offsets from the lab's own place of it.

    An axis is values `A,B,C`, a range `LOW:HIGH:COUNT` (both ends included) or one value. A Sobol sequence takes the
    lowest and the highest value of each axis.

    Attributes:
        azimuth: Turned about the scene (degrees, counter-clockwise from above).
        elevation: Raised (degrees).
        distance: Distance as a factor.
        fov: Vertical field of view, widened (degrees).
        look_x: Shift of the point looked at along the base's x (m).
        look_y: The same along y.
        look_z: The same along z.
        design: grid (every combination) or sobol.
        points: Cameras of a Sobol sequence.
    """

    azimuth: str = "-90:90:7"
    elevation: str = "0"
    distance: str = "1"
    fov: str = "0"
    look_x: str = "0"
    look_y: str = "0"
    look_z: str = "0"
    design: Literal["grid", "sobol"] = "grid"
    points: int = 32


AXES = ("azimuth", "elevation", "distance", "fov", "look_x", "look_y", "look_z")
NEUTRAL: dict[str, float] = dict.fromkeys(AXES, 0.0) | {"distance": 1.0}
SHORT = {"azimuth": "az", "elevation": "el", "distance": "d", "fov": "fov", "look_x": "x", "look_y": "y", "look_z": "z"}
UNITS = {"azimuth": "°", "elevation": "°", "distance": "×", "fov": "°", "look_x": " m", "look_y": " m", "look_z": " m"}


@dataclass(frozen=True)
class View:
    """One camera.

    Attributes:
        name: Of its folder, from the offsets that vary.
        offsets: Every axis' offset from the rig.
        placement: Where it stands.
    """

    name: str
    offsets: dict[str, float]
    placement: Placement

    @property
    def is_rig(self) -> bool:
        """Whether it is the lab's own camera."""
        return self.offsets == NEUTRAL

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return {"name": self.name, "offsets": self.offsets, "placement": self.placement.as_dict()}


def parse_axis(name: str, text: str) -> list[float]:
    """The values of `A,B,C`, `LOW:HIGH:COUNT` or one number, each once."""
    try:
        if ":" in text:
            low, high, count = text.split(":")
            if int(count) < 1:
                raise ValueError
            values = np.linspace(float(low), float(high), int(count)).tolist()
        else:
            values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{name} {text!r}: expected values A,B,C, a range LOW:HIGH:COUNT or one number") from error
    if not np.isfinite(values).all():
        raise ValueError(f"{name} {text!r}: the values must be finite")
    return list(dict.fromkeys(round(value, 6) + 0.0 for value in values))  # no -0.0


def make_views(config: Views, rig: Placement, seed: int = 0) -> list[View]:
    """The cameras, the rig's own among them (added in front where the design leaves it out).

    Raises:
        ValueError: A malformed axis, too many cameras, or a camera that cannot be placed.
    """
    check_name("design", config.design, ("grid", "sobol"))
    values = {axis: parse_axis(axis, getattr(config, axis)) for axis in AXES}
    varying = [axis for axis in AXES if len(values[axis]) > 1]
    count = int(np.prod([len(v) for v in values.values()])) if config.design == "grid" else config.points
    if not 1 <= count <= MOST_VIEWS:
        raise ValueError(f"expected 1 to {MOST_VIEWS} cameras, got {count}")
    rows: list[dict[str, float]]
    if config.design == "grid":
        rows = [dict(zip(AXES, row, strict=True)) for row in itertools.product(*values.values())]
    else:
        rows = _sobol(values, varying, count, seed)
    if NEUTRAL not in rows:
        rows.insert(0, dict(NEUTRAL))
    names = [_name(row, varying) for row in rows]
    return [View(name, row, _placed(rig, row)) for name, row in zip(names, rows, strict=True)]


def _sobol(values: dict[str, list[float]], varying: list[str], count: int, seed: int) -> list[dict[str, float]]:
    if not varying:
        raise ValueError("a Sobol design needs at least one axis with more than one value, e.g. --azimuth -60,60")
    power = max(0, int(np.ceil(np.log2(count))))
    unit = qmc.Sobol(len(varying), rng=np.random.default_rng(seed)).random_base2(power)[:count]
    low, high = ([pick(values[axis]) for axis in varying] for pick in (min, max))
    fixed = {axis: axis_values[0] for axis, axis_values in values.items()}
    drawn = np.round(qmc.scale(unit, low, high), 3).tolist()
    return [fixed | dict(zip(varying, row, strict=True)) for row in drawn]


def _name(row: dict[str, float], varying: list[str]) -> str:
    if row == NEUTRAL:
        return "rig"
    told = [axis for axis in AXES if axis in varying or row[axis] != NEUTRAL[axis]]
    return "_".join(
        f"{SHORT[axis]}{row[axis]:g}" if axis == "distance" else f"{SHORT[axis]}{row[axis]:+g}" for axis in told
    )


def _placed(rig: Placement, row: dict[str, float]) -> Placement:
    x, y, z = rig.look_at
    return Placement(
        azimuth=rig.azimuth + row["azimuth"],
        elevation=rig.elevation + row["elevation"],
        distance=rig.distance * row["distance"],
        look_at=(x + row["look_x"], y + row["look_y"], z + row["look_z"]),
        fovy=rig.fovy + row["fov"],
    )


def label(view: dict[str, Any] | View, among: list[str]) -> str:
    """A short label from the offsets of the axes in `among`: `az +30°, el −10°`."""
    offsets = view.offsets if isinstance(view, View) else view["offsets"]
    told = [
        f"{SHORT[axis]} {UNITS[axis]}{offsets[axis]:g}"
        if axis == "distance"
        else f"{SHORT[axis]} {offsets[axis]:+g}{UNITS[axis]}"
        for axis in among
    ]
    return ", ".join(told) or "rig"


def varying_axes(views: list[View]) -> list[str]:
    """The axes in which the cameras differ."""
    return [axis for axis in AXES if len({view.offsets[axis] for view in views}) > 1]
