"""Draw the low-polygon robot beside the one with the original meshes, into one picture.

pip download --no-deps gym-hil==0.1.14 && unzip gym_hil-*.whl && pip install trimesh
python -m armworld.sim_assets.compare gym_hil/assets --out docs/meshes.png
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import mujoco
import numpy as np
from PIL import Image, ImageDraw

from armworld.sim_assets import catalog
from armworld.sim_assets.derive_meshes import PARTS, load_part

SIZE = 420  # pixels per view
# look-at (m), azimuth and elevation (degrees), distance (m)
VIEWS = (
    ((0.20, 0.0, 0.42), 130, -15, 1.45),
    ((0.20, 0.0, 0.42), -60, -20, 1.45),
    ((0.36, 0.0, 0.40), 160, -10, 0.50),
    ((0.30, 0.0, 0.60), -70, -15, 0.55),
)


def robot_models(assets: Path) -> dict[str, mujoco.MjModel]:
    """The Panda with 2F-85 under plain light, with the original meshes and with ours."""
    models = {}
    for title in ("original", "armworld"):
        spec = catalog.robot_spec("robotiq_2f85")
        spec.worldbody.add_light(pos=[1.5, 1.0, 2.0], dir=[-0.6, -0.4, -0.7], castshadow=False)
        spec.worldbody.add_light(pos=[0.5, -1.5, 1.5], dir=[-0.1, 0.7, -0.5], castshadow=False)
        spec.add_texture(
            name="sky", type=mujoco.mjtTexture.mjTEXTURE_SKYBOX, builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
            rgb1=[0.45, 0.55, 0.60], rgb2=[0.30, 0.38, 0.42], width=64, height=64,
        )  # fmt: skip
        if title == "original":
            for part in PARTS:
                _use_original(spec.mesh(part.name), load_part(part, assets))
        models[title] = spec.compile()
    return models


def _use_original(mesh: mujoco.MjsMesh, full) -> None:
    mesh.file = ""
    mesh.uservert = np.asarray(full.vertices).ravel().tolist()
    mesh.userface = np.asarray(full.faces).ravel().tolist()
    mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL


def visible_faces(model: mujoco.MjModel) -> int:
    """Mesh faces drawn per frame: those of every visual mesh geom (groups 0 to 2)."""
    shown = (model.geom_type == mujoco.mjtGeom.mjGEOM_MESH) & (model.geom_group <= 2)
    return int(model.mesh_facenum[model.geom_dataid[shown]].sum())


def views(model: mujoco.MjModel) -> np.ndarray:
    """The arm at its home pose from VIEWS, side by side: uint8 [SIZE, SIZE * views, 3]."""
    data = mujoco.MjData(model)
    for joint, angle in zip(catalog.ARM_JOINTS, catalog.HOME_QPOS, strict=True):
        data.joint(joint).qpos[0] = angle
    mujoco.mj_forward(model, data)
    frames = []
    with mujoco.Renderer(model, SIZE, SIZE) as renderer:
        for look_at, azimuth, elevation, distance in VIEWS:
            camera = mujoco.MjvCamera()
            camera.lookat[:], camera.azimuth, camera.elevation, camera.distance = (
                look_at, azimuth, elevation, distance,
            )  # fmt: skip
            renderer.update_scene(data, camera)
            frames.append(renderer.render().copy())
    return np.concatenate(frames, axis=1)


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assets", type=Path, help="gym_hil/assets of the unpacked wheel")
    parser.add_argument("--out", type=Path, default=Path("docs/meshes.png"))
    arguments = parser.parse_args()
    rows = []
    for title, model in robot_models(arguments.assets).items():
        row = Image.fromarray(views(model))
        ImageDraw.Draw(row).text((12, 10), f"{title}: {visible_faces(model):,} faces", fill="white", font_size=20)
        rows.append(np.asarray(row))
    temporary = arguments.out.with_suffix(".tmp")
    Image.fromarray(np.concatenate(rows)).save(temporary, format="PNG", optimize=True)
    os.replace(temporary, arguments.out)


if __name__ == "__main__":
    main()
