"""Other cameras and another look for episodes that are rendered again; what happened in them stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from armworld.evaluation.files import plain
from armworld.types import check_numbers

if TYPE_CHECKING:
    from armworld.envs.cameras import Placement
    from armworld.envs.randomization import Randomizer

STREAM = 3  # of the episode's seed: apart from the environment's and the behaviour's draws
OBJECT_LOOK = ("hue", "saturation", "value")  # of an object's draws; size, mass and friction belong to its physics
LOOK = ("lights", "tints", "surfaces")


@dataclass(frozen=True, kw_only=True)
class Variation:
    """How far each episode's view is drawn around the recorded lab's rig; all zeros keep the recorded view.

    Attributes:
        vary_azimuth: Plus or minus, degrees (at most 180) about the point looked at, uniform. As all of these, for the
            exterior cameras, once per episode.
        vary_elevation: Plus or minus, degrees; the camera stays within 89 of the horizontal.
        vary_distance: Plus or minus, as a fraction of the distance, below 1.
        vary_fov: Plus or minus, degrees; less than the field of view itself.
        vary_look_at: Plus or minus, m per axis (at most 1), of the point looked at.
        looks: Light, surfaces and colours drawn as at this variation level.
        view_seed: With the episode's seed it draws all of the above.
    """

    vary_azimuth: float = 0.0
    vary_elevation: float = 0.0
    vary_distance: float = 0.0
    vary_fov: float = 0.0
    vary_look_at: float = 0.0
    looks: Literal["none", "jitter", "full"] = "none"
    view_seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(self, "vary_azimuth", least=0, most=180)
        check_numbers(self, "vary_elevation", "vary_fov", least=0, most=90)
        check_numbers(self, "vary_distance", least=0, below=1)
        check_numbers(self, "vary_look_at", least=0, most=1)
        check_numbers(self, "view_seed", least=0)

    @property
    def varies(self) -> bool:
        """Whether anything is drawn."""
        return self.looks != "none" or any(getattr(self, name) for name in RANGES)

    def settings(self) -> dict[str, Any]:
        """What decides the drawn views, JSON-able; empty where nothing varies."""
        return {field.name: asdict(self)[field.name] for field in fields(Variation)} if self.varies else {}


def check_rigs(config: Variation, rigs: Mapping[str, Placement]) -> None:
    """ValueError where a range, drawn around one of these rigs, could end at a view that no camera has."""
    for name, rig in rigs.items():
        for sign in (-1, 1):
            try:
                replace(rig, elevation=rig.elevation + sign * config.vary_elevation)
                replace(rig, fovy=rig.fovy + sign * config.vary_fov)
            except ValueError as error:
                raise ValueError(
                    f"vary_elevation {config.vary_elevation:g} and vary_fov {config.vary_fov:g} are too wide for the "
                    f"{name} camera (elevation {rig.elevation:g}, field of view {rig.fovy:g}): {error}"
                ) from error


RANGES = tuple(field.name for field in fields(Variation) if field.name.startswith("vary_"))


def draw_view(config: Variation, randomizer: Randomizer, recorded: dict[str, Any], seed: int) -> dict[str, Any]:
    """The recorded variation of an episode with other cameras and, as asked, another look.

    Args:
        config: How far.
        randomizer: Of the recorded scene.
        recorded: The episode's own draws (`draws["variation"]`).
        seed: The episode's.

    Returns:
        Draws for `randomizer.apply`, JSON-able. The same arguments give the same draws.
    """
    from armworld.envs.randomization import LEVELS

    base = LEVELS[config.looks if config.looks != "none" else "jitter"]
    assert base is not None
    level = replace(
        base,
        azimuth=config.vary_azimuth,
        elevation=config.vary_elevation,
        fovy=config.vary_fov,
        distance=(1 - config.vary_distance, 1 + config.vary_distance),
        look_at=config.vary_look_at,
        absent=0.0,
    )
    drawn = randomizer.draw(np.random.default_rng([seed, STREAM, config.view_seed]), level)
    view = recorded | {"cameras": drawn["cameras"]}
    if config.looks != "none":
        view |= {name: drawn[name] for name in LOOK}
        view["objects"] = {name: _recoloured(recorded, drawn, name) for name in recorded["present"]}
    return plain(view)


def _recoloured(recorded: dict[str, Any], drawn: dict[str, Any], name: str) -> dict[str, Any]:
    """An object's recorded draws with the colours of the new ones."""
    physics = recorded.get("objects", {}).get(name, {"size": 1.0, "mass": 1.0, "friction": 1.0})
    return {**physics, **{key: drawn["objects"][name][key] for key in OBJECT_LOOK}}
