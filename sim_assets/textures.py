"""Procedural textures: uint8 [H, W, 3] images drawn by numpy from a seeded generator, so nothing is shipped.

Grey patterns are made to be tinted by a material's rgba (MuJoCo multiplies the two); the others carry colour.
"""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np

from armworld.types import check_name

Colour = tuple[float, float, float]


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    """Value noise in [0, 1] that tiles, float [H, W]: random values on a grid of `cells`, cubically blended."""
    grid = rng.random(cells)
    weights = []
    for length, n in zip(shape, cells, strict=True):
        at = np.arange(length) * n / length
        low = at.astype(int)
        blend = (at - low) ** 2 * (3 - 2 * (at - low))
        weights.append((low % n, (low + 1) % n, blend))
    (r0, r1, v), (c0, c1, u) = weights
    rows = grid[r0] * (1 - v[:, None]) + grid[r1] * v[:, None]
    return rows[:, c0] * (1 - u) + rows[:, c1] * u


def _shade(light: np.ndarray, colour: Colour) -> np.ndarray:
    """Grey levels [H, W] times a colour, to uint8."""
    return np.clip(light[..., None] * np.asarray(colour) * 255, 0, 255).astype(np.uint8)


def plaster(rng: np.random.Generator, colour: Colour = (1, 1, 1), size: int = 128) -> np.ndarray:
    """A rough painted surface: blotches and fine grain."""
    blotches = smooth_noise(rng, (size, size), (5, 5)) * 0.6 + smooth_noise(rng, (size, size), (17, 17)) * 0.4
    return _shade(0.78 + 0.2 * blotches + 0.04 * rng.standard_normal((size, size)), colour)


def wood(rng: np.random.Generator, colour: Colour = (1, 1, 1), planks: int = 4, size: int = 256) -> np.ndarray:
    """Planks along the columns, each with its own tone and grain."""
    grain = smooth_noise(rng, (size, size), (4, 64)) * 0.6 + smooth_noise(rng, (size, size), (16, 128)) * 0.4
    plank = np.arange(size) * planks // size
    tone = rng.uniform(0.82, 1.0, planks)[plank]
    light = tone * (0.78 + 0.3 * grain)
    light[:, np.diff(plank, append=planks) > 0] *= 0.55
    return _shade(light, colour)


def checker(colour: Colour, other: Colour, cells: int = 8, size: int = 128) -> np.ndarray:
    """A chess board."""
    index = np.arange(size) * cells // size
    odd = (index[:, None] + index) % 2
    return (np.where(odd[..., None], np.asarray(colour), np.asarray(other)) * 255).astype(np.uint8)


def stripes(colour: Colour, other: Colour, count: int = 6, slant: int = 1, size: int = 128) -> np.ndarray:
    """Slanted stripes, as on a hazard sign (`slant` 0: upright)."""
    row, column = np.mgrid[:size, :size]
    odd = ((column + slant * row) * 2 * count // size) % 2
    return (np.where(odd[..., None], np.asarray(colour), np.asarray(other)) * 255).astype(np.uint8)


def perforated(colour: Colour, holes: int = 16, size: int = 256) -> np.ndarray:
    """A plate with a square grid of holes, as on an optical table."""
    at = (np.arange(size) + 0.5) * holes / size % 1 - 0.5
    hole = at[:, None] ** 2 + at**2 < 0.14**2
    return _shade(np.where(hole, 0.35, 1.0), colour)


def bricks(rng: np.random.Generator, colour: Colour, rows: int = 8, size: int = 128) -> np.ndarray:
    """Running-bond brickwork with light mortar."""
    image = np.empty((size, size, 3), np.uint8)
    row, column = np.mgrid[:size, :size]
    course = row * rows // size
    along = (column * rows // 2 + (course % 2) * size // 2) % (size * rows // 2)
    brick = along // size
    tone = rng.uniform(0.65, 1.0, (rows, rows))[course, brick % rows]
    tone = tone * rng.uniform(0.92, 1.0, (size, size))
    image[:] = _shade(tone, colour)
    mortar = (row * rows % size < rows) | (along % size < 2 * rows)
    image[mortar] = (150, 145, 138)
    return image


def carpet(rng: np.random.Generator, colour: Colour, size: int = 128) -> np.ndarray:
    """Grainy floor covering."""
    light = 0.75 + 0.15 * smooth_noise(rng, (size, size), (6, 6)) + 0.1 * rng.standard_normal((size, size))
    return _shade(light, colour)


def poster(rng: np.random.Generator, size: int = 64) -> np.ndarray:
    """A print on the wall: a coloured ground with blocks, a disc and lines of would-be text."""
    image = np.empty((size, size, 3))
    image[:] = rng.uniform(0.1, 0.95, 3)
    row, column = np.mgrid[:size, :size] / size
    for _ in range(4):
        top, left = rng.uniform(0, 0.7, 2)
        height, width = rng.uniform(0.1, 0.5, 2)
        image[(row > top) & (row < top + height) & (column > left) & (column < left + width)] = rng.random(3)
    centre, radius = rng.uniform(0.25, 0.75, 2), rng.uniform(0.08, 0.25)
    image[(row - centre[0]) ** 2 + (column - centre[1]) ** 2 < radius**2] = rng.random(3)
    text = (row > 0.78) & (row < 0.94) & (row * 16 % 1 < 0.5) & (column > 0.1) & (column < rng.uniform(0.6, 0.9))
    image[text] = 0.08
    return (image * 255).astype(np.uint8)


def shelf_goods(rng: np.random.Generator, colour: Colour, shelves: int = 4, size: int = 128) -> np.ndarray:
    """The front of a shelf full of boxes and books, painted flat."""
    image = np.full((size, size, 3), 0.12)
    pitch = size // shelves
    for top in range(0, size, pitch):
        left = 2
        while left < size - 6:
            width = int(rng.integers(5, 22))
            height = int(rng.uniform(0.4, 0.85) * pitch)
            base = top + pitch - 4
            image[base - height : base, left : min(left + width, size - 2)] = rng.uniform(0.15, 0.9, 3)
            left += width + int(rng.integers(1, 8))
        image[top + pitch - 4 : top + pitch] = colour
    image[:, :3] = image[:, -3:] = colour
    return (image * 255).astype(np.uint8)


def cardboard(rng: np.random.Generator, size: int = 64) -> np.ndarray:
    """Brown corrugated board with a strip of tape and a label (tinted by the material)."""
    light = 0.88 + 0.08 * smooth_noise(rng, (size, size), (3, 24)) + 0.02 * rng.standard_normal((size, size))
    image = _shade(light, (1.0, 0.95, 0.88))
    middle = slice(size * 7 // 16, size * 9 // 16)
    image[:, middle] = (image[:, middle] * 0.72).astype(np.uint8)
    image[size // 8 : size * 3 // 8, size // 8 : size * 3 // 8] = 255
    image[size // 6 : size // 5, size // 6 : size // 3] = 60
    return image


PATTERNS = ("plain", "bands", "checker", "speckle", "cardboard")


def pattern(name: str, rng: np.random.Generator, size: int = 64) -> np.ndarray:
    """A grey pattern for an object's surface, to be tinted by its material; one of PATTERNS."""
    check_name("pattern", name, PATTERNS)
    if name == "cardboard":
        return cardboard(rng, size)
    light = np.ones((size, size))
    if name == "bands":
        light[size * 5 // 8 : size * 6 // 8] = 0.35
        light[size * 2 // 8 : size * 3 // 8] = 0.6
    elif name == "checker":
        index = np.arange(size) * 8 // size
        light[(index[:, None] + index) % 2 == 1] = 0.45
    elif name == "speckle":
        light -= 0.5 * (smooth_noise(rng, (size, size), (12, 12)) > 0.6)
    return _shade(light, (1, 1, 1))


def add_textured_material(
    spec: mujoco.MjSpec,
    name: str,
    image: np.ndarray,
    rgba: Sequence[float] = (1, 1, 1, 1),
    repeat: Sequence[float] = (1, 1),
    cube: bool = False,
    specular: float = 0.2,
) -> None:
    """Add a texture and a material, both called `name`; `cube` puts the (square) image on all six sides of a box."""
    height, width, _ = image.shape
    texture = spec.add_texture(name=name, nchannel=3, width=width, height=height * (6 if cube else 1))
    texture.type = mujoco.mjtTexture.mjTEXTURE_CUBE if cube else mujoco.mjtTexture.mjTEXTURE_2D
    texture.data = (np.concatenate([image] * 6) if cube else image).tobytes()
    material = spec.add_material(name=name, rgba=list(rgba), texrepeat=list(repeat), specular=specular, shininess=0.3)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
